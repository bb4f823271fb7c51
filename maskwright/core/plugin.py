"""What the core itself adds, through the same hooks as everybody else."""

from __future__ import annotations

from maskwright.core.hookspecs import Component, hookimpl

_STRATEGIES = "maskwright.core.masking.strategies"
_TASK = "maskwright.core.evaluation.task"
_PROTOCOL = "maskwright.core.evaluation.protocol"
_OBJECTIVE = "maskwright.core.objective"


@hookimpl
def register_maskings() -> list[Component]:
    return [
        Component("random", f"{_STRATEGIES}:RandomMasking", "Every set of tokens is equally likely.", "MAE, 2022"),
        Component("unit", f"{_STRATEGIES}:UnitMasking", "Whole units of several tokens are hidden.", "SimMIM, 2022"),
        Component("block", f"{_STRATEGIES}:BlockMasking", "A few compact boxes are hidden.", "after BEiT, 2022"),
        Component(
            "beit-block",
            "maskwright.core.masking.beit:BeitBlockMasking",
            "Rectangles of random size and shape, exact count; images only.",
            "BEiT, 2022; CAE, 2023",
        ),
        Component(
            "group",
            "maskwright.core.masking.groups:GroupMasking",
            "Small overlapping rectangles, one after the other.",
            "GMML, 2022",
        ),
        Component(
            "colour-noise",
            f"{_STRATEGIES}:ColourNoiseMasking",
            "Filtered noise: blobs (red), even spread (blue), clusters (green), coarse and fine (purple).",
            "ColorMAE, 2024",
        ),
        Component(
            "spans",
            "maskwright.core.masking.spans:SpanMasking",
            "Spans of neighbouring steps along the last axis.",
            "wav2vec 2.0, 2020",
        ),
        Component("guided", f"{_STRATEGIES}:GuidedMasking", "A score from outside decides.", "after HPM, 2023"),
    ]


@hookimpl
def register_encoders() -> list[Component]:
    return [
        Component(
            "vit",
            "maskwright.core.encoder.vit:VisionTransformer",
            "Vision transformer over visible tokens, one to three axes, any channels.",
            "ViT, 2021; MAE, 2022",
        ),
        Component(
            "sparse-convnet",
            "maskwright.core.encoder.convnet:SparseConvNet",
            "ConvNets of timm, or a plain one for images and volumes, that compute visible cells only.",
            "SparK, 2023",
        ),
        Component(
            "swin",
            "maskwright.core.encoder.swin:SwinTransformer",
            "Swin transformer on images and volumes; hidden tokens are replaced, not dropped.",
            "Swin, 2021; NeRF-MAE, 2024",
        ),
        Component(
            "outside",
            "maskwright.core.encoder.outside:OutsideEncoder",
            "Models of timm, and torch modules of your own.",
            "timm",
        ),
    ]


@hookimpl
def register_objectives() -> list[Component]:
    return [
        Component(
            "masked-reconstruction",
            f"{_OBJECTIVE}:masked_reconstruction",
            "Error of hidden tokens: MSE, L1 or smooth L1, patches standardised or not.",
            "MAE, 2022",
        ),
        Component("info-nce", f"{_OBJECTIVE}:info_nce", "Symmetric contrast over the batch.", "CLIP, 2021"),
        Component("cosine-distance", f"{_OBJECTIVE}:cosine_distance", "Scaled cosine error.", "GraphMAE, 2022"),
        Component("soft-cross-entropy", f"{_OBJECTIVE}:soft_cross_entropy", "Match a teacher's softmax.", "DINO, 2021"),
        Component("token-regression", f"{_OBJECTIVE}:token_regression", "Regress teacher features.", "data2vec, 2022"),
        Component("pairwise-ranking", f"{_OBJECTIVE}:pairwise_ranking", "Learn an order of tokens.", "HPM, 2023"),
    ]


@hookimpl
def register_tasks() -> list[Component]:
    return [
        Component("classification", f"{_TASK}:Classification", "One class a sample."),
        Component("multilabel", f"{_TASK}:MultiLabel", "Any number of classes a sample."),
        Component("regression", f"{_TASK}:Regression", "One or more numbers a sample."),
        Component("segmentation", f"{_TASK}:Segmentation", "A class for each pixel, from label rasters."),
        Component("retrieval", f"{_TASK}:Retrieval", "Samples of the same class are found by their embeddings."),
    ]


@hookimpl
def register_protocols() -> list[Component]:
    return [
        Component("knn", f"{_PROTOCOL}:Neighbours", "Vote of the nearest training features.", "after DINO, 2021"),
        Component("linear", f"{_PROTOCOL}:Linear", "Logistic or ridge regression on frozen features."),
        Component(
            "mae-linear", f"{_PROTOCOL}:BatchNormLinear", "Linear probe with BatchNorm and LARS.", "MAE, 2022, A.1"
        ),
        Component("attentive", f"{_PROTOCOL}:Attentive", "One learned query over all tokens.", "after I-JEPA, 2023"),
        Component("finetune", f"{_PROTOCOL}:FineTune", "All weights are trained on the labels.", "MAE, 2022, A.1"),
        Component("kmeans", f"{_PROTOCOL}:Clusters", "Clusters without labels, named by the training labels."),
        Component("few-shot", f"{_PROTOCOL}:FewShot", "Nearest class mean of a few examples.", "after ProtoNet, 2017"),
    ]


@hookimpl
def register_loaders() -> list[Component]:
    return [
        Component("arrays", "maskwright.core.arrays:ArrayLoader", "Arrays (.npy, .npz) and tables of numbers."),
        Component(
            "mixed", "maskwright.core.joined:MixedLoader", "Samples of several kinds, each read by its own loader."
        ),
    ]

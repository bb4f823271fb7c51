"""Heads trained by gradient: LARS, layer decay, probes, fine-tuning."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from maskwright.core.encoder import VisionTransformer
from maskwright.core.errors import ConfigError, DataError, TrainingStopped
from maskwright.core.evaluation.heads import (
    Budget,
    attentive_probe,
    batchnorm_lars_probe,
    labels_follow,
    predict_samples,
    train_model,
)
from maskwright.core.evaluation.lars import Lars
from maskwright.core.evaluation.task import Targets
from maskwright.core.evaluation.task_model import TaskModel
from maskwright.core.sample import Meta, Sample, TensorSpec, collate
from maskwright.core.trainer.optim import layer_scales, parameter_groups


def test_lars_takes_the_steps_computed_by_hand():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    bias = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Lars([weight, bias], lr=2.0, momentum=0.9, trust=0.001)
    weight.grad, bias.grad = torch.tensor([[0.0, 2.0]]), torch.tensor([0.5])
    optimizer.step()
    # g = (0, 2) * 0.001 * 5 / 2 = (0, 0.005); p = 4 - 2 * 0.005
    assert weight.tolist() == [pytest.approx([3.0, 3.99])]
    assert bias.item() == pytest.approx(1.0 - 2.0 * 0.5)  # one axis: plain momentum
    norm = (9 + 3.99**2) ** 0.5
    optimizer.step()
    mu = 0.9 * 0.005 + 0.001 * norm
    assert weight[0, 1].item() == pytest.approx(3.99 - 2 * mu)
    assert bias.item() == pytest.approx(0.0 - 2.0 * (0.9 * 0.5 + 0.5))


def test_lars_of_a_zero_tensor_follows_the_plain_gradient_and_decay_is_for_matrices_alone():
    zero, bias = torch.nn.Parameter(torch.zeros(1, 2)), torch.nn.Parameter(torch.ones(1))
    optimizer = Lars([zero, bias], lr=0.1, momentum=0.0, weight_decay=5.0)
    zero.grad, bias.grad = torch.tensor([[1.0, 0.0]]), torch.zeros(1)
    optimizer.step()
    assert zero.tolist() == [pytest.approx([-0.1, 0.0])]
    assert bias.item() == 1.0


def test_layer_decay_of_a_vit_is_maes():
    model = TaskModel(VisionTransformer(8, 4, 1, 8, 3, 2), Targets("classification", ("a", "b")))
    scales = layer_scales([name for name, _ in model.named_parameters()], 0.5)
    assert scales["encoder.patch_embed.weight"] == scales["encoder.cls_token"] == 0.5**4
    assert [scales[f"encoder.blocks.{k}.mlp.fc1.weight"] for k in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert scales["encoder.norm.weight"] == scales["head.norm.weight"] == scales["head.linear.weight"] == 1
    assert set(layer_scales(scales, None).values()) == {1.0}


def test_each_stream_of_croma_counts_its_own_depth():
    from maskwright.remote_sensing.methods.croma import CromaEncoder

    encoder = CromaEncoder(embed_dim=16, num_heads=2, optical_depth=4, sar_depth=2, fusion_depth=1)
    scales = layer_scales([f"encoder.{name}" for name, _ in encoder.named_parameters()], 0.5)
    assert scales["encoder.optical.embed.weight"] == 0.5**5
    assert scales["encoder.sar.embed.weight"] == 0.5**3
    assert scales["encoder.optical.blocks.0.attn.qkv.weight"] == 0.5**4
    assert scales["encoder.sar.blocks.1.attn.qkv.weight"] == scales["encoder.fusion.blocks.0.attn.qkv.weight"] == 0.5
    assert scales["encoder.fusion.norm.weight"] == 1


def test_an_encoder_without_blocks_is_one_group_and_every_parameter_is_in_one():
    scales = layer_scales(["encoder.embed.weight", "encoder.layers.0.weight", "head.linear.weight"], 0.5)
    assert set(scales.values()) == {1.0}
    model = TaskModel(VisionTransformer(8, 4, 1, 8, 2, 2), Targets("classification", ("a", "b")))
    groups = parameter_groups(model, 0.05, 0.75)
    assert sorted(name for group in groups for name in group["names"]) == sorted(n for n, _ in model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert (group["weight_decay"] == 0) == (parameter.ndim <= 1), name


# frozen features ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return data.images[order].astype(np.float32), data.target[order]


def test_the_batch_norm_probe_reads_digits_and_repeats_itself(digits):
    images, y = digits
    x = images.reshape(len(images), -1)
    says = batchnorm_lars_probe(x[:500], y[:500], x[500:], "classification", 10, seed=0)
    assert (says.argmax(1) == y[500:]).mean() > 0.9
    assert says.sum(1) == pytest.approx(np.ones(len(says)), abs=1e-5)
    assert np.array_equal(says, batchnorm_lars_probe(x[:500], y[:500], x[500:], "classification", 10, seed=0))
    shuffled = np.random.default_rng(1).permutation(y[:500])
    says = batchnorm_lars_probe(x[:500], shuffled, x[500:], "classification", 10, seed=0)
    assert (says.argmax(1) == y[500:]).mean() < 0.25


def test_the_probes_do_labels_and_numbers_too(digits):
    images, y = digits
    x = images.reshape(len(images), -1)
    labels = np.stack([y % 2, y > 4], axis=1).astype(np.float32)
    says = batchnorm_lars_probe(x[:500], labels[:500], x[500:], "multilabel", 2, seed=0)
    assert ((says > 0.5) == (labels[500:] > 0.5)).mean() > 0.8
    with pytest.raises(ConfigError, match="use linear for numbers"):
        batchnorm_lars_probe(x[:500], labels[:500], x[500:], "regression", 2, seed=0)

    tokens = np.random.default_rng(0).normal(size=(600, 5, 16)).astype(np.float32)
    numbers = tokens[:, :, :1].mean(1) * 100 + 1000
    says = attentive_probe(tokens[:400], numbers[:400], tokens[400:], "regression", 1, seed=0)
    error = np.abs(says - numbers[400:]).mean()
    assert error < 0.5 * np.abs(numbers[400:] - numbers[:400].mean()).mean()


def test_the_attentive_probe_finds_what_the_mean_of_the_tokens_hides():
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(600, 9, 16)).astype(np.float16)
    y = generator.integers(2, size=600)
    at = generator.integers(9, size=600)
    tokens[np.arange(600), at, 0] = 8  # marks the token that counts
    tokens[np.arange(600), at, 1] = np.where(y, 3, -3)
    says = attentive_probe(tokens[:400], y[:400], tokens[400:], "classification", 2, seed=0)
    assert (says.argmax(1) == y[400:]).mean() > 0.9
    assert np.array_equal(says, attentive_probe(tokens[:400], y[:400], tokens[400:], "classification", 2, seed=0))


# training ----------------------------------------------------------------------------------------------------------


class Memory:
    """A loader of images in memory. With `flip`, reading with a generator mirrors them, and their transform."""

    def __init__(self, images, flip=False, crs=None, jump=0):
        self.images, self.flip, self.crs, self.jump = images, flip, crs, jump
        self.spec, self.bad_files = {"image": TensorSpec("C H W", 1)}, []
        self.moved = 0

    def __len__(self):
        return len(self.images)

    def group(self, index):
        return str(index)

    def read(self, index, generator=None):
        image, transform, width = self.images[index], (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), self.images[index].shape[-1]
        window = (0, 0, *image.shape[-2:])
        if generator is not None:
            self.moved += bool(self.jump)
            window = (self.jump, 0, *image.shape[-2:])
            if self.flip and torch.rand(1, generator=generator) < 0.5:
                image, transform = image.flip(-1), (-1.0, 0.0, float(width), 0.0, -1.0, 0.0)
        return Sample({"image": image}, Meta(f"{index}.npy", str(index), index, window, self.crs, transform))


def vit(size=8, patch=2, dim=48, depth=2):
    torch.manual_seed(0)
    return VisionTransformer(size, patch, 1, dim, depth, 4)


def accuracy(model, loader, y, indices):
    return np.mean([says.argmax() == y[index] for index, says in predict_samples(model, loader, indices)])


@pytest.fixture(scope="module")
def digit_loader(digits):
    return Memory(torch.from_numpy((digits[0][:, None] - 5) / 6)), Targets(
        "classification", tuple("0123456789"), digits[1]
    )


def test_fine_tuning_learns_digits_better_than_a_head_on_random_features(digit_loader):
    loader, targets = digit_loader
    encoder = vit()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    budget = Budget(steps=200, lr=2e-3, layer_decay=None)
    tuned = train_model(encoder, targets, loader, range(400), budget, seed=0)
    frozen = train_model(encoder, targets, loader, range(400), budget, seed=0, frozen=True)
    test = range(1400, 1700)
    assert accuracy(tuned, loader, targets.values, test) > accuracy(frozen, loader, targets.values, test) + 0.2
    assert accuracy(tuned, loader, targets.values, test) > 0.6
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    for name, tensor in frozen.encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert len(tuned.losses) == 200
    assert np.mean(tuned.losses[-10:]) < np.mean(tuned.losses[:10])


def test_one_seed_gives_one_model_bit_by_bit_and_leaves_the_global_generator_alone(digit_loader):
    loader, targets = digit_loader
    torch.manual_seed(5)
    expected = torch.rand(1)
    models = []
    for seed in (3, 3, 4):
        encoder = vit()
        torch.manual_seed(5)
        models.append(train_model(encoder, targets, loader, range(64), Budget(steps=5), seed).state_dict())
        assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert any(not torch.equal(models[0][name], models[2][name]) for name in models[0])


def test_labels_and_numbers_are_learned_in_their_own_units(digit_loader):
    loader, _ = digit_loader
    means = loader.images.mean((1, 2, 3)).numpy() * 1000 + 5000
    numbers = Targets("regression", ("brightness",), means[:, None].astype(np.float64))
    model = train_model(vit(), numbers, loader, range(300), Budget(steps=100, lr=2e-3), seed=0)
    says = np.array([value[0] for _, value in predict_samples(model, loader, range(300, 500))])
    assert np.abs(says - means[300:500]).mean() < 0.6 * np.abs(means[300:500] - means[:300].mean()).mean()

    bright = np.stack([means > np.median(means), means <= np.median(means)], axis=1).astype(np.float32)
    bright[0] = np.nan
    model = train_model(
        vit(), Targets("multilabel", ("bright", "dark"), bright), loader, range(300), Budget(steps=60, lr=2e-3), 0
    )
    says = np.array([value for _, value in predict_samples(model, loader, range(300, 500))])
    assert ((says > 0.5) == (bright[300:500] > 0.5)).mean() > 0.8


def stripes(count=40, size=16):
    """Images with one bright half, left or right; labels are the bright pixels, read by the sample's georeference."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(count, size, size, dtype=torch.long)
    for number in range(count):
        edge = int(torch.randint(1, size // 4, (1,), generator=generator)) * 4
        truth[number, :, :edge] = 1
    return truth[:, None].float() + 0.1 * torch.randn(count, 1, size, size, generator=generator), truth.numpy()


@pytest.mark.parametrize("flip", [False, True])
def test_segmentation_learns_with_and_without_flips(flip):
    images, truth = stripes()
    loader = Memory(images, flip=flip, crs="EPSG:32633")

    def read(sample):
        a, _, c, *_ = sample.meta.transform
        if abs(c) > 100:
            return np.full(truth.shape[1:], -1)
        return truth[sample.meta.index][:, ::-1].copy() if a < 0 else truth[sample.meta.index]

    targets = Targets("segmentation", ("dark", "bright"), read=read, codes=(3, 7))
    assert labels_follow(targets, loader.read(0))
    model = train_model(vit(16, 4), targets, loader, range(30), Budget(steps=80, lr=3e-3), seed=0)
    found = dict(predict_samples(model, loader, range(30, 40)))
    assert found[30].shape == (2, 16, 16)
    assert np.mean([(found[i].argmax(0) == truth[i]).mean() for i in range(30, 40)]) > 0.9
    assert model.targets.codes == (3, 7)


def test_labels_that_do_not_follow_a_flip_are_never_flipped_away_from_their_image():
    images, truth = stripes()
    for crs in (None, "EPSG:32633"):  # without a georeference, and with labels that ignore it
        loader = Memory(images, flip=True, crs=crs)
        targets = Targets("segmentation", ("dark", "bright"), read=lambda sample: truth[sample.meta.index])
        assert not labels_follow(targets, loader.read(0))
        model = train_model(vit(16, 4), targets, loader, range(30), Budget(steps=80, lr=3e-3), seed=0)
        found = dict(predict_samples(model, loader, range(30, 40)))
        assert np.mean([(found[i].argmax(0) == truth[i]).mean() for i in range(30, 40)]) > 0.9


def test_a_sample_level_label_stays_with_its_window(digits):
    loader = Memory(torch.from_numpy(digits[0][:20, None]), jump=4)
    targets = Targets("classification", tuple("0123456789"), digits[1][:20])
    train_model(vit(), targets, loader, range(20), Budget(steps=10, batch_size=8), seed=0)
    assert loader.moved == 1  # noticed once, and never again


def test_few_samples_one_sample_and_bad_ones(digits):
    images = torch.from_numpy(digits[0][:6, None].copy())
    images[2] = float("nan")
    loader, targets = Memory(images), Targets("classification", tuple("0123456789"), digits[1][:6])
    model = train_model(vit(), targets, loader, range(6), Budget(steps=3), seed=0)
    assert [index for index, _ in predict_samples(model, loader, range(6))] == [0, 1, 3, 4, 5]
    train_model(vit(), targets, loader, [0], Budget(steps=2), seed=0)
    with pytest.raises(DataError, match=r"no labelled sample could be read; .*NaN"):
        train_model(vit(), targets, loader, [2], Budget(steps=2), seed=0)
    with pytest.raises(DataError, match="none of the 2 training samples"):
        train_model(vit(), Targets("classification", ("a", "b"), np.full(6, -1)), loader, [0, 1], Budget(), seed=0)


def test_a_loss_that_is_no_number_stops_with_the_files(digits):
    images = torch.full((4, 1, 8, 8), 1e30)
    targets = Targets("classification", ("a", "b"), np.array([0, 1, 0, 1]))
    encoder = vit()
    with torch.no_grad():
        encoder.patch_embed.weight.fill_(1e10)
    with pytest.raises(TrainingStopped, match=r"0\.npy.*budget\.lr"):
        train_model(encoder, targets, Memory(images), range(4), Budget(steps=2), seed=0)


def test_pixels_without_a_label_add_nothing_to_the_loss():
    model = TaskModel(vit(16, 4), Targets("segmentation", ("a", "b")))
    out = torch.randn(2, 2, 4, 4, requires_grad=True)
    truth = torch.full((2, 4, 4), -1)
    assert model.loss(out, truth).item() == 0
    truth[0, 0, 0] = 1
    expected = torch.nn.functional.cross_entropy(out[0, :, 0, 0][None], torch.tensor([1]))
    assert model.loss(out, truth).item() == pytest.approx(expected.item(), abs=1e-6)


def test_raw_outputs_have_the_promised_shapes_on_one_to_three_axes():
    for size, patch in (((32,), (4,)), ((16, 8), (4, 4)), ((8, 8, 4), (4, 4, 2))):
        encoder = VisionTransformer(size, patch, 2, 24, 1, 2)
        batch = collate([Sample({"image": torch.randn(2, *size)}, Meta("x"))] * 3)
        assert TaskModel(encoder, Targets("segmentation", tuple("abc")))(batch).shape == (3, 3, *size)
        assert TaskModel(encoder, Targets("classification", tuple("abcd")))(batch).shape == (3, 4)


def test_a_budget_that_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match=r"budget\.steps=0"):
        Budget(steps=0)
    with pytest.raises(ConfigError, match=r"budget\.layer_decay=1\.5"):
        Budget(layer_decay=1.5)
    assert Budget().peak_lr(1024, 768) == pytest.approx(2e-3)
    assert Budget(lr=0.5).peak_lr(7, 64) == 0.5

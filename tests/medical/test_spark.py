"""SparK: the checks of its sheet, its runs, and what it refuses."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import maskwright as mw
from maskwright.core.encoder import patchify
from maskwright.core.encoder.convnet import SparseConvNet
from maskwright.core.errors import ConfigError, TrainingStopped
from maskwright.core.masking import ColourNoiseMasking, Grid, RandomMasking, sample_keys
from maskwright.core.objective import standardise_patches
from maskwright.core.recipe import TrainerSection
from maskwright.core.sample import TensorSpec
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.optim import parameter_groups
from maskwright.medical.methods.spark import Decoder, SparK
from maskwright.testing import check_method, made_up_batch
from tests.conftest import write_images

TINY = SparK.presets["tiny"]["method"]


def make(**options):
    torch.manual_seed(0)
    return SparK(**{**TINY, **options})


def keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def count(module):
    return sum(p.numel() for p in module.parameters())


# the paper's numbers ----------------------------------------------------------------------------------------------


def test_numbers_of_parameters_with_resnet_50():
    """Check 5."""
    pytest.importorskip("timm")
    with torch.device("meta"):
        method = SparK(**SparK.presets["base"]["method"])
    assert method.encoder.widths == (256, 512, 1024, 2048)
    assert method.encoder.strides == (4, 8, 16, 32)
    assert count(method.encoder.module) == 23_508_032  # timm's resnet50 without its classifier
    assert count(method.decoder) == 23_183_115
    assert sum(count(fill.project) for fill in method.fills) == 6_219_168
    assert sum(count(fill.norm) for fill in method.fills) == 7_680
    assert sum(fill.embedding.numel() for fill in method.fills) == 3_840
    assert [fill.project.kernel_size for fill in method.fills] == [(1, 1), (3, 3), (3, 3), (3, 3)]
    assert [type(fill.norm) for fill in method.fills] == [nn.BatchNorm2d] * 4


def test_a_convnext_has_layer_norms_and_no_projection_where_widths_agree():
    pytest.importorskip("timm")
    with torch.device("meta"):
        method = SparK(**SparK.presets["convnext-small"]["method"])
    assert method.encoder.widths == (96, 192, 384, 768)
    assert isinstance(method.fills[0].project, nn.Identity)
    assert all(isinstance(fill.norm, nn.LayerNorm) and fill.norm.eps == 1e-6 for fill in method.fills)
    fill = SparK(backbone="convnext_atto", decoder_width=64).fills[0]
    x = torch.randn(6, 320, 1, 1)
    assert torch.allclose(fill.norm(x).mean(1), torch.zeros(6, 1, 1), atol=1e-5)


@pytest.mark.parametrize(("shape", "visible"), [((7, 7), 20), ((12, 12), 58), ((2, 2), 2), ((1, 2), 1), ((2, 3, 2), 5)])
def test_the_visible_count_is_rounded(shape, visible):
    """round(49 * 0.4) = 20, where the core's int would keep 19."""
    method = make()
    mask = method.mask(Grid(shape), keys(3))
    assert mask.visible.shape == (3, visible)
    assert not torch.equal(mask.hidden[0], mask.hidden[1]) or visible == 1 or shape == (2, 2)


def test_other_strategies_count_by_themselves():
    assert make(masking=RandomMasking(visible=3)).mask(Grid((7, 7)), keys(1)).visible.shape == (1, 3)
    assert make(masking=ColourNoiseMasking(0.6)).mask(Grid((7, 7)), keys(1)).visible.shape == (1, 19)
    assert make(masking=RandomMasking(0.9)).mask(Grid((2, 2)), keys(1)).visible.shape == (1, 1)
    with pytest.raises(ConfigError, match="hidden"):
        make(masking=RandomMasking(0.9)).mask(Grid((1, 1)), keys(1))


def test_initialisation():
    torch.manual_seed(0)
    decoder = Decoder(2, [64, 32, 16], 3)
    up = decoder.blocks[0].up.weight
    assert up.std().item() == pytest.approx((2 / (64 * 16)) ** 0.5, rel=0.05)
    assert decoder.blocks[0].conv1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert decoder.blocks[0].up.bias.eq(0).all()
    assert decoder.project.bias.eq(0).all()
    embedding = make(widths=(16, 32, 512)).fills[0].embedding
    assert embedding.abs().max() <= 0.02
    assert embedding.std() > 0.008


def test_no_decay_for_embeddings_norms_and_biases():
    groups = parameter_groups(make(), 0.04)
    still = {name for group in groups if not group["decays"] for name in group["names"]}
    assert {"fills.0.embedding", "fills.2.norm.weight", "decoder.blocks.0.up.bias"} <= still
    assert "fills.0.project.weight" not in still


# the loss ---------------------------------------------------------------------------------------------------------


def test_loss_is_that_of_hidden_cells_alone():
    """By hand from the decoder's picture; its gradient is exactly 0 at visible cells (check 4)."""
    method = make().train()
    batch, drawn = made_up_batch(method.encoder.inputs, 3, 32), keys(3)
    seen = []
    method.decoder.register_forward_hook(lambda module, given, found: seen.append(found.requires_grad_()) or found)
    step = method(batch, drawn)
    (picture,) = seen
    picture.retain_grad()
    step.loss.backward()
    tokens = method.encoder.tokenize(batch)
    mask = method.mask(tokens.grid, drawn)
    found = patchify(picture.detach(), (8, 8))
    target = (tokens.values - tokens.values.mean(-1, keepdim=True)) / (
        tokens.values.var(-1, keepdim=True) + 1e-6
    ).sqrt()
    error = (found - target).square().mean(-1)
    wanted = (error * mask.hidden).sum() / mask.hidden.sum()
    assert step.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    gradient = patchify(picture.grad, (8, 8))
    assert gradient[~mask.hidden].eq(0).all()
    assert gradient[mask.hidden].ne(0).any(-1).all()
    assert torch.allclose(standardise_patches(tokens.values), target, atol=1e-4)


def test_the_decoder_adds_each_map_before_its_block():
    torch.manual_seed(0)
    decoder = Decoder(2, [8, 4, 2], 1).eval()
    maps = [torch.randn(1, 8, 2, 2), torch.randn(1, 4, 4, 4)]
    x = decoder.blocks[0](maps[0])
    assert torch.equal(decoder(maps), decoder.project(decoder.blocks[1](x + maps[1])))
    assert decoder(maps[:1]).shape == (1, 1, 8, 8)
    assert not torch.equal(decoder(maps[:1]), decoder(maps))


# contracts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 32),
        ({"dims": "C D H W", "in_chans": 1, "norm_pix_loss": False}, 16),
        ({"backbone": "convnext_atto", "scales": 4, "decoder_width": 32, "drop_path": 0.1}, 64),
        ({"backbone": "efficientnet_b0", "scales": 4, "decoder_width": 32}, 64),
        ({"backbone": "regnety_002", "scales": 3, "decoder_width": 32, "in_chans": 2}, 64),
    ],
)
def test_contract(options, size):
    method = make(**options)
    check_method(lambda: make(**options), made_up_batch(method.encoder.inputs, 4, size), steps=10)


def test_a_preview_leaves_the_statistics_alone():
    method = make().train()
    batch = made_up_batch(method.encoder.inputs, 2, 32)
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    panel = method.preview(batch, keys(2))["image"]
    assert all(torch.equal(buffer, before[name]) for name, buffer in method.named_buffers())
    assert method.training
    visible = ~panel.hidden[:, None].expand_as(panel.original)
    assert torch.allclose(panel.reconstruction[visible], panel.original[visible], atol=1e-5)


def test_presets_hold_the_settings_of_the_paper():
    base, convnext = SparK.presets["base"]["trainer"], SparK.presets["convnext-base"]["trainer"]
    assert base["betas"] == (0.9, 0.95)
    assert convnext["betas"] == (0.9, 0.999)
    assert base["base_lr"] * 4096 / 256 == pytest.approx(3.2e-3)
    assert base["warmup"] * base["epochs"] == 40
    known = set(TrainerSection.model_fields) | {"optimizer"}
    assert all(set(sections["trainer"]) <= known for sections in SparK.presets.values())


# what it reads ----------------------------------------------------------------------------------------------------


def test_options_follow_the_data():
    volume = {"ct": TensorSpec("C D H W", 1), "label": TensorSpec("K")}
    assert SparK.options_for(volume) == {"input_name": "ct", "dims": "C D H W", "in_chans": 1}
    with pytest.raises(ConfigError, match=r"dimensions C H W or C D H W, but the data hold wave"):
        SparK.options_for({"wave": TensorSpec("C T", 1)})
    with pytest.raises(ConfigError, match=r"Set method.input_name=a"):
        SparK.options_for({"a": TensorSpec("C H W", 1), "b": TensorSpec("C H W", 1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_width": 20}, "multiple of it"),
        ({"stem_stride": 3}, "power of two"),
        ({"scales": 4}, "has 3 maps"),
        ({"backbone": "resnet18", "dims": "C D H W"}, "images only"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_an_input_of_one_cell_or_a_broken_size():
    method = make()
    with pytest.raises(ConfigError, match="single cell of 8 positions"):
        method(made_up_batch(method.encoder.inputs, 2, 8), keys(2))
    with pytest.raises(ConfigError, match="does not divide"):
        method(made_up_batch(method.encoder.inputs, 2, 20), keys(2))


# runs -------------------------------------------------------------------------------------------------------------


FAST = {
    "batch_size": 4,
    "log_every": 1,
    "precision": "32",
    "accelerator": "cpu",
    "warmup": 0.0,
    "min_lr_ratio": 1.0,
    "checkpoint_steps": 1,
}


def state(run):
    return load_file(str(run.checkpoints / "last.safetensors"))


def test_a_resumed_run_has_the_weights_of_a_whole_one(tmp_path, monkeypatch):
    from maskwright.core.trainer.module import PretrainModule

    data = write_images(tmp_path / "images", count=12, size=32)
    whole = mw.pretrain("spark", data=data, preset="tiny", run=tmp_path / "whole", max_steps=6, **FAST)

    finish = PretrainModule._finish_step

    def stop_at_three(self):
        if self.step == 3:
            raise TrainingStopped("halt")
        finish(self)

    monkeypatch.setattr(PretrainModule, "_finish_step", stop_at_three)
    with pytest.raises(TrainingStopped, match="halt"):
        mw.pretrain("spark", data=data, preset="tiny", run=tmp_path / "half", max_steps=6, **FAST)
    monkeypatch.setattr(PretrainModule, "_finish_step", finish)
    assert checkpoints.read(tmp_path / "half" / "checkpoints" / "last.safetensors").step == 3
    resumed = mw.resume(tmp_path / "half")
    a, b = state(whole), state(resumed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)

    encoder = resumed.load_encoder()
    assert isinstance(encoder, SparseConvNet)
    assert json.loads((resumed.path / "encoder.json").read_text())["options"]["widths"] == [16, 32, 64]
    assert not any(name.startswith(("fills", "decoder")) for name in encoder.state_dict())


def test_batch_norms_survive_a_step_that_is_refused(tmp_path, monkeypatch):
    """The forward pass of the refused step fills running statistics with NaN; the state after it is the one before."""
    data = write_images(tmp_path / "images", count=12, size=32)
    forward, calls = SparK.forward, []

    def poisoned(self, batch, drawn):
        calls.append(len(batch))
        if len(calls) == 3:
            batch = type(batch)({name: x * float("nan") for name, x in batch.tensors.items()}, batch.metas)
        step = forward(self, batch, drawn)
        if len(calls) == 3:
            assert any(not buffer.isfinite().all() for buffer in self.buffers())
        return step

    monkeypatch.setattr(SparK, "forward", poisoned)
    run = mw.pretrain("spark", data=data, preset="tiny", run=tmp_path / "run", max_steps=3, max_bad_steps=1, **FAST)
    after, before = (load_file(str(run.checkpoints / f"{name}.safetensors")) for name in ("last", "previous"))
    assert len(calls) == 3
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(x.isfinite().all() for x in after.values() if x.is_floating_point())
    assert run.load_encoder().embed(made_up_batch({"image": TensorSpec("C H W", 1)}, 2, 32)).pooled.isfinite().all()


def test_the_documented_way_into_timm(tmp_path):
    timm = pytest.importorskip("timm")
    data = write_images(tmp_path / "images", count=6, size=64, channels=3)
    settings = ["method.backbone=resnet18", "method.decoder_width=32"]
    run = mw.pretrain("spark", data=data, run=tmp_path / "run", settings=settings, max_steps=2, **FAST)
    weights = load_file(str(run.path / "encoder.safetensors"))
    dense = timm.create_model("resnet18", num_classes=0)
    dense.load_state_dict({k[7:]: v for k, v in weights.items() if k.startswith("module.")})
    encoder, batch = run.load_encoder(), made_up_batch({"image": TensorSpec("C H W", 3)}, 2, 64)
    x = encoder.normalize(batch)["image"]
    assert torch.allclose(dense.eval()(x), encoder.embed(batch).pooled, atol=1e-5)

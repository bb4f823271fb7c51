"""The published contract checks: all built-in components keep them, and they find what breaks them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from maskwright.core.encoder import VisionTransformer
from maskwright.core.errors import ConfigError
from maskwright.core.host import get_host
from maskwright.core.masking import BlockMasking, ColourNoiseMasking, Grid, Masking, RandomMasking, UnitMasking, uniform
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Step
from maskwright.testing import (
    check_encoder,
    check_loader,
    check_masking,
    check_method,
    check_plugin,
    made_up_batch,
)
from tests.conftest import write_images
from tests.toy_plugin import NpyLoader, ToyMae

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
SWIN = {"patch_size": 2, "width": 12, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}

# ours keep them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", get_host().components("masking"))
def test_every_registered_masking(name):
    check_masking(get_host().component("masking", name).load())


@pytest.mark.parametrize("colour", ["red", "blue", "purple"])
def test_every_colour(colour):
    check_masking(ColourNoiseMasking(colour=colour))


def test_grids_of_the_author():
    check_masking(UnitMasking(unit=3), [Grid((6, 9)), Grid((27,))])
    check_masking(RandomMasking(0.9), [Grid((31, 1)), Grid((20,), torch.rand(6, 20, 3))])
    check_masking(BlockMasking(0.3, blocks=1, max_aspect=1.0))


def test_core_plugin(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32))
    parts = {"arrays": {"path": "x.npy"}}
    data = {"arrays": tmp_path / "x.npy", "mixed": tmp_path}
    options = {"encoder:vit": VIT, "encoder:swin": SWIN, "loader:mixed": {"parts": parts}}
    lines = check_plugin("core", options=options, data=data)
    assert any(line.startswith("encoder vit: keeps its contract") for line in lines)
    assert all("not checked" not in line for line in lines)


def test_plugin_of_a_single_file(images):
    lines = check_plugin("toy_plugin", data={"npy": images})
    assert lines == [
        "method toy-mae: keeps its contract, and so does its encoder (4 samples of loader npy)",
        "loader npy: keeps its contract",
    ]
    assert check_plugin("toy_plugin")[1] == 'loader npy: not checked: give data={"npy": PATH}'


def test_a_plugin_that_is_not_there():
    with pytest.raises(AssertionError, match='No plugin "unheard-of" is installed'):
        check_plugin("unheard-of")


def test_large_encoders_are_not_built_in_silence():
    (line,) = (line for line in check_plugin("core") if line.startswith("encoder vit"))
    assert "built without memory only: 85," in line


@pytest.mark.parametrize("positions", ["learned", "rope", "alibi", "none"])
def test_vision_transformer_on_one_to_three_axes(positions):
    for size, patch in (((24,), (4,)), ((8, 12), 4), ((4, 8, 8), (2, 4, 4))):
        options = {**VIT, "img_size": size, "patch_size": patch, "in_chans": 5, "positions": positions}
        x = torch.randn(3, 5, *size)
        batch = made_up_batch(VisionTransformer(**options).inputs, 3)
        check_encoder(lambda options=options: VisionTransformer(**options), Batch({"image": x}, batch.metas))


@pytest.mark.parametrize("name", get_host().components("masking"))
def test_every_masking_runs_in_a_method(name):
    """A method gives no guide unless it is made for one; then the refusal says so."""
    masking = get_host().component("masking", name).load()(ratio=0.5)
    batch = _toy_batch()
    if masking.needs_guide:
        with pytest.raises(ConfigError, match="score from outside"):
            ToyMae(masking=masking)(batch, torch.arange(4))
    else:
        check_method(lambda: ToyMae(masking=masking), batch)


# and breaches are found -------------------------------------------------------------------------------------------


class _Breach(Masking):
    """A masking that breaks its contract in one named way."""

    kind = ""
    uniform_marginals = True

    def score(self, grid, keys, guide=None):
        scores = uniform(keys, grid.count)
        if self.kind == "neighbours":
            return scores + uniform(keys[:1], grid.count)
        if self.kind == "global":
            return torch.rand(len(keys), grid.count)
        if self.kind == "keys":
            keys += 1
        if self.kind == "marginals":
            scores[:, 0] += 0.2
        return scores

    def check(self, grid):
        if self.kind != "accepts":
            super().check(grid)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("neighbours", "another mask alone than in a batch"),
        ("global", "another mask the second time"),
        ("keys", "another mask the second time|changes the keys"),
        ("marginals", "promises uniform_marginals, but token 0"),
        ("accepts", r"on scattered tokens: was accepted\. Raise ConfigError"),
    ],
)
def test_breaches_of_a_masking(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_masking(type("Breach", (_Breach,), {"kind": kind})())


def test_an_unchecked_ratio():
    class Unchecked(RandomMasking):
        def __init__(self, ratio=0.5):
            self.ratio = ratio

    with pytest.raises(AssertionError, match=r"Unchecked\(ratio=-0\.1\): was accepted"):
        check_masking(Unchecked)


class _Leaky(VisionTransformer):
    """Every token sees the mean of all, hidden ones included."""

    def forward(self, tokens, mask=None, fill=None):
        return super().forward(tokens, mask, fill) + tokens.values.mean()


class _Forgetful(VisionTransformer):
    """Part of its state is not saved."""

    def __init__(self, img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2):
        super().__init__(img_size, patch_size, 3, embed_dim, depth, num_heads)
        self.shift = torch.randn(16)

    def forward(self, tokens, mask=None, fill=None):
        return super().forward(tokens, mask, fill) + self.shift


class _Noisy(VisionTransformer):
    def forward(self, tokens, mask=None, fill=None):
        return nn.functional.dropout(super().forward(tokens, mask, fill), 0.5, training=True)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (_Leaky, "differs by .* alone and in a batch|hidden tokens change"),
        (_Forgetful, "weights loaded into a new encoder give another embedding"),
        (_Noisy, "gives something else the second time"),
    ],
)
def test_breaches_of_an_encoder(encoder, message):
    sample = made_up_batch(encoder(**VIT).inputs, 3, 16)
    with pytest.raises(AssertionError, match=message):
        check_encoder(lambda: encoder(**VIT), sample)


def _toy_batch():
    return made_up_batch(ToyMae().inputs, 4, 16)


def _blend(panel):
    """A reconstruction with a look at the original."""
    return dataclasses.replace(panel, reconstruction=panel.reconstruction + 0.1 * panel.original)


class _BadMethod(ToyMae):
    kind = ""

    def __init__(self, embed_dim: int = 16):
        super().__init__(embed_dim=embed_dim)
        if self.kind == "idle":
            self.spare = nn.Linear(3, 3)

    def forward(self, batch, keys):
        step = super().forward(batch, keys)
        if self.kind == "vector":
            return Step(step.loss.expand(2))
        if self.kind == "keyless":
            return Step(step.loss * (1 + self.calls), step.terms)
        if self.kind == "upwards":
            return Step(2 * step.loss.detach() - step.loss)
        if self.kind == "graph":
            return Step(step.loss, {"loss": step.loss})
        return step

    def encode(self, batch, keys):
        if self.kind == "leak":
            return super().encode(batch, keys) + batch["image"].mean((1, 2, 3))[:, None, None]
        return super().encode(batch, keys)

    def preview(self, batch, keys):
        panels = super().preview(batch, keys)
        if self.kind == "turned":
            return {name: dataclasses.replace(panel, hidden=~panel.hidden) for name, panel in panels.items()}
        if self.kind == "peek":
            return {name: _blend(panel) for name, panel in panels.items()}
        if self.kind == "name":
            return {"picture": panels["image"]}
        return panels


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vector", "must be a scalar"),
        ("keyless", "the same keys gave another loss"),
        ("upwards", "took the loss from"),
        ("graph", "must be a finite detached scalar"),
        ("leak", "hidden input changes the features of visible tokens"),
        ("turned", "hidden input changes the features of visible tokens"),
        ("peek", "made with a look at it"),
        ("name", "panels are named after inputs"),
        ("idle", r"no gradient reaches spare\.weight"),
    ],
)
def test_breaches_of_a_method(kind, message):
    method = type("BadMethod", (_BadMethod,), {"kind": kind})
    with pytest.raises(AssertionError, match=message):
        check_method(method, _toy_batch())


def test_presets_that_cannot_be_built():
    method = type("BadMethod", (_BadMethod,), {"presets": {"tiny": {"method": {"width": 3}}}})
    with pytest.raises(AssertionError, match=r'presets\["tiny"\] cannot be built'):
        check_method(method, _toy_batch())


class _BadLoader(NpyLoader):
    kind = ""

    def read(self, index, generator=None):
        sample = super().read(min(index, len(self) - 1) if self.kind == "beyond" else index, generator)
        image = sample["image"].clone()
        if self.kind == "infinite":
            image[0, 0, 0] = float("inf")
        if self.kind == "random":
            image += torch.rand(())
        if self.kind == "channels":
            image = torch.cat([image, image])
        return dataclasses.replace(sample, tensors={"image": image})

    def group(self, index):
        return "" if self.kind == "group" else super().group(index)

    def picture(self, name, tensor):
        return np.zeros((4, 4)) if self.kind == "picture" else super().picture(name, tensor)

    @classmethod
    def accepts(cls, path):
        return cls.kind == "accepts" or super().accepts(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("beyond", "samples gave one; IndexError was expected"),
        ("infinite", "holds NaN or infinity"),
        ("random", r'without a generator, gives different "image"'),
        ("channels", "has 2 channels, but its spec says 1"),
        ("group", "splits need a name"),
        ("picture", r"an RGB image \(H, W, 3\) of uint8 is wanted"),
        ("accepts", "accepts an empty folder"),
    ],
)
def test_breaches_of_a_loader(kind, message, tmp_path):
    loader = type("BadLoader", (_BadLoader,), {"kind": kind})(write_images(tmp_path / "images", 3))
    with pytest.raises(AssertionError, match=message):
        check_loader(loader)

"""Discrete targets: clusters of patches, and DALL-E's codes."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import maskwright as mw
from maskwright.core.encoder import VisionTransformer
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Statistics
from maskwright.core.masking import Grid, RandomMasking
from maskwright.core.sample import Batch, Meta
from maskwright.plugins.vision import tokenizers
from maskwright.plugins.vision.dalle import DalleTokenizer, _dalle_layers
from maskwright.plugins.vision.methods.cae import Cae
from maskwright.plugins.vision.tokenizers import KMeansTokenizer, make_tokenizer, sample_patches
from maskwright.testing import check_method
from maskwright.testing.data import BatchLoader
from tests.plugins.vision.helpers import images, keys, make


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _encoder(**options):
    return make(
        VisionTransformer, **{"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, **options}
    )


# clusters of patches -------------------------------------------------------------------------------------------------


def test_clusters_that_are_there_are_found():
    shapes = torch.randn(6, 20, generator=_generator()) * 10
    which = torch.arange(600) % 6
    patches = shapes[which] + 0.1 * torch.randn(600, 20, generator=_generator(1))
    tokenizer = KMeansTokenizer(20, 6)
    tokenizer.fit(patches, _generator())
    codes = tokenizer.ids(patches[None])[0]
    assert [len(codes[which == k].unique()) for k in range(6)] == [1] * 6
    assert len(codes.unique()) == 6
    expected = shapes - shapes.mean(1, keepdim=True)
    torch.testing.assert_close(tokenizer.values(codes[:6]), expected, atol=0.1, rtol=0)


def test_codes_are_those_of_the_nearest_centre_whatever_the_mean(monkeypatch):
    tokenizer = KMeansTokenizer(12, 16)
    patches = torch.randn(4, 50, 12, generator=_generator())
    tokenizer.fit(patches.flatten(0, 1), _generator())
    codes = tokenizer.ids(patches)
    centred = patches - patches.mean(-1, keepdim=True)
    assert torch.equal(codes, (centred[:, :, None] - tokenizer.centres).square().sum(-1).argmin(-1))
    assert torch.equal(tokenizer.ids(patches + 100 * torch.rand(4, 50, 1)), codes)
    monkeypatch.setattr(tokenizers, "CHUNK_BYTES", 7 * 4 * 16)
    assert torch.equal(tokenizer.ids(patches), codes), "in parts of seven patches"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.ids(patches), codes)


@pytest.mark.parametrize("codes", [2, 60, 128])
def test_no_code_is_empty_though_most_patches_are_blank(codes):
    patches = torch.zeros(5000, 9)
    patches[:128] = torch.randn(128, 9, generator=_generator())
    tokenizer = KMeansTokenizer(9, codes)
    tokenizer.fit(patches, _generator())
    assert torch.bincount(tokenizer.ids(patches[None])[0], minlength=codes).min() > 0


def test_the_same_seed_gives_the_same_codes():
    patches = torch.randn(3000, 10, generator=_generator())
    found = []
    for seed in (0, 0, 1):
        tokenizer = KMeansTokenizer(10, 32)
        tokenizer.fit(patches, _generator(seed))
        found.append(tokenizer.centres)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_codes_come_with_the_weights():
    tokenizer, other = KMeansTokenizer(10, 4), KMeansTokenizer(10, 4)
    tokens = _encoder().tokens_of(images()["image"])
    mask = RandomMasking(0.5)(tokens.grid, keys())
    with pytest.raises(ConfigError, match=r"call method\.prepare\(loader, generator\)"):
        other(images()["image"], tokens, mask)
    tokenizer.fit(torch.randn(100, 10, generator=_generator()), _generator())
    other.load_state_dict(tokenizer.state_dict())
    assert other.fitted
    assert torch.equal(other.centres, tokenizer.centres)
    assert not list(other.parameters())
    untouched = KMeansTokenizer(10, 4)
    untouched.load_state_dict(KMeansTokenizer(10, 4).state_dict())
    assert not untouched.fitted


def test_too_few_different_patches():
    patches = torch.randn(20, 6, generator=_generator()).repeat(50, 1)
    with pytest.raises(ConfigError, match=r"21 codes cannot be made from 20 different patches"):
        KMeansTokenizer(6, 21).fit(patches, _generator())
    with pytest.raises(ConfigError, match=r"method\.vocabulary=1 must be 2"):
        KMeansTokenizer(6, 1)


def test_patches_of_random_samples(monkeypatch):
    """At most so many samples and patches, in network units; what cannot be read is left out."""

    class Broken(BatchLoader):
        def read(self, index, generator=None):
            if index == 3:
                raise DataError("3.png", "is no image")
            return super().read(index, generator)

    encoder = _encoder()
    batch = images(10)
    encoder.fit_normalizers({"image": Statistics([5.0] * 3, [2.0] * 3, [0.0] * 3, [1.0] * 3, 1)})
    loader = Broken(batch, encoder.inputs)
    found = sample_patches(loader, encoder, _generator())
    assert found.shape == (9 * 16, 192)
    known = encoder.tokenize(batch).values
    matches = (found[:, None] == known.flatten(0, 1)).all(-1)
    assert matches.sum(1).tolist() == [1] * 144
    assert not matches[:, 48:64].any(), "sample 3"
    monkeypatch.setattr(tokenizers, "FIT_PATCHES", 20)
    monkeypatch.setattr(tokenizers, "FIT_SAMPLES", 5)
    assert len(sample_patches(loader, encoder, _generator(4))) in (16, 20)


# DALL-E's discrete VAE -----------------------------------------------------------------------------------------------


def _state(width=8, vocabulary=24, seed=0):
    """Random weights in the published layout; the last bias makes many codes likely."""
    generator = _generator(seed)
    with torch.device("meta"):
        shapes = {f"blocks.{name}": x.shape for name, x in _dalle_layers(width, vocabulary).state_dict().items()}
    scale = {4: 0.3, 1: 0.1}
    state = {name: torch.randn(shape, generator=generator) * scale[len(shape)] for name, shape in shapes.items()}
    state["blocks.output.conv.b"] -= _reference(state, _pixels()["image"]).mean((0, 2, 3))
    return state


def _written(path, state=None):
    save_file(state or _state(), path)
    return path


def _pixels(count=4, size=32, seed=0):
    x = torch.randint(0, 256, (count, 3, size, size), generator=_generator(seed)).float()
    return Batch({"image": x}, [Meta(str(i), index=i) for i in range(count)])


def _reference(state, x):
    """The published computation, from names and formulas."""

    def conv(name, x):
        w = state[f"{name}.w"]
        return F.conv2d(x, w, state[f"{name}.b"], padding=w.shape[-1] // 2)

    x = conv("blocks.input", 0.8 * x / 255 + 0.1)
    for group in range(1, 5):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            y = x
            for number in range(1, 5):
                y = conv(f"{name}.res_path.conv_{number}", y.relu())
            x = (conv(f"{name}.id_path", x) if f"{name}.id_path.w" in state else x) + y / 64
        if group < 4:
            x = F.max_pool2d(x, 2)
    return conv("blocks.output.conv", x.relu())


def test_dalle_codes_against_the_formula(tmp_path):
    state = _state()
    tokenizer = DalleTokenizer(_written(tmp_path / "e.safetensors", state), _encoder())
    batch = _pixels()
    expected = _reference(state, batch["image"])
    assert expected.shape == (4, 24, 4, 4)
    assert len(expected.argmax(1).unique()) > 10
    torch.testing.assert_close(tokenizer.blocks(0.8 * batch["image"] / 255 + 0.1), expected)
    assert torch.equal(tokenizer.codes(batch["image"], (4, 4)), expected.argmax(1))
    tokens = _encoder().tokens_of(batch["image"])
    mask = RandomMasking(0.5)(tokens.grid, keys())
    assert torch.equal(tokenizer(batch["image"], tokens, mask), expected.argmax(1).flatten(1).gather(1, mask.masked))
    assert not any(p.requires_grad for p in tokenizer.parameters())


def test_dalle_has_the_published_size_and_takes_pt_files(tmp_path):
    with torch.device("meta"):
        layers = _dalle_layers(256, 8192)
    assert sum(p.numel() for p in layers.parameters()) == 53_786_240
    assert len(layers.state_dict()) == 74
    assert layers.group_2.block_1.id_path.w.shape == (512, 256, 1, 1)
    torch.save(_state(), tmp_path / "e.pt")
    tokenizer = make_tokenizer(str(tmp_path / "e.pt"), _encoder(), 8192)
    assert tokenizer.vocabulary == 24
    assert tokenizer.label == "DALL-E's discrete VAE, 24 codes (e.pt)"


def test_dalle_sees_eight_pixels_a_token(tmp_path):
    """112 pixels for 14 x 14 tokens of 16 pixels: a picture of doubled pixels has the codes of the small one."""
    tokenizer = DalleTokenizer(_written(tmp_path / "e.safetensors"), _encoder())
    seen = []
    tokenizer.blocks.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    small = F.interpolate(_pixels(2, 7)["image"], size=(112, 112), mode="bicubic").clamp(0, 255)
    large = F.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 255)
    assert tokenizer.codes(large, (14, 14)).shape == (2, 14, 14)
    tokenizer.codes(small, (14, 14))
    assert seen[0].shape == seen[1].shape == (2, 3, 112, 112)
    torch.testing.assert_close(seen[0], seen[1], atol=0.02, rtol=0)
    torch.testing.assert_close(seen[1], 0.8 * small / 255 + 0.1)


def test_dalle_inputs_that_are_refused(tmp_path):
    path = _written(tmp_path / "e.safetensors")
    with pytest.raises(ConfigError, match=r"images of 3 channels.*not 5 channels on 2 axes.*tokenizer=kmeans"):
        DalleTokenizer(path, _encoder(in_chans=5))
    encoder = _encoder()
    tokenizer = DalleTokenizer(path, encoder)
    tokenizer.prepare(BatchLoader(_pixels(), encoder.inputs), encoder, _generator())
    for change in (lambda x: x / 255, lambda x: x - 100, lambda x: x * 10):
        batch = Batch({"image": change(_pixels()["image"])}, _pixels().metas)
        with pytest.raises(ConfigError, match=r"RGB images of 0 to 255, but the data lie between"):
            tokenizer.prepare(BatchLoader(batch, encoder.inputs), encoder, _generator())


def test_dalle_files_that_are_refused(tmp_path):
    def refused(state, words):
        path = tmp_path / "e.safetensors"
        save_file(state, path)
        with pytest.raises(DataError, match=words):
            DalleTokenizer(path, _encoder())

    state = _state()
    refused(
        {k: v for k, v in state.items() if "group_3.block_2.res_path.conv_4.b" not in k}, "no blocks.group_3.block_2"
    )
    refused({**state, "blocks.group_5.w": torch.zeros(1)}, "an unknown blocks.group_5.w")
    wrong = {**state, "blocks.group_1.block_1.res_path.conv_2.w": torch.zeros(2, 2, 1, 1)}
    refused(wrong, r"res_path.conv_2.w of shape \(2, 2, 1, 1\) instead of \(2, 2, 3, 3\)")
    refused({"head.weight": torch.zeros(3)}, "holds head.weight.*no blocks.input.w")
    with pytest.raises(DataError, match=r"no such file.*tokenizer=kmeans"):
        DalleTokenizer(tmp_path / "nothing.pt", _encoder())


class _Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_dalle_pickled_object_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(_Bomb(), tmp_path / "encoder.pkl")
    with pytest.raises(DataError, match=r"more than tensors.*\.state_dict\(\), \"encoder\.pt\"\)"):
        DalleTokenizer(tmp_path / "encoder.pkl", _encoder())
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataError, match="could not be read as weights"):
        DalleTokenizer(tmp_path / "plain.pkl", _encoder())
    assert not (tmp_path / "exploded").exists()


def test_cae_with_dalle_codes(tmp_path):
    path = _written(tmp_path / "e.safetensors")
    small = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "regressor_depth": 1, "decoder_depth": 1}
    check_method(lambda: make(Cae, **small, tokenizer=str(path)), _pixels())
    np.save(tmp_path / "x.npy", _pixels(16)["image"].numpy())
    settings = [f"method.{name}={value}" for name, value in {**small, "tokenizer": path}.items()]
    run = mw.pretrain("cae", tmp_path / "x.npy", run=tmp_path / "run", settings=settings, max_steps=2, batch_size=8)
    assert all(np.isfinite(row["loss"]) for row in run.metrics())
    assert mw.load(run).embed(_pixels()).tokens.shape == (4, 16, 16)
    method = make(Cae, **small, tokenizer=str(path))
    assert method.decoder.head.out_features == 24
    grid = Grid((4, 4))
    assert torch.all(method.tokenizer.values(torch.zeros(2, grid.count, dtype=torch.long)) == 0)

"""What the small-data study is made of: its slice reader, weights under four prefixes, contrastive peers, SparK on CT."""

import numpy as np
import pydicom
import pytest
import torch

from maskwright.core.encoder import patchify
from maskwright.core.encoder.patches import patch_mask_to_pixels
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.masking import sample_keys
from maskwright.core.objective import masked_reconstruction
from maskwright.core.sample import Batch, Meta, collate
from maskwright.medical.fake import fake_series
from maskwright.medical.loaders import SliceLoader
from maskwright.medical.methods.spark import SparK
from maskwright.medical.study.pretraining import make_encoder, make_method
from maskwright.medical.study.transfer import load_backbone

PADDING = -2000
OPTIONS = {**SparK.presets["tiny"]["method"], "in_chans": 1, "input_name": "image"}


# slices (check 1) -------------------------------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path):
    """Slope 2, a rim of -2000 in every slice, and one slice of a single value. Also the stored numbers by file."""
    stored = {}
    for number, path in enumerate(fake_series(tmp_path / "scan", (20, 16, 4), fields={"RescaleSlope": 2})):
        file = pydicom.dcmread(path)
        pixels = np.frombuffer(file.PixelData, "<i2").reshape(16, 20).copy()
        pixels[:, :2] = PADDING
        if number == 0:
            pixels[:] = 7
        file.PixelData = pixels.tobytes()
        pydicom.dcmwrite(path, file)
        stored[str(path)] = pixels
    return tmp_path / "scan", stored


def read_all(loader):
    """Values of each slice as the file has them, by their lowest and highest."""
    return [loader.read(index)["image"][0].numpy() for index in range(len(loader))]


def test_padding_is_0_before_slope_and_intercept(scan):
    folder, stored = scan
    loader = SliceLoader(folder, orientation="stored", padding=PADDING)
    wanted = {(2 * np.where(p == PADDING, 0, p).astype(np.float32) - 1024).tobytes() for p in stored.values()}
    assert {values.tobytes() for values in read_all(loader)} == wanted
    raw = SliceLoader(folder, orientation="stored")
    assert min(values.min() for values in read_all(raw)) == 2 * PADDING - 1024


def test_the_option_goes_before_the_header(scan):
    folder, stored = scan
    for path in stored:
        file = pydicom.dcmread(path)
        file.add_new("PixelPaddingValue", "SS", PADDING)
        pydicom.dcmwrite(path, file)
    values = read_all(SliceLoader(folder, orientation="stored", padding=PADDING))
    assert sorted({float(one[0, 0]) for one in values}) == [-1024, 2 * 7 - 1024]


def test_each_slice_spans_0_to_255(scan):
    folder, _ = scan
    loader = SliceLoader(folder, padding=PADDING, scale="min-max")
    plain = SliceLoader(folder, padding=PADDING)
    constant = 0
    for values, hu in zip(read_all(loader), read_all(plain), strict=True):
        if hu.min() == hu.max():
            constant += 1
            assert (values == 0).all()
            continue
        assert (values.min(), values.max()) == (0, 255)
        np.testing.assert_allclose(values, (hu - hu.min()) / (hu.max() - hu.min()) * 255, atol=1e-3)
    assert constant == 1
    assert loader.spec["image"].unit == "0 to 255 of each slice"
    crop = SliceLoader(folder, padding=PADDING, scale="min-max", size=6, context=1)
    whole = SliceLoader(folder, padding=PADDING, scale="min-max", context=1)
    assert torch.equal(crop.read(2)["image"], whole.read(2)["image"][:, 5:11, 7:13])  # by the whole slice, not the crop
    assert plain.statistics()["image"].mean != loader.statistics()["image"].mean  # not one entry of the cache


# weights (check 3) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["encoder_q.", "online_network.encoder.", "model.", ""])
def test_318_of_320_tensors_of_a_resnet_50_load(prefix):
    timm = pytest.importorskip("timm")
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    source = torchvision.models.resnet50(num_classes=1000)
    for tensor in source.state_dict().values():
        tensor.copy_(torch.full_like(tensor, 3))
    weights = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    network = timm.create_model("resnet50", num_classes=11)
    loaded = load_backbone(network, {"state_dict": weights, "epoch": 3})
    assert (loaded.count, loaded.total, loaded.prefix) == (318, 320, prefix)
    kept = [name for name, tensor in network.state_dict().items() if not bool((tensor == 3).all())]
    assert kept == ["fc.weight", "fc.bias"]


def test_weights_that_do_not_fit_are_refused(tmp_path):
    network = make_encoder(OPTIONS, 0).module
    weights = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    with pytest.raises(DataError, match=r"has no tensor of this network, its first name is backbone\.stem"):
        load_backbone(network, {f"backbone.{name}": tensor for name, tensor in weights.items()})
    with pytest.raises(DataError, match="lacks 1 of "):
        load_backbone(network, {name: tensor for name, tensor in weights.items() if name != "stem.0.weight"})
    with pytest.raises(DataError, match=r"stem\.0\.weight has the shape \(16, 3, 3, 3\)"):
        load_backbone(network, {**weights, "stem.0.weight": torch.zeros(16, 3, 3, 3)})
    assert network.stem[0].weight.abs().sum() > 0  # nothing was half loaded
    with pytest.raises(DataError, match="no such file"):
        load_backbone(network, tmp_path / "none.safetensors")


# peers ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return Batch({"image": torch.randn(6, 1, 16, 16, generator=generator) * 300 - 200}, [Meta("made up")] * 6)


def keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def peer(name):
    pytest.importorskip("lightly")
    return make_method(name, OPTIONS, 32, 0)


def test_views_belong_to_a_sample_and_its_key(batch):
    pytest.importorskip("lightly")
    from maskwright.medical.study.peers import two_views

    images, states = batch["image"], (torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    first, second = two_views(images, keys(6))
    alone = two_views(images[4:5], keys(6)[4:5])
    assert torch.equal(alone[0][0], first[4])
    assert torch.equal(alone[1][0], second[4])
    assert first.shape == images.shape
    assert not torch.equal(first, second)
    assert not torch.equal(first, two_views(images, keys(6, 1))[0])
    low, high = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    assert (first.amin((1, 2, 3)) >= low - 1e-3).all()
    assert (first.amax((1, 2, 3)) <= high + 1e-3).all()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    colour = torch.rand(2, 3, 16, 12)
    assert two_views(colour, keys(2))[0].shape == (2, 3, 16, 12)
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        two_views(torch.rand(2, 4, 16, 16), keys(2))


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_the_slow_side_learns_by_momentum_alone(batch, name):
    method = peer(name)
    slow = {key: tensor.clone() for key, tensor in method.slow_encoder.named_parameters()}
    assert all(torch.equal(tensor, slow[key]) for key, tensor in method.encoder.named_parameters())  # equal at first
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    method(batch, keys(6)).loss.backward()
    assert all(p.grad is None for p in [*method.slow_encoder.parameters(), *method.slow_projector.parameters()])
    idle = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    optimizer.step()
    method.after_step(0, 100)
    for key, tensor in method.slow_encoder.named_parameters():
        wanted = 0.99 * slow[key] + 0.01 * method.encoder.get_parameter(key)
        torch.testing.assert_close(tensor, wanted)
    assert any(not torch.equal(tensor, slow[key]) for key, tensor in method.slow_encoder.named_parameters())


def test_byol_keeps_everything_at_the_last_step():
    method = peer("byol")
    assert method.momentum_at(0, 50) == pytest.approx(0.99)
    assert method.momentum_at(49, 50) == pytest.approx(1.0)


def test_the_losses_are_the_papers(batch):
    moco, byol = peer("moco"), peer("byol")
    moco.eval(), byol.eval()
    first, second = moco.views(batch, keys(6))
    q = torch.nn.functional.normalize(moco.fast(first), dim=1)
    k = torch.nn.functional.normalize(moco.slow(second), dim=1)
    queue = moco.criterion.memory_bank.bank.clone()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.07
    wanted = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    assert moco(batch, keys(6)).loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(moco.criterion.memory_bank.bank[:6], k, atol=1e-6)  # the queue took the keys in

    first, second = byol.views(batch, keys(6))
    cosine = torch.nn.functional.cosine_similarity
    forth = 2 - 2 * cosine(byol.predictor(byol.fast(first)), byol.slow(second)).mean()
    back = 2 - 2 * cosine(byol.predictor(byol.fast(second)), byol.slow(first)).mean()
    assert byol(batch, keys(6)).loss.item() == pytest.approx(((forth + back) / 2).item(), rel=1e-5)
    with pytest.raises(ConfigError, match="two samples"):
        byol(Batch({"image": batch["image"][:1]}, batch.metas[:1]), keys(1))
    with pytest.raises(ConfigError, match="hides nothing"):
        byol.preview(batch, keys(6))


def test_a_resumed_moco_has_its_queue(batch):
    one, other = peer("moco"), make_method("moco", OPTIONS, 32, 1)
    one(batch, keys(6))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.criterion.memory_bank.bank, other.criterion.memory_bank.bank)
    assert int(other.criterion.memory_bank.bank_ptr) == 6
    assert one(batch, keys(6, 2)).loss.item() == other(batch, keys(6, 2)).loss.item()


# SparK on a CT slice (check 5) ------------------------------------------------------------------------------------


@pytest.fixture
def slices(tmp_path):
    fake_series(tmp_path / "ct", (32, 32, 4))
    loader = SliceLoader(tmp_path / "ct", scale="min-max")
    return collate([loader.read(index) for index in range(4)])


def test_spark_on_a_slice(slices):
    """Holes stay holes at all scales; hidden pixels reach no map and no running statistic; no gradient at visible cells."""
    hidden_pixels, states, maps = None, [], []
    for filling in (0.0, 1e4):
        torch.manual_seed(0)
        method = SparK(**OPTIONS)
        tokens = method.encoder.tokenize(slices)
        mask = method.mask(tokens.grid, keys(4))
        hidden_pixels = patch_mask_to_pixels(mask.hidden, tokens.grid, method.encoder.patch_size)[:, None]
        changed = Batch({"image": torch.where(hidden_pixels, slices["image"] + filling, slices["image"])}, slices.metas)
        found, cells = method.encoder.pyramid(method.encoder.tokenize(changed), mask)
        maps.append(found)
        states.append(dict(method.encoder.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert int(mask.hidden[0].sum()) == 10  # of 16 cells of 8 pixels, round(16 * 0.4) stay
    for x in maps[0]:
        whole = cells.spread(x)
        empty = (whole == 0).all(1)
        side = whole.shape[-1] // tokens.grid.shape[0]
        wanted = mask.hidden.view(4, *tokens.grid.shape).repeat_interleave(side, 1).repeat_interleave(side, 2)
        assert bool((empty | ~wanted).all())
        assert empty.float().mean() == pytest.approx(10 / 16, abs=0.05)
    picture = torch.randn(4, 1, 32, 32, requires_grad=True)
    masked_reconstruction(patchify(picture, (8, 8)), tokens.values, mask, standardise=True).backward()
    seen = ~hidden_pixels.expand_as(picture)
    assert (picture.grad[seen] == 0).all()
    assert (picture.grad[~seen] != 0).any()

"""CROMA against torchgeo's independent port: same weights, same outputs."""

import pytest
import torch

from maskwright.core.sample import Batch, Meta
from maskwright.remote_sensing.methods.croma import Croma, CromaEncoder
from maskwright.remote_sensing.methods.croma_published import from_published

torchgeo_croma = pytest.importorskip("torchgeo.models.croma", reason="torchgeo is not installed")


def _count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = torchgeo_croma.CROMA(encoder_dim=128, encoder_depth=4, num_heads=16, image_size=120).eval()
    with torch.no_grad():  # default norms and biases of 0 and 1 would hide a swapped tensor
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def _compare(theirs, size):
    encoder = from_published(theirs.state_dict())
    encoder.normalizers["optical"].kind = encoder.normalizers["sar"].kind = "none"
    generator = torch.Generator().manual_seed(1)
    optical = torch.rand(2, 12, size, size, generator=generator)
    sar = torch.rand(2, 2, size, size, generator=generator)
    ours = encoder.embed(Batch({"optical": optical, "sar": sar}, [Meta("a"), Meta("b")]))
    with torch.no_grad():
        reference = theirs(x_sar=sar, x_optical=optical)
    torch.testing.assert_close(ours.tokens, reference["joint_encodings"], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.pooled, reference["joint_GAP"], atol=1e-4, rtol=0)
    for name in ("optical", "sar"):
        torch.testing.assert_close(ours.parts[name].tokens, reference[f"{name}_encodings"], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.parts[name].pooled, reference[f"{name}_GAP"], atol=1e-4, rtol=0)
    assert ours.tokens.std() > 0.1  # not a comparison of constants


def test_outputs_equal(theirs):
    _compare(theirs, 120)


@pytest.mark.slow
def test_outputs_equal_on_larger_images(theirs):
    larger = torchgeo_croma.CROMA(encoder_dim=128, encoder_depth=4, num_heads=16, image_size=240).eval()
    weights = {key: value for key, value in theirs.state_dict().items() if key != "attn_bias"}
    larger.load_state_dict(weights, strict=False)
    _compare(larger, 240)


def test_parameter_counts_of_both_presets():
    with torch.device("meta"):
        base = Croma(**Croma.presets["base"]["method"]).encoder
        large = Croma(**Croma.presets["large"]["method"]).encoder
        assert _count(base) == _count(torchgeo_croma.CROMA(encoder_dim=768, encoder_depth=12)) == 194_365_440
        assert _count(large) == _count(torchgeo_croma.CROMA(encoder_dim=1024, encoder_depth=24)) == 672_557_056


def test_published_file_layout(theirs, tmp_path):
    """The published files nest one state dict a part."""
    from maskwright.remote_sensing.methods.croma_published import PARTS, POOLS, load_published

    nested = {}
    for part in (*PARTS, *POOLS):
        nested[part] = {
            key.removeprefix(f"{part}."): value
            for key, value in theirs.state_dict().items()
            if key.startswith(f"{part}.")
        }
    torch.save(nested, tmp_path / "CROMA_test.pt")
    encoder = load_published(tmp_path / "CROMA_test.pt")
    assert isinstance(encoder, CromaEncoder)
    flat = from_published(theirs.state_dict())
    for (name, a), (_, b) in zip(encoder.state_dict().items(), flat.state_dict().items(), strict=True):
        assert torch.equal(a, b), name

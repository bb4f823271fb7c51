"""CROMA's faithfulness checks."""

import math

import pytest
import torch

from maskwright.core.encoder import alibi_bias, alibi_slopes
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.masking import BlockMasking, ColourNoiseMasking, Grid, fold, sample_keys
from maskwright.core.objective import info_nce
from maskwright.core.sample import Batch, Meta
from maskwright.remote_sensing.methods.croma import Croma, both_sensors_statistics
from maskwright.remote_sensing.methods.croma_published import from_published, load_published

TINY = {"embed_dim": 64, "num_heads": 4, "optical_depth": 2, "sar_depth": 1, "fusion_depth": 1, "decoder_dim": 32}


def _method(**options):
    torch.manual_seed(0)
    return Croma(**{**TINY, **options})


def _batch(size=(120, 120), count=3, optical=12, sar=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "optical": torch.rand(count, optical, *size, generator=generator),
        "sar": torch.rand(count, sar, *size, generator=generator),
    }
    return Batch(tensors, [Meta(f"{i}.tif") for i in range(count)])


def _keys(count=3, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def _count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        base = Croma()
        large = Croma(**Croma.presets["large"]["method"])
    encoder = base.encoder
    assert _count(encoder) == 194_365_440
    assert _count(encoder.sar) == 42_614_016
    assert _count(encoder.optical) == 85_618_944
    assert _count(encoder.fusion) == 56_684_544
    assert _count(encoder.sar_pool) == _count(encoder.optical_pool) == 4_723_968
    assert _count(base.decoder) == 4_005_760
    assert _count(base) == 199_552_385
    assert _count(large.encoder) == 672_557_056


def test_encoder_knows_positions_through_the_bias_alone():
    encoder = _method().encoder.eval()
    patches = torch.randn(1, 20, 64 * 12, generator=torch.Generator().manual_seed(1))
    at = Grid((4, 5)).coordinates()[None]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    bias = alibi_bias(at, at, encoder.slopes)
    with torch.no_grad():
        plain = encoder.optical(patches, bias)
        moved_alike = encoder.optical(patches[:, order], alibi_bias(at[:, order], at[:, order], encoder.slopes))
        moved_alone = encoder.optical(patches[:, order], bias)
    torch.testing.assert_close(moved_alike, plain[:, order], atol=1e-5, rtol=0)
    assert (moved_alone - plain[:, order]).abs().max() > 1e-3
    assert not any("pos" in name for name, _ in encoder.named_parameters())


def test_bias_is_symmetric_with_zero_diagonal_and_the_slopes_of_the_paper():
    slopes = alibi_slopes(16)
    assert slopes[0] == pytest.approx(2**-0.5)
    assert slopes[15] == pytest.approx(2**-8)
    at = Grid((15, 15)).coordinates()[None]
    bias = alibi_bias(at, at, slopes)[0]
    assert bias.shape == (16, 225, 225)
    assert torch.equal(bias, bias.transpose(1, 2))
    assert torch.all(bias.diagonal(dim1=1, dim2=2) == 0)
    # token 0 is (0, 0), token 17 is (1, 2)
    assert bias[3, 0, 17].item() == pytest.approx(-(2 ** (-0.5 * 4)) * math.sqrt(5), rel=1e-6)
    expected = [2.0**-k for k in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(expected))


def test_no_gradient_at_patches_that_are_visible_to_their_sensor():
    method = _method(contrastive_weight=0.0)
    batch, keys = _batch(), _keys()
    seen = {}

    def keep(module, inputs, output):
        output.retain_grad()
        seen["prediction"] = output

    method.decoder.register_forward_hook(keep)
    method(batch, keys).loss.backward()
    gradient = seen["prediction"].grad
    masks = method.masks(Grid((15, 15)), keys)
    cut = method.optical_values
    for name, part in (("optical", gradient[..., :cut]), ("sar", gradient[..., cut:])):
        hidden = masks[name].hidden
        assert torch.all(part[~hidden] == 0), name
        assert torch.all(part[hidden].abs().amax(-1) > 0), name


def test_masks_differ_between_the_sensors_and_keep_56_of_225():
    masks = _method().masks(Grid((15, 15)), _keys(8))
    for mask in masks.values():
        assert mask.visible.shape == (8, 56)
    assert not torch.equal(masks["optical"].hidden, masks["sar"].hidden)
    both = (~masks["optical"].hidden & ~masks["sar"].hidden).float().sum(1).mean()
    assert 8 < both < 20  # independent masks share 56 * 56 / 225 = 14 patches


def test_hidden_pixels_never_reach_the_encoders():
    method = _method().eval()
    batch, keys = _batch(), _keys()
    panels = method.preview(batch, keys)
    changed = Batch(
        {
            name: torch.where(panels[name].hidden[:, None], torch.rand_like(batch[name]), batch[name])
            for name in ("optical", "sar")
        },
        batch.metas,
    )
    with torch.no_grad():
        before, after = method.encode(batch, keys), method.encode(changed, keys)
    for name in before:
        assert torch.equal(before[name], after[name]), name
    assert method(batch, keys).terms["optical"] != method(changed, keys).terms["optical"]


@pytest.mark.parametrize(("size", "tokens"), [((120, 120), 225), ((240, 240), 900), ((64, 96), 96)])
def test_one_set_of_weights_runs_at_any_size(size, tokens):
    embedding = _method().encoder.embed(_batch(size, 2))
    assert embedding.tokens.shape == (2, tokens, 64)
    assert embedding.pooled.shape == embedding.parts["sar"].pooled.shape == (2, 64)
    assert embedding.tokens.isfinite().all()
    assert embedding.parts["optical"].pooled.isfinite().all()
    torch.testing.assert_close(embedding.pooled, embedding.tokens.mean(1))


def test_detached_keys_give_the_gradient_of_half_a_cross_entropy():
    optical = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    radar = torch.randn(6, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    info_nce(optical, radar, 5.0, detach_keys=True).backward()
    ours, radar.grad = radar.grad, None
    logits = 5.0 * torch.nn.functional.normalize(radar, dim=-1) @ torch.nn.functional.normalize(optical, dim=-1).T
    (torch.nn.functional.cross_entropy(logits, torch.arange(6)) / 2).backward()
    torch.testing.assert_close(ours, radar.grad)
    radar.grad = None
    info_nce(optical, radar, 5.0, detach_keys=False).backward()
    assert (radar.grad - ours).norm() > 0.1 * ours.norm()


def test_fusion_bias_flag():
    """Without a mask the two biases coincide; under masks they differ."""
    official, consistent = _method(fusion_bias="official").eval(), _method(fusion_bias="consistent").eval()
    consistent.load_state_dict(official.state_dict())
    batch, keys = _batch(), _keys()
    assert torch.equal(official.encoder.embed(batch).tokens, consistent.encoder.embed(batch).tokens)
    with torch.no_grad():
        a, b = official.encode(batch, keys), consistent.encode(batch, keys)
    assert torch.equal(a["sar"], b["sar"])
    assert (a["joint"] - b["joint"]).abs().max() > 1e-4


@pytest.mark.parametrize("masking", [ColourNoiseMasking(0.75, "red"), BlockMasking(0.6)])
def test_any_masking_works(masking):
    step = _method(masking=masking)(_batch(), _keys())
    assert step.loss.isfinite()


def test_other_channel_numbers():
    method = _method(optical_chans=10, sar_chans=4, patch_size=4)
    step = method(_batch((32, 32), optical=10, sar=4), _keys())
    step.loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_options_follow_from_the_data():
    from maskwright.core.sample import TensorSpec

    given = {"optical": TensorSpec("C H W", tuple("abcd")), "sar": TensorSpec("C H W", ("VV",))}
    assert Croma.options_for(given) == {"optical_chans": 4, "sar_chans": 1}


def test_preview_uses_no_statistic_of_hidden_pixels():
    method, keys = _method(), _keys()
    batch = _batch()
    panels = method.preview(batch, keys)
    changed = {}
    for name, panel in panels.items():
        changed[name] = torch.where(panel.hidden[:, None], torch.full_like(batch[name], 0.9), batch[name])
    again = method.preview(Batch(changed, batch.metas), keys)
    for name, panel in panels.items():
        hidden = panel.hidden[:, None].expand_as(panel.reconstruction)
        assert torch.equal(panel.reconstruction[hidden], again[name].reconstruction[hidden]), name
        torch.testing.assert_close(panel.reconstruction[~hidden], batch[name][~hidden])


def test_statistics_of_constant_patches_are_those_constants():
    method = _method()
    grid, keys = Grid((6, 6)), _keys(2)
    masks = method.masks(grid, keys)
    mean, std = both_sensors_statistics(dict.fromkeys(masks, torch.full((2, 36, 10), 3.0)), masks, grid)
    torch.testing.assert_close(mean, torch.full((2, 36, 1), 3.0))
    torch.testing.assert_close(std, torch.zeros(2, 36, 1))


def test_sensors_draw_from_separate_streams():
    keys = _keys(4)
    assert not torch.equal(fold(keys, 0), fold(keys, 1))


def test_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match="does not divide into patches of 8 x 8"):
        _method().encoder.embed(_batch((100, 120)))
    with pytest.raises(ConfigError, match="built for 12 channels, but the input has 13"):
        _method().encoder.embed(_batch(optical=13))
    with pytest.raises(ConfigError, match="fusion_bias"):
        _method(fusion_bias="other")
    with pytest.raises(DataError, match="no such file"):
        load_published(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(DataError, match="could not be read as weights"):
        load_published(tmp_path / "text.pt")
    with pytest.raises(DataError, match="lacks"):
        from_published({"s1_encoder.linear_input.weight": torch.zeros(8, 128)})

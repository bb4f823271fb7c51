"""NeRF-MAE: the checks of its sheet, its runs, and what it refuses."""

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import maskwright as mw
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, Mask, RandomMasking, UnitMasking, sample_keys
from maskwright.core.recipe import TrainerSection
from maskwright.core.sample import Batch, TensorSpec, collate
from maskwright.pointcloud.grids import GridLoader
from maskwright.pointcloud.methods.nerf_mae import NerfMae, radiance_loss
from maskwright.testing import check_encoder, check_method
from tests.pointcloud.grid_files import write_grids

TINY = NerfMae.presets["tiny"]["method"]
SMALLEST = {**TINY, "width": 6, "depths": (1, 1), "num_heads": (1, 2), "patch_size": 4, "masking": UnitMasking(0.75, 2)}


def make(**options):
    torch.manual_seed(0)
    return NerfMae(**{**TINY, **options})


def keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_grids(tmp_path_factory.mktemp("grids"), 6, size=(28, 32, 20))


@pytest.fixture(scope="module")
def batch(folder):
    loader = GridLoader(folder, size=32)
    return collate([loader.read(index) for index in range(4)])


# the paper's numbers ----------------------------------------------------------------------------------------------


def test_numbers_of_parameters():
    """Check 1."""
    with torch.device("meta"):
        method = NerfMae(**NerfMae.presets["base"]["method"])
    assert count(method.encoder) == 50_458_422
    assert count(method.decoder) == 19_582_420
    assert method.mask_token.numel() == 96
    assert count(method) == 70_040_938


def test_shapes_at_160_voxels():
    """Check 6, without memory: shapes do not hang on weights."""
    with torch.device("meta"):
        method = NerfMae().eval()
        grid = Grid((40, 40, 40))
        order = torch.empty(1, grid.count, dtype=torch.long)
        hidden = Mask(order[:, :16_000], order[:, 16_000:], order)
        tokens = method.encoder.tokenize(Batch({"grid": torch.empty(1, 4, 160, 160, 160)}, []))
        assert tokens.grid.shape == grid.shape
        assert tokens.values.shape == (1, 64_000, 256)
        table = torch.empty(1, grid.count, 96)
        method.encoder.positions.add = lambda grid, index, device: table
        maps = method.encoder.pyramid(tokens, hidden, method.mask_token)
        volume = method.decoder(maps)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (96, 40, 40, 40),
        (192, 20, 20, 20),
        (384, 10, 10, 10),
        (768, 5, 5, 5),
    ]
    assert volume.shape == (1, 4, 160, 160, 160)
    assert method.mask(grid, keys(1)).masked.shape == (1, 48_000)  # 750 of 1,000 units


def test_published_settings():
    trainer = TrainerSection(**NerfMae.presets["base"]["trainer"])
    assert (trainer.lr, trainer.weight_decay, trainer.clip_grad, trainer.epochs) == (1e-4, 1e-3, 0.1, 1200)
    method = make(depths=(2, 2, 6, 2), num_heads=(2, 4, 8, 8), drop_path=0.1)
    rates = [block.residual2.drop_path for layer in method.encoder.layers for block in layer.blocks]
    assert rates == pytest.approx([0.1 * number / 11 for number in range(12)])
    shifts = [block.shift for block in method.encoder.layers[2].blocks]
    assert shifts == [(0, 0, 0), (2, 2, 2)] * 3
    assert make(width=192, depths=(1, 1), num_heads=(2, 2)).mask_token.std().item() == pytest.approx(0.02, rel=0.2)


# masks ------------------------------------------------------------------------------------------------------------


def voxels(method, grid, drawn):
    return method.hidden_voxels(method.mask(grid, drawn), grid)


def units_of(hidden, side):
    """(B, units) share of each unit that is hidden."""
    return torch.nn.functional.avg_pool3d(hidden.float()[:, None], side).flatten(1)


def test_official_masks_are_blocks_of_16_voxels_alike_in_a_batch():
    """Check 3."""
    with torch.device("meta"):
        method = NerfMae(mask="official")
    grid, shares = Grid((40, 40, 40)), []
    for seed in range(8):
        hidden = voxels(method, grid, keys(2, seed))
        assert hidden.shape == (2, 160, 160, 160)
        shares.append(units_of(hidden, 16))
        assert ((shares[-1] == 0) | (shares[-1] == 1)).all()
        assert torch.equal(hidden[0], hidden[1])
    share = torch.stack([each[0].mean() for each in shares])
    assert share.mean() == pytest.approx(0.75, abs=0.02)
    assert (share - 0.75).abs().max() < 0.05
    assert len(set(share.tolist())) > 4  # each unit is drawn by itself, so that the number varies
    mask = method.mask(grid, keys(2))
    whole = torch.cat([mask.visible, mask.masked], 1)
    assert torch.equal(whole.gather(1, mask.restore), torch.arange(grid.count).expand(2, -1))


def test_exact_masks_differ_between_samples():
    method = make()
    hidden = voxels(method, Grid((16, 16, 16)), keys(3))
    units = units_of(hidden, 8)
    assert ((units == 0) | (units == 1)).all()
    assert units.sum(1).tolist() == [48, 48, 48]
    assert not torch.equal(hidden[0], hidden[1])


def test_official_masks_of_extreme_ratios(batch):
    """Nothing or everything may be hidden by chance; neither is an error."""
    for ratio, hidden in ((0.0, False), (0.999999, True)):
        method = make(mask="official", masking=UnitMasking(ratio, 4))
        step = method(batch, keys(4))
        assert method.mask(Grid((16, 16, 16)), keys(4)).hidden.eq(hidden).all()
        assert step.loss.isfinite()
        assert (step.terms["alpha"] > 0) == hidden


# the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mask": "official"}, {"mask_padding": False}])
def test_hidden_voxels_do_not_matter(batch, options):
    """Check 4."""
    method = make(**options).eval()
    tokens = method.encoder.tokenize(batch)
    mask = method.mask(tokens.grid, keys(4))
    hidden = method.hidden_voxels(mask, tokens.grid)
    before = method.predict(tokens, mask)
    noise = torch.rand(batch["grid"].shape)

    def predicted(where):
        changed = torch.where(where[:, None], noise, batch["grid"])
        return method.predict(method.encoder.tokenize(Batch({"grid": changed}, batch.metas)), mask)

    assert torch.equal(before, predicted(hidden))
    assert not torch.equal(before, predicted(~hidden))


def test_cost_does_not_fall_with_the_ratio(batch):
    """Check 7."""
    costs = []
    for ratio in (0.25, 0.75):
        method = make(masking=UnitMasking(ratio, 4))
        with FlopCounterMode(display=False) as counter:
            method.encode(batch, keys(4))
        costs.append(counter.get_total_flops())
    assert costs[0] == costs[1] > 0


def test_decoder_takes_odd_maps():
    method = make(width=6, num_heads=(1, 2, 4), patch_size=4)
    tokens = method.encoder.tokenize(Batch({"grid": torch.rand(1, 4, 20, 28, 12)}, []))
    maps = method.encoder.pyramid(tokens)
    assert [tuple(x.shape[2:]) for x in maps] == [(5, 7, 3), (3, 4, 2), (2, 2, 1)]
    assert method.decoder(maps).shape == (1, 4, 20, 28, 12)


# the loss ---------------------------------------------------------------------------------------------------------


def pieces(seed=0):
    """Prediction, target with empty voxels, hidden and valid voxels."""
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(2, 4, 4, 4, 4, generator=generator)
    target = torch.rand(2, 4, 4, 4, 4, generator=generator)
    target[:, 3:][torch.rand(2, 1, 4, 4, 4, generator=generator) < 0.5] = 0.005
    hidden, valid = torch.rand(2, 2, 1, 4, 4, 4, generator=generator) < 0.6
    return prediction, torch.where(valid, target, 0), hidden, valid


def test_loss_by_hand():
    prediction, target, hidden, valid = pieces()
    rgb, alpha = radiance_loss(prediction, target, hidden, valid)
    opaque = target[:, 3] > 0.01
    wanted = ((prediction[:, :3] - target[:, :3]) ** 2).sum(1)[opaque].sum() / opaque.sum()
    assert rgb.item() == pytest.approx(wanted.item(), rel=1e-5)
    scored = (hidden & valid)[:, 0]
    wanted = (prediction[:, 3].sigmoid() - target[:, 3])[scored].square().mean()
    assert alpha.item() == pytest.approx(wanted.item(), rel=1e-5)
    mean = radiance_loss(prediction, target, hidden, valid, channels="mean")
    assert mean[0].item() == pytest.approx(rgb.item() / 3, rel=1e-5)
    assert mean[1] == alpha


@pytest.mark.parametrize("scope", ["opaque", "opaque_hidden", "hidden"])
def test_gradients_are_exactly_zero_elsewhere(scope):
    """Check 5, for each scope of colour."""
    prediction, target, hidden, valid = pieces(1)
    prediction.requires_grad_()
    torch.stack(radiance_loss(prediction, target, hidden, valid, scope)).sum().backward()
    opaque = target[:, 3:] > 0.01
    wanted = {"opaque": opaque, "opaque_hidden": opaque & hidden, "hidden": hidden & valid}[scope]
    assert wanted.any()
    assert not wanted.all()
    assert torch.equal(prediction.grad[:, :3].ne(0), wanted.expand(-1, 3, -1, -1, -1))
    assert torch.equal(prediction.grad[:, 3:].ne(0), hidden & valid)


def test_padding_costs_nothing(batch):
    """The method hands on what the loader says of validity; without it all voxels are the scene's."""
    method = make().eval()
    seen = []
    method.decoder.register_forward_hook(lambda module, given, found: seen.append(found) or found.retain_grad())
    method(batch, keys(4)).loss.backward()
    padding = (batch["valid"] == 0).expand(-1, 4, -1, -1, -1)
    assert padding.any()
    assert seen[0].grad[padding].eq(0).all()
    assert seen[0].grad[~padding].ne(0).any()
    alone = method(Batch({"grid": batch["grid"]}, batch.metas), keys(4))
    assert alone.terms["alpha"] != method(batch, keys(4)).terms["alpha"]
    assert alone.terms["rgb"] == method(batch, keys(4)).terms["rgb"]  # padding is not opaque


def test_an_empty_batch_of_scenes_costs_no_division_by_zero():
    method = make()
    empty = Batch({"grid": torch.zeros(2, 4, 32, 32, 32), "valid": torch.zeros(2, 1, 32, 32, 32)}, [])
    step = method(empty, keys(2))
    assert step.loss == 0
    step.loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


# contracts and runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rgb_scope": "hidden", "rgb_channels": "mean", "mask_padding": False}])
def test_contract(batch, options):
    check_method(lambda: make(**SMALLEST | options), batch, steps=8)
    check_encoder(lambda: make(**SMALLEST | options).encoder, batch)


def test_other_maskings_run(batch):
    assert make(**{**SMALLEST, "masking": RandomMasking(0.6)})(batch, keys(4)).loss.isfinite()


def test_preview_keeps_what_was_seen(batch):
    method = make(**SMALLEST)
    (panel,) = method.preview(batch, keys(4)).values()
    seen = ~panel.hidden[:, None].expand_as(panel.original)
    assert torch.equal(panel.reconstruction[seen], panel.original[seen])
    assert panel.reconstruction.min() >= 0
    assert panel.reconstruction.max() <= 1


def test_training_run(folder, tmp_path):
    run = mw.pretrain(
        method="nerf-mae",
        data=folder,
        run=tmp_path / "run",
        settings={
            "data.loader": "grids",
            "data.size": 16,
            "masking.unit": 2,
            "method.width": 12,
            "method.depths": [1, 1],
            "method.num_heads": [2, 2],
            "method.patch_size": 2,
            "trainer.max_steps": 4,
            "trainer.batch_size": 3,
        },
    )
    assert (run.path / "previews" / "grid.png").stat().st_size > 1000
    weights = load_file(run.path / "encoder.safetensors")
    assert "layers.1.downsample.reduction.weight" in weights
    assert not any("mask_token" in name or "decoder" in name for name in weights)
    embedding = mw.load(run.path).embed(GridLoader(folder, size=16).read(0))
    assert embedding.pooled.shape == (1, 24)
    assert embedding.grid.shape == (4, 4, 4)


def test_options_from_the_data():
    grid, valid = TensorSpec("C D H W", 4), TensorSpec("C D H W", 1)
    assert NerfMae.options_for({"field": grid, "valid": valid}) == {"input_name": "field"}
    with pytest.raises(ConfigError, match=r"volume \(C D H W, 1 channels\)"):
        NerfMae.options_for({"volume": valid})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "random"}, "neither exact nor official"),
        ({"rgb_scope": "all"}, "none of opaque"),
        ({"rgb_channels": "max"}, "neither sum nor mean"),
        ({"depths": (2,), "num_heads": (2,)}, "two stages"),
        ({"width": 21, "num_heads": (3, 3, 3)}, "even"),
        ({"mask": "official", "masking": RandomMasking(0.5)}, "masking.name=unit"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("size", "masking", "message"),
    [
        (30, UnitMasking(0.5, 4), "divide into units"),
        (31, UnitMasking(0.5, 4), "divide into patches"),
        (4, RandomMasking(0.5), "single position"),
    ],
)
def test_volumes_that_do_not_fit(size, masking, message):
    volumes = Batch({"grid": torch.rand(2, 4, size, size, size)}, [])
    with pytest.raises(ConfigError, match=message):
        make(masking=masking)(volumes, keys(2))

"""DMAE: checks of its paper and code."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import maskwright as mw
from maskwright.core.encoder import FeatureTeacher, VisionTransformer
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.masking import Mask, RandomMasking
from maskwright.plugins.vision.methods.dmae import Dmae
from maskwright.testing import check_method
from tests.plugins.vision.helpers import DECODER, ENCODER, gradients, images, keys, make, parameters
from tests.plugins.vision.test_mae_published import published

SMALL = {**ENCODER, **DECODER}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32) * 4 + 2)
    return path


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A finished run of a wider and deeper MAE."""
    settings = [f"method.{key}={value}" for key, value in {**SMALL, "embed_dim": 48, "depth": 8}.items()]
    out = tmp_path_factory.mktemp("teacher") / "run"
    return mw.pretrain("mae", data, run=out, settings=settings, max_steps=2, precision="32", batch_size=8).path


def _dmae(**options):
    return make(Dmae, **{**SMALL, **options})


def _parts(method, batch, keys):
    tokens = method.encoder.tokenize(batch)
    mask = method.masking(tokens.grid, keys)
    return tokens, mask, method.encoder.hidden_states(tokens, method.student_layers, mask)


def test_the_contract(teacher):
    check_method(lambda: _dmae(teacher=str(teacher)), images())
    check_method(lambda: _dmae(), images())


def test_parameter_counts_and_layers():
    with torch.device("meta"):
        student = Dmae(teacher="ema")
        large = VisionTransformer(embed_dim=1024, depth=24, num_heads=16)
    assert parameters(student) - parameters(student.projections) == 111_655_680
    assert student.student_layers == (8,)
    assert FeatureTeacher(large, student.encoder).depth == 24
    with torch.device("meta"):
        method = Dmae(teacher="ema")
        method.projections[0] = torch.nn.Linear(768, 1024)
    assert parameters(method.projections) == 787_456


def test_published_settings():
    with torch.device("meta"):
        method = Dmae()
    assert not method.norm_pix_loss
    assert (method.distance, method.loss_weight) == ("l1", 1.0)
    assert [type(projection) for projection in method.projections] == [torch.nn.Linear]
    for preset in ("small", "base"):
        trainer = Dmae.presets[preset]["trainer"]
        assert trainer["base_lr"] * 4096 / 256 == pytest.approx(2.4e-3)
        assert (trainer["betas"], trainer["weight_decay"], trainer["epochs"]) == ((0.9, 0.95), 0.05, 100)
        assert trainer["warmup"] * trainer["epochs"] == 20


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 49), (0.95, 9), (0.98, 3)])
def test_visible_patches_at_high_ratios(ratio, visible):
    """The rule of the code; the paper counts the class token."""
    with torch.device("meta"):
        grid = Dmae(masking=RandomMasking(ratio)).encoder.grid
    assert RandomMasking(ratio)(grid, keys()).visible.shape == (4, visible)


def test_reports_say_who_taught(teacher, data, tmp_path):
    assert _dmae(teacher=str(teacher)).notes == [f"The teacher was {teacher.name}."]
    settings = [f"method.{key}={value}" for key, value in SMALL.items()]
    run = mw.pretrain("dmae", data, run=tmp_path / "run", settings=settings, max_steps=1, precision="32", batch_size=8)
    (note,) = run.notes()
    assert "moving average of the student" in note
    assert note in (run.path / "report.html").read_text()
    mw.export(run, tmp_path / "card", "huggingface")
    assert note in (tmp_path / "card" / "README.md").read_text()


def test_layers_at_three_quarters(teacher):
    method = _dmae(teacher=str(teacher))
    assert (method.student_layers, method.teacher_layers) == ((2,), (5,))
    assert method.projections[0].weight.shape == (48, 32)


def test_both_see_the_same_patches_and_the_order_matters(teacher):
    method = _dmae(teacher=str(teacher))
    batch = images()
    tokens, mask, states = _parts(method, batch, keys())
    hidden = batch["image"].clone()
    pixels = method.preview(batch, keys())["image"].hidden[:, None].expand_as(hidden)
    hidden[pixels] += 3
    seen = method.teacher.layers(batch, tokens, mask, (5,))[0]
    changed = type(batch)({"image": hidden}, batch.metas)
    assert torch.equal(method.teacher.layers(changed, tokens, mask, (5,))[0], seen)
    assert seen.shape == (4, 1 + 4, 48)
    loss = method.distillation(batch, tokens, mask, states)
    swapped = Mask(mask.visible.flip(1), mask.masked, mask.restore)
    other = method.encoder.hidden_states(tokens, method.student_layers, swapped)
    assert not torch.isclose(method.distillation(batch, tokens, mask, other), loss, rtol=1e-4)


def test_a_step_draws_one_mask_and_compares_the_outputs_of_two_blocks(teacher):
    """In training: the same visible patches in the same order, block outputs before any norm, and the sum of the losses."""
    method, seen = _dmae(teacher=str(teacher)), {}
    visible = []
    for name, encoder, layer in (("student", method.encoder, 2), ("teacher", method.teacher.encoder, 5)):
        encoder.patch_embed.register_forward_pre_hook(lambda _, x: visible.append(x[0]))
        encoder.blocks[layer].register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    drawn = []
    masking = method.masking
    method.masking = lambda *of: drawn.append(masking(*of)) or drawn[-1]
    batch = images()
    step = method(batch, keys())
    assert len(drawn) == 1
    at = drawn[0].visible[..., None].expand(-1, -1, 192)
    student, taught = (
        encoder.tokenize(batch).values.gather(1, at) for encoder in (method.encoder, method.teacher.encoder)
    )
    assert torch.equal(visible[0], student)
    assert torch.equal(visible[1], taught)
    unit = torch.nn.functional.normalize
    distance = unit(method.projections[0](seen["student"]), dim=-1) - unit(seen["teacher"], dim=-1)
    assert distance.shape == (4, 1 + 4, 48), "with the class token"
    torch.testing.assert_close(step.terms["distillation"], distance.abs().mean())
    torch.testing.assert_close(step.loss, step.terms["reconstruction"] + step.terms["distillation"])
    assert not seen["teacher"].requires_grad


def test_a_distillation_that_is_no_number_shows_in_the_loss(teacher):
    """The released loop looks at the reconstruction alone."""
    method = _dmae(teacher=str(teacher))
    torch.nn.init.constant_(method.projections[0].weight, float("nan"))
    step = method(images(), keys())
    assert step.terms["reconstruction"].isfinite()
    assert step.loss.isnan()


def test_the_teacher_stops_at_its_layer_and_never_changes(teacher):
    method = _dmae(teacher=str(teacher))
    before = {name: p.clone() for name, p in method.teacher.named_parameters()}
    ran = []
    for number, block in enumerate(method.teacher.encoder.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    method(images(), keys()).loss.backward()
    optimizer.step()
    method.after_step(0, 1)
    assert ran == [0, 1, 2, 3, 4, 5]
    for name, p in method.teacher.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    method.train()
    assert not method.teacher.encoder.training


def test_where_the_losses_reach(teacher):
    method = _dmae(teacher=str(teacher))
    batch = images()
    tokens, mask, states = _parts(method, batch, keys())
    found = gradients(method.distillation(batch, tokens, mask, states), method)
    behind = ("encoder.blocks.3", "encoder.norm", "decoder")
    assert all(g is None for name, g in found.items() if name.startswith(behind))
    assert all(g is not None for name, g in found.items() if not name.startswith(behind))
    caught = {}

    def keep(module, inputs, output):
        output.retain_grad()
        caught["prediction"] = output

    method.decoder.register_forward_hook(keep)
    method(batch, keys()).loss.backward()
    grad = caught["prediction"].grad
    assert torch.all(grad[~mask.hidden] == 0)
    assert torch.all(grad[mask.hidden].abs().amax(-1) > 0)


def test_the_distance_is_that_of_directions(teacher):
    method = _dmae(teacher=str(teacher))
    batch = images()
    tokens, mask, states = _parts(method, batch, keys())
    loss = method.distillation(batch, tokens, mask, states)
    unit = torch.nn.functional.normalize
    target = method.teacher.layers(batch, tokens, mask, (5,))[0]
    by_hand = (unit(method.projections[0](states[0]), dim=-1) - unit(target, dim=-1)).abs().mean()
    torch.testing.assert_close(loss, by_hand)
    with torch.no_grad():
        method.projections[0].bias.zero_()
        loss = method.distillation(batch, tokens, mask, states)
        torch.testing.assert_close(method.distillation(batch, tokens, mask, [states[0] * 5]), loss)
        layers = method.teacher.layers
        method.teacher.layers = lambda *of: [5 * target for target in layers(*of)]
        torch.testing.assert_close(method.distillation(batch, tokens, mask, states), loss)
    method.projections[0] = torch.nn.Identity()
    assert method.distillation(batch, tokens, mask, [target * 3]).item() == pytest.approx(0, abs=1e-7)


def test_unrelated_directions_of_1024_are_0_035_apart():
    """A mean over channels, not their sum: the weight of 1 belongs to numbers as small as this."""
    method, batch = _dmae(), images()
    tokens, mask, _ = _parts(method, batch, keys())
    state, target = (torch.randn(4, 5, 1024, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    method.projections[0], method.teacher.layers = torch.nn.Identity(), lambda *of: [target]
    assert method.distillation(batch, tokens, mask, [state]).item() == pytest.approx(0.035, abs=0.001)


def test_teacher_flops_fall_with_the_ratio():
    flops = {}
    for ratio in (0.75, 0.95):
        with torch.device("meta"):
            encoder = VisionTransformer(embed_dim=1024, depth=24, num_heads=16)
            tokens = encoder.tokens_of(torch.empty(1, 3, 224, 224))
            visible = 196 - RandomMasking(ratio).hidden_count(tokens.grid)
            index = torch.empty(1, visible, dtype=torch.long)
            mask = Mask(index, torch.empty(1, 196 - visible, dtype=torch.long), torch.empty(1, 196, dtype=torch.long))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder.hidden_states(tokens, [17], mask)
        flops[ratio] = counter.get_total_flops()
    assert visible == 9
    assert flops[0.95] < flops[0.75] / 4


def test_an_average_of_the_student_teaches_too():
    method = _dmae(teacher="ema", ema_decay=0.5)
    start = method.teacher.encoder.patch_embed.weight.clone()
    with torch.no_grad():
        method.encoder.patch_embed.weight.add_(1)
    method.after_step(0, 1)
    torch.testing.assert_close(method.teacher.encoder.patch_embed.weight, start + 0.5)
    assert (method.student_layers, method.teacher_layers) == ((2,), (2,))


def test_a_timm_model_teaches_from_the_whole_image(data, tmp_path):
    pytest.importorskip("timm")
    text = "timm:vit_tiny_patch16_224,pretrained=false,depth=3,embed_dim=24"
    method = _dmae(teacher=text, patch_size=16, teacher_layers=(1,))
    batch = images(size=64)
    tokens, mask, _ = _parts(method, batch, keys())
    method.masking = RandomMasking(0.5)
    assert method.teacher.num_prefix_tokens == 0
    module = method.teacher.encoder.module
    outputs = {}
    module.blocks[1].register_forward_hook(lambda _, __, out: outputs.setdefault("block", out))
    seen = method.teacher.layers(batch, tokens, mask, (1,))[0]
    expected = torch.stack([outputs["block"][i, 1 + mask.visible[i]] for i in range(4)])
    torch.testing.assert_close(seen, expected)
    settings = [f"method.{key}={value}" for key, value in {**SMALL, "patch_size": 16, "teacher_layers": [1]}.items()]
    settings += [f"method.teacher={text}", "masking.ratio=0.5"]
    run = mw.pretrain("dmae", data, run=tmp_path / "run", settings=settings, max_steps=2, precision="32", batch_size=8)
    assert np.isfinite([row["distillation"] for row in run.metrics()]).all()
    built = mw.component("method", "dmae")
    assert built is Dmae


@pytest.mark.parametrize("decoder", [False, True])
def test_a_published_file_teaches(decoder, tmp_path):
    """Also one with its decoder, which is what the paper's teacher is; a tensor that is missing does not pass unnoticed."""
    state = published(decoder)
    torch.save({"model": state}, tmp_path / "mae.pth")
    method = _dmae(teacher=str(tmp_path / "mae.pth"))
    assert isinstance(method.teacher.encoder, VisionTransformer)
    assert torch.equal(method.teacher.encoder.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])
    del state["blocks.1.mlp.fc2.weight"]
    torch.save({"model": state}, tmp_path / "mae.pth")
    with pytest.raises(DataError, match="lacks"):
        _dmae(teacher=str(tmp_path / "mae.pth"))


def test_refusals(teacher):
    with pytest.raises(ConfigError, match="teacher_layers"):
        _dmae(teacher=str(teacher), teacher_layers=(8,))
    with pytest.raises(ConfigError, match="as many"):
        _dmae(teacher=str(teacher), teacher_layers=(1, 2))
    with pytest.raises(ConfigError, match="tokens, the student into"):
        _dmae(teacher=str(teacher), patch_size=16)(images(), keys())
    with pytest.raises(DataError, match="no such folder"):
        _dmae(teacher="runs/none")

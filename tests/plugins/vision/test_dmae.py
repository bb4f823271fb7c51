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
    method.loss_weight = 0.0
    prediction = method.decode(tokens, mask)
    prediction.retain_grad()
    from maskwright.core.objective import masked_reconstruction

    masked_reconstruction(prediction, tokens.values, mask).backward()
    assert torch.all(prediction.grad[~mask.hidden] == 0)


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
    method.projections[0] = torch.nn.Identity()
    assert method.distillation(batch, tokens, mask, [target * 3]).item() == pytest.approx(0, abs=1e-7)


def test_unrelated_directions_of_1024_are_0_035_apart():
    a, b = (torch.nn.functional.normalize(torch.randn(500, 1024), dim=-1) for _ in range(2))
    assert (a - b).abs().mean() == pytest.approx(0.035, abs=0.001)


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


def test_a_published_file_teaches(tmp_path):
    from tests.plugins.vision.test_mae_published import published

    torch.save({"model": published(decoder=False)}, tmp_path / "mae.pth")
    method = _dmae(teacher=str(tmp_path / "mae.pth"))
    assert isinstance(method.teacher.encoder, VisionTransformer)


def test_refusals(teacher):
    with pytest.raises(ConfigError, match="teacher_layers"):
        _dmae(teacher=str(teacher), teacher_layers=(8,))
    with pytest.raises(ConfigError, match="as many"):
        _dmae(teacher=str(teacher), teacher_layers=(1, 2))
    with pytest.raises(ConfigError, match="tokens, the student into"):
        _dmae(teacher=str(teacher), patch_size=16)(images(), keys())
    with pytest.raises(DataError, match="no such folder"):
        _dmae(teacher="runs/none")

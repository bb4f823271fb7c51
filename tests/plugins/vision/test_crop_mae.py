"""CropMAE's faithfulness checks, on the method."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch.utils.flop_counter import FlopCounterMode

import maskwright as mw
from maskwright.core.encoder import sincos
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, RandomMasking, fold
from maskwright.core.objective.visible import visible_patch_statistics
from maskwright.core.sample import Batch, Meta, TensorSpec
from maskwright.core.trainer.keeper import Interrupted
from maskwright.core.trainer.optim import lr_at
from maskwright.core.views import crop_and_resize, crop_boxes
from maskwright.plugins.vision.methods.crop_mae import CropMae, MatchingBlock, draw_views, inside
from maskwright.plugins.vision.methods.mae import Mae
from maskwright.testing import check_encoder, check_method, made_up_batch
from tests.conftest import write_images
from tests.plugins.vision.helpers import batch_of, make
from tests.plugins.vision.helpers import keys as _keys

SMALL = {
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "decoder_embed_dim": 16,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
    "decoder_mlp_dim": 32,
}
STRATEGIES = ("global-to-local", "local-to-global", "random-views", "same-view")
SCALES = ((0.1, 1.0), (0.3, 0.6))


def _method(**options):
    return make(CropMae, **{**SMALL, **options})


def _parts(method, batch, keys):
    """Features of the first view, tokens of the second and its mask."""
    views, encoder = method.views(batch, keys), method.encoder
    tokens = encoder.tokens_of(views.second)
    return encoder(encoder.tokens_of(views.first)), tokens, method.masking(tokens.grid, keys)


# sizes --------------------------------------------------------------------------------------------------------------


def test_parameter_counts():
    """With both fixed position tables, which the published code counts as parameters: 28,327,808."""
    with torch.device("meta"):
        method = CropMae()
    trainable = sum(p.numel() for p in method.parameters())
    assert trainable == 28_201_728
    assert trainable + 197 * (384 + 256) == 28_327_808


def test_two_of_196_patches_are_visible_and_the_second_view_is_cheap():
    method = CropMae(img_size=224, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=32)
    lengths, flops = [], []
    method.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    with torch.no_grad():
        tokens = method.encoder.tokens_of(torch.randn(1, 3, 224, 224))
        mask = method.masking(tokens.grid, _keys(1))
        for some in (None, mask):
            with FlopCounterMode(display=False) as counter:
                method.encoder(tokens, some)
            flops.append(counter.get_total_flops())
    assert lengths == [197, 3]
    assert mask.visible.shape == (1, 2)
    assert mask.masked.shape == (1, 194)
    assert 0.012 < flops[1] / flops[0] < 0.017
    published = RandomMasking(0.985)
    assert published.hidden_count(Grid((14, 14))) == 194, "int(2.94) patches stay"
    assert published.hidden_count(Grid((8, 8))) == 64, "the published ratio would leave nothing of another grid"
    with pytest.raises(ConfigError, match="at least one must stay visible"):
        published(Grid((8, 8)), _keys(1))
    assert method.masking(Grid((8, 8)), _keys(1)).visible.shape == (1, 2)


def test_published_settings():
    for preset, sizes in {"small": (384, 256, 4), "base": (768, 512, 8), "large": (1024, 1024, 12)}.items():
        with torch.device("meta"):
            method = CropMae(**CropMae.presets[preset]["method"])
        assert (method.encoder.embed_dim, method.decoder.embed.out_features, len(method.decoder.blocks)) == sizes
        assert {block.fc1.out_features for block in method.decoder.blocks} == {2048}
        trainer = CropMae.presets[preset]["trainer"]
        assert 2048 / 256 * trainer["base_lr"] == pytest.approx(8e-4)
        assert (trainer["betas"], trainer["weight_decay"]) == ((0.9, 0.95), 0.05)
        assert trainer["warmup"] * trainer["epochs"] == 20


def test_the_first_step_is_one_of_the_warm_up():
    """The released loop sets the rate after each step, so that its first step is made at the peak."""
    trainer = CropMae.presets["small"]["trainer"]
    peak, steps = 8e-4, 1000 * trainer["epochs"]
    assert lr_at(0, steps, round(trainer["warmup"] * steps), peak) == pytest.approx(peak / 20_000)


# views --------------------------------------------------------------------------------------------------------------


def test_the_local_crop_lies_in_the_global_one():
    keys, images = _keys(200), torch.zeros(200, 1, 60, 90)
    views = draw_views(images, keys, (32, 32), "global-to-local", *SCALES)
    outer, inner = views.first_box, views.second_box
    assert (inner[:, :2] >= outer[:, :2] - 1e-9).all()
    assert (inner[:, :2] + inner[:, 2:] <= outer[:, :2] + outer[:, 2:] + 1e-9).all()
    share = inner[:, 2:].prod(1) / outer[:, 2:].prod(1)
    assert 0.25 < share.min() < 0.35, "of the global crop, not of the image"
    assert 0.55 < share.max() < 0.65
    assert (inner[:, 2:].prod(1) / (60 * 90)).min() < 0.06, "a product of both draws"
    other = draw_views(images, keys, (32, 32), "local-to-global", *SCALES)
    assert torch.equal(other.first_box, inner)
    assert torch.equal(other.second_box, outer)


def test_two_independent_crops_or_one():
    keys, images = _keys(200), torch.randn(200, 1, 40, 40)
    views = draw_views(images, keys, (16, 16), "random-views", *SCALES)
    first, second = (box[:, 2:].prod(1) / 1600 for box in (views.first_box, views.second_box))
    assert first.min() < 0.2
    assert first.max() > 0.85
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    same = draw_views(images, keys, (16, 16), "same-view", *SCALES)
    assert torch.equal(same.first, same.second)


def test_views_are_flipped_on_their_own():
    """A ramp to the right tells what was mirrored."""
    keys, images = _keys(400), torch.arange(48.0).expand(400, 1, 48, 48)
    views = draw_views(images, keys, (32, 32), "global-to-local", *SCALES)
    falling = torch.stack(
        [(view.diff(dim=-1) < 0).flatten(1).float().mean(1) > 0.5 for view in (views.first, views.second)], 1
    )
    assert torch.equal(falling, views.flipped)
    pairs = torch.bincount(views.flipped.long() @ torch.tensor([2, 1]), minlength=4)
    assert pairs.min() > 70, "a quarter of 400 each"


def test_pixels_are_those_of_the_boxes():
    """Where nothing is mirrored, a linear image shows the true place of each crop, also that of the crop of a crop."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    images = torch.stack([y + 0.5, x + 0.5]).expand(50, 2, 64, 64)
    views = draw_views(images, _keys(50), (64, 64), "global-to-local", (0.5, 1.0), (0.3, 0.6))
    for view, box, flipped in (
        (views.first, views.first_box, views.flipped[:, 0]),
        (views.second, views.second_box, views.flipped[:, 1]),
    ):
        view = torch.where(flipped[:, None, None, None], view.flip(-1), view)
        centre = view[:, :, 31:33, 31:33].mean((2, 3)).double()
        torch.testing.assert_close(centre, box[:, :2] + box[:, 2:] / 2, atol=0.05, rtol=0)
    first = crop_and_resize(images, crop_boxes(fold(_keys(50), 0), (64, 64), (0.5, 1.0)), 64)
    kept = ~views.flipped[:, 0]
    assert torch.equal(views.first[kept], first[kept])


@pytest.mark.parametrize(("img_size", "expected"), [(None, (40, 48)), (24, (24, 24)), ((16, 32), (16, 32))])
def test_size_of_the_views(img_size, expected):
    views = _method(img_size=img_size).views(batch_of(3, 40, 48), _keys())
    assert views.first.shape == views.second.shape == (4, 3, *expected)


# decoder and loss ---------------------------------------------------------------------------------------------------


def test_order_of_a_decoder_block():
    """Cross-attention, feed-forward, self-attention, each followed by its norm; torch's own layer has another order."""
    torch.manual_seed(0)
    block, x, memory = MatchingBlock(16, 2, 32).eval(), torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    stock = torch.nn.TransformerDecoderLayer(16, 2, 32, batch_first=True, activation="gelu", layer_norm_eps=1e-6).eval()
    names = {"cross_attn": "multihead_attn", "attn": "self_attn", "fc1": "linear1", "fc2": "linear2"}
    names |= {"norm1": "norm2", "norm2": "norm3", "norm3": "norm1"}
    with torch.no_grad():
        for ours, theirs in names.items():
            getattr(stock, theirs).load_state_dict(getattr(block, ours).state_dict())
        expected = stock.norm2(x + stock._mha_block(x, memory, None, None))
        expected = stock.norm3(expected + stock._ff_block(expected))
        expected = stock.norm1(expected + stock._sa_block(expected, None, None))
        torch.testing.assert_close(block(x, memory), expected)
        assert (stock(x, memory) - expected).abs().max() > 0.1


def test_dropout_in_training_only():
    block, x = MatchingBlock(16, 2, 32, dropout=0.1), torch.randn(2, 5, 16)
    assert block.attn.dropout == block.cross_attn.dropout == block.dropout.p == 0.1
    assert not torch.equal(block(x, x), block(x, x))
    block.eval()
    assert torch.equal(block(x, x), block(x, x))


def test_memory_has_no_order_and_belongs_to_its_image():
    method, batch, keys = _method().eval(), batch_of(), _keys()
    with torch.no_grad():
        seen, tokens, mask = _parts(method, batch, keys)
        prediction = method.decode(tokens, mask, seen)
        order = torch.randperm(seen.shape[1], generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(method.decode(tokens, mask, seen[:, order]), prediction, atol=1e-5, rtol=0)
        assert (method.decode(tokens, mask, seen.roll(1, 0)) - prediction).abs().max() > 1e-3


def test_queries_have_positions():
    method, batch, keys = _method().eval(), batch_of(), _keys()
    caught = {}
    method.decoder.blocks[0].register_forward_pre_hook(
        lambda module, inputs: caught.update(x=inputs[0], memory=inputs[1])
    )
    with torch.no_grad():
        seen, tokens, mask = _parts(method, batch, keys)
        method.decode(tokens, mask, seen)
        embedded = method.decoder.embed(method.encoder(tokens, mask))
        torch.testing.assert_close(caught["memory"], method.decoder.embed(seen))
        torch.testing.assert_close(caught["x"][:, 0], embedded[:, 0])
        table = sincos(tokens.grid.coordinates(), 16)
        for row in range(4):
            at = mask.visible[row]
            torch.testing.assert_close(caught["x"][row, 1:][at], embedded[row, 1:] + table[at])
            at = mask.masked[row]
            torch.testing.assert_close(caught["x"][row, 1:][at], method.decoder.mask_token[0] + table[at])


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_of_hidden_patches_only(norm_pix):
    method, batch, keys = _method(norm_pix_loss=norm_pix), batch_of(), _keys()
    caught = {}

    def keep(module, inputs, output):
        output.retain_grad()
        caught["prediction"] = output

    method.decoder.register_forward_hook(keep)
    loss = method(batch, keys).loss
    loss.backward()
    prediction = caught["prediction"]
    assert prediction.shape == (4, 16, 192), "without the class row"
    views = method.views(batch, keys)
    tokens = method.encoder.tokens_of(views.second)
    hidden = method.masking(tokens.grid, keys).hidden
    assert hidden.sum(1).tolist() == [14] * 4
    assert torch.all(prediction.grad[~hidden] == 0)
    assert torch.all(prediction.grad[hidden].abs().amax(-1) > 0)
    target = tokens.values
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = ((prediction - target) ** 2).mean(-1)
    torch.testing.assert_close(loss, (error * hidden).sum() / (4 * 14))


def test_gradients_flow_through_both_views():
    method, batch, keys = _method(), batch_of(), _keys()
    views = method.views(batch, keys)
    first, second = views.first.requires_grad_(), views.second.clone().requires_grad_()
    seen = method.encoder(method.encoder.tokens_of(first))
    tokens = method.encoder.tokens_of(second)
    mask = method.masking(tokens.grid, keys)
    seen.retain_grad()
    visible = method.encoder(tokens, mask)
    visible.retain_grad()
    method.decoder(visible, mask, tokens.grid, seen).square().mean().backward()
    assert seen.grad.abs().amax() > 0
    assert visible.grad.abs().amax() > 0
    assert first.grad.abs().amax() > 0
    patches = method.encoder.tokens_of(second.grad).values.abs().amax(-1)
    assert torch.equal(patches > 0, ~mask.hidden), "of the second view two patches alone"


# contract, previews, runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_contract(strategy):
    norm_pix = strategy == "global-to-local"
    batch = made_up_batch({"image": TensorSpec("C H W", 3)}, 4, 32)
    check_method(lambda: CropMae(**SMALL, strategy=strategy, norm_pix_loss=norm_pix), batch)
    check_encoder(lambda: CropMae(**SMALL).encoder, batch)


@pytest.mark.parametrize(
    "options",
    [
        {"block": "crate"},
        {"positions": "rope", "img_size": 16},
        {"masking": RandomMasking(0.75)},
        {"in_chans": 5, "input_name": "x"},
    ],
)
def test_contract_of_its_options(options):
    channels, name = options.get("in_chans", 3), options.get("input_name", "image")
    check_method(lambda: CropMae(**{**SMALL, **options}), made_up_batch({name: TensorSpec("C H W", channels)}, 4, 32))


def test_hidden_pixels_of_the_second_view_never_reach_the_encoder():
    """Also of the crops of training."""
    method, batch, keys = _method(), batch_of(), _keys()
    with torch.no_grad():
        _, tokens, mask = _parts(method, batch, keys)
        changed = torch.where(mask.hidden[..., None], tokens.values + 1, tokens.values)
        before = method.encoder(tokens, mask)
        assert before.shape == (4, 3, 32)
        assert torch.equal(before, method.encoder(type(tokens)(changed, tokens.grid), mask))


def test_preview_hides_what_neither_view_shows():
    method, batch, keys = _method(norm_pix_loss=False).eval(), batch_of(), _keys()
    panel = method.preview(batch, keys)["image"]
    boxes = crop_boxes(fold(keys, 0), (32, 32), (0.3, 0.6))
    for row in range(4):
        top, left, height, width = boxes[row].tolist()
        assert not panel.hidden[row, top : top + height, left : left + width].any()
        assert panel.hidden[row].sum() >= 32 * 32 - height * width - 2 * 64
    visible = ~method.masking(Grid((4, 4)), keys).hidden
    kept = method.encoder.tokens_of(panel.original - panel.reconstruction).values.abs().amax(-1) < 1e-5
    assert torch.equal(kept, visible), "inside of the crop the picture shows what was copied over"
    assert inside(torch.tensor([[1, 2, 2, 1]]), 4, 4)[0].nonzero().tolist() == [[1, 2], [2, 2]]


def test_pictures_of_standardised_predictions_are_brought_back_to_values():
    """By the statistics of visible neighbours; to show the prediction itself is the usual mistake."""
    method, batch, keys = _method(norm_pix_loss=True).eval(), batch_of(), _keys()
    torch.nn.init.zeros_(method.decoder.head.weight)
    torch.nn.init.constant_(method.decoder.head.bias, 2.0)
    image = batch["image"] * 3 + 50
    tokens = method.encoder.tokens_of(image)
    mask = method.masking(tokens.grid, keys)
    mean, std = visible_patch_statistics(tokens.values, mask, tokens.grid)
    with torch.no_grad():
        torch.testing.assert_close(method.predict(tokens, mask), (2 * std + mean).expand(-1, -1, 192))
        shown = method.preview(Batch({"image": image}, batch.metas), keys)["image"]
    assert (shown.reconstruction[shown.hidden[:, None].expand_as(image)] > 40).all()


def test_images_only():
    with pytest.raises(ConfigError, match=r'crops images \(C H W\); "series" is \(C T\)'):
        _method(dims="C T", input_name="series")
    image, volume = TensorSpec("C H W", 4), TensorSpec("C D H W", 1)
    assert CropMae.options_for({"a": volume, "b": image}) == {"input_name": "b", "dims": "C H W", "in_chans": 4}
    assert CropMae.options_for({"a": volume})["dims"] == "C D H W"
    with pytest.raises(ConfigError, match=r"masking\.visible=2 hides nothing"):
        _method(img_size=(8, 16))(batch_of(), _keys())
    with pytest.raises(ConfigError, match=r"method\.strategy"):
        _method(strategy="both")
    with pytest.raises(ConfigError, match="decoder_num_heads=3"):
        _method(decoder_num_heads=3)
    with pytest.raises(ConfigError, match="Crop scale"):
        _method(local_scale=(0.6, 0.3))(batch_of(), _keys())


def test_pretrain_and_resume_to_equal_weights(tmp_path):
    data = write_images(tmp_path / "data", 12, 40, 3)
    settings = {"max_steps": 4, "batch_size": 4, "log_every": 1, "precision": "32", "threads": 1}
    options = {"method.img_size": 32, "masking.visible": 3}
    whole = mw.pretrain("cropmae", data, "tiny", tmp_path / "whole", options, **settings)
    with pytest.raises(Interrupted):
        mw.pretrain("cropmae", data, "tiny", tmp_path / "stopped", options, **settings, max_time="0s")
    recipe = tmp_path / "stopped" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_time: 0s", "max_time: null"))
    stopped = mw.Run.open(tmp_path / "stopped")
    assert len(stopped.metrics()) == 1
    resumed = mw.resume(stopped)
    losses = [row["loss"] for row in whole.metrics()]
    assert np.isfinite(losses).all()
    assert losses == [row["loss"] for row in resumed.metrics()]
    assert (whole.path / "previews" / "image.png").is_file()
    first, second = mw.load(whole).state_dict(), mw.load(resumed).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert mw.load(whole).embed(batch_of()).tokens.shape == (4, 16, 96)


# after training -----------------------------------------------------------------------------------------------------


def _photos():
    """Two photographs that come with scikit-learn, (3, H, W) with values in [-1, 1]."""
    return [torch.tensor(photo).permute(2, 0, 1) / 127.5 - 1 for photo in load_sample_images().images]


def _pieces(photos, generator, count, held_out=False, side=72):
    """Squares of photographs: of their left 65 %, or of the rest, which is not trained on."""
    pieces = []
    for number in torch.randint(len(photos), (count,), generator=generator).tolist():
        photo = photos[number]
        cut = int(0.65 * photo.shape[2])
        low, high = (cut, photo.shape[2] - side) if held_out else (0, cut - side)
        top = int(torch.randint(photo.shape[1] - side, (1,), generator=generator))
        left = int(torch.randint(low, high, (1,), generator=generator))
        pieces.append(photo[:, top : top + side, left : left + side])
    return Batch({"image": torch.stack(pieces)}, [Meta(str(number)) for number in range(count)])


def _train(method, batches):
    optimizer = torch.optim.AdamW(method.parameters(), weight_decay=0.05, betas=(0.9, 0.95))
    for step, (batch, keys) in enumerate(batches):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = lr_at(step, len(batches), len(batches) // 20, 2e-3)
        optimizer.zero_grad()
        method(batch, keys).loss.backward()
        optimizer.step()
    return method.eval()


@pytest.mark.slow
def test_after_training_it_depends_on_the_first_view():
    """With another image as first view the error rises; a MAE of as few visible patches has nothing to gain from it.

    In so few steps the model learns to take over colours and brightness; finding places takes far longer.
    """
    photos, generator = _photos(), torch.Generator().manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "norm_pix_loss": False}
    decoder = {"decoder_embed_dim": 64, "decoder_depth": 2, "decoder_num_heads": 4}
    torch.manual_seed(0)
    method = CropMae(**sizes, **decoder, decoder_mlp_dim=128, img_size=48, global_scale=(0.4, 1.0))
    plain = Mae(**sizes, **decoder, masking=RandomMasking(visible=2))
    batches = [(_pieces(photos, generator, 32), _keys(32, seed)) for seed in range(400)]
    _train(method, batches)
    with torch.no_grad():
        views = [(method.views(batch, keys).second, keys) for batch, keys in batches]
    _train(
        plain,
        [
            (Batch({"image": second}, batch.metas), keys)
            for (second, keys), (batch, _) in zip(views, batches, strict=True)
        ],
    )

    batch, keys = _pieces(photos, generator, 256, held_out=True), _keys(256, 1000)
    with torch.no_grad():
        seen, tokens, mask = _parts(method, batch, keys)
        right, wrong = method.loss(tokens, mask, seen).item(), method.loss(tokens, mask, seen.roll(1, 0)).item()
        alone = plain.loss(tokens, mask).item()
    assert wrong > 2 * right
    assert right < alone


def test_flips_can_be_left_out():
    batch = batch_of()
    plain, mirrored = (_method(flip=flip).views(batch, _keys()) for flip in (0.0, 1.0))
    assert not plain.flipped.any()
    assert mirrored.flipped.all()
    torch.testing.assert_close(plain.first.flip(-1), mirrored.first)
    torch.testing.assert_close(plain.second.flip(-1), mirrored.second)
    with pytest.raises(ConfigError, match=r"method\.flip"):
        _method(flip=-0.5)

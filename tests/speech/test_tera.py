"""TERA: sizes, loss, padding, pieces of long utterances."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, RandomMasking
from maskwright.core.masking.spans import SpanMasking
from maskwright.core.objective.cells import masked_cells
from maskwright.core.sample import TensorSpec
from maskwright.speech.encoders import Frames, FrameTransformer, interleaved_sincos
from maskwright.speech.methods.tera import Tera
from maskwright.testing import check_encoder, check_method, made_up_batch
from tests.speech.helpers import gradients, keys, parameters, spectrograms

SMALL = {"in_chans": 8, "embed_dim": 32, "num_heads": 4}


def make(**options):
    torch.manual_seed(0)
    return Tera(**{**SMALL, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer": "all", "overlap": False, "loss": "mse"},
        {"masking": RandomMasking(0.3), "noise_first": False},
        {"max_frames": 20},
    ],
)
def test_the_contract(options):
    batch = made_up_batch(make().inputs, 4, 64)
    check_method(lambda: make(**options), batch)
    check_encoder(lambda: make(**options).encoder, batch)


def test_parameters_of_the_base_model():
    with torch.device("meta"):
        base = Tera()
        assert parameters(base.encoder) == 21_327_360
        assert parameters(base.head) == 653_648
        slim = Tera(**Tera.presets["small"]["method"])
    assert len(slim.encoder.blocks) == 12
    assert slim.encoder.blocks[0].fc1.out_features == 768


def test_initial_weights():
    base = make(embed_dim=128, in_chans=80)
    for name, parameter in base.state_dict().items():
        if name.startswith("encoder.normalizers"):
            continue
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 2:
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.05), name
            assert float(parameter.abs().max()) > 0.05, name  # not truncated at two deviations
        else:
            assert bool((parameter == 1).all()), name


def test_positions_alternate_sine_and_cosine():
    table = interleaved_sincos(Grid((5,)).coordinates(), 6)
    for at in range(5):
        for pair in range(3):
            angle = torch.tensor(at / 10000 ** (2 * pair / 6))
            assert float(table[at, 2 * pair]) == pytest.approx(float(angle.sin()), abs=1e-6)
            assert float(table[at, 2 * pair + 1]) == pytest.approx(float(angle.cos()), abs=1e-6)


def test_layers_are_those_of_torch():
    """Post-norm layers of torch with the same weights; their padding mask is the other way round."""
    encoder = make(dropout=0.0).encoder.eval()
    steps = encoder.tokenize(spectrograms(30, 21, 9))
    x, *expected = encoder.hidden_states(steps)
    for block, wanted in zip(encoder.blocks, expected, strict=True):
        layer = torch.nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", 1e-12, batch_first=True)
        theirs = layer.state_dict()
        for ours, name in (("norm1", "norm1"), ("norm2", "norm2"), ("fc1", "linear1"), ("fc2", "linear2")):
            for part in ("weight", "bias"):
                theirs[f"{name}.{part}"] = block.state_dict()[f"{ours}.{part}"]
        for part in ("weight", "bias"):
            theirs[f"self_attn.in_proj_{part}"] = block.state_dict()[f"qkv.{part}"]
            theirs[f"self_attn.out_proj.{part}"] = block.state_dict()[f"proj.{part}"]
        layer.load_state_dict(theirs)
        found = layer(x, src_key_padding_mask=~steps.real)
        torch.testing.assert_close(found[steps.real], wanted[steps.real], atol=1e-5, rtol=1e-5)
        x = wanted


def test_gradient_of_the_loss_is_zero_or_one_over_n():
    prediction = torch.randn(3, 10, 4, requires_grad=True)
    selected = torch.rand(3, 10, 4) < 0.3
    masked_cells(prediction, torch.randn(3, 10, 4), selected).backward()
    assert not prediction.grad[~selected].any()
    share = 1 / selected.sum()
    torch.testing.assert_close(prediction.grad[selected].abs(), share.expand(int(selected.sum())))


def test_the_loss_is_one_flat_mean_over_altered_cells():
    method, batch = make(dropout=0.0), spectrograms(120, 60, 33, 90)
    frames = method.encoder.tokenize(batch)
    altered = method.alter(frames.values, frames.lengths, keys())
    errors = (method.predict(altered.values, frames) - frames.values).abs()[altered.selected]
    torch.testing.assert_close(method(batch, keys()).loss, errors.mean())


def test_the_batch_is_not_changed():
    batch = spectrograms(80, 50)
    before = batch["frames"].clone()
    make()(batch, keys(2))
    assert torch.equal(batch["frames"], before)


def test_too_short_utterances_weigh_nothing():
    method = make(band_share=0.0)
    step = method(spectrograms(5, 4), keys(2))
    assert float(step.loss.detach()) == 0
    step.loss.backward()
    both = method(spectrograms(100, 5), keys(2))
    assert float(both.loss.detach()) > 0


# padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16, 37, 100, 201, 333])
def test_padding_changes_not_one_bit(length):
    encoder = make(in_chans=80, embed_dim=192).encoder
    alone = encoder.embed(spectrograms(length, bins=80))
    for padded, others in ((length + 1, []), (length + 30, [40]), (length + 200, [length + 200, 7])):
        batch = spectrograms(length, *others, bins=80, padded=padded)
        found = encoder.embed(batch)
        assert torch.equal(found.tokens[0, :length], alone.tokens[0])
        assert not found.tokens[0, length:].any()
        torch.testing.assert_close(found.pooled[0], alone.pooled[0], atol=1e-6, rtol=1e-6)
        batch["frames"][0, :, length:] = 1e6  # whatever stands there
        again = encoder.embed(batch)
        assert torch.equal(again.tokens, found.tokens)
        assert torch.equal(again.pooled, found.pooled)


def test_padding_changes_no_loss_and_no_gradient():
    method = make(dropout=0.0)
    one, other = (spectrograms(60, 45, padded=padded) for padded in (60, 100))
    first, second = method(one, keys(2)).loss, method(other, keys(2)).loss
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
    ours, theirs = gradients(first, method), gradients(second, method)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-4)
    other["frames"][0, :, 60:] = 99
    assert torch.equal(method(other, keys(2)).loss, second)


# downstream -------------------------------------------------------------------------------------------------------


def test_long_utterances_are_read_in_equal_pieces():
    encoder = make(max_frames=40).encoder
    batch = spectrograms(100, 30)
    found = encoder.embed(batch)
    pieces = []
    for start, stop in ((0, 34), (34, 68), (68, 100)):
        piece = spectrograms(stop - start)
        piece["frames"][0] = batch["frames"][0, :, start:stop]
        pieces.append(encoder.embed(piece).tokens[0])
    torch.testing.assert_close(found.tokens[0], torch.cat(pieces), atol=1e-6, rtol=1e-6)
    short = spectrograms(30)
    short["frames"][0] = batch["frames"][1, :, :30]
    torch.testing.assert_close(found.tokens[1, :30], encoder.embed(short).tokens[0], atol=1e-6, rtol=1e-6)
    assert not found.tokens[1, 30:].any()
    torch.testing.assert_close(found.pooled[0], found.tokens[0].mean(0), atol=1e-6, rtol=1e-6)


def test_all_layers_are_weighed():
    encoder = make(layer="all").encoder.eval()
    frames = encoder.tokenize(spectrograms(30, 20))
    states = encoder.hidden_states(frames)
    assert len(states) == 4
    torch.testing.assert_close(encoder.features(frames), torch.stack(states).mean(0), atol=1e-6, rtol=1e-6)
    encoder.layer_weights.data = torch.tensor([-50.0, 50.0, -50.0, -50.0])
    torch.testing.assert_close(encoder.features(frames), states[1], atol=1e-6, rtol=1e-6)
    encoder.requires_grad_(True)
    encoder.features(frames).square().mean().backward()
    assert encoder.layer_weights.grad is not None


def test_the_last_layer_alone_counts_by_default():
    encoder = FrameTransformer(**SMALL).eval()
    frames = encoder.tokenize(spectrograms(30))
    assert torch.equal(encoder.features(frames), encoder(frames))
    assert isinstance(frames, Frames)


# options ----------------------------------------------------------------------------------------------------------


def test_options_follow_from_the_data():
    given = {"frames": TensorSpec("C T", 40, variable=True)}
    assert Tera.options_for(given) == {"input_name": "frames", "in_chans": 40}
    method = Tera(**{**SMALL, "in_chans": 40})
    assert method.inputs["frames"].variable


def test_published_spans_are_the_default():
    masking = make().masking
    assert isinstance(masking, SpanMasking)
    assert (masking.ratio, masking.span) == (0.15, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "does not divide"),
        ({"dropout": 1.0}, "outside"),
        ({"layer": "first"}, "neither last nor all"),
        ({"loss": "l2"}, "neither l1 nor mse"),
        ({"max_frames": 0}, "1 or more frames"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)

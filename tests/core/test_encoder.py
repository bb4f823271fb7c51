"""Vision transformer, decoder, patches, normalisation and teachers."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from maskwright.core.encoder import (
    Attention,
    EMATeacher,
    MaskTokenDecoder,
    Normalizer,
    Tokens,
    VisionTransformer,
    freeze,
    patchify,
    unpatchify,
)
from maskwright.core.encoder.patches import patch_mask_to_pixels
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Statistics
from maskwright.core.masking import Grid, RandomMasking, sample_keys
from maskwright.core.objective import masked_reconstruction
from maskwright.core.sample import Batch, Meta, Sample


def _keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def _vit(**options):
    torch.manual_seed(0)
    return VisionTransformer(
        **{"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, **options}
    ).eval()


def _batch(x, name="image"):
    return Batch({name: x}, [Meta(str(i)) for i in range(len(x))])


# any shape --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 20),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    positions=st.sampled_from(["sincos", "learned", "rope", "alibi", "none"]),
    class_token=st.booleans(),
    data=st.data(),
)
def test_any_shape_and_ratio(batch, channels, rows, columns, positions, class_token, data):
    """Any B, C, H, W; any share of hidden tokens from none to all but one: a finite loss and its gradients."""
    count = rows * columns
    hidden = data.draw(st.sampled_from([0, count - 1, count // 2]))
    torch.manual_seed(0)
    encoder = VisionTransformer(
        (rows * 2, columns * 3),
        (2, 3),
        channels,
        embed_dim=8,
        depth=1,
        num_heads=2,
        positions=positions,
        class_token=class_token,
    )
    decoder = MaskTokenDecoder(8, 6 * channels, 8, 1, 2, num_prefix_tokens=int(class_token))
    tokens = encoder.tokenize(_batch(torch.randn(batch, channels, rows * 2, columns * 3)))
    mask = RandomMasking(hidden / count)(tokens.grid, _keys(batch))
    features = encoder(tokens, mask)
    assert features.shape == (batch, count - hidden + class_token, 8)
    prediction = decoder(features, mask, tokens.grid)
    assert prediction.shape == tokens.values.shape
    loss = masked_reconstruction(prediction, tokens.values, mask)
    assert loss.isfinite()
    assert loss == 0 if hidden == 0 else loss > 0
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8))
def test_sizes_that_do_not_divide_are_refused_with_the_nearest(height, width, patch):
    encoder = _vit(img_size=8 * patch, patch_size=patch)
    x = torch.zeros(1, 3, height, width)
    if height % patch or width % patch:
        with pytest.raises(ConfigError, match=r"does not divide into patches.*Nearest size that does"):
            encoder.tokens_of(x)
    else:
        assert encoder.tokens_of(x).grid.shape == (height // patch, width // patch)


@pytest.mark.parametrize(
    ("img_size", "patch_size", "grid"),
    [((20,), (5,), (4,)), ((8, 12), 4, (2, 3)), ((4, 8, 12), (2, 4, 4), (2, 2, 3)), (16, 8, (2, 2))],
)
@pytest.mark.parametrize("positions", ["sincos", "learned", "rope", "alibi"])
def test_one_to_three_axes(img_size, patch_size, grid, positions):
    encoder = _vit(img_size=img_size, patch_size=patch_size, in_chans=2, positions=positions)
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    embedding = encoder.embed(_batch(torch.randn(2, 2, *size)))
    assert embedding.grid.shape == grid
    assert embedding.tokens.shape == (2, embedding.grid.count, 24)
    assert embedding.pooled.shape == (2, 24)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope", "alibi", "none"])
def test_one_set_of_weights_embeds_any_size(positions):
    encoder = _vit(positions=positions)
    for size in ((16, 16), (8, 24), (4, 4)):
        embedding = encoder.embed(_batch(torch.randn(1, 3, *size)))
        assert embedding.tokens.shape[1] == size[0] * size[1] // 16
        assert embedding.tokens.isfinite().all()


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope", "alibi"])
def test_every_kind_of_position_is_felt(positions):
    """Two patches swapped give other features at the class token, unless there are no positions."""
    values = torch.randn(1, 16, 48)
    swapped = values.clone()
    swapped[:, [0, 5]] = values[:, [5, 0]]
    grid = Grid((4, 4))
    for kind, felt in ((positions, True), ("none", False)):
        encoder = _vit(positions=kind)
        with torch.no_grad():
            a, b = encoder(Tokens(values, grid)), encoder(Tokens(swapped, grid))
        # distances to the class token are not biased, so ALiBi shows at the patches
        moved = max((a[:, 0] - b[:, 0]).abs().max(), (a[:, [1, 6]] - b[:, [6, 1]]).abs().max())
        assert (moved > 1e-4) == felt, kind


# hidden tokens ----------------------------------------------------------------------------------------------------


def test_masked_features_are_those_of_the_visible_patches_alone():
    """Dropping is the same as never having had the hidden patches."""
    encoder = _vit(class_token=False, positions="none")
    tokens = encoder.tokens_of(torch.randn(2, 3, 16, 16))
    mask = RandomMasking(0.5)(tokens.grid, _keys(2))
    alone = tokens.values.gather(1, mask.visible[..., None].expand(-1, -1, 48))
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens, mask), encoder(Tokens(alone, Grid((8,)))))


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope", "alibi"])
def test_nothing_hidden_gives_the_features_without_a_mask_in_another_order(positions):
    encoder = _vit(positions=positions)
    tokens = encoder.tokens_of(torch.randn(2, 3, 16, 16))
    mask = RandomMasking(0.0)(tokens.grid, _keys(2))
    with torch.no_grad():
        shuffled, plain = encoder(tokens, mask), encoder(tokens)
    back = shuffled[:, 1:].gather(1, mask.restore[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(back, plain[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(shuffled[:, 0], plain[:, 0], atol=1e-5, rtol=0)


def test_replace_keeps_all_tokens_and_forgets_the_hidden_ones():
    encoder = _vit()
    tokens = encoder.tokens_of(torch.randn(2, 3, 16, 16))
    mask, fill = RandomMasking(0.5)(tokens.grid, _keys(2)), torch.randn(24)
    changed = Tokens(torch.where(mask.hidden[..., None], tokens.values + 1, tokens.values), tokens.grid)
    with torch.no_grad():
        a, b = encoder(tokens, mask, fill), encoder(changed, mask, fill)
    assert a.shape == (2, 17, 24)
    assert torch.equal(a, b)


def test_attention_against_the_formula():
    torch.manual_seed(0)
    attention, x = Attention(12, 3), torch.randn(2, 5, 12)
    bias = torch.randn(1, 3, 5, 5)
    q, k, v = attention.qkv(x).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / 2 + bias).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x, bias), expected)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope", "alibi"])
def test_compiles_into_one_graph_and_only_once(positions):
    encoder = _vit(positions=positions)
    decoder, masking, graphs = MaskTokenDecoder(24, 48, 16, 1, 2, num_prefix_tokens=1), RandomMasking(0.5), []

    def loss_of(x, keys):
        tokens = encoder.tokens_of(x)
        mask = masking(tokens.grid, keys)
        prediction = decoder(encoder(tokens, mask), mask, tokens.grid)
        return masked_reconstruction(prediction, tokens.values, mask, standardise=True)

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    compiled = torch.compile(loss_of, backend=count, fullgraph=True)
    for seed in range(3):
        x = torch.randn(2, 3, 16, 16)
        torch.testing.assert_close(compiled(x, _keys(2, seed)), loss_of(x, _keys(2, seed)))
    assert len(graphs) == 1


# encoder base -----------------------------------------------------------------------------------------------------


def test_options_build_the_same_encoder():
    encoder = _vit(img_size=(8, 16), in_chans=5, positions="learned")
    again = VisionTransformer(**encoder.options)
    again.load_state_dict(encoder.state_dict())
    x = torch.randn(1, 5, 8, 16)
    assert torch.equal(encoder.embed(_batch(x)).tokens, again.embed(_batch(x)).tokens)


def test_options_are_those_of_the_outermost_constructor():
    class Plain(VisionTransformer):
        pass

    class Small(VisionTransformer):
        def __init__(self, width: int = 16) -> None:
            super().__init__(16, 4, embed_dim=width, depth=1, num_heads=2)

    with torch.device("meta"):
        assert Plain(depth=1).options["depth"] == 1
        assert Small().options == {"width": 16}


def test_embed_takes_a_sample_and_leaves_the_mode_alone():
    encoder = _vit().train()
    sample = Sample({"image": torch.randn(3, 16, 16)}, Meta("a"))
    embedding = encoder.embed(sample)
    assert encoder.training
    assert not embedding.pooled.requires_grad
    torch.testing.assert_close(embedding.pooled, embedding.tokens.mean(1))
    assert _vit(pool="token").embed(sample).pooled.shape == (1, 24)


def test_refusals():
    with pytest.raises(ConfigError, match="built for 3 channels, but the input has 4"):
        _vit().embed(_batch(torch.zeros(1, 4, 16, 16)))
    with pytest.raises(ConfigError, match="does not divide into num_heads"):
        _vit(num_heads=5)
    with pytest.raises(ConfigError, match="positions="):
        _vit(positions="fourier")
    with pytest.raises(ConfigError, match="normalization="):
        _vit(normalization="minmax")
    with pytest.raises(ConfigError, match="Rotary positions on 2 axes"):
        _vit(embed_dim=4, num_heads=2, positions="rope")


# patches ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 5),
    st.booleans(),
)
def test_unpatchify_undoes_patchify(axes, channels, channels_last):
    patch, cells = tuple(p for p, _ in axes), tuple(n for _, n in axes)
    x = torch.randn(2, channels, *(p * n for p, n in axes))
    patches = patchify(x, patch, channels_last)
    assert patches.shape[:2] == (2, Grid(cells).count)
    assert torch.equal(unpatchify(patches, Grid(cells), patch, channels, channels_last), x)


def test_patches_are_those_of_a_convolution():
    conv = torch.nn.Conv2d(3, 8, 4, 4)
    x = torch.randn(2, 3, 8, 12)
    linear = torch.nn.functional.linear(patchify(x, (4, 4)), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(linear, conv(x).flatten(2).transpose(1, 2))


def test_patch_mask_to_pixels():
    hidden = torch.tensor([[True, False, False, True]])
    pixels = patch_mask_to_pixels(hidden, Grid((2, 2)), (2, 3))
    assert pixels.shape == (1, 4, 6)
    assert pixels[0, :2, :3].all()
    assert not pixels[0, :2, 3:].any()


# normalisation ----------------------------------------------------------------------------------------------------

STATISTICS = Statistics([10.0, -3.0], [2.0, 0.0], [0.0, -3.0], [20.0, -3.0], 100)


def test_standard_normalisation_and_back():
    normalizer = Normalizer(2)
    normalizer.fit(STATISTICS)
    x = torch.tensor([[[12.0], [-3.0]]])
    assert normalizer(x).flatten().tolist() == [1.0, 0.0]  # a constant channel is shifted, not divided by zero
    torch.testing.assert_close(normalizer.invert(normalizer(x)), x)


def test_two_sigma_clips():
    normalizer = Normalizer(2, "two-sigma")
    normalizer.fit(STATISTICS)
    x = torch.tensor([[[6.0, 10.0, 14.0, 99.0], [-5.0, -3.0, -1.0, -99.0]]])
    torch.testing.assert_close(normalizer(x)[0], torch.tensor([[0.0, 0.5, 1.0, 1.0], [0.0, 0.5, 1.0, 0.0]]))
    torch.testing.assert_close(normalizer.invert(normalizer(x))[0, :, :3], x[0, :, :3])
    assert normalizer.invert(normalizer(x))[0, 0, 3] == 14


def test_normalisation_is_saved_with_the_weights():
    encoder = _vit(in_chans=2)
    encoder.fit_normalizers({"image": STATISTICS})
    again = _vit(in_chans=2)
    again.load_state_dict(encoder.state_dict())
    assert again.normalizers["image"].offset.tolist() == [10.0, -3.0]
    with pytest.raises(ConfigError, match="2 channels do not fit an encoder for 3"):
        _vit(in_chans=3).fit_normalizers({"image": STATISTICS})


# teachers ---------------------------------------------------------------------------------------------------------


def test_moving_average():
    student = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    teacher = EMATeacher(student, 0.9)
    start = teacher.module[0].weight.clone()
    with torch.no_grad():
        student[0].weight.fill_(3.0)
        student[1].running_mean.fill_(7.0)
    teacher.update(student)
    torch.testing.assert_close(teacher.module[0].weight, 0.9 * start + 0.1 * 3.0)
    assert teacher.module[1].running_mean.tolist() == [7.0, 7.0]  # buffers are copied
    teacher.update(student, decay=0.0)
    assert torch.all(teacher.module[0].weight == 3.0)


def test_teachers_never_train():
    student = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    teacher = EMATeacher(student)
    teacher.train()
    assert not teacher.module.training
    x = torch.randn(4, 2, requires_grad=True)
    assert torch.equal(teacher(x), teacher(x))
    assert not teacher(x).requires_grad
    assert all(not p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    frozen = freeze(torch.nn.Dropout(0.5))
    frozen.train()
    assert not frozen.training
    with pytest.raises(ConfigError, match="decay"):
        EMATeacher(student, 1.0)

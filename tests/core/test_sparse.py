"""Layers that compute visible cells only, against dense layers whose hidden positions are set back to zero."""

import copy
import threading

import pytest
import torch
from torch import nn

from benchmarks.spark_masked import MaskedNetwork
from maskwright.core.encoder import EMATeacher
from maskwright.core.encoder.cells import Cells
from maskwright.core.encoder.convnet import SparseConvNet
from maskwright.core.encoder.residual import ResidualNetwork
from maskwright.core.encoder.sparse import Active, active_of, to_dense, to_sparse
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, RandomMasking, mask_from_scores, sample_keys
from maskwright.testing import check_encoder, made_up_batch

timm = pytest.importorskip("timm")
NETWORKS = ["resnet18", "resnet50", "convnext_atto", "convnextv2_atto", "regnety_002", "efficientnet_b0"]
REFERENCE = ["resnet18", "resnet50", "resnet26d", "convnext_atto,conv_mlp=false", "regnety_002", "efficientnet_b0"]
"""Networks whose layers the reference knows."""
PLAIN = {"backbone": "plain", "scales": 3, "widths": (4, 8, 12), "depths": (1, 2, 1)}


def build(backbone, **options):
    """An encoder with seeded weights, none of which hides a branch by being zero or nearly so."""
    torch.manual_seed(0)
    encoder = SparseConvNet(backbone, **options)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return encoder


def mask_of(batch, grid, visible, seed=0):
    scores = torch.rand(batch, grid.count, generator=torch.Generator().manual_seed(seed))
    return mask_from_scores(scores, grid.count - visible)


def case(encoder, count=3, cells=3, visible=4):
    """A batch of `cells` x `cells` cells, and which of them are visible."""
    batch = made_up_batch(encoder.inputs, count, cells * encoder.stride)
    tokens = encoder.tokenize(batch)
    return batch, tokens, mask_of(count, tokens.grid, visible)


def buffers(module):
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def close(a, b, tolerance=1e-4):
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * float(b.abs().max().clamp_min(1e-6))


# cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "side"), [((3, 4), (2, 3)), ((2, 3, 2), (2, 1, 3))])
def test_windows_are_cut_from_the_spread_map(shape, side):
    grid = Grid(shape)
    cells = Cells(grid, mask_of(2, grid, 5).visible)
    x = torch.randn(2 * 5, 3, *side)
    maps = cells.spread(x)
    assert torch.equal(cells.gather(maps), x)
    assert int((maps != 0).sum()) == x.numel()
    before, after = (1,) * len(shape), (2,) * len(shape)
    padded = nn.functional.pad(maps, (1, 2) * len(shape))
    windows = cells.windows(x, before, after)
    coordinates = grid.coordinates().long()
    for number in range(10):
        sample, place = divmod(number, 5)
        at = coordinates[cells.visible[sample, place]]
        cut = tuple(slice(int(a) * s, int(a) * s + s + 3) for a, s in zip(at, side, strict=True))
        assert torch.equal(windows[number], padded[(sample, slice(None), *cut)])


def test_a_fill_stands_at_hidden_positions_and_is_learned():
    grid = Grid((2, 2))
    cells = Cells(grid, torch.tensor([[3]]))
    fill = torch.tensor([5.0, 7.0], requires_grad=True)
    maps = cells.spread(torch.ones(1, 2, 2, 2), fill)
    assert maps[0, :, 2:, 2:].eq(1).all()
    assert maps[0, :, :2].flatten(1).eq(fill[:, None]).all()
    maps.sum().backward()
    assert fill.grad.tolist() == [12, 12]


def test_cells_of_a_sample_stand_together():
    cells = Cells(Grid((2, 2)), torch.tensor([[0, 3], [1, 2]]))
    x = torch.randn(4, 3, 2, 2)
    samples = cells.by_sample(x)
    assert samples.shape == (2, 3, 4, 2)
    assert torch.allclose(samples.mean((2, 3))[1], x[2:].mean((0, 2, 3)))
    assert torch.equal(cells.by_cell(samples), x)


# networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCE)
def test_the_same_as_dense_layers_set_back_to_zero(name):
    """Maps, gradients of all parameters and statistics of batch norms, in training and in double precision."""
    encoder = build(name).double().train()
    stock = to_dense(copy.deepcopy(encoder.module))
    batch, tokens, mask = case(encoder)
    tokens = type(tokens)(tokens.values.double(), tokens.grid)
    maps, cells = encoder.pyramid(tokens, mask)
    active = ~mask.hidden.view(3, 1, *tokens.grid.shape)
    image = encoder.normalize(batch)["image"].double()
    theirs = MaskedNetwork(stock)(image, active)[-4:]
    assert all(close(cells.spread(a), b, 1e-9) for a, b in zip(maps, theirs, strict=True))
    sum((x**2).sum() for x in maps).backward()
    sum((x**2).sum() for x in theirs).backward()
    ours, wanted = ({k: p.grad for k, p in module.named_parameters()} for module in (encoder.module, stock))
    largest = max(float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None)
    for key, gradient in wanted.items():
        assert (gradient is None) == (ours[key] is None)
        if gradient is not None:
            assert float((ours[key] - gradient).abs().max()) < 1e-9 * largest, key
    for key, buffer in encoder.module.named_buffers():
        assert close(buffer.double(), stock.get_buffer(key).double(), 1e-9), key


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_pixels_reach_nothing(name):
    """Not even NaN at hidden places changes a bit of a map, or of the statistics of batch norms (check 2)."""
    encoder = build(name).train()
    _, tokens, mask = case(encoder)
    start = copy.deepcopy(encoder.state_dict())
    found = []
    for hidden in (0.0, 1e3, float("nan")):
        encoder.load_state_dict(start)
        changed = torch.where(mask.hidden[..., None], hidden, tokens.values)
        maps, _ = encoder.pyramid(type(tokens)(changed, tokens.grid), mask)
        found.append([*maps, *encoder.buffers()])
        found[-1] = [x.detach().clone() for x in found[-1]]
    for maps in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], maps, strict=True))
    assert all(x.isfinite().all() for x in found[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_that_hides_nothing_gives_the_dense_maps(name, training):
    """Check 3."""
    encoder = build(name).train(training)
    batch = made_up_batch(encoder.inputs, 2, 2 * encoder.stride)
    tokens = encoder.tokenize(batch)
    start = copy.deepcopy(encoder.state_dict())
    maps, cells = encoder.pyramid(tokens, mask_of(2, tokens.grid, 4))
    after = buffers(encoder)
    encoder.load_state_dict(start)
    dense = encoder.maps(encoder.normalize(batch)["image"])
    assert all(close(cells.spread(a), b) for a, b in zip(maps, dense, strict=True))
    assert all(close(after[key].float(), b.float()) for key, b in encoder.named_buffers())


def test_holes_stay_holes_where_dense_layers_fill_them():
    """Check 1: the share of zero positions is 1 - 20/49 at all scales; it collapses in a dense network."""
    encoder = build("resnet18").train()
    batch = made_up_batch(encoder.inputs, 2, 224)
    tokens = encoder.tokenize(batch)
    mask = mask_of(2, tokens.grid, 20)
    maps, cells = encoder.pyramid(tokens, mask)
    image = cells.spread(cells.gather(encoder.normalize(batch)["image"]))
    for sparse, dense in zip(maps, encoder.maps(image), strict=True):
        empty = (cells.spread(sparse) == 0).all(1)
        assert empty.float().mean().item() == pytest.approx(1 - 20 / 49, abs=1e-6)
        assert float((dense == 0).all(1).float().mean()) == 0
    shares, x = [], image
    for _ in range(4):  # without norms and biases the rim creeps in, layer by layer
        x = nn.functional.conv2d(x, torch.ones(3, 3, 3, 3))
        shares.append(float((x == 0).all(1).float().mean()))
    assert 1 - 20 / 49 > shares[0] > shares[1] > shares[2] > shares[3] > 0


def test_weights_are_those_of_timm():
    """Check 6, and the way back: the same tensors under the same names in layers of the same classes."""
    encoder = build("seresnet50")
    timm.create_model("seresnet50", num_classes=0).load_state_dict(encoder.module.state_dict())
    stock = timm.create_model("efficientnet_b0", num_classes=0)
    kinds, tensors = (
        [type(layer) for layer in stock.modules()],
        {k: v.data_ptr() for k, v in stock.state_dict().items()},
    )
    x = torch.randn(1, 3, 64, 64)
    before = stock.eval()(x)
    to_sparse(stock)
    assert torch.equal(stock(x), before)
    assert [type(layer) for layer in stock.modules()] != kinds
    assert {k: v.data_ptr() for k, v in stock.state_dict().items()} == tensors
    to_dense(stock)
    assert [type(layer) for layer in stock.modules()] == kinds
    assert {k: v.data_ptr() for k, v in stock.state_dict().items()} == tensors
    assert not any(hasattr(layer, "active") for layer in stock.modules())
    with pytest.raises(ConfigError, match="holds no sparse layer"):
        active_of(stock)


# layers -----------------------------------------------------------------------------------------------------------


def run(layer, maps, visible):
    """A layer on the visible cells of maps, as whole maps with NaN at hidden positions."""
    cells = Cells(Grid((2, 2)), torch.tensor(visible))
    with active_of(to_sparse(nn.Sequential(layer))).showing(cells):
        return cells.spread(layer(cells.gather(maps)), torch.full((1,), float("nan")).expand(maps.shape[1]))


def test_max_pooling_takes_the_largest_visible_value():
    maps = -torch.arange(1.0, 17).view(1, 1, 4, 4)
    pooled = run(nn.MaxPool2d(3, 1, 1), maps, [[0]])
    assert pooled[0, 0, :2, :2].tolist() == [[-1, -1], [-1, -1]]  # not the 0 of hidden positions
    pooled = run(nn.MaxPool2d(3, 1, 1), maps.abs(), [[0, 1]])
    assert pooled[0, 0, :2].tolist() == [[6, 7, 8, 8], [6, 7, 8, 8]]
    assert pooled[0, 0, 2:].isnan().all()


def test_average_pooling_counts_hidden_positions_as_zero():
    pooled = run(nn.AvgPool2d(3, 1, 1), torch.ones(1, 1, 4, 4), [[0, 3]])
    assert torch.allclose(pooled[0, 0, :2, :2] * 9, torch.tensor([[4.0, 4], [4, 5]]))


def test_squeeze_and_excitation_averages_visible_positions():
    layer = timm.layers.SEModule(4, rd_channels=2)
    maps = torch.randn(2, 4, 4, 4)
    found = run(layer, maps, [[0], [3]])
    for sample, part in ((0, maps[:1, :, :2, :2]), (1, maps[1:, :, 2:, 2:])):
        mean = part.mean((2, 3), keepdim=True)
        wanted = part * layer.fc2(layer.act(layer.fc1(mean))).sigmoid()
        cut = found[sample : sample + 1, :, *([slice(0, 2)] * 2 if sample == 0 else [slice(2, 4)] * 2)]
        assert torch.allclose(cut, wanted, atol=1e-6)


def test_group_norm_and_drop_path_see_a_sample_as_a_whole():
    maps = torch.randn(2, 4, 4, 4)
    found = run(nn.GroupNorm(2, 4), maps, [[0, 1], [0, 1]])[:, :, :2]
    assert torch.allclose(found, nn.GroupNorm(2, 4)(maps[:, :, :2]), atol=1e-5)
    torch.manual_seed(0)
    dropped = run(timm.layers.DropPath(0.5), torch.ones(64, 1, 4, 4), [[0, 1, 2]] * 64)[:, :, :2].flatten(1)
    assert dropped.unique().tolist() == [0, 2]
    assert (dropped == dropped[:, :1]).all()


@pytest.mark.parametrize("side", [1, 2, 4])
def test_depthwise_convolutions_with_rims_wider_than_cells(side):
    layer = nn.Conv2d(3, 3, 7, padding=3, groups=3)
    maps = torch.randn(2, 3, 2 * side, 2 * side)
    active = torch.zeros(2, 1, 2, 2)
    active[:, :, 0, 1] = active[:, :, 1, 1] = 1
    active = active.repeat_interleave(side, 2).repeat_interleave(side, 3)
    found = run(layer, maps, [[1, 3], [3, 1]])
    wanted = nn.functional.conv2d(maps * active, layer.weight, layer.bias, padding=3, groups=3)
    assert close(found.nan_to_num(0), wanted * active, 1e-5)


# volumes ----------------------------------------------------------------------------------------------------------


def test_volumes_are_encoded_like_dense_ones_and_hide_what_is_hidden():
    options = {**PLAIN, "dims": "C D H W", "in_chans": 1, "input_name": "volume"}
    torch.manual_seed(0)
    encoder = SparseConvNet(**options).train()
    nn.init.ones_(encoder.module.blocks[0].norm2.weight)
    batch = made_up_batch(encoder.inputs, 2, 16)
    tokens = encoder.tokenize(batch)
    assert tokens.grid.shape == (2, 2, 2)
    maps, cells = encoder.pyramid(tokens, mask_of(2, tokens.grid, 8))
    dense = encoder.maps(encoder.normalize(batch)["volume"])
    assert [x.shape[1:] for x in dense] == [(4, 8, 8, 8), (8, 4, 4, 4), (12, 2, 2, 2)]
    assert all(close(cells.spread(a), b) for a, b in zip(maps, dense, strict=True))

    mask = mask_of(2, tokens.grid, 3)
    cells = Cells(tokens.grid, mask.visible)
    conv = nn.Conv3d(1, 2, 3, padding=1)
    x = encoder.normalize(batch)["volume"]
    active = cells.spread(torch.ones(6, 1, 8, 8, 8))
    wanted = nn.functional.conv3d(x * active, conv.weight, conv.bias, padding=1) * active
    with active_of(to_sparse(nn.Sequential(conv))).showing(cells):
        assert close(cells.spread(conv(cells.gather(x))), wanted, 1e-5)


@pytest.mark.parametrize("dims", ["C H W", "C D H W"])
def test_contract_of_the_plain_network(dims):
    options = {**PLAIN, "dims": dims, "in_chans": 2}
    encoder = SparseConvNet(**options)
    check_encoder(lambda: SparseConvNet(**options), made_up_batch(encoder.inputs, 3, 16))


def test_contract_of_a_network_of_timm_and_any_size():
    encoder = SparseConvNet("convnext_atto", in_chans=2)
    check_encoder(lambda: SparseConvNet("convnext_atto", in_chans=2), made_up_batch(encoder.inputs, 2, 64))
    embedding = encoder.embed(made_up_batch(encoder.inputs, 2, 80))
    assert embedding.grid.shape == (2, 2)
    assert torch.allclose(embedding.pooled, embedding.tokens.mean(1))
    with pytest.raises(ConfigError, match="does not divide"):
        encoder.tokenize(made_up_batch(encoder.inputs, 2, 80))


# several at a time ------------------------------------------------------------------------------------------------


def test_networks_and_threads_do_not_disturb_each_other():
    """Two networks, and one network in two threads, each with masks of its own, give what they give alone."""
    encoders = [SparseConvNet(**PLAIN).eval(), SparseConvNet(**PLAIN).eval()]
    batch = made_up_batch(encoders[0].inputs, 2, 32)
    tokens = encoders[0].tokenize(batch)
    jobs = [(encoders[which % 2], mask_of(2, tokens.grid, 3 + which, which)) for which in range(4)]

    def maps(encoder, mask):
        with torch.no_grad():
            return encoder.pyramid(tokens, mask)[0]

    alone = [maps(*job) for job in jobs]
    barrier, found = threading.Barrier(4), {}

    def work(number):
        barrier.wait()
        found[number] = [maps(*jobs[number]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate(alone):
        for again in found[number]:
            assert all(torch.equal(a, b) for a, b in zip(again, wanted, strict=True))


def test_a_copy_switches_by_itself():
    encoder = SparseConvNet(**PLAIN).eval()
    batch = made_up_batch(encoder.inputs, 2, 32)
    tokens = encoder.tokenize(batch)
    active = active_of(encoder.module)
    dense = encoder.maps(encoder.normalize(batch)["image"])
    with active.showing(Cells(tokens.grid, mask_of(2, tokens.grid, 3).visible)):
        teacher = EMATeacher(encoder)
        copied = active_of(teacher.module.module)
        assert copied is not active
        assert copied.cells is None
        assert torch.equal(teacher.module.maps(encoder.normalize(batch)["image"])[-1], dense[-1])
    assert active.cells is None
    assert len({id(layer.active) for layer in teacher.module.modules() if hasattr(layer, "active")}) == 1


def test_the_switch_is_put_back_after_an_error():
    active = Active()
    cells = Cells(Grid((2,)), torch.tensor([[0]]))

    def fail():
        with active.showing(cells):
            assert active.cells is cells
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert active.cells is None


# refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "ecaresnet26t"}, r"Conv1d\) is one-dimensional"),
        ({"backbone": "tf_efficientnet_b0"}, "no plain convolution"),
        ({"backbone": "inception_v3"}, "does not divide the size"),
        ({"backbone": "poolformer_s12"}, "overlapping windows"),
        ({"backbone": "resnetblur18"}, "mixes positions"),
        ({"backbone": "gcresnext26ts"}, "mixes positions"),
        ({"backbone": "vit_tiny_patch16_224"}, "not a pyramid"),
        ({"backbone": "botnet26t_256"}, "cannot work cell by cell"),
        ({"backbone": "resnet18", "dims": "C D H W"}, "images only"),
        ({"backbone": "resnet18", "scales": 6}, "has 5 maps"),
        ({"backbone": "resnet19"}, "timm has no model"),
        ({"backbone": "plain", "dims": "C T"}, "neither"),
        ({"backbone": "plain", "widths": (8,), "depths": ()}, "one number of 1 or more"),
    ],
)
def test_what_has_no_sparse_meaning_is_refused_in_a_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        SparseConvNet(**options)


def test_one_visible_cell_in_training_is_refused():
    encoder = SparseConvNet(**PLAIN)
    tokens = encoder.tokenize(made_up_batch(encoder.inputs, 1, 16))
    mask = mask_of(1, tokens.grid, 1)
    with pytest.raises(ConfigError, match="One visible cell"):
        encoder.train().pyramid(tokens, mask)
    assert encoder.eval()(tokens, mask).shape == (1, 1, 12)


def test_the_plain_network_starts_as_its_skips():
    torch.manual_seed(0)
    network = ResidualNetwork(2, 3, (4, 8), (1, 2), stem_stride=2)
    assert network.strides == (4, 8)
    x = torch.randn(2, 3, 16, 16)
    block = network.blocks[2]
    y = torch.rand(2, 8, 2, 2)
    assert torch.equal(block(y), y)
    assert [m.shape[2:] for m in network(x)] == [(4, 4), (2, 2)]


def test_masks_of_the_core_fit():
    encoder = SparseConvNet(**PLAIN).eval()
    tokens = encoder.tokenize(made_up_batch(encoder.inputs, 2, 32))
    mask = RandomMasking(0.5)(tokens.grid, sample_keys(torch.Generator().manual_seed(0), 2))
    assert encoder(tokens, mask).shape == (2, 8, 12)


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_pooling_that_rounds_up_is_refused_where_it_reaches_beyond_a_cell(pool):
    with pytest.raises(ConfigError, match="rounds the size of its map up"):
        to_sparse(nn.Sequential(pool(3, stride=2, padding=1, ceil_mode=True)))
    to_sparse(nn.Sequential(pool(2, stride=2, ceil_mode=True)))  # whole cells have nothing to round

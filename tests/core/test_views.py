"""Crops of a whole batch against torchvision's of one image, and the boxes they are cut from."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import sample_keys
from maskwright.core.views import compose, crop_and_resize, crop_boxes


def _keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def _images(count, *size, seed=0):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_boxes_follow_the_rule():
    height, width = 120, 200
    top, left, h, w = crop_boxes(_keys(20_000), (height, width), (0.2, 0.5), (0.75, 4 / 3)).unbind(1)
    assert torch.all((top >= 0) & (left >= 0) & (top + h <= height) & (left + w <= width))
    area, aspect = (h * w).double() / (height * width), w.double() / h
    uncut = (h < height) & (w < width)
    assert area[uncut].min() > 0.19
    assert area.max() < 0.51
    assert area.mean() == pytest.approx(0.35, abs=0.003)
    assert aspect[uncut].min() > 0.73
    assert aspect[uncut].max() < 1.36
    assert aspect.log().mean() == pytest.approx(0, abs=0.005)
    # uniform place, both ends included
    share = (top.double() / (height - h).clamp(min=1))[h < height - 20]
    assert (share.min(), share.max()) == (0, 1)
    assert share.mean() == pytest.approx(0.5, abs=0.01)


def test_boxes_at_the_limits():
    assert crop_boxes(_keys(50), (7, 9), (1.0, 1.0), (9 / 7, 9 / 7)).unique(dim=0).tolist() == [[0, 0, 7, 9]]
    top, _, h, _ = crop_boxes(_keys(500), (10, 400), (0.9, 1.0)).unbind(1)
    assert torch.all(h == 10)  # wider than the ratio allows: cut to the image, no retry
    assert torch.all(top == 0)
    assert torch.all(crop_boxes(_keys(50), (3, 3), (0.01, 0.01))[:, 2:] == 1)


def test_a_box_follows_its_key():
    keys = _keys(30)
    whole = crop_boxes(keys, (64, 80))
    assert torch.equal(whole.flip(0), crop_boxes(keys.flip(0), (64, 80)))
    assert torch.equal(whole[7:8], crop_boxes(keys[7:8], (64, 80)))
    assert whole.unique(dim=0).shape[0] > 25


@pytest.mark.parametrize(
    "options", [{"scale": (0, 1)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.1)}, {"ratio": (0, 1)}]
)
def test_boxes_refuse_ranges_of_no_meaning(options):
    with pytest.raises(ConfigError, match=r"Crop (scale|ratio)"):
        crop_boxes(_keys(2), (8, 8), **options)


@pytest.mark.parametrize("out_size", [(16, 16), (24, 40), (150, 130), (1, 1)], ids=["down", "oblong", "up", "one"])
def test_equal_to_torchvision(out_size):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    images = _images(12, 70, 90)
    boxes = crop_boxes(_keys(12), (70, 90), (0.05, 1.0))
    flip = torch.arange(12) % 3 == 0
    ours = crop_and_resize(images, boxes, out_size, flip)
    assert ours.shape == (12, 3, *out_size)
    for image, box, mirrored, one in zip(images, boxes.tolist(), flip, ours, strict=True):
        expected = functional.resized_crop(
            image, *box, size=list(out_size), interpolation=functional.InterpolationMode.BILINEAR, antialias=True
        )
        torch.testing.assert_close(one, expected.flip(2) if mirrored else expected, atol=1e-4, rtol=0)


def test_whole_image_at_its_own_size_is_unchanged():
    images = _images(2, 9, 7)
    box = torch.tensor([[0, 0, 9, 7]]).expand(2, 4)
    torch.testing.assert_close(crop_and_resize(images, box, (9, 7)), images)
    mirrored = crop_and_resize(images, box, (9, 7), torch.tensor([True, False]))
    torch.testing.assert_close(mirrored, torch.stack([images[0].flip(2), images[1]]))


def test_pixels_outside_of_the_box_do_not_count():
    images = _images(1, 20, 20)
    box = torch.tensor([[5, 4, 8, 9]])
    before = crop_and_resize(images, box, 6)
    images[:, :, :5] = images[:, :, 13:] = images[..., :4] = images[..., 13:] = 1e6
    assert torch.equal(crop_and_resize(images, box, 6), before)


def test_a_crop_does_not_depend_on_the_batch_and_lets_gradients_through():
    images, boxes = _images(6, 30, 30).requires_grad_(), crop_boxes(_keys(6), (30, 30))
    whole = crop_and_resize(images, boxes, 8)
    torch.testing.assert_close(whole[2:3], crop_and_resize(images[2:3], boxes[2:3], 8), atol=1e-6, rtol=0)
    whole.sum().backward()
    assert images.grad.flatten(1).sum(1).tolist() == pytest.approx([3 * 64] * 6, rel=1e-4)  # weights add up to one


def test_precision():
    images, boxes = _images(3, 30, 30), crop_boxes(_keys(3), (30, 30))
    expected = crop_and_resize(images, boxes, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crop_and_resize(images, boxes, 8), expected)
    assert crop_and_resize(images.half(), boxes, 8).dtype == torch.float16
    with pytest.raises(ConfigError, match=r"floating point numbers, not torch\.uint8"):
        crop_and_resize(images.byte(), boxes, 8)
    with pytest.raises(ConfigError, match="0 x 8"):
        crop_and_resize(images, boxes, (0, 8))


def test_a_crop_of_a_crop_lies_inside_of_it():
    """CropMAE's local view: a crop of the resized global view."""
    outer = crop_boxes(_keys(200), (150, 260), (0.1, 1.0))
    inner = crop_boxes(_keys(200, seed=1), (64, 48), (0.3, 0.6))
    both = compose(outer, inner, (64, 48))
    assert both.dtype == torch.float64
    assert torch.all(both[:, :2] >= outer[:, :2])
    assert torch.all(both[:, :2] + both[:, 2:] <= (outer[:, :2] + outer[:, 2:]).double() + 1e-9)
    area = (inner[:, 2] * inner[:, 3]).double() / (64 * 48) * (outer[:, 2] * outer[:, 3])
    torch.testing.assert_close(both[:, 2] * both[:, 3], area)
    whole = torch.tensor([[0, 0, 64, 48]]).expand(200, 4)
    assert torch.equal(compose(outer, whole, (64, 48)), outer.double())


def test_compose_says_where_the_pixels_come_from():
    """Images whose values are their own coordinates."""
    y, x = torch.meshgrid(torch.arange(100.0), torch.arange(120.0), indexing="ij")
    images = torch.stack([y, x])[None].expand(5, 2, 100, 120)
    outer, inner = crop_boxes(_keys(5), (100, 120), (0.4, 0.8)), crop_boxes(_keys(5, 1), (64, 64), (0.3, 0.6))
    local = crop_and_resize(crop_and_resize(images, outer, 64), inner, 32)
    top, left, height, width = compose(outer, inner, 64).unbind(1)
    middle = local[:, :, 15:17, 15:17].mean((2, 3)).double()
    torch.testing.assert_close(middle[:, 0], top + height / 2 - 0.5, atol=0.2, rtol=0)
    torch.testing.assert_close(middle[:, 1], left + width / 2 - 0.5, atol=0.2, rtol=0)

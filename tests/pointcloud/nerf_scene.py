"""A made-up scene, photographed by a ray caster that shares nothing with the package: balls and a box on a disc."""

import json

import numpy as np
from PIL import Image

BALLS = (((0.0, 0.0, 0.35), 0.35, (0.9, 0.2, 0.15)), ((-0.5, 0.35, 0.2), 0.2, (0.2, 0.75, 0.3)))
BOX = ((0.25, -0.7, 0.0), (0.7, -0.3, 0.5), (0.2, 0.3, 0.9))
FLOOR = (-0.9, 0.9, -0.1, 0.0, (0.75, 0.7, 0.6))
BOUNDS = [[-1.0, -1.0, -0.2], [1.0, 1.0, 0.9]]


def _slab(origin, directions, low, high):
    """Distance to an axis-aligned box, infinite where it is missed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (np.array(low) - origin) / directions, (np.array(high) - origin) / directions
    enter, leave = np.fmin(one, other).max(-1), np.fmax(one, other).min(-1)
    return np.where((leave > enter) & (enter > 0), enter, np.inf)


def _hits(origin, directions):
    """Distances (N, things) and colours (things, 3)."""
    distances, colours = [], []
    for centre, radius, colour in BALLS:
        away = origin - np.array(centre)
        b = directions @ away
        root = b**2 - (away @ away - radius**2)
        distances.append(np.where(root > 0, -b - np.sqrt(np.maximum(root, 0)), np.inf))
        colours.append(colour)
    distances.append(_slab(origin, directions, BOX[0], BOX[1]))
    colours.append(BOX[2])
    low, high, bottom, top, colour = FLOOR
    distances.append(_slab(origin, directions, (low, low, bottom), (high, high, top)))
    colours.append(colour)
    return np.stack(distances, 1), np.array(colours)


def inside(points):
    """(N,) bool, which points lie in something."""
    filled = np.zeros(len(points), bool)
    for centre, radius, _ in BALLS:
        filled |= ((points - centre) ** 2).sum(1) < radius**2
    filled |= ((points > BOX[0]) & (points < BOX[1])).all(1)
    low, high, bottom, top, _ = FLOOR
    flat = (points[:, :2] > low).all(1) & (points[:, :2] < high).all(1)
    return filled | (flat & (points[:, 2] > bottom) & (points[:, 2] < top))


def pose_at(place, target=(0.0, 0.0, 0.2)):
    """(4, 4) OpenGL pose of a camera that looks at a target with z upwards."""
    back = np.array(place) - target
    back /= np.linalg.norm(back)
    right = np.cross((0, 0, 1), back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, place], 1)
    return pose


def photograph(pose, size, focal, k1):
    """(size, size, 4) 8-bit RGBA, two by two rays a pixel; the lens has OpenCV's k1 alone, inverted by bisection."""
    steps = (np.arange(2 * size) + 0.5) / 2
    x, y = np.meshgrid(steps, steps)
    shifted = np.stack([x - size / 2, y - size / 2], -1).reshape(-1, 2) / focal
    radius = np.linalg.norm(shifted, axis=1)
    low, high = np.zeros_like(radius), np.full_like(radius, 2.0)
    for _ in range(50):
        middle = (low + high) / 2
        below = middle * (1 + k1 * middle**2) < radius
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    flat = shifted * (low / np.maximum(radius, 1e-12))[:, None]
    local = np.stack([flat[:, 0], -flat[:, 1], -np.ones(len(flat))], 1)
    directions = local @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    distances, colours = _hits(pose[:3, 3], directions)
    first = distances.argmin(1)
    hit = np.isfinite(distances.min(1))
    picture = np.where(hit[:, None], colours[first], 0).reshape(size, 2, size, 2, 3)
    alpha = hit.reshape(size, 2, size, 2, 1).astype(float)
    share = alpha.mean((1, 3))
    mean = (picture * alpha).mean((1, 3)) / np.maximum(share, 1e-9)
    return np.round(np.concatenate([mean, share], -1) * 255).astype(np.uint8)


def write_scene(folder, count=20, size=40, k1=0.05, opaque=False):
    """transforms.json and photographs; RGBA, or with `opaque` RGB before a blue-grey sky."""
    (folder / "images").mkdir(parents=True)
    focal, frames = 1.1 * size, []
    for number in range(count):
        turn = 2 * np.pi * number * 0.381966
        height = 0.5 + 1.3 * number / count
        around = np.sqrt(max(0.3, 2.6**2 - height**2))
        pose = pose_at((around * np.cos(turn), around * np.sin(turn), 0.2 + height))
        picture = photograph(pose, size, focal, k1)
        if opaque:
            alpha = picture[..., 3:] / 255
            picture = np.round(picture[..., :3] * alpha + np.array([90, 110, 130]) * (1 - alpha)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number:03d}.png")
        frames.append({"file_path": f"images/{number:03d}.png", "transform_matrix": pose.tolist()})
    data = {"w": size, "h": size, "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2, "k1": k1}
    path = folder / "transforms.json"
    path.write_text(json.dumps({**data, "aabb": BOUNDS, "frames": frames}))
    return path

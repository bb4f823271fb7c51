"""Cameras: where a point of the world lands in a photograph, and along which ray a pixel looks.

Poses are OpenGL's, as in transforms.json: x to the right of the photograph, y upwards, the camera looks along -z. Pixels
are counted from the upper left corner of the photograph, so that the middle of the first pixel is at (0.5, 0.5). The
distortion is OpenCV's: radial k1, k2, k3 and tangential p1, p2 (OpenCV, calib3d, "Detailed Description").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

ROUNDS = 50
"""Fixed-point rounds in which a distortion is undone; photographs that are usable need fewer than 20."""
CLOSE = 1e-3
"""Pixels that an undone distortion may be off."""


@dataclass(frozen=True)
class Lens:
    """Inside of a camera.

    Args:
        width, height: pixels.
        fx, fy: focal lengths in pixels.
        cx, cy: where the optical axis meets the photograph, in pixels from its upper left corner.
        k1, k2, k3, p1, p2: OpenCV's distortion; all 0 for a pinhole.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    def reduced(self, factor: int) -> Lens:
        """The lens of a photograph whose blocks of factor x factor pixels became one; what is left over is cut off."""
        return replace(
            self,
            width=self.width // factor,
            height=self.height // factor,
            fx=self.fx / factor,
            fy=self.fy / factor,
            cx=self.cx / factor,
            cy=self.cy / factor,
        )

    def distort(self, flat: np.ndarray) -> np.ndarray:
        """(N, 2) places on the plane at distance 1 (x to the right, y downwards) as the lens shifts them."""
        x, y = flat[..., 0], flat[..., 1]
        square = x * x + y * y
        radial = 1 + square * (self.k1 + square * (self.k2 + square * self.k3))
        return np.stack(
            [
                x * radial + 2 * self.p1 * x * y + self.p2 * (square + 2 * x * x),
                y * radial + self.p1 * (square + 2 * y * y) + 2 * self.p2 * x * y,
            ],
            -1,
        )

    def undistort(self, shifted: np.ndarray) -> np.ndarray:
        """(N, 2) places on the plane at distance 1 of which `distort` makes these.

        Raises:
            ValueError: there are none within a thousandth of a pixel.
        """
        flat = shifted.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(ROUNDS):
                flat += shifted - self.distort(flat)
            off = np.abs(self.distort(flat) - shifted).max() * max(self.fx, self.fy)
        if not off < CLOSE:  # NaN too
            raise ValueError(f"the distortion cannot be undone: {off:.3g} pixels are left")
        return flat

    def directions(self, pixels: np.ndarray) -> np.ndarray:
        """(N, 3) unit vectors in the camera's axes (OpenGL) along which pixels look; pixels are (N, 2), x and y."""
        shifted = (pixels - (self.cx, self.cy)) / (self.fx, self.fy)
        flat = self.undistort(shifted)
        rays = np.stack([flat[..., 0], -flat[..., 1], -np.ones_like(flat[..., 0])], -1)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)

    def pixel_centres(self) -> np.ndarray:
        """(height * width, 2) middles of all pixels, row by row."""
        y, x = np.mgrid[: self.height, : self.width]
        return np.stack([x.reshape(-1), y.reshape(-1)], -1) + 0.5

    def reach(self) -> float:
        """How far from the optical axis the corners look: the tangent of the angle, a little enlarged."""
        corners = np.array([(x, y) for x in (0, self.width) for y in (0, self.height)], float)
        rays = self.directions(corners)
        return 1.02 * float((np.hypot(rays[:, 0], rays[:, 1]) / -rays[:, 2]).max())


@dataclass(frozen=True)
class Camera:
    """A lens in the world.

    Args:
        lens: the inside of the camera.
        pose: (4, 4) from the camera's axes (OpenGL) to the world's; the rotation has no scale.
    """

    lens: Lens
    pose: np.ndarray

    @property
    def place(self) -> np.ndarray:
        """(3,) where the camera is."""
        return self.pose[:3, 3]

    @property
    def axis(self) -> np.ndarray:
        """(3,) unit vector in which it looks."""
        return -self.pose[:3, 2]

    def rays(self, pixels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) origins and (N, 3) unit directions in the world, of all pixels row by row without `pixels` (N, 2)."""
        pixels = self.lens.pixel_centres() if pixels is None else pixels
        directions = self.lens.directions(pixels) @ self.pose[:3, :3].T
        return np.broadcast_to(self.place, directions.shape), directions

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) pixels of points (N, 3) of the world, and their distances (N,) along the axis, below 0 behind it."""
        local = (points - self.place) @ self.pose[:3, :3]
        depth = -local[:, 2]
        safe = np.where(np.abs(depth) < 1e-12, 1e-12, depth)
        shifted = self.lens.distort(np.stack([local[:, 0] / safe, -local[:, 1] / safe], -1))
        return shifted * (self.lens.fx, self.lens.fy) + (self.lens.cx, self.lens.cy), depth

    def sees(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool, which points (N, 3) lie in front of the camera and inside of its photograph."""
        pixels, depth = self.project(points)
        local = (points - self.place) @ self.pose[:3, :3]
        # far from the axis the polynomial of the distortion turns back and would bring points into the photograph
        near_axis = np.hypot(local[:, 0], local[:, 1]) < self.lens.reach() * depth
        inside = (pixels >= 0).all(1) & (pixels < (self.lens.width, self.lens.height)).all(1)
        return (depth > 0) & near_axis & inside

"""Fields of posed photographs: cameras, files that do not fit, a made-up scene, and real photographs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from maskwright.core.errors import ConfigError, DataError
from maskwright.pointcloud.grids import GridLoader
from maskwright.pointcloud.nerf import fit_grid
from maskwright.pointcloud.nerf.box import box_of_cameras, focus
from maskwright.pointcloud.nerf.cameras import Camera, Lens
from maskwright.pointcloud.nerf.commands import nerf_grid
from maskwright.pointcloud.nerf.field import Field, contract
from maskwright.pointcloud.nerf.make import grid_in
from maskwright.pointcloud.nerf.render import enter_and_leave, render
from maskwright.pointcloud.nerf.transforms import read_photograph, read_transforms
from tests.pointcloud.nerf_scene import BOUNDS, inside, pose_at, write_scene


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Small tensors: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The made-up scene, fitted once."""
    folder = tmp_path_factory.mktemp("scene")
    path = write_scene(folder / "photographs")
    lines = []
    return path, fit_grid(path, folder / "scene.npz", resolution=32, steps=250, rate=0.1, say=lines.append), lines


# cameras ------------------------------------------------------------------------------------------------------------


def test_a_point_lands_where_the_pinhole_formula_says():
    camera = Camera(Lens(200, 100, 100.0, 80.0, 90.0, 55.0), np.eye(4))
    pixels, depth = camera.project(np.array([[1.0, 0.5, -2.0], [0.0, 0.0, -1.0], [0.0, 0.0, 3.0]]))
    # to the right of the axis: larger x; above it: smaller y
    np.testing.assert_allclose(pixels[:2], [[90 + 100 * 0.5, 55 - 80 * 0.25], [90, 55]])
    np.testing.assert_allclose(depth, [2, 1, -3])


def test_a_camera_that_was_moved_and_turned():
    # at (4, 0, 0), looking along -x with z upwards: its right is +y
    pose = np.array([[0, 0, 1, 4], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    camera = Camera(Lens(100, 100, 50.0, 50.0, 50.0, 50.0), pose)
    pixels, depth = camera.project(np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(pixels, [[75, 50], [50, 37.5]])
    np.testing.assert_allclose(depth, [4, 4])


def test_distortion_is_opencvs():
    k1, k2, p1, p2, k3 = 0.06, -0.08, -0.001, 0.002, 0.01
    lens = Lens(1000, 800, 900.0, 950.0, 510.0, 390.0, k1=k1, k2=k2, k3=k3, p1=p1, p2=p2)
    x, y = 0.31, -0.22  # of OpenCV's camera: y downwards, z forwards
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = 900.0 * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + 510.0
    v = 950.0 * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + 390.0
    pixels, _ = Camera(lens, np.eye(4)).project(np.array([[x, -y, -1.0]]) * 3.0)
    np.testing.assert_allclose(pixels, [[u, v]], rtol=1e-12)


def test_rays_go_back_to_their_pixels():
    lens = Lens(60, 40, 55.0, 56.0, 29.0, 21.0, k1=0.06, k2=-0.08, p1=-0.001, p2=0.0002)
    camera = Camera(lens, pose_at((2.0, -1.0, 1.5)))
    origins, directions = camera.rays()
    pixels, depth = camera.project(origins + 2.5 * directions)
    np.testing.assert_allclose(pixels, lens.pixel_centres(), atol=1e-3)
    assert (depth > 0).all()
    np.testing.assert_allclose(pixels[61], (1.5, 1.5), atol=1e-3)  # row by row
    assert camera.sees(origins + 2.5 * directions).all()


def test_nothing_behind_a_camera_or_far_from_its_axis_is_seen():
    # near a tangent of 2.2 this polynomial comes back to the middle of the photograph
    camera = Camera(Lens(100, 100, 100.0, 100.0, 50.0, 50.0, k1=-0.2), np.eye(4))
    points = np.array([[0.0, 0, -1], [0.0, 0, 1], [2.25, 0, -1]])
    assert np.abs(camera.project(points)[0][2] - 50).max() < 50
    np.testing.assert_array_equal(camera.sees(points), [True, False, False])


def test_a_distortion_without_inverse_is_refused():
    with pytest.raises(ValueError, match="cannot be undone"):
        Lens(100, 100, 50.0, 50.0, 50.0, 50.0, k1=-0.9).reach()


def test_reducing_keeps_what_a_pixel_looks_at():
    lens = Lens(103, 60, 80.0, 80.0, 50.0, 31.0, k1=0.02)
    small = lens.reduced(4)
    assert (small.width, small.height) == (25, 15)
    corner_of_both = np.array([[0.0, 0.0], [100.0, 60.0]])
    np.testing.assert_allclose(small.directions(corner_of_both / 4), lens.directions(corner_of_both), atol=1e-6)


# the box ------------------------------------------------------------------------------------------------------------


def _ring(radius, outwards=False, count=12, focal=300.0):
    cameras = []
    for turn in np.linspace(0, 2 * np.pi, count, endpoint=False):
        place = np.array([radius * np.cos(turn) + 3, radius * np.sin(turn), 1.0])
        target = 2 * place - (3, 0, 1) if outwards else (3.0, 0.0, 1.0)
        cameras.append(Camera(Lens(100, 100, focal, focal, 50.0, 50.0), pose_at(place, target)))
    return cameras


def test_the_box_lies_around_what_cameras_look_at():
    cameras = _ring(4.0)
    np.testing.assert_allclose(focus(cameras), (3, 0, 1), atol=1e-9)
    low, high = box_of_cameras(cameras, "here")
    np.testing.assert_allclose((low + high) / 2, (3, 0, 1), atol=0.1)
    half = (high - low) / 2
    # all cameras see a disc of radius 4 sin(9.46 degrees); seen from behind the middle it is larger, but not by much
    assert 0.6 < half[0] < 1.6
    # up and down a view is a sixth of the distance: at 4 it is 0.67, and at the far end of the cube 1.13
    assert 0.6 < half[2] < 1.2


def test_the_box_of_cameras_that_look_outwards_holds_them():
    cameras = _ring(1.0, outwards=True)
    low, high = box_of_cameras(cameras, "here")
    assert all((camera.place > low).all() and (camera.place < high).all() for camera in cameras)


def test_parallel_cameras_have_no_box():
    cameras = [Camera(Lens(9, 9, 9.0, 9.0, 4.5, 4.5), pose_at((x, -4.0, 0.2), (x, 0.0, 0.2))) for x in (0.0, 0.5, 1.0)]
    with pytest.raises(DataError, match="--aabb"):
        box_of_cameras(cameras, "here")


def test_voxels_are_cubes():
    shape, box = grid_in(np.array([[0.0, 0, 0], [2, 1, 0.52]]), 21)
    assert shape == (21, 11, 6)
    np.testing.assert_allclose((box[1] - box[0]) / (np.array(shape) - 1), 0.1)
    np.testing.assert_allclose(box.mean(0), [1, 0.5, 0.26])


# field and rendering ------------------------------------------------------------------------------------------------


def _slab_field(thickness, red):
    """A box of 2 x 2 x 2 whose density is even, of a given optical thickness along an axis."""
    field = Field(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), (21, 21, 21), outside=False)
    with torch.no_grad():
        field.inside[:, 3] = np.log(100 * thickness / 20)
        field.inside[:, 0], field.inside[:, 1:3] = np.log(red / (1 - red)), -20
    return field


def test_an_even_fog_dims_as_beer_and_lambert_say():
    field = _slab_field(1.5, 0.8)
    origins, directions = torch.tensor([[-3.0, 0.05, 0.05], [0.0, 0, 0], [-3.0, 5, 0]]), torch.tensor([[1.0, 0, 0]] * 3)
    seen = render(field, origins, directions, background=torch.tensor([0.0, 1.0, 0.0]))
    light = np.exp(-np.array([1.5, 0.75, 0.0]))  # through all of it, from its middle, and past it
    np.testing.assert_allclose(seen.opacity.detach(), 1 - light, atol=1e-5)
    np.testing.assert_allclose(seen.colour.detach()[:, 0], 0.8 * (1 - light), atol=1e-5)
    np.testing.assert_allclose(seen.colour.detach()[:, 1], light, atol=1e-5)
    assert seen.through.tolist() == [True, True, False]
    # mean distance of two places along the ray, of all that is stopped
    places = (np.arange(20) + 0.5) / 20 * 2 / np.sqrt(12)
    weights = np.exp(-1.5 * np.arange(20) / 20) * -np.expm1(-1.5 / 20)
    alone = (weights[:, None] * weights * np.abs(places[:, None] - places)).sum()
    np.testing.assert_allclose(float(render(field, origins[:1], directions[:1]).spread.detach()), alone, rtol=1e-4)


def test_the_written_grid_holds_the_opacity_of_a_voxel():
    grid = _slab_field(1.5, 0.8).exported().numpy()
    alpha = 1 - np.exp(-np.exp(grid[..., 3]) / 100)
    np.testing.assert_allclose(1 - (1 - alpha[10, 10, :20]).prod(), 1 - np.exp(-1.5), rtol=1e-4)
    np.testing.assert_allclose(grid[..., 0], 0.8, atol=1e-5)


def test_a_field_with_an_outside_lets_no_light_through():
    field = Field(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), (9, 9, 9))
    with torch.no_grad():
        field.around[:, :3] = 20.0
        field.inside[:, :3] = 20.0
    origins, directions = torch.zeros(2, 3), torch.tensor([[0.0, 0, 1], [0.6, 0.8, 0]])
    origins[1] += 5
    np.testing.assert_allclose(render(field, origins, directions).colour.detach(), np.ones((2, 3)), atol=1e-5)


def test_what_is_skipped_is_empty():
    field = _slab_field(1e-5, 0.5)
    with torch.no_grad():
        field.inside[0, 3, 10, 5, 15] = 8.0  # z, y, x
    field.update_occupied(0.01)
    assert float(field.occupied.sum()) == 27
    at = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]])  # in the world's order: x = 15 of 20 is 0.5
    assert field.is_occupied(at).tolist() == [True, False]


def test_finer_grids_are_the_same_field():
    field = Field(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), (17, 17, 17), shrink=2)
    with torch.no_grad():
        field.inside.copy_(torch.linspace(-2, 2, 9).view(1, 1, 1, 1, 9).expand_as(field.inside))
    places = torch.rand(50, 3) * 2 - 1
    before = field.density(places)
    field.refine(1)
    assert field.inside.shape == (1, 4, 17, 17, 17)
    torch.testing.assert_close(field.density(places), before, rtol=1e-4, atol=1e-4)


def test_contraction_keeps_the_box_and_brings_all_else_in():
    points = torch.tensor([[0.5, -1.0, 0.2], [2.0, 0.0, 0.0], [0.0, 1e6, 0.0]])
    torch.testing.assert_close(contract(points), torch.tensor([[0.5, -1.0, 0.2], [1.5, 0, 0], [0, 2.0, 0]]))


def test_rays_from_inside_enter_at_once():
    low, high = torch.zeros(3), torch.ones(3)
    enter, leave, through = enter_and_leave(
        torch.tensor([[0.5, 0.5, 0.5], [-1.0, 0.5, 0.5], [2.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]] * 3), low, high
    )
    assert through.tolist() == [True, True, False]
    torch.testing.assert_close(enter[:2], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(leave[:2], torch.tensor([0.5, 2.0]))


# a whole fit --------------------------------------------------------------------------------------------------------


def test_photographs_that_were_never_seen_are_shown(fitted):
    _, done, lines = fitted
    assert set(done.psnr) == {"images/004.png", "images/012.png"}
    assert done.mean_psnr > 25
    assert min(done.psnr.values()) > done.plain_psnr + 10
    assert any("step" in line and "PSNR" in line for line in lines)


def test_the_loader_reads_the_grid_without_options(fitted):
    _, done, _ = fitted
    loader = GridLoader(done.path, size=None)
    grid = loader.read(0)["grid"].numpy()
    assert grid.shape == (4, *done.shape[::-1])
    axes = [np.linspace(low, high, count) for low, high, count in zip(*done.box, done.shape, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    filled, alpha = inside(points), grid[3].transpose(2, 1, 0).reshape(-1)
    # no ray reaches the inside of things, so that not all of it is opaque
    assert alpha[filled].mean() > 0.4
    assert alpha[~filled].mean() < 0.15
    ball = (((points - (0, 0, 0.35)) ** 2).sum(1) < 0.35**2) & (alpha > 0.5)
    colours = grid[:3].transpose(3, 2, 1, 0).reshape(-1, 3)
    np.testing.assert_allclose(np.median(colours[ball], 0), (0.9, 0.2, 0.15), atol=0.12)
    front, above = loader.views(torch.from_numpy(grid))
    assert front.shape == (done.shape[2], done.shape[0], 3)
    assert above.shape == (done.shape[1], done.shape[0], 3)
    assert front.max() > 100


def test_what_is_written_beside_the_grid(fitted):
    path, done, _ = fitted
    with np.load(done.path) as stored:
        assert str(stored["density"]) == "exp"
        np.testing.assert_allclose(stored["aabb"], done.box)
        np.testing.assert_allclose((done.box[1] - done.box[0]) / (stored["resolution"] - 1), stored["edge"], rtol=1e-5)
    record = json.loads(done.path.with_suffix(".json").read_text())
    assert record["held_out_psnr"].keys() == done.psnr.keys()
    assert record["held_out_psnr_mean"] == pytest.approx(done.mean_psnr, abs=1e-3)
    assert (record["photographs_fitted"], record["source"]) == (18, str(path))
    with Image.open(done.path.with_suffix(".png")) as picture:
        # the first part of the first row is the photograph itself, on white
        shown = np.asarray(picture.convert("RGB"), float)[:40, :40]
    photograph = read_photograph(read_transforms(path).frames[4])
    expected = photograph[0] * photograph[1][..., None] + 1 - photograph[1][..., None]
    np.testing.assert_allclose(shown / 255, expected, atol=0.003)


def test_a_seed_gives_one_grid(tmp_path):
    path = write_scene(tmp_path / "scene", count=6, size=24, opaque=True)

    def grid(name, seed):
        fit_grid(path, tmp_path / name, resolution=12, steps=15, seed=seed)
        with np.load(tmp_path / name) as stored:
            return stored["rgbsigma"]

    first, again, other = grid("a.npz", 1), grid("b.npz", 1), grid("c.npz", 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_opaque_photographs_are_fitted_with_what_is_around_the_box(tmp_path):
    path = write_scene(tmp_path / "scene", size=32, opaque=True)
    done = fit_grid(path, tmp_path / "grid.npz", resolution=20, steps=200, rate=0.1)
    assert done.mean_psnr > done.plain_psnr + 3
    assert done.opaque > 0.01
    grid = GridLoader(done.path, size=None).read(0)["grid"]
    assert float(grid[3, -1].mean()) < 0.1  # the sky is outside, not a lid on the box


def test_time_can_end_a_fit(tmp_path):
    path = write_scene(tmp_path / "scene", count=6, size=16)
    done = fit_grid(path, tmp_path / "grid.npz", resolution=8, steps=1_000_000, seconds=0.5)
    assert 0 < done.steps < 1_000_000
    assert done.shape[0] == 8  # the fit is finished at full resolution all the same


def test_the_command_prints_and_writes(tmp_path):
    path = write_scene(tmp_path / "scene", count=6, size=16)
    app = typer.Typer()
    app.command("nerf-grid")(nerf_grid)
    out = tmp_path / "new" / "grid.npz"
    result = CliRunner().invoke(
        app, [str(path), "--out", str(out), "--resolution", "8", "--steps", "4", "--aabb=-1,-1,-0.2,1,1,1"]
    )
    assert result.exit_code == 0, result.output
    assert "images/004.png: PSNR" in result.output
    assert "8 x 8 x 5 voxels" in result.output  # 1.2 of 2 is 4.2 of 7 steps
    assert {file.name for file in out.parent.iterdir()} == {"grid.npz", "grid.json", "grid.png"}


def test_help_imports_no_torch():
    code = "import sys, maskwright.pointcloud.nerf.commands; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# files and options that do not fit ----------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """A function that writes a small scene, lets its transforms.json be changed, and gives its path."""
    path = write_scene(tmp_path / "scene", count=5, size=8)

    def change(edit):
        data = json.loads(path.read_text())
        edit(data)
        path.write_text(json.dumps(data))
        return path

    return change


def _first(data):
    return data["frames"][0]["transform_matrix"]


def _stretch(data):
    for row in _first(data)[:3]:
        row[0] *= 1.2


def _mirror(data):
    for row in _first(data)[:3]:
        row[0] *= -1


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d: d.update(frames=[]), "holds no poses"),
        (lambda d: d.pop("frames"), "holds no poses"),
        (lambda d: d["frames"][1].pop("file_path"), "frame 1 has no file_path"),
        (lambda d: d["frames"][2].pop("transform_matrix"), r"frame 2 \(images/002.png\) has no transform_matrix"),
        (_stretch, r"frame 0 .* is no rotation \(its columns are off by 0.44\)"),
        (_mirror, "frame 0 .* mirrors"),
        (lambda d: _first(d)[1].__setitem__(3, float("nan")), "frame 0 .* NaN"),
        (lambda d: _first(d)[3].__setitem__(0, 1.0), "last row"),
        (lambda d: [d.pop("fl_x"), d.pop("fl_y")], "no focal length"),
        (lambda d: d.update(fl_x="wide"), "fl_x='wide'"),
        (lambda d: d.update(w=9), "has 8 x 8 pixels; expected 9 x 8"),
        (lambda d: d.update(camera_model="OPENCV_FISHEYE"), "FISHEYE"),
        (lambda d: d.update(k4=0.1), "k4"),
        (lambda d: d.update(k1=-3.0), "cannot be undone"),
        (lambda d: d.update(aabb=[[0, 0, 0], [1, 0, 1]]), "aabb"),
        (
            lambda d: [frame.update(file_path="no.png") for frame in d["frames"][:2]],
            "3 photographs.*missing: no.png, no.png",
        ),
    ],
)
def test_transforms_that_do_not_fit(broken, edit, says):
    with pytest.raises(DataError, match=says):
        read_transforms(broken(edit))


def test_files_that_are_no_transforms(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        read_transforms(tmp_path)
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        read_transforms(tmp_path)


def test_photographs_that_are_not_there_are_named_and_left_out(tmp_path):
    path = write_scene(tmp_path / "scene", count=6, size=16)
    (path.parent / "images" / "001.png").unlink()
    lines = []
    done = fit_grid(path, tmp_path / "grid.npz", resolution=6, steps=2, say=lines.append)
    assert any("images/001.png" in line for line in lines)
    assert "images/001.png" in done.remarks[0]
    assert json.loads((tmp_path / "grid.json").read_text())["photographs_fitted"] == 4


def test_photographs_that_cannot_be_decoded(broken):
    path = broken(lambda data: None)
    file = path.parent / "images" / "002.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"002.png: cannot be decoded"):
        fit_grid(path, path.with_suffix(".npz"), steps=1)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(file)
    with pytest.raises(DataError, match="8 bits"):
        fit_grid(path, path.with_suffix(".npz"), steps=1)


def test_photographs_of_two_kinds(broken):
    path = broken(lambda data: None)
    file = path.parent / "images" / "002.png"
    Image.open(file).convert("RGB").save(file)
    with pytest.raises(DataError, match="4 photographs with an opacity"):
        fit_grid(path, path.with_suffix(".npz"), steps=1)


def test_other_ways_to_write_the_same(broken):
    def edit(data):
        angle = 2 * np.arctan(data["w"] / 2 / data.pop("fl_x"))
        for name in ("w", "h", "cx", "cy", "fl_y", "aabb"):
            data.pop(name)
        data.update(camera_angle_x=angle, aabb_scale=4)
        for frame in data["frames"]:
            frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
            frame["transform_matrix"] = frame["transform_matrix"][:3]
        data["frames"][3]["k1"] = 0.01

    posed = read_transforms(broken(edit))
    lens = posed.frames[0].camera.lens
    assert (lens.width, lens.cx) == (8, 4)
    assert lens.fx == pytest.approx(8.8)
    assert lens.fy == pytest.approx(8.8)
    assert [frame.camera.lens.k1 for frame in posed.frames] == [0.05, 0.05, 0.05, 0.01, 0.05]
    assert posed.box is None
    # places p with 0.33 p + 0.5 in -1.5 to 2.5
    np.testing.assert_allclose(posed.cube, [[-2 / 0.33] * 3, [2 / 0.33] * 3])


def test_boxes_of_files_are_read(broken):
    np.testing.assert_array_equal(read_transforms(broken(lambda data: None)).box, BOUNDS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"resolution": 2}, "--resolution 2"),
        ({"steps": 0}, "--steps 0"),
        ({"seconds": -1.0}, "--seconds -1"),
        ({"downscale": 0}, "--downscale 0"),
        ({"rate": 0.0}, "rate=0"),
        ({"downscale": 20}, "leaves no pixel"),
        ({"hold_every": 1}, "--hold-every 1"),
        ({"hold_every": 2, "hold_out": ["000", "001", "002"]}, "leaves 2 photographs"),
        ({"hold_out": ["images/01.png"]}, "Did you mean"),
        ({"aabb": [0, 0, 0, 1, 1]}, "--aabb"),
        ({"aabb": [0, 0, 0, 1, 0, 1]}, "--aabb"),
        ({"box": "sphere"}, "--box sphere"),
        ({"box": "cube"}, "aabb_scale"),
    ],
)
def test_options_that_do_not_fit(broken, options, says):
    path = broken(lambda data: None)
    with pytest.raises((ConfigError, DataError), match=says):
        fit_grid(path, path.with_suffix(".npz"), **{"steps": 1, **options})
    assert not path.with_suffix(".npz").exists()


def test_the_file_must_be_an_npz(broken):
    with pytest.raises(ConfigError, match="npz"):
        fit_grid(broken(lambda data: None), "grid.npy")


# real photographs ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_scene(shared_data, tmp_path):
    folder = shared_data / "nerf" / "fox_real_posed_NC"
    if not folder.is_dir():
        pytest.skip("the photographs are not there")
    done = fit_grid(folder, tmp_path / "fox.npz", resolution=48, steps=400, downscale=16, rate=0.1)  # few steps
    assert done.mean_psnr > 15
    assert done.mean_psnr > done.plain_psnr + 3
    grid = GridLoader(done.path, size=None).read(0)["grid"]
    assert 0.001 < float((grid[3] > 0.5).float().mean()) < 0.5

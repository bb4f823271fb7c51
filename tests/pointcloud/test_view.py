"""Pages of points: what is drawn, how it is coloured, and that a browser shows it without a network."""

import base64
import builtins
import json
import re
import shutil
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from maskwright.cli.main import app
from maskwright.core.errors import ConfigError, DataError
from maskwright.pointcloud.fake import fake_box, fake_scan, write_mesh
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.view import view
from maskwright.pointcloud.writers import write_points

pytest.importorskip("plotly", reason="plotly is not installed")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A scan at UTM coordinates, a coloured cloud whose name has markup in it, and a mesh."""
    folder = tmp_path_factory.mktemp("clouds")
    fake_scan(folder / "scan.laz")
    generator = np.random.default_rng(0)
    colours = dict(zip(("red", "green", "blue"), generator.integers(0, 256, (3, 300)).astype(np.uint8), strict=True))
    write_points(folder / "a<b>&.ply", generator.normal(size=(300, 3)), colours)
    write_mesh(folder / "box.obj", fake_box())
    return {"scan": folder / "scan.laz", "cloud": folder / "a<b>&.ply", "mesh": folder / "box.obj"}


def plotted(page):
    """Traces and layout of a page."""
    text = page.read_text()
    decoder = json.JSONDecoder()
    at = text.index("Plotly.newPlot(", text.index('id="points"'))
    traces, end = decoder.raw_decode(text, text.index("[", at))
    layout, _ = decoder.raw_decode(text, text.index("{", end))
    return traces, layout


def numbers(stored):
    if isinstance(stored, dict):
        return np.frombuffer(base64.b64decode(stored["bdata"]), stored["dtype"])
    return np.array(stored)


def xyz(trace):
    return np.stack([numbers(trace[axis]) for axis in "xyz"], 1)


def test_points_are_those_of_the_file_about_a_named_corner(files, tmp_path):
    shown = view([files["scan"], files["cloud"]], tmp_path / "page.html", most=500)
    traces, layout = plotted(tmp_path / "page.html")
    truth = open_points(files["scan"]).read().xyz
    assert [one.points for one in shown] == [500, 300]
    assert [one.there for one in shown] == [len(truth), 300]
    corner = [
        float(re.search(r"(?:− (\d+))?$", layout["scene"][f"{axis}axis"]["title"]["text"]).group(1) or 0)
        for axis in "xyz"
    ]
    assert corner[0] > 500_000
    drawn = xyz(traces[0]) + np.array(corner)
    distance = np.abs(drawn[:, None] - truth[None]).sum(2).min(1)
    assert len(drawn) == 500
    assert distance.max() < 1e-3  # metres, at coordinates of millions
    assert len(np.unique(drawn, axis=0)) == 500
    again = view([files["scan"], files["cloud"]], tmp_path / "again.html", most=500)
    assert again == shown
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_colours_are_own_height_or_a_column(files, tmp_path):
    cloud = open_points(files["cloud"]).read(("red", "green", "blue"))
    top = max(cloud.columns[name].max() for name in ("red", "green", "blue"))
    assert view([files["cloud"]], tmp_path / "own.html")[0].colour == "own"
    own = plotted(tmp_path / "own.html")[0][0]["marker"]["color"]
    expected = np.stack([cloud.columns[name] for name in ("red", "green", "blue")], 1) / top * 255
    given = np.array([[int(one[at : at + 2], 16) for at in (1, 3, 5)] for one in own])
    np.testing.assert_allclose(given, expected, atol=0.51)
    view([files["cloud"]], tmp_path / "height.html", colour="height", up="y")
    np.testing.assert_allclose(
        numbers(plotted(tmp_path / "height.html")[0][0]["marker"]["color"]), cloud.xyz[:, 1], rtol=1e-6
    )
    shown = view([files["scan"]], tmp_path / "class.html", colour="class")
    assert shown[0].colour == "classification"
    codes = numbers(plotted(tmp_path / "class.html")[0][0]["marker"]["color"])
    assert set(codes) <= set(open_points(files["scan"]).read(("classification",)).columns["classification"])
    assert len(set(codes)) > 1


def test_points_of_a_mesh_lie_on_its_surface(files, tmp_path):
    shown = view([files["mesh"]], tmp_path / "page.html", up="y", most=400)
    assert (shown[0].points, shown[0].there) == (400, None)
    assert "of its surface" in shown[0].note
    traces, layout = plotted(tmp_path / "page.html")
    sides = np.abs(xyz(traces[0])) / (np.array([1.0, 2.0, 3.0]) / 2)
    np.testing.assert_allclose(sides.max(1), 1, atol=1e-5)
    assert layout["scene"]["camera"]["up"] == {"x": 0.0, "y": 1.0, "z": 0.0}


def test_clouds_of_one_place_share_a_frame_and_others_do_not(tmp_path):
    points = np.random.default_rng(0).uniform(size=(100, 3))
    for name, xyz_of in (("whole", points), ("half", points[points[:, 0] < 0.5]), ("far", points + 50)):
        write_points(tmp_path / f"{name}.ply", xyz_of)
    view([tmp_path / "half.ply", tmp_path / "whole.ply"], tmp_path / "one.html")
    layout = plotted(tmp_path / "one.html")[1]
    assert layout["scene"]["xaxis"]["range"] == layout["scene2"]["xaxis"]["range"]
    view([tmp_path / "whole.ply", tmp_path / "far.ply"], tmp_path / "two.html")
    layout = plotted(tmp_path / "two.html")[1]
    assert layout["scene"]["xaxis"]["range"][1] < layout["scene2"]["xaxis"]["range"][0]


def test_what_is_refused(files, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    with pytest.raises(ConfigError, match="1 to 4"):
        view([files["mesh"]] * 5, page)
    with pytest.raises(ConfigError, match=r"\.html"):
        view([files["mesh"]], tmp_path / "page.png")
    with pytest.raises(DataError, match="no column intensity"):
        view([files["cloud"]], page, colour="intensity")
    with pytest.raises(DataError, match="no column red, green, blue"):
        view([files["mesh"]], page, colour="own")
    imported = builtins.__import__

    def without_plotly(name, *rest):
        if name.startswith("plotly"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    with pytest.raises(ConfigError, match="pip install"):
        view([files["mesh"]], page)
    assert not page.exists()


def test_command_writes_a_page_that_a_browser_shows(files, tmp_path):
    out = tmp_path / "page.html"
    clouds = [str(files[name]) for name in ("scan", "cloud", "mesh")]
    done = CliRunner().invoke(app, ["pointcloud", "view", *clouds, str(out), "--points", "2000"])
    assert done.exit_code == 0, done.output
    assert "2000 points of its surface" in done.output
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    waiting = pytest.importorskip("selenium.webdriver.support.wait", reason="selenium is not installed")
    if DRIVER is None:
        pytest.skip("no chromedriver here (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1200,800",
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--host-resolver-rules=MAP * ~NOTFOUND",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.set_page_load_timeout(60)
        browser.get(out.as_uri())
        drawn = "return document.querySelectorAll('#points canvas').length"
        waiting.WebDriverWait(browser, 30).until(lambda b: b.execute_script(drawn) >= 3)
        assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []
        facts = browser.execute_script(
            """return {
              titles: document.getElementById('points').layout.annotations.map(a => a.text),
              list: document.querySelector('ul').innerText, height: document.getElementById('points').clientHeight,
              external: [...document.querySelectorAll('[src], link[href]')].map(e => e.src || e.href)
                .filter(u => !u.startsWith('data:')),
            }"""
        )
        assert facts["external"] == []
        assert facts["height"] > 500
        assert facts["titles"][1] == "a&lt;b&gt;&amp;.ply"  # plotly reads markup
        assert "a<b>&.ply: 300 points" in facts["list"]
        browser.execute_script(
            "Plotly.relayout('points', {'scene.camera': {eye: {x: 2, y: 0.5, z: 1}, up: {x: 0, y: 0, z: 1}}})"
        )
        eye = "return document.getElementById('points').layout.scene3.camera.eye.x"
        waiting.WebDriverWait(browser, 30).until(lambda b: b.execute_script(eye) == 2)
        time.sleep(1)  # the last frame
        browser.save_screenshot(str(tmp_path / "page.png"))
    finally:
        browser.quit()
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    thirds = np.array_split(picture[60:600], 3, axis=1)
    for third in thirds:  # points are the only strong colours on the page
        assert (np.ptp(third, axis=2) > 60).sum() > 50

"""The HTML pages in a real headless browser: they open, their figures are drawn, the console is silent, at phone and desk
width, in light and dark."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_digits

import maskwright as mw

selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install maskwright[dev])")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(DRIVER is None, reason="no chromedriver here (apt-get install chromium chromium-driver)"),
]
PHONE, DESK = (360, 740), (1280, 900)


@pytest.fixture(scope="module")
def browser():
    options = selenium.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run with an evaluation whose group names are long, and a comparison of two runs."""
    folder = tmp_path_factory.mktemp("pages")
    images, numbers = load_digits(return_X_y=True)
    rows = ["file,digit"]
    (folder / "data").mkdir()
    for at in range(120):
        name = f"a_rather_long_name_of_a_scene_as_archives_have_them_{at:04d}"
        np.save(folder / "data" / f"{name}.npy", np.kron(images[at % 60].reshape(8, 8), np.ones((2, 2)))[None])
        rows.append(f"{name},class {numbers[at % 60]} <b>&")
    (folder / "labels.csv").write_text("\n".join(rows))
    runs = []
    for number in range(2):
        run = mw.pretrain(
            "toy-mae", folder / "data", "tiny", folder / f"run{number}", {"data.loader": "npy", "seed": number},
            max_steps=4, batch_size=20, precision="32", log_every=1,
        )  # fmt: skip
        mw.evaluate(
            run, labels=f"{folder}/labels.csv:digit", protocols=["knn", "linear"], fractions=[0.2, 1.0], seeds=2,
            baselines=["random-init", "simple"], join_duplicates=False,
        )  # fmt: skip
        runs.append(run)
    mw.compare(runs, folder / "comparison.html")
    return {
        "run": runs[0].path / "report.html",
        "evaluation": runs[0].path / "evaluations" / "classification" / "report.html",
        "comparison": folder / "comparison.html",
    }


def _show(browser, path, size, scheme):
    call = partial(browser.execute_cdp_cmd)
    call(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get_log("browser")
    browser.get(path.as_uri())


@pytest.mark.parametrize("name", ["run", "evaluation", "comparison"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_readable(browser, pages, name, size, scheme):
    _show(browser, pages[name], size, scheme)
    assert browser.get_log("browser") == []
    facts = browser.execute_script(
        """
        const wide = [...document.querySelectorAll('body *')].filter(e => {
          const inTable = e.closest('.table, pre');
          return !inTable && e.getBoundingClientRect().right > window.innerWidth + 1;
        }).map(e => e.tagName + ' ' + (e.textContent || '').slice(0, 40));
        const style = getComputedStyle(document.body);
        return {
          title: document.title,
          scroll: document.documentElement.scrollWidth, inner: window.innerWidth, wide,
          images: [...document.images].map(i => [i.alt, i.complete, i.naturalWidth, i.getBoundingClientRect().width]),
          paper: style.backgroundColor, ink: style.color, font: parseFloat(style.fontSize),
          small: Math.min(...[...document.querySelectorAll('p, td, figcaption')].map(e => parseFloat(getComputedStyle(e).fontSize))),
          external: [...document.querySelectorAll('[src], link[href]')].map(e => e.src || e.href).filter(u => !u.startsWith('data:')),
          cells: [...document.querySelectorAll('td, th')].map(e => [e.textContent.trim(), e.getBoundingClientRect().width]),
          headings: [...document.querySelectorAll('h2')].map(e => e.textContent),
        };
        """
    )
    assert facts["title"]
    assert facts["scroll"] <= facts["inner"] + 1, facts["wide"]  # tables scroll in themselves, the page does not
    assert facts["wide"] == []
    assert facts["images"], "a page without a figure"
    for alt, complete, natural, shown in facts["images"]:
        assert alt
        assert complete
        assert natural > 50
        assert 40 < shown <= size[0]
    assert facts["external"] == []
    for text, width in facts["cells"]:
        assert width > 60, text  # no column so narrow that words fall apart
    assert facts["font"] >= 15
    assert facts["small"] >= 13
    paper, ink = (_luminance(facts[which]) for which in ("paper", "ink"))
    assert (paper < ink) == (scheme == "dark")
    assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7  # WCAG AAA
    assert len(facts["headings"]) >= 2


def _luminance(colour):
    parts = [float(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_page_shows_names_as_they_are_and_the_link_leads_to_the_evaluation(browser, pages):
    _show(browser, pages["run"], DESK, "light")
    link = browser.find_element("css selector", "h3 a")
    link.click()
    assert browser.title.startswith("Did it help?")
    text = browser.find_element("css selector", "body").text
    stored = json.loads((pages["evaluation"].parent / "scores.json").read_text())
    assert stored["headline"] in text
    assert "class 0 <b>&" in text  # neither markup nor an entity
    assert "near duplicate" in text or "identical" in text

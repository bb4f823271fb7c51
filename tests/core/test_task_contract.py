"""check_task and the tasks of check_plugin: what keeps the contract passes, and each breach is found."""

from dataclasses import replace

import numpy as np
import pytest

from maskwright.core.evaluation.task import Classification, MultiLabel, Regression, Segmentation, Targets
from maskwright.testing import check_plugin, check_task
from tests.conftest import write_images
from tests.toy_plugin import NpyLoader


@pytest.fixture
def loader(tmp_path):
    return NpyLoader(write_images(tmp_path / "images", 6))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("kind,tags,height\na,x;y,1.5\nb,x,2\na,,\nb,y,3\nc,x,4\n,y,5\n")
    return path


@pytest.mark.parametrize(("task", "column"), [(Classification, "kind"), (MultiLabel, "tags"), (Regression, "height")])
def test_tasks_of_the_core_keep_it(loader, table, task, column):
    check_task(task(f"{table}:{column}"), loader)


class _Pixels(Segmentation):
    """Bright and dark pixels, without a file."""

    kind_of_breach = ""

    def targets(self, loader):
        calls = []

        def read(sample):
            calls.append(1)
            found = (sample["image"][0] > 0).long().numpy()
            if self.kind_of_breach == "shape":
                return found[:-1]
            if self.kind_of_breach == "class":
                return found * 2
            if self.kind_of_breach == "float":
                return found.astype(float)
            if self.kind_of_breach == "second":
                return np.where(len(calls) % 2, found, 1 - found)
            return np.full_like(found, -1) if self.kind_of_breach == "unlabelled" else found

        return Targets("segmentation", ("dark", "bright"), read=read, codes=(0, 1))


def test_a_segmentation_keeps_it(loader):
    check_task(_Pixels(""), loader)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"has labels \(15, 16\)"),
        ("class", "class numbers from -?[01] to 2"),
        ("float", "type float64, not integers"),
        ("second", "differs the second time"),
        ("unlabelled", "no pixel of the first samples"),
    ],
)
def test_breaches_of_a_segmentation(loader, kind, message):
    task = _Pixels("")
    task.kind_of_breach = kind
    with pytest.raises(AssertionError, match=message):
        check_task(task, loader)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, kind="regression"), 'kind is "regression"'),
        (lambda t: replace(t, classes=("a", "a", "c")), "two classes of one name"),
        (lambda t: replace(t, classes=()), "names are wanted"),
        (lambda t: replace(t, colours=((0, 0, 0),)), "1 colours for 3 classes"),
        (lambda t: replace(t, values=None), "values are missing"),
        (lambda t: replace(t, values=t.values[:-1]), r"shape \(5,\); \(6,\) was expected"),
        (lambda t: replace(t, values=t.values.astype(float)), "must be integers"),
        (lambda t: replace(t, values=t.values + 1), "class numbers from -1 to 3"),
        (lambda t: replace(t, values=t.values * 0), r"no sample is of class \[1, 2\]"),
    ],
)
def test_breaches_of_a_classification(loader, table, change, message):
    class Breach(Classification):
        def targets(self, loader):
            return change(super().targets(loader))

    with pytest.raises(AssertionError, match=message):
        check_task(Breach(f"{table}:kind"), loader)


def test_targets_that_change(loader, table):
    class Breach(Classification):
        calls = 0

        def targets(self, loader):
            self.calls += 1
            found = super().targets(loader)
            return replace(found, values=np.roll(found.values, self.calls))

    with pytest.raises(AssertionError, match="something else the second time"):
        check_task(Breach(f"{table}:kind"), loader)


@pytest.mark.parametrize(
    ("task", "column", "value", "message"),
    [
        (MultiLabel, "tags", 0.5, "must be 0, 1, or rows of NaN"),
        (MultiLabel, "tags", np.nan, "sample 0 has NaN for some classes only"),
        (Regression, "height", np.inf, "values hold infinity"),
    ],
)
def test_breaches_of_numbers(loader, table, task, column, value, message):
    class Breach(task):
        def targets(self, loader):
            found = super().targets(loader)
            found.values[0, 0] = value
            return found

    with pytest.raises(AssertionError, match=message):
        check_task(Breach(f"{table}:{column}"), loader)


PLUGIN = """
from maskwright.core.evaluation.task import Classification
from maskwright.core.hookspecs import Component, hookimpl
from tests.toy_plugin import NpyLoader

class Fruit(Classification):
    def __init__(self, labels: str, colour: str = "red"):
        super().__init__(labels)

@hookimpl
def register_loaders():
    return [Component("fruit-npy", "maskwright_plugin_fruit:NpyLoader", "Pictures of fruit.")]

@hookimpl
def register_tasks():
    return [Component("fruit", "maskwright_plugin_fruit:Fruit", "Which fruit.")]
"""


def test_tasks_of_a_plugin(tmp_path, monkeypatch, loader, table):
    (tmp_path / "fruit.py").write_text(PLUGIN)
    monkeypatch.setenv("MASKWRIGHT_PLUGINS", str(tmp_path / "fruit.py"))
    images = tmp_path / "images"
    assert check_plugin("fruit")[1] == 'task fruit: loads; to check it, give options={"task:fruit": {"labels": ...}}'
    given = {"task:fruit": {"labels": f"{table}:kind"}}
    assert "give data that have labels for it" in check_plugin("fruit", options=given)[1]
    lines = check_plugin("fruit", images, given)  # one path, for every loader that accepts it
    assert lines == [
        "loader fruit-npy: keeps its contract",
        "task fruit: keeps its contract (labels of loader fruit-npy)",
    ]
    with pytest.raises(
        AssertionError, match=r'task "fruit" .* its options do not suit the data\. fruit-npy: .*"kinds"'
    ):
        check_plugin("fruit", images, {"task:fruit": {"labels": f"{table}:kinds"}})

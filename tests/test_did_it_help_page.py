"""The page shows the stored figures, and not others."""

import json

from benchmarks.evidence.did_it_help import END, PAGE, RESULT, START, TASKS, tables


def test_page_holds_the_stored_figures():
    shown = PAGE.read_text().split(START)[1].split(END)[0].strip()
    assert shown == tables().strip(), "run python -m benchmarks.evidence.did_it_help --page"


def test_every_task_was_judged_with_all_baselines_and_one_of_them_was_not_helped():
    stored = json.loads(RESULT.read_text())
    assert set(stored) == set(TASKS)
    for result in stored.values():
        assert result["facts"]["baselines"] == ["random-init", "simple", "supervised"]
        assert result["facts"]["seeds"] >= 5
    assert any(result["headline"].startswith("Pre-training did not help here") for result in stored.values())

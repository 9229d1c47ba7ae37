"""A search that is gone on with is the one that was begun."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from searches import QUICK

from cifartune.config import load_space
from cifartune.errors import UserError
from cifartune.extend import space_to_resume
from cifartune.runs import RunFolder

MORE = ["search.num_trials=99"]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, load_space(QUICK))


def contents(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path != run.lock}


@pytest.mark.parametrize(
    ("before", "after"),
    [("metric: val_accuracy", "metric: train_accuracy"), ("seed: 0", "seed: 1")],
)
def test_a_space_that_was_edited_by_hand_is_refused(
    run: RunFolder, before: str, after: str
) -> None:
    written = run.space_file.read_text()
    assert before in written
    run.space_file.write_text(written.replace(before, after))
    files = contents(run)
    with pytest.raises(UserError, match=r"space\.yaml: was edited by hand, .*put it back .*--set"):
        space_to_resume(run, MORE)
    assert contents(run) == files
    run.space_file.write_text(written)
    assert space_to_resume(run, MORE).search.num_trials == 99
    assert space_to_resume(run, []).search.num_trials == 99
    run.space_file.write_text(written)  # as it was once, and is no more
    with pytest.raises(UserError, match="was edited"):
        space_to_resume(run, [])


class Killed(BaseException):
    """The end of a process, which nothing catches."""


@pytest.mark.parametrize("moment", range(1, 5))
@pytest.mark.parametrize("is_done", [False, True])
def test_a_change_may_be_cut_off_at_any_write(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, moment: int, is_done: bool
) -> None:
    replace, writes = os.replace, 0

    def end(*paths: Any) -> None:
        nonlocal writes
        writes += 1
        if is_done and writes == moment:
            replace(*paths)
        if writes == moment:
            raise Killed
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", end)
        with pytest.raises(Killed):
            space_to_resume(run, MORE)
    went_on = space_to_resume(run, []).search.num_trials
    assert went_on == (99 if moment > 3 or (moment == 3 and is_done) else 16)
    assert space_to_resume(run, MORE).search.num_trials == 99
    assert [changes["search.num_trials"] for changes in run.changes] == [(16, 99)]


def test_a_search_of_an_earlier_version_goes_on(run: RunFolder) -> None:
    identity = json.loads(run.identity.read_text())
    run.identity.write_text(json.dumps({"id": identity["id"], "tracking_uri": "", "storage": ""}))
    assert space_to_resume(run, []) == load_space(run.space_file)
    space_to_resume(run, MORE)
    assert run.id == identity["id"]
    run.space_file.write_text(run.space_file.read_text() + "# a note\n")
    with pytest.raises(UserError, match="was edited"):
        space_to_resume(run, [])

"""What a search leaves on the disk, and what it does where there is no room."""

import errno
import os
from pathlib import Path

import pytest

from cifartune.config import SearchSpace
from cifartune.config.specs import CheckpointSpec
from cifartune.tracking.outbox import Outbox
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.disk import TrialFolders, freed_bytes, no_room
from cifartune.tuning.study import TrialStudy

SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {"model": {"name": "speednet_small"}, "epochs": 2},
        "parameters": {"optimizer.lr": {"min": 0.01, "max": 1.0, "log": True}},
        "search": {"sampler": "random"},
    }
)


def end_trials(folder: Path, study: TrialStudy, folders: TrialFolders, *values: float) -> None:
    """Complete trials of these values, each with 100 bytes of weights."""
    for value in values:
        number = study.propose().number
        study.record(number, 1, value)
        study.complete(number)
        leave(folder, number)
        folders.trial_ended(study.trials[number])


def leave(folder: Path, number: int) -> None:
    path = folder / str(number) / "weights.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(100))
    (path.parent / "epoch-1.checkpoint").write_bytes(bytes(10))
    (path.parent / ".left-by-a-kill").write_bytes(bytes(10))


def left(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ({"keep": 2}, {1, 3}),
        ({"keep": 0}, set()),
        ({"keep": 9}, {0, 1, 2, 3}),
        ({"keep": 3, "max_bytes": 250}, {1, 3}),
        ({"keep": 3, "max_bytes": "0.1kB"}, {1}),
    ],
)
def test_the_best_trials_are_kept(tmp_path: Path, spec: dict[str, object], kept: set[int]) -> None:
    study = TrialStudy(SPACE)
    folders = TrialFolders(tmp_path, study, CheckpointSpec.model_validate(spec))
    end_trials(tmp_path, study, folders, 0.1, 0.9, 0.2, 0.8)
    assert left(tmp_path) == kept
    assert folders.freed == 4 * 20 + 100 * (4 - len(kept))
    files = [file.name for number in kept for file in (tmp_path / str(number)).iterdir()]
    assert files == ["weights.safetensors"] * len(kept)
    # At any time: nothing has to be done at the end.
    assert freed_bytes(tmp_path) == folders.freed
    again = TrialFolders(tmp_path, study, CheckpointSpec.model_validate(spec))
    assert (left(tmp_path), again.freed) == (kept, folders.freed)


def test_a_count_that_cannot_be_kept_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = TrialStudy(SPACE)
    folders = TrialFolders(tmp_path, study, CheckpointSpec(keep=0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    end_trials(tmp_path, study, folders, 0.1)
    assert left(tmp_path) == set()


def test_what_was_stopped_or_failed_is_not_kept(tmp_path: Path) -> None:
    study = TrialStudy(SPACE)
    folders = TrialFolders(tmp_path, study, CheckpointSpec())
    for number in range(3):
        study.propose()
        study.record(number, 1, 0.99)
        leave(tmp_path, number)
    study.prune(0)
    study.fail(1, "worker_killed", "gone")
    for number in (0, 1):
        folders.trial_ended(study.trials[number])
    assert left(tmp_path) == {2}  # which is under way


def test_a_search_that_goes_on_keeps_the_best_of_all(tmp_path: Path) -> None:
    study = TrialStudy(SPACE)
    spec = CheckpointSpec(keep=2)
    end_trials(tmp_path, study, TrialFolders(tmp_path, study, spec), 0.5, 0.9)
    leave(tmp_path, study.propose().number)
    study.prune(2)  # and the process died before its folder went
    again = TrialFolders(tmp_path, study, spec)
    assert left(tmp_path) == {0, 1}
    end_trials(tmp_path, study, again, 0.7)
    assert left(tmp_path) == {1, 3}


def test_a_trial_that_the_study_lost_leaves_nothing(tmp_path: Path) -> None:
    study = TrialStudy(SPACE)
    study.propose()
    for number in (0, 1):  # the second was proposed just before a power cut
        leave(tmp_path, number)
    TrialFolders(tmp_path, study, CheckpointSpec())
    assert left(tmp_path) == {0}


def test_a_checkpoint_is_not_newer_than_the_study(tmp_path: Path) -> None:
    """Where a power cut cost the study an epoch, that is trained again."""
    study = TrialStudy(SPACE)
    for number in range(2):
        study.propose()
        for epoch in (1, 2, 3):
            Checkpoints(tmp_path / str(number)).save(epoch, {})
    study.record(0, 1, 0.5)
    study.record(0, 2, 0.5)
    TrialFolders(tmp_path, study, CheckpointSpec())
    assert [Checkpoints(tmp_path / name).epoch for name in "01"] == [2, 0]


def test_a_full_disk_is_known_whatever_it_is_wrapped_in() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "No space left on device" in no_room(full)
    assert no_room(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    told = "Traceback:\n  line 1\n (sqlite3.OperationalError) database or disk is full\n[SQL: ...]"
    assert no_room(RuntimeError(told)) == "(sqlite3.OperationalError) database or disk is full"
    assert not no_room(OSError(errno.EACCES, "denied")) and not no_room(ValueError())
    try:
        try:
            raise full
        except OSError as error:
            raise RuntimeError("a callback failed") from error
    except RuntimeError as wrapped:
        assert "No space left" in no_room(wrapped)


def test_nothing_of_what_has_no_room_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "tracking.jsonl")
    outbox.put({"do": "log", "key": "a"})
    file = outbox._file

    class Full:
        def write(self, line: bytes) -> int:
            return file.write(line[:5]) or 0

        def truncate(self, size: int) -> int:
            return file.truncate(size)

    monkeypatch.setattr(outbox, "_file", Full())
    with pytest.raises(OSError, match="No space left"):
        outbox.put({"do": "log", "key": "b"})
    monkeypatch.undo()
    outbox.put({"do": "log", "key": "c"})
    assert [e["key"] for e in Outbox(tmp_path / "tracking.jsonl").history()] == ["a", "c"]

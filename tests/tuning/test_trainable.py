"""The Tune trial against a scripted board: no Ray runs here."""

from pathlib import Path
from typing import Any

import pytest

from cifartune.config import Recipe
from cifartune.tuning.messages import Failed, Finished, Job, Message, Progress
from cifartune.tuning.trainable import Trial


class ScriptedBoard:
    """Answers `next` from a list, and keeps what it is told."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.submitted: list[Job] = []
        self.stopped: list[str] = []

    @property
    def submit(self) -> Any:
        return Remote(self.submitted.append)

    @property
    def stop(self) -> Any:
        return Remote(self.stopped.append)

    @property
    def next(self) -> Any:
        return Remote(lambda job_id: self.messages.pop(0))


class Remote:
    def __init__(self, call: Any) -> None:
        self.remote = call


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get", lambda result: result)


def start(*messages: Message, number: int = 4, epochs: int = 2) -> tuple[Trial, ScriptedBoard]:
    board = ScriptedBoard(list(messages))
    trial = Trial.__new__(Trial)
    trial.setup(
        config(number, epochs),
        board=board,
        folder=Path("trials"),
        data_root=Path("data"),
        splits=Path("splits.npz"),
    )
    return trial, board


def config(number: int, epochs: int = 2) -> dict[str, Any]:
    return {"number": number, "recipe": Recipe(epochs=epochs).model_dump_json()}


def progress(epoch: int) -> Progress:
    return Progress(epoch, {"val_accuracy": epoch / 10}, is_last=epoch == 2)


def test_a_trial_asks_for_one_epoch_a_step() -> None:
    trial, board = start(progress(1), progress(2), Finished({"params": 3}))
    job = Job("trial-4", Recipe(epochs=2), Path("trials/4"), Path("data"), Path("splits.npz"))
    assert board.submitted == []
    assert trial.step() == {"epoch": 1, "metrics": {"val_accuracy": 0.1}}
    assert board.submitted == [job]
    assert len(board.messages) == 2
    assert trial.step() == {
        "epoch": 2,
        "metrics": {"val_accuracy": 0.2},
        "done": True,
        "facts": {"params": 3},
    }


def test_a_run_that_ends_early_ends_its_trial_with_that_epoch() -> None:
    last = Progress(2, {"val_accuracy": 0.2}, is_last=True)
    trial, _ = start(progress(1), last, Finished({"kept_epoch": 1}), epochs=9)
    trial.step()
    ended = trial.step()
    assert (ended["epoch"], ended["done"], ended["facts"]) == (2, True, {"kept_epoch": 1})


@pytest.mark.parametrize("failure", [Failed("non_finite_loss", "m", 2), Failed("stopped", "m")])
def test_a_failure_ends_the_trial_with_its_last_result(failure: Failed) -> None:
    trial, _ = start(progress(1), failure)
    trial.step()
    assert trial.step() == {
        "epoch": 1,
        "metrics": {"val_accuracy": 0.1},
        "done": True,
        "failure": failure,
    }
    first, _ = start(failure)
    assert first.step() == {"done": True, "failure": failure}


def test_an_epoch_that_is_trained_again_is_told_once() -> None:
    """The slot died after the last epoch: another trains it again, or all of them."""
    trial, _ = start(progress(1), progress(2), progress(1), progress(2), Finished({"a": 1}))
    trial.step()
    last = trial.step()
    assert (last["epoch"], last["facts"]) == (2, {"a": 1})
    assert "failure" not in last


def test_a_repeat_that_goes_on_to_later_epochs_is_followed() -> None:
    """On a GPU no two runs are alike, and one that is repeated may stop later."""
    later = Progress(3, {"val_accuracy": 0.3}, is_last=True)
    end = Finished({"kept_epoch": 3})
    trial, _ = start(progress(1), progress(2), progress(2), later, end, epochs=9)
    results = [trial.step() for _ in range(3)]
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result.get("done", False) for result in results] == [False, False, True]


def test_the_process_is_reused_for_the_next_trial() -> None:
    trial, board = start(progress(1), Failed("error", "m"))
    trial.step()
    assert trial.reset_config(config(5))
    assert board.stopped == ["trial-4"]
    assert trial.step() == {"done": True, "failure": Failed("error", "m")}  # nothing of trial 4's
    assert [job.id for job in board.submitted] == ["trial-4", "trial-5"]
    trial.cleanup()
    assert board.stopped == ["trial-4", "trial-5"]


def test_a_process_that_never_steps_leaves_the_board_alone() -> None:
    """Tune drops a process that comes late: its trial may run in another one by then."""
    trial, board = start()
    trial.cleanup()
    assert (board.submitted, board.stopped) == ([], [])
    trial.reset_config(config(5))
    trial.cleanup()
    assert (board.submitted, board.stopped) == ([], [])

"""What the driver writes about a trial, before anything acts on it."""

import errno
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from cifartune.config import SearchSpace
from cifartune.events import Observer
from cifartune.tuning.schedulers import Handle, make_scheduler, tune_metric
from cifartune.tuning.search import _end_what_is_open, _Ledger, _Stopper
from cifartune.tuning.study import TrialStudy, attributes, sqlite_url

SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {"model": {"name": "speednet_small"}, "epochs": 4},
        "parameters": {"optimizer.lr": {"min": 0.01, "max": 1.0, "log": True}},
        "scheduler": {"name": "asha", "grace_period": 1, "reduction_factor": 2},
    }
)


def test_an_epoch_that_is_trained_again_keeps_the_value_that_was_acted_on() -> None:
    """As after the death of a slot, where no two runs are alike."""
    study = TrialStudy(SPACE)
    nobody: Any = None
    ledger = _Ledger(study, nobody, [], nobody, threading.Event(), again=nobody)
    scheduler: Any = make_scheduler(study)
    for number, value in ((0, 0.5), (1, 0.4), (1, 0.9)):
        if number == len(study.trials):
            study.propose()
            scheduler.on_trial_add(None, Handle(number))
        metrics = {"val_accuracy": value, "seconds": 2.0}
        result = {"epoch": 1, "metrics": metrics, tune_metric(study): value}
        trial: Any = SimpleNamespace(config={"number": number})
        ledger.on_trial_result(0, [], trial, result)
        if value != 0.4:  # the driver died before the verdict
            decision = scheduler.on_trial_result(None, Handle(number), result)
    assert study.trials[1].intermediate_values == {1: 0.4}
    assert attributes(study.trials[1]) == {"val_accuracy": 0.4, "seconds": 2.0}
    assert decision == "STOP"  # 0.9 would go on


def test_the_facts_of_a_trial_have_the_value_that_was_acted_on() -> None:
    study = TrialStudy(SPACE)
    nobody: Any = None
    watcher = Told()
    ledger = _Ledger(study, nobody, [watcher], nobody, threading.Event(), again=nobody)
    study.propose()
    trial: Any = SimpleNamespace(config={"number": 0})
    for epoch, value in ((1, 0.5), (2, 0.4), (2, 0.9)):
        result: dict[str, Any] = {
            "epoch": epoch,
            "metrics": {"val_accuracy": value, "seconds": 1.0},
        }
        if value == 0.9:
            result["facts"] = {"kept_epoch": 2, "val_accuracy": 0.9}
        ledger.on_trial_result(0, [], trial, result)
    assert attributes(study.trials[0])["val_accuracy"] == 0.4
    assert watcher.values == [0.5, 0.4, 0.4]


def test_a_kill_between_metrics_and_value_counts_the_epochs_seconds_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody: Any = None
    trial: Any = SimpleNamespace(config={"number": 0})

    def open_study() -> TrialStudy:
        return TrialStudy(SPACE, url=sqlite_url(tmp_path / "study.db"))

    def tell(study: TrialStudy, epoch: int) -> None:
        result = {"epoch": epoch, "metrics": {"val_accuracy": 0.5, "seconds": 2.0}}
        _Ledger(study, nobody, [], nobody, threading.Event(), again=nobody).on_trial_result(
            0, [], trial, result
        )

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    study = open_study()
    study.propose()
    tell(study, 1)
    monkeypatch.setattr(study._database, "set_trial_intermediate_value", killed)
    with pytest.raises(KeyboardInterrupt):
        tell(study, 2)
    study = open_study()
    assert study.trials[0].intermediate_values == {1: 0.5}
    tell(study, 2)
    tell(study, 3)
    assert attributes(open_study().trials[0]) == {"val_accuracy": 0.5, "seconds": 6.0}


@pytest.mark.parametrize("out_of_time", [True, False])
def test_what_is_left_open_ends_when_its_slot_has_left(
    out_of_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the slot might write a checkpoint where the folder was deleted."""
    monkeypatch.setattr("ray.get", lambda result: result)
    study, order = TrialStudy(SPACE), list[str | int]()
    study.propose()
    left = SimpleNamespace(remote=lambda: order.append("vacated"))
    pool: Any = SimpleNamespace(board=SimpleNamespace(vacated=left))
    ledger: Any = SimpleNamespace(close=order.append)
    _end_what_is_open(study, pool, ledger, out_of_time=out_of_time)
    assert order == ["vacated", 0]
    [trial] = study.trials
    assert trial.state is (TrialState.PRUNED if out_of_time else TrialState.FAIL)
    assert attributes(trial).get("failure") == (None if out_of_time else "worker_killed")
    _end_what_is_open(study, pool, ledger, out_of_time=out_of_time)
    assert order == ["vacated", 0]  # there is nothing to wait for


def test_an_end_that_cannot_be_written_ends_the_search() -> None:
    """Tune would keep the error to itself, and train the trial again."""

    class Full(Observer):
        def trial_ended(self, trial: FrozenTrial) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    study = TrialStudy(SPACE)
    for _ in range(2):
        study.propose()
    free = SimpleNamespace(remote=lambda *_: None)
    pool: Any = SimpleNamespace(board=SimpleNamespace(stop=free, stop_all=free), lost="")
    folders: Any = SimpleNamespace(trial_ended=lambda trial: None)
    stop = threading.Event()
    ledger = _Ledger(study, pool, [Full()], folders, stop, again=lambda number: None)
    stopper = _Stopper(pool, ledger, stop, None)
    assert not stopper.stop_all()
    for number in (0, 1):
        metrics = {"val_accuracy": 0.5, "seconds": 1.0}
        result = {"epoch": 1, "metrics": metrics, "facts": {"kept_epoch": 1}}
        trial: Any = SimpleNamespace(config={"number": number}, last_result=result)
        study.record(number, 1, 0.5, metrics)
        ledger.on_trial_complete(0, [], trial)
    assert isinstance(ledger.error, OSError)
    assert stopper.stop_all()
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]  # the other can go on


class Told(Observer):
    def __init__(self) -> None:
        self.values: list[float] = []

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        self.values.append(metrics["val_accuracy"])

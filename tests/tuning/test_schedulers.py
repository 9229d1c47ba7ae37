"""The schedulers as the search uses them, on stored curves: no training, no Ray cluster."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.utils import flatten_dict

from cifartune.config import SearchSpace
from cifartune.tuning.messages import Failed
from cifartune.tuning.schedulers import Handle, make_scheduler
from cifartune.tuning.study import TrialStudy, sqlite_url

FAILURE = Failed("non_finite_loss", "the loss was not finite")


class Simulation:
    """One process of a search: feeds stored curves to study and scheduler, in Tune's order."""

    def __init__(
        self, space: SearchSpace, url: str = "sqlite://", went_on: float = math.inf
    ) -> None:
        self.study = TrialStudy(space, url=url, name="toy")
        self.scheduler: Any = make_scheduler(self.study, went_on=lambda number: went_on)
        assert self.scheduler.set_search_properties(None, None)  # as Tune does
        self.metric = f"metrics/{space.target.metric}"
        self.epochs = space.base.epochs
        self.handles: dict[int, Any] = {}
        for trial in self.study.trials:
            if not trial.state.is_finished():
                self._add(trial.number)

    def start(self) -> int:
        number = self.study.propose().number
        self._add(number)
        return number

    def epoch(self, number: int, epoch: int, value: float) -> bool:
        """Hands in an epoch's value; whether the trial goes on."""
        handle, result = self.handles[number], {"epoch": epoch, self.metric: value}
        if epoch == self.epochs:  # `done`: Tune asks no scheduler
            decision = TrialScheduler.STOP
        else:
            decision = self.scheduler.on_trial_result(None, handle, result)
        self.study.record(number, epoch, value)
        if decision == TrialScheduler.CONTINUE:
            return True
        self.scheduler.on_trial_complete(None, handle, result)
        (self.study.complete if epoch == self.epochs else self.study.prune)(number)
        return False

    def fail(self, number: int) -> None:
        """The trial fails after the epochs that it handed in: its last result comes again."""
        values = self.study.trials[number].intermediate_values
        last = {"epoch": max(values), self.metric: values[max(values)]} if values else {}
        result = {**last, "done": True, "failure": FAILURE}
        self.scheduler.on_trial_complete(None, self.handles[number], result)
        self.study.reject(number, FAILURE.kind, FAILURE.message)

    def run(self, curve: list[float]) -> int:
        """Runs one trial alone; returns the epoch after which it ended."""
        number = self.start()
        for epoch, value in enumerate(curve, 1):
            if not self.epoch(number, epoch, value):
                return epoch
        return len(curve)

    def _add(self, number: int) -> None:
        # Ray's ids are random: nothing may depend on them.
        handle = Handle(number)
        handle.trial_id = f"{id(self):x}_{number}"
        self.scheduler.on_trial_add(None, handle)
        self.handles[number] = handle


def make_space(
    *,
    name: str = "asha",
    grace: int = 1,
    factor: float = 3,
    epochs: int = 9,
    metric: str = "val_accuracy",
) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "name": "toy",
            "objective": {"metric": metric},
            "base": {"model": {"name": "speednet_small"}, "epochs": epochs},
            "parameters": {"model.dropout": {"min": 0.0, "max": 0.5}},
            "search": {"num_trials": 50, "sampler": "random"},
            "scheduler": {
                "name": name,
                "grace_period": grace,
                "reduction_factor": factor,
                "brackets": 2,
            },
        }
    )


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "rungs"),
    [
        (1, 3.0, 9, [1, 3]),
        (2, 3.0, 30, [2, 6, 18]),
        (1, 2.0, 10, [1, 2, 4, 8]),
        (4, 4.0, 16, [4]),
        # A rung between two epochs is read at the next: 1, 2.5, 6.25.
        (1, 2.5, 10, [1, 3, 7]),
    ],
)
def test_rungs_are_the_grace_period_times_powers_of_the_factor(
    grace: int, factor: float, epochs: int, rungs: list[int]
) -> None:
    for last in sorted({1, *rungs, *(rung + 1 for rung in rungs)}):
        search = Simulation(make_space(grace=grace, factor=factor, epochs=epochs))
        assert search.run([0.5] * epochs) == epochs
        # The next is better until epoch `last` - 1, and worse from then on.
        curve = [0.6] * (last - 1) + [0.4] * (epochs - last + 1)
        expected = next((rung for rung in rungs if rung >= last), epochs)
        assert search.run(curve) == expected


def test_a_share_of_one_in_the_factor_passes(space: SearchSpace) -> None:
    search = Simulation(space)
    for value in range(9):
        assert search.run([value / 10]) == 1  # rising values: each is the best so far
    # Among 0.0 to 0.8, the best third is above 0.533.
    assert search.run([0.53, 0.9]) == 1
    assert search.run([0.54, 0.9]) == 2


def test_less_is_better_where_the_search_minimises() -> None:
    search = Simulation(make_space(metric="val_loss"))
    assert search.run([0.5] * 9) == 9
    assert search.run([0.6] * 9) == 1
    assert search.run([0.4, 0.4, 0.6]) == 3


def test_without_a_scheduler_nothing_is_stopped(space: SearchSpace) -> None:
    free = SearchSpace.model_validate(
        space.model_dump(exclude={"base": {"seed"}}) | {"scheduler": {"name": "none"}}
    )
    search = Simulation(free)
    for value in (0.9, 0.5, 0.1):
        assert search.run([value] * 9) == 9


def test_a_searched_number_of_epochs_sets_the_last_rung() -> None:
    space = make_space(epochs=4).model_dump(exclude={"base": {"seed"}})
    space["parameters"] = {"epochs": {"min": 2, "max": 27}}
    search = Simulation(SearchSpace.model_validate(space))
    search.epochs = 27
    assert search.run([0.5] * 27) == 27
    assert search.run([0.6] * 8 + [0.4] * 19) == 9


Event = tuple[str, int]


def play(search: Simulation, events: Iterator[Event], count: int = 10**9) -> list[str]:
    """The next `count` events of a fixed order; returns what was decided."""
    decided = []
    for _, (what, number) in zip(range(count), events, strict=False):
        trial = search.study.trials[number] if what != "start" else None
        if trial is None:
            assert search.start() == number
        elif not trial.state.is_finished():
            epoch = max(trial.intermediate_values, default=0) + 1
            if what == "fail":
                search.fail(number)
            else:
                go_on = search.epoch(number, epoch, stored_value(number, epoch))
                decided.append(f"{number}@{epoch}: {'on' if go_on else 'stop'}")
    return decided


def stored_value(number: int, epoch: int) -> float:
    """Learning curves that cross: fast and slow learners of different ends."""
    end = 0.5 + (number * 9 % 13) / 30
    return end * (1 - math.exp(-epoch / (1 + number * 3 % 4)))


def stored_events() -> Iterator[Event]:
    """Fourteen trials, three at a time; the fourth and the ninth fail."""
    for first in range(0, 14, 3):
        trio = [number for number in range(first, first + 3) if number < 14]
        yield from (("start", number) for number in trio)
        for epoch in range(1, 10):
            # The order in which they come changes from epoch to epoch.
            for number in trio[epoch % len(trio) :] + trio[: epoch % len(trio)]:
                fails = (number, epoch) in ((3, 1), (8, 4))
                yield ("fail" if fails else "epoch", number)


@pytest.fixture
def space() -> SearchSpace:
    return make_space()


def test_the_stored_events_are_worth_a_test(space: SearchSpace) -> None:
    decided = play(Simulation(space), stored_events())
    stops = [line for line in decided if "stop" in line]
    assert {line.split("@")[1] for line in stops} >= {"1: stop", "3: stop", "9: stop"}
    assert len(decided) > 40


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
@pytest.mark.parametrize("breaks", [(7,), (25,), (60,), (3, 11, 30, 61, 100)])
def test_a_rebuilt_scheduler_decides_like_an_unbroken_one(
    tmp_path: Path, name: str, breaks: tuple[int, ...]
) -> None:
    space = make_space(name=name)
    unbroken = Simulation(space)
    expected = play(unbroken, stored_events())
    assert any("stop" in line and not line.endswith("9: stop") for line in expected)

    url, events, decided = sqlite_url(tmp_path / "study.db"), stored_events(), []
    before = 0
    for place in breaks:
        decided += play(Simulation(space, url), events, place - before)
        before = place
    resumed = Simulation(space, url)
    decided += play(resumed, events)
    assert decided == expected
    states = [[trial.state for trial in search.study.trials] for search in (unbroken, resumed)]
    assert states[0] == states[1]


def test_brackets_begin_later_and_later() -> None:
    """In a bracket of hyperband whose first rung is at 3 epochs, nothing is stopped before."""
    search = Simulation(make_space(name="hyperband"))
    search.run([0.9] * 9)
    ends = [
        search.run([0.9] * 9 if number < 6 else [0.1 - number / 999] * 9) for number in range(1, 30)
    ]
    assert {1, 3} == set(ends[8:])
    # A bracket with a rung more gets e times as many trials.
    assert ends[8:].count(1) > ends[8:].count(3)


def test_brackets_depend_on_the_number_alone() -> None:
    """Not on numpy's global generator, which would draw others after a restart."""
    ends = []
    for seed in (1, 2):
        np.random.seed(seed)
        search = Simulation(make_space(name="hyperband"))
        ends.append([search.run(curve) for curve in ([0.9] * 9, *[[0.1] * 9] * 10)])
    assert ends[0] == ends[1]


def test_the_median_of_those_that_came_as_far_decides() -> None:
    search = Simulation(make_space(name="median"))
    for value in (0.3, 0.5, 0.7):
        assert search.run([value] * 9) == 9  # three must have come as far
    assert search.run([0.49, 0.9]) == 1
    assert search.run([0.51, 0.4, 0.4]) == 3


def test_the_baseline_is_never_stopped(space: SearchSpace) -> None:
    for name in ("asha", "hyperband", "median"):
        search = Simulation(make_space(name=name))
        number = search.start()
        for _ in range(4):
            search.run([0.9] * 9)
        assert all(search.epoch(number, epoch, 0.1) for epoch in range(1, 9))


def test_a_trial_that_repeats_an_epoch_counts_once(tmp_path: Path, space: SearchSpace) -> None:
    """After a crash, a trial hands in again what the study holds already."""
    url = sqlite_url(tmp_path / "study.db")
    search = Simulation(space, url)
    for value in (0.3, 0.5):
        number = search.start()
        assert search.epoch(number, 1, value)
    resumed = Simulation(space, url)
    for number, value in enumerate((0.3, 0.5)):
        assert resumed.epoch(number, 1, value)
    # The line is at 0.4333; it would be at 0.5 if each value stood there twice.
    assert resumed.run([0.43, 0.9]) == 1
    assert resumed.run([0.46, 0.9]) == 2


@pytest.mark.parametrize(("went_on", "goes_on"), [(0, False), (1, True)])
def test_what_was_not_decided_on_is_decided_later(
    tmp_path: Path, space: SearchSpace, went_on: int, goes_on: bool
) -> None:
    """The process died after it had recorded a bad value, and before it stopped the trial."""
    url = sqlite_url(tmp_path / "study.db")
    search = Simulation(space, url)
    for value in (0.3, 0.9, 0.9):
        search.run([value] * 9)
    search.study.record(search.start(), 1, 0.2)
    resumed = Simulation(space, url, went_on)
    assert resumed.epoch(3, 1, 0.2) == goes_on


@pytest.mark.parametrize("reopened", [False, True])
def test_a_failed_trial_leaves_nothing_but_its_epochs(tmp_path: Path, reopened: bool) -> None:
    space, url = make_space(grace=3, epochs=27), sqlite_url(tmp_path / "study.db")
    search = Simulation(space, url)
    number = search.start()
    search.fail(number)  # in the first epoch
    number = search.start()
    for epoch in (1, 2):
        search.epoch(number, epoch, 0.99)
    search.fail(number)  # before the first rung
    if reopened:
        search = Simulation(space, url)
    assert search.run([0.1] * 27) == 27  # nobody is in its way


def test_a_trial_that_ended_by_itself_counts_in_the_rungs_above(tmp_path: Path) -> None:
    """Else a worse one would pass where nobody good ever came; also after a restart."""
    space, url = make_space(epochs=9), sqlite_url(tmp_path / "study.db")
    search = Simulation(space, url)
    search.run([0.5] * 9)  # the baseline, which is never stopped
    number = search.start()
    assert search.epoch(number, 1, 0.9)
    search.study.record(number, 2, 0.8)
    search.study.annotate(number, {"kept_epoch": 1})
    result = {"epoch": 2, search.metric: 0.8, "done": True, "facts": {"kept_epoch": 1}}
    search.scheduler.on_trial_complete(None, search.handles[number], flatten_dict(result))
    search.study.complete(number)
    for process in (search, Simulation(space, url)):
        (bracket,) = process.scheduler._brackets
        rungs = {milestone: sorted(values.values()) for milestone, values in bracket._rungs}
        assert (rungs[1], rungs[3]) == ([0.5, 0.9], [0.5, 0.9])

"""The study: what it proposes, what it records, and what Optuna alone reads from its database."""

import math
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from cifartune.config import SearchSpace
from cifartune.report.frames import trials_frame
from cifartune.tuning.study import (
    SpaceExhausted,
    TrialStudy,
    attributes,
    is_feasible,
    kept_epoch,
    last_metrics,
    sqlite_url,
)

PARAMETERS: dict[str, Any] = {
    "optimizer.momentum": {"min": 0.8, "max": 0.98, "when": {"optimizer.name": ["sgd", "muon"]}},
    "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
    "optimizer.lr": {"min": 1e-3, "max": 0.3, "log": True},
    "model.dropout": {"min": 0.0, "max": 0.5, "step": 0.125},
    "epochs": {"min": 2, "max": 8, "step": 2},
    "batch_size": {"min": 16, "max": 512, "log": True},
    "augment.cutout": {"values": [0, 8, 12]},
}


def make_space(
    parameters: Mapping[str, Any] = PARAMETERS,
    *,
    base: Mapping[str, Any] | None = None,
    metric: str = "val_accuracy",
    **search: Any,
) -> SearchSpace:
    recipe = {"model": {"name": "speednet_small"}, "epochs": 6, "batch_size": 64, **(base or {})}
    return SearchSpace.model_validate(
        {
            "name": "toy",
            "objective": {"metric": metric},
            "base": recipe,
            "parameters": dict(parameters),
            "search": {"num_trials": 15, **search},
        }
    )


def open_study(folder: Path, space: SearchSpace) -> TrialStudy:
    return TrialStudy(space, url=sqlite_url(folder / "study.db"), name="toy")


def in_memory(space: SearchSpace) -> TrialStudy:
    """A study that is not kept, and is faster."""
    return TrialStudy(space, url="sqlite://", name="toy")


def as_optuna_reads(folder: Path) -> list[FrozenTrial]:
    """The trials as anybody's Optuna finds them in the database."""
    study = optuna.load_study(study_name="toy", storage=sqlite_url(folder / "study.db"))
    return study.get_trials()


def quality(params: Mapping[str, Any], epoch: int = 6) -> float:
    """A smooth toy objective with its best at a learning rate of 0.1, of SGD."""
    distance: float = abs(math.log10(params["optimizer.lr"]) + 1)
    detour = 0.0 if params["optimizer.name"] == "sgd" else 0.05
    return 0.9 - 0.1 * distance - detour - 0.3 / epoch


def play(study: TrialStudy, count: int) -> list[dict[str, Any]]:
    """Runs `count` toy trials, that end in each of the ways, and returns their parameters."""
    played = []
    for _ in range(count):
        proposal = study.propose()
        number, params = proposal.number, study.trials[proposal.number].params
        played.append(params)
        for epoch in range(1, 3):
            study.record(number, epoch, quality(params, epoch))
        if number % 4 == 1:
            study.prune(number)
        elif number % 7 == 2:
            study.reject(number, "non_finite_loss", "the loss was not finite in epoch 3")
        elif number % 7 == 3:
            study.fail(number, "worker_killed", "killed")
        else:
            study.complete(number)
    return played


def test_the_first_trial_is_the_baseline(tmp_path: Path) -> None:
    space = make_space(base={"optimizer": {"name": "muon", "lr": 0.02, "momentum": 0.95}})
    study = open_study(tmp_path, space)
    recipe = study.propose().recipe
    assert recipe.with_values({"seed": 0}) == space.base
    assert study.trials[0].params["optimizer.momentum"] == 0.95


def test_the_baseline_leaves_out_what_does_not_apply_to_it(tmp_path: Path) -> None:
    space = make_space(base={"optimizer": {"name": "adamw", "lr": 0.02}})
    study = open_study(tmp_path, space)
    assert study.propose().recipe.with_values({"seed": 0}) == space.base
    assert "optimizer.momentum" not in study.trials[0].params


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_proposal_lies_in_the_space(sampler: str) -> None:
    space = make_space(sampler=sampler)
    study = in_memory(space)
    play(study, 40)
    conditional = 0
    for trial in study.trials:
        recipe = study.recipe(trial)
        values = recipe.flat()
        for name, parameter in space.parameters.items():
            if parameter.applies(values):
                assert parameter.contains(values[name]), (name, values[name])
                assert trial.params[name] == values[name]
            else:
                assert name not in trial.params
                assert values[name] == space.base.flat()[name]
                conditional += 1
        assert type(values["batch_size"]) is int and type(values["epochs"]) is int
    assert 0 < conditional < 40
    # It varies: no parameter is stuck at one value.
    for name in space.parameters:
        assert len({study.recipe(trial).flat()[name] for trial in study.trials}) > 2


def test_logarithmic_parameters_are_drawn_by_magnitude() -> None:
    space = make_space(
        {"optimizer.weight_decay": {"min": 1e-6, "max": 1e-1, "log": True}}, sampler="random"
    )
    study = in_memory(space)
    drawn = [study.propose().recipe.optimizer.weight_decay for _ in range(100)][1:]
    below = sum(value < 10**-3.5 for value in drawn)  # half of the magnitudes
    assert 30 < below < 70  # drawn evenly, one in three hundred would be


def test_every_trial_has_a_seed_of_its_own() -> None:
    seeds = []
    for seed in (0, 1):
        study = in_memory(make_space(seed=seed))
        seeds += [study.propose().recipe.seed for _ in range(5)]
    assert len(set(seeds)) == 10


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_reopened_study_goes_on_like_its_unbroken_twin(tmp_path: Path, sampler: str) -> None:
    space = make_space(sampler=sampler)
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken = open_study(tmp_path / "unbroken", space)
    expected = play(unbroken, 12)
    recipes = [unbroken.recipe(trial) for trial in unbroken.trials]

    played = []
    for count in (1, 6, 5):
        played += play(open_study(tmp_path / "broken", space), count)
    broken = open_study(tmp_path / "broken", space)
    assert played == expected
    assert [broken.recipe(trial) for trial in broken.trials] == recipes


def test_proposals_know_what_runs_and_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """With several trials running, as in a search: the reopened study has them RUNNING too."""
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    studies = [open_study(tmp_path / name, make_space()) for name in ("unbroken", "broken")]
    for study in studies:
        play(study, 6)
        study.record(study.propose().number, 1, 0.5)
        study.propose()
    optuna.samplers.RandomSampler(seed=1)  # other generators do not matter
    reopened = open_study(tmp_path / "broken", make_space())
    for _ in range(3):
        assert reopened.propose() == studies[0].propose()


def test_another_seed_proposes_otherwise() -> None:
    drawn = [play(in_memory(make_space(seed=seed)), 8) for seed in (0, 1)]
    assert drawn[0][0] == drawn[1][0]  # the baseline
    assert all(one != other for one, other in zip(*(d[1:] for d in drawn), strict=True))


KILLED = """
import os, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
sys.path.insert(0, sys.argv[2])
from test_study import make_space, open_study

# A study for each place to die at; the forks share the imports.
for place in range(int(sys.argv[3])):
    folder = Path(sys.argv[1]) / str(place)
    if os.fork() == 0:
        study = open_study(folder, make_space())
        written = 0

        @event.listens_for(Engine, "after_cursor_execute")
        def die(connection, cursor, statement, *rest):
            global written
            written += not statement.startswith("SELECT")
            if written > place:
                os.kill(os.getpid(), 9)

        study.propose()
        (folder / "survived").touch()
        os._exit(0)
    os.wait()
"""


def test_a_killed_proposal_leaves_nothing_or_all_of_it(tmp_path: Path) -> None:
    places = 10
    (tmp_path / "before").mkdir()
    play(open_study(tmp_path / "before", make_space()), 3)
    for place in range(places):
        shutil.copytree(tmp_path / "before", tmp_path / str(place))
    arguments = [str(tmp_path), str(Path(__file__).parent), str(places)]
    # -W: whatever a library says about forks.
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, *arguments], check=True)

    last = tmp_path / str(places - 1)
    assert (last / "survived").exists(), "more places to die at are needed"
    expected = open_study(last, make_space()).trials[3]
    killed = [p for p in range(places) if not (tmp_path / str(p) / "survived").exists()]
    assert len(killed) > 3
    for place in killed:
        study = open_study(tmp_path / str(place), make_space())
        if len(study.trials) == 3:
            study.propose()
        assert len(study.trials) == 4
        assert study.trials[3].state is TrialState.RUNNING
        assert study.trials[3].params == expected.params


def test_optuna_reads_the_states_from_the_database_alone(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space())
    numbers = [study.propose().number for _ in range(6)]
    for number in numbers[:5]:
        for epoch in range(1, number + 2):
            study.record(number, epoch, number + epoch / 10)
    study.annotate(0, {"params": 5, "val_accuracy": 0.1})
    study.complete(0)
    study.record(1, 3, 1.0)  # the last value counts, not the best
    study.prune(1)
    study.reject(2, "non_finite_loss", "the loss was not finite in epoch 4")
    study.fail(3, "worker_killed", "killed")

    complete, pruned, rejected, failed, running, untouched = as_optuna_reads(tmp_path)
    assert (complete.state, complete.value) == (TrialState.COMPLETE, 0.1)
    assert attributes(complete) == {"params": 5, "val_accuracy": 0.1}
    assert (pruned.state, pruned.value) == (TrialState.PRUNED, 1.0)
    assert pruned.intermediate_values == {1: 1.1, 2: 1.2, 3: 1.0}
    assert (rejected.state, rejected.value) == (TrialState.PRUNED, 2.3)
    assert rejected.constraints == {"failed": 1.0}
    assert attributes(rejected) == {
        "failure": "non_finite_loss",
        "message": "the loss was not finite in epoch 4",
    }
    assert (failed.state, failed.value) == (TrialState.FAIL, None)
    assert attributes(failed)["failure"] == "worker_killed"
    assert failed.intermediate_values == {1: 3.1, 2: 3.2, 3: 3.3, 4: 3.4}
    assert (running.state, len(running.intermediate_values)) == (TrialState.RUNNING, 5)
    assert (untouched.state, untouched.intermediate_values) == (TrialState.RUNNING, {})
    feasible = [is_feasible(trial) for trial in as_optuna_reads(tmp_path)]
    assert feasible == [True, True, False, True, True, True]
    # The study itself sees the same, now and when it is opened anew.
    for trials in (study.trials, open_study(tmp_path, make_space()).trials):
        for ours, theirs in zip(trials, as_optuna_reads(tmp_path), strict=True):
            assert (ours.state, ours.params) == (theirs.state, theirs.params)
            assert ours.intermediate_values == theirs.intermediate_values
            assert attributes(ours) == attributes(theirs)
            assert ours.constraints == theirs.constraints


def test_optunas_best_trial_is_the_objectives(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space(metric="val_loss"))
    for value in (0.5, 0.2, 0.8):
        number = study.propose().number
        study.record(number, 1, value)
        study.complete(number)
    found = optuna.load_study(study_name="toy", storage=sqlite_url(tmp_path / "study.db"))
    assert found.best_trial.number == 1


def test_a_trial_without_an_epoch_can_end(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space())
    for _ in range(3):
        study.propose()
    study.prune(0)
    study.reject(1, "out_of_memory", "m")
    study.fail(2, "error", "m")
    states = [(trial.state, trial.value) for trial in as_optuna_reads(tmp_path)]
    assert states == [(TrialState.PRUNED, None), (TrialState.PRUNED, None), (TrialState.FAIL, None)]
    assert study.best(3) == []
    study.propose()  # and the sampler can live with them


@pytest.mark.parametrize(
    ("metric", "ranking"), [("val_accuracy", [3, 0, 5, 4, 1]), ("val_loss", [0, 5, 3, 4, 1])]
)
def test_the_best_trained_longest_then_best(
    tmp_path: Path, metric: str, ranking: list[int]
) -> None:
    study = open_study(tmp_path, make_space(metric=metric))
    curves: list[list[float]] = [
        [0.1, 0.2, 0.3],  # 0
        [0.9],  # 1: stopped early, whatever its value
        [0.9, 0.9, 0.9],  # 2: infeasible
        [0.9, 0.9, 0.7],  # 3: the last value counts, not the best
        [0.4, 0.5],  # 4: stopped later
        [0.1, 0.2, 0.3],  # 5: as good as the first, which comes before it
        [],  # 6
    ]
    for number, curve in enumerate(curves):
        study.propose()
        for epoch, value in enumerate(curve, 1):
            study.record(number, epoch, value)
    study.complete(0)
    study.prune(1)
    study.reject(2, "non_finite_loss", "m")
    study.complete(3)
    study.prune(4)
    study.complete(5)
    assert [trial.number for trial in study.best(9)] == ranking
    assert [trial.number for trial in study.best(2)] == ranking[:2]
    assert [trial.number for trial in study.best()] == ranking[:1]


def test_a_trial_that_keeps_its_best_epoch_has_that_value(tmp_path: Path) -> None:
    space = make_space(base={"stopping": {"keep": "best"}})
    study = open_study(tmp_path, space)
    for curve in ([0.1, 0.6, 0.2], [0.3, 0.4, 0.5]):
        number = study.propose().number
        for epoch, value in enumerate(curve, 1):
            study.record(number, epoch, value)
    study.annotate(0, {"kept_epoch": 2})
    for number in (0, 1):
        study.complete(number)
    assert [trial.value for trial in as_optuna_reads(tmp_path)] == [0.6, 0.5]
    assert study.best()[0].number == 0
    assert [kept_epoch(trial) for trial in study.trials] == [2, 3]


def failures(*, told: bool) -> int:
    """Recipes that fail, of the last 90 of three toy searches: where log10(lr) is above -1.

    They fail late, in epoch 3, when the scheduler has stopped the others.

    Args:
        told: Whether the study hears of the failures; else such trials only count as stopped.
    """
    parameters = {
        "optimizer.lr": {"min": 1e-3, "max": 1.0, "log": True},
        "model.dropout": {"min": 0.0, "max": 0.5},
    }
    count = 0
    for seed in range(3):
        base = {"optimizer": {"lr": 0.01}}
        study = in_memory(make_space(parameters, seed=seed, base=base, num_trials=40))
        for number in range(40):
            exponent = math.log10(study.propose().recipe.optimizer.lr)
            fails = exponent > -1
            for epoch in range(1, 3 if fails else 2):
                study.record(number, epoch, -abs(exponent + 1.5))
            if fails and told:
                study.reject(number, "non_finite_loss", "m")
            else:
                study.prune(number)
            count += fails and number >= 10
    return count


def test_the_sampler_keeps_away_from_where_recipes_fail() -> None:
    """A third of the space fails: by chance 30 of 90 trials."""
    assert failures(told=True) < 25
    assert failures(told=False) > 40  # the test can fail: it is the constraint that does it


def test_ranges_in_steps_reach_their_ends() -> None:
    parameters = {"model.dropout": {"min": 0.0, "max": 0.5, "step": 0.125}}
    study = in_memory(make_space(parameters, sampler="random"))
    drawn = [study.propose().recipe.model.dropout for _ in range(5)]
    assert sorted(drawn) == [0.0, 0.125, 0.25, 0.375, 0.5]  # and none of them twice
    with pytest.raises(SpaceExhausted):
        study.propose()


def test_metrics_are_those_of_the_last_epoch(tmp_path: Path) -> None:
    """Where the facts name another epoch's value, that one counts."""
    url = sqlite_url(tmp_path / "study.db")
    study = TrialStudy(make_space(), url=url, name="x")
    for end in (study.complete, study.prune):
        number = study.propose().number
        for epoch in (1, 2):
            metrics = {"val_loss": 1.0 / epoch, "seconds": 3.0 * epoch}
            study.record(number, epoch, epoch / 10, metrics)
        again = TrialStudy(make_space(), url=url, name="x").trials[number]
        assert attributes(again) == {"val_loss": 0.5, "seconds": 6.0}
        row = trials_frame(study).iloc[number]
        assert (row["val_loss"], row["seconds"]) == (0.5, 6.0)
        if number == 0:
            study.annotate(number, {"val_loss": 1.0, "kept_epoch": 1})
        end(number)
        ended = TrialStudy(make_space(), url=url, name="x").trials[number]
        assert attributes(ended)["val_loss"] == (0.5 if number else 1.0)
        assert attributes(ended)["seconds"] == 6.0
        assert not {"metrics", "facts"} & {*trials_frame(study)}


def test_facts_come_with_the_last_epoch_and_leave_its_metrics(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "study.db")
    study = TrialStudy(make_space(), url=url, name="x")
    number = study.propose().number
    study.record(number, 1, 0.1, {"val_loss": 1.0, "seconds": 3.0})
    facts = {"val_loss": 1.0, "kept_epoch": 1, "params": 5}
    study.record(number, 2, 0.2, {"val_loss": 0.5, "seconds": 6.0}, facts)
    study.complete(number)
    ended = TrialStudy(make_space(), url=url, name="x").trials[number]
    assert attributes(ended) == {"val_loss": 1.0, "seconds": 6.0, "kept_epoch": 1, "params": 5}
    assert last_metrics(ended) == {"val_loss": 0.5, "seconds": 6.0}
    assert ended.value == 0.1


def test_facts_without_their_epoch_do_not_count(tmp_path: Path) -> None:
    """A process died after it wrote them, and before the value of the last epoch."""
    study = TrialStudy(make_space(), url=sqlite_url(tmp_path / "study.db"), name="x")
    number = study.propose().number
    study.record(number, 1, 0.1)
    known = {"val_loss": 1.0, "facts": {"kept_epoch": 2}}
    for storage, trial_id in study._ids(number):
        storage.set_trial_user_attr(trial_id, "metrics", known)
    again = TrialStudy(make_space(), url=sqlite_url(tmp_path / "study.db"), name="x")
    assert kept_epoch(again.trials[number]) == 1
    assert again.best()[0].number == number
    again.prune(number)
    assert again.trials[number].value == 0.1


def test_an_ended_trial_is_in_the_file_itself(tmp_path: Path) -> None:
    """What was written since then is beside it, and is lost with the power."""
    (tmp_path / "whole").mkdir()
    study = open_study(tmp_path / "whole", make_space())
    play(study, 1)
    study.record(study.propose().number, 1, 0.5)
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "whole" / "study.db", tmp_path / "cut")
    found = open_study(tmp_path / "cut", make_space()).trials
    assert len(found) == 1
    whole = study.trials[0]
    assert (found[0].state, found[0].value) == (TrialState.COMPLETE, whole.value)
    assert found[0].intermediate_values == whole.intermediate_values != {}
    again = open_study(tmp_path / "whole", make_space()).trials
    assert again[1].intermediate_values == {1: 0.5}


def test_a_failure_half_written_is_ended_when_the_study_is_opened(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space())
    for _ in range(3):
        study.propose()
    study.annotate(0, {"failure": "worker_killed", "message": "killed"})
    for storage, trial_id in study._ids(1):
        storage.set_trial_system_attr(trial_id, "constraints:failed", 1.0)
    states = [trial.state for trial in open_study(tmp_path, make_space()).trials]
    assert states == [TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING]

"""Proposals: every sampler on conditional, discrete and constrained spaces, alone and resumed."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import FrozenTrial, TrialState

from cifartune.config import SearchSpace
from cifartune.errors import UserError
from cifartune.runs import RunFolder
from cifartune.tuning import proposals
from cifartune.tuning.proposals import Proposer
from cifartune.tuning.study import (
    REFUSED,
    SpaceExhausted,
    TrialStudy,
    attributes,
    is_feasible,
    sqlite_url,
)
from cifartune.tuning.warm_start import load_warm_start

SAMPLERS = ["random", "tpe", "cmaes", "gp", "qmc"]

CONDITIONAL: dict[str, Any] = {
    "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
    "optimizer.lr": {"min": 1e-3, "max": 1.0, "log": True},
    "optimizer.momentum": {"min": 0.8, "max": 0.98, "when": {"optimizer.name": ["sgd", "muon"]}},
    "batch_size": {"values": [256, 512]},
    "augment.cutout": {"min": 0, "max": 16, "step": 8, "when": {"batch_size": 512}},
    "schedule.warmup": {"min": 0.1, "max": 0.5, "step": 0.1, "when": {"augment.cutout": 8}},
}
DISCRETE: dict[str, Any] = {
    name: CONDITIONAL[name] for name in ("optimizer.name", "batch_size", "augment.cutout")
}  # 3 x (256, or 512 with 0, 8, 16) = 12 points


def make_space(parameters: dict[str, Any] = CONDITIONAL, **sections: Any) -> SearchSpace:
    search = {"num_trials": 20} | sections.pop("search", {})
    return SearchSpace.model_validate(
        {
            "name": "toy",
            "base": {
                "model": {"name": "speednet_small"},
                "optimizer": {"name": "adamw"},
                "epochs": 3,
            },
            "parameters": parameters,
            "search": search,
            **sections,
        }
    )


def value_of(params: dict[str, Any]) -> float:
    """A made-up accuracy: muon at a rate of 0.03 is best."""
    bonus = {"muon": 0.3, "sgd": 0.1, "adamw": 0.0}[params.get("optimizer.name", "adamw")]
    rate, momentum = params.get("optimizer.lr", 0.1), params.get("optimizer.momentum", 0.0)
    return bonus - float(abs(rate - 0.03)) + float(momentum)


def run(study: TrialStudy, trials: int) -> list[FrozenTrial]:
    """Feeds trials to the study; every other is stopped after its first epoch."""
    for _ in range(trials):
        number = study.propose().number
        value = value_of(study.trials[number].params)
        study.annotate(number, {target.metric: value for target in study.space.targets})
        study.record(number, 1, value)
        (study.prune if number % 2 else study.complete)(number)
    return study.trials


def params(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampled_point_has_what_its_conditions_give_it(sampler: str) -> None:
    space = make_space(search={"sampler": sampler})
    count = 14 if sampler == "gp" else 28  # a Gaussian process takes its time
    trials = run(TrialStudy(space), count)
    for trial in trials:
        point = trial.params
        has_momentum = point["optimizer.name"] in ("sgd", "muon")
        assert ("optimizer.momentum" in point) == has_momentum
        assert ("augment.cutout" in point) == (point["batch_size"] == 512)
        assert ("schedule.warmup" in point) == (point.get("augment.cutout") == 8)
        assert all(space.parameters[name].contains(value) for name, value in point.items())
    names = {name for trial in trials for name in trial.params}
    assert names == set(CONDITIONAL)  # no branch is left out
    assert len({tuple(sorted(point.items())) for point in params(trials)}) == count


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_proposal_is_the_same_after_a_restart(sampler: str, tmp_path: Path) -> None:
    space = make_space(search={"sampler": sampler})
    unbroken = params(run(TrialStudy(space), 12))
    url = sqlite_url(tmp_path / "study.db")
    run(TrialStudy(space, url=url), 5)
    run(TrialStudy(space, url=url), 4)
    assert params(run(TrialStudy(space, url=url), 3)) == unbroken


@pytest.mark.parametrize(("sampler", "shown"), [("tpe", 2000), ("tpe", 6), ("random", 2000)])
def test_a_proposal_depends_on_the_trials_alone(
    sampler: str, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the proposer saw before: what it keeps is only to be faster."""
    monkeypatch.setattr(proposals, "SHOWN", shown)
    monkeypatch.setattr(proposals, "BEST", 3)
    space = make_space(search={"sampler": sampler, "num_trials": 40})
    used, study = Proposer(space), TrialStudy(space)
    histories: list[list[FrozenTrial]] = []
    running: list[int] = []
    random = np.random.default_rng(0)

    def proposed(proposer: Proposer, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        trial = proposer.propose(trials)
        assert trial is not None
        return trial.params

    for _ in range(30):
        histories.append(study.trials)
        expected = proposed(Proposer(space), study.trials)
        assert [proposed(used, study.trials) for _ in range(2)] == [expected] * 2
        running.append(study.propose().number)
        while len(running) > 3:  # they end in another order than they began, and in every way
            number = running.pop(random.integers(len(running)))
            study.record(number, 1, value_of(study.trials[number].params))
            if number % 5 == 4:
                study.reject(number, "non_finite_loss", "it broke")
            else:
                [study.complete, study.prune, study.prune][number % 3](number)
    for trials in (histories[20], histories[7], histories[25]):
        assert proposed(used, trials) == proposed(Proposer(space), trials)


def test_of_many_trials_the_sampler_sees_the_best_and_an_even_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proposals, "SHOWN", 40)
    study = TrialStudy(make_space(search={"sampler": "random", "num_trials": 300}))
    running = [study.propose().number for _ in range(3)]
    random = np.random.default_rng(1)
    for _ in range(200):
        number = study.propose().number
        for epoch in range(1, random.integers(1, 4) + 1):
            study.record(number, epoch, random.random())
        ends = [study.prune] * 12 + [study.complete]
        if number % 9 == 8:
            study.reject(number, "non_finite_loss", "it broke")
        else:
            ends[random.integers(len(ends))](number)
    learns = Proposer(make_space(search={"sampler": "tpe", "num_trials": 300}))
    proposed = learns.propose(study.trials)
    shown = learns._record.of(study.trials)
    seen = [t for t in shown.get_trials(deepcopy=False) if t.state is not TrialState.FAIL]
    numbers = {trial.number for trial in seen}
    assert numbers >= {*running, *range(0, 203, 5)} and len(numbers) < 80
    # What TPE takes for the best of those it sees are the best of all.
    best, others = _split_trials(shown, seen, proposals.BEST)
    of_all, _ = _split_trials(study._mirror, study.trials, proposals.BEST)
    assert [t.number for t in best] == [t.number for t in of_all] and len(others) > 30
    # And it is so after a restart, too.
    again = Proposer(learns.space).propose(study.trials)
    assert proposed and again and proposed.params == again.params


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
def test_a_proposal_does_not_depend_on_how_long_the_search_is_to_be(sampler: str) -> None:
    """A search of 20 trials that is extended by 20 is one of 40."""
    crops = {"augment.crop": {"min": 0, "max": 8}, "tta": {"values": ["none", "flip", "six_views"]}}
    parameters = crops if sampler == "grid" else CONDITIONAL
    count = 12 if sampler == "gp" else 20  # a Gaussian process takes its time
    short, long = (
        make_space(parameters, search={"sampler": sampler, "num_trials": trials})
        for trials in (20, 40)
    )
    assert params(run(TrialStudy(short), count)) == params(run(TrialStudy(long), count))


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_sampler_learns_also_from_trials_that_were_stopped(sampler: str) -> None:
    """All but the baseline are stopped: what a sampler learns, it learns from these."""
    parameters = {"optimizer.lr": {"min": 1e-3, "max": 1.0, "log": True}}
    space = make_space(parameters, search={"sampler": sampler, "num_trials": 30})

    def late_error(*, told: bool) -> float:
        study = TrialStudy(space)
        for _ in range(30):
            number = study.propose().number
            rate = study.trials[number].params["optimizer.lr"]
            study.record(number, 1, -abs(rate - 0.03) if told else 0.0)
            study.prune(number) if number else study.complete(number)
        rates = [t.params["optimizer.lr"] for t in study.trials[15:]]
        return float(sum(abs(rate - 0.03) for rate in rates) / len(rates))

    assert late_error(told=True) < 0.7 * late_error(told=False)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
def test_a_discrete_space_is_tried_once_and_then_ends(sampler: str) -> None:
    study = TrialStudy(make_space(DISCRETE, search={"sampler": sampler, "num_trials": 40}))
    trials = run(study, 12)
    assert len({frozenset(trial.params.items()) for trial in trials}) == 12
    with pytest.raises(SpaceExhausted):
        study.propose()


def test_what_the_machine_failed_may_be_tried_again() -> None:
    parameters = {"optimizer.name": {"values": ["sgd", "adamw"]}}
    study = TrialStudy(make_space(parameters, search={"sampler": "grid"}))
    study.fail(study.propose().number, "worker_killed", "killed")
    assert {point["optimizer.name"] for point in params(run(study, 2))} == {"sgd", "adamw"}


def test_a_point_that_the_machine_fails_takes_no_others_place() -> None:
    parameters = {"augment.crop": {"min": 1, "max": 8}}
    base = {"augment": {"crop": 4}}
    study = TrialStudy(make_space(parameters, base=base, search={"sampler": "grid"}))
    crops = []
    for _ in range(9):
        proposal = study.propose()
        crops.append(proposal.recipe.augment.crop)
        if crops[-1] == 6:
            study.fail(proposal.number, "timeout", "it hung")
        else:
            study.record(proposal.number, 1, 0.5)
            study.complete(proposal.number)
    assert sorted(crops[:8]) == [*range(1, 9)] and crops[8] == 6


def test_a_recipe_that_diverged_does_not_draw_cmaes() -> None:
    """It knows no constraints: what failed counts as the worst, whatever it had reached."""
    parameters = {"optimizer.lr": {"min": 0.01, "max": 1.0}}
    study = TrialStudy(make_space(parameters, search={"sampler": "cmaes"}))
    for value in (0.3, 0.2, 0.9):
        number = study.propose().number
        study.record(number, 1, value)
        if value == 0.9:
            study.reject(number, "non_finite_loss", "the loss was not finite in epoch 2")
        else:
            study.complete(number)
    shown = study._proposer._as_complete(study.trials)
    assert [trial.values for trial in shown] == [[0.3], [0.2], [0.2]]


def test_a_grid_is_not_tried_in_the_order_of_the_file() -> None:
    parameters = {"augment.crop": {"min": 0, "max": 8}, "tta": {"values": ["none", "flip"]}}
    base = {"base": {"optimizer": {"name": "sgd"}, "augment": {"crop": 4}}}
    space = SearchSpace.model_validate(
        {"name": "g", "parameters": parameters, "search": {"sampler": "grid"}} | base
    )
    study = TrialStudy(space)
    crops = [study.propose().recipe.augment.crop for _ in range(18)]
    assert sorted(crops) == sorted([*range(9)] * 2)
    assert crops[1:9] != sorted(crops[1:9])


def test_qmc_spreads_better_than_chance() -> None:
    parameters = {"model.dropout": {"min": 0.0, "max": 0.8}}
    gaps = {}
    for sampler in ("qmc", "random"):
        study = TrialStudy(make_space(parameters, search={"sampler": sampler}))
        drawn = sorted(study.propose().recipe.model.dropout for _ in range(17))
        gaps[sampler] = max(b - a for a, b in pairwise(drawn))
    assert gaps["qmc"] < 0.1 < gaps["random"]


def test_the_points_of_the_file_come_after_the_baseline() -> None:
    points = [{"optimizer.lr": 0.5, "optimizer.name": "sgd"}, {"batch_size": 256}]
    study = TrialStudy(make_space(points=points))
    baseline, first, second, third = params(run(study, 4))
    assert baseline["optimizer.name"] == "adamw"
    assert (first["optimizer.lr"], first["optimizer.name"]) == (0.5, "sgd")
    assert first["optimizer.momentum"] == 0.9  # the baseline's, where it exists
    assert second == {"optimizer.name": "adamw", "optimizer.lr": 0.1, "batch_size": 256}
    assert third not in (baseline, first, second)


def test_a_recipe_that_breaks_a_constraint_is_refused_untrained(tmp_path: Path) -> None:
    networks = {"model.name": {"values": ["speednet_small", "speednet", "resnet18"]}}
    bound = {"params": {"max": 5_000_000}}
    space, longer = (
        make_space({**networks, **CONDITIONAL}, constraints=bound, search={"num_trials": trials})
        for trials in (20, 50)
    )
    url = sqlite_url(tmp_path / "study.db")
    study = TrialStudy(space, url=url)
    run(study, 1)
    while study.trials_left > 0:
        number = study.propose().number
        assert study.recipe(study.trials[number]).model.name != "resnet18"
        study.record(number, 1, 0.5)
        study.complete(number)
    refused = [t for t in study.trials if attributes(t).get("failure") == REFUSED]
    assert refused and len(study.trials) - len(refused) == space.search.num_trials
    for trial in refused:
        assert trial.state is TrialState.PRUNED and not trial.intermediate_values
        assert trial.params["model.name"] == "resnet18"
        assert attributes(trial)["message"] == (
            "constraints.params allows at most 5,000,000, and the network has 11,173,962"
        )
        assert not is_feasible(trial)
    assert all(is_feasible(t) for t in study.trials if t not in refused)
    # A third of the space breaks it: the sampler has learnt to keep away.
    assert len(refused) < 8
    # What was refused is known to be when the search is opened again, and extended.
    assert [TrialStudy(s, url=url).trials_left for s in (space, longer)] == [0, 30]


@pytest.mark.parametrize("sampler", ["gp", "cmaes", "qmc", "random"])
def test_every_sampler_can_live_with_constraints(sampler: str) -> None:
    names = {"model.name": {"values": ["speednet_small", "resnet18"]}}
    space = make_space(
        {**names, **CONDITIONAL},
        constraints={"params": {"max": 5_000_000}},
        search={"sampler": sampler, "num_trials": 14},
    )
    study = TrialStudy(space)
    while study.trials_left > 0:
        number = study.propose().number
        study.record(number, 1, 0.5)
        if number == 3:
            study.reject(number, "non_finite_loss", "the loss was not finite")
        else:
            study.complete(number)
    assert all(study.recipe(t).model.name == "speednet_small" for t in study.best(14))


def test_a_baseline_that_breaks_a_constraint_is_an_error() -> None:
    bound = {"params": {"max": 1000}}
    with pytest.raises(UserError, match=r"base: constraints.params allows at most 1,000, and the"):
        TrialStudy(make_space(constraints=bound)).check()


def test_a_point_that_breaks_a_constraint_is_an_error() -> None:
    names = {"model.name": {"values": ["speednet_small", "resnet18"]}}
    points = [{"optimizer.lr": 0.5}, {"model.name": "resnet18"}]
    space = make_space(
        names | CONDITIONAL, points=points, constraints={"params": {"max": 5_000_000}}
    )
    with pytest.raises(UserError, match=r"points.1: constraints.params allows at most 5,000,000"):
        TrialStudy(space).check()


def test_constraints_that_leave_nothing_are_an_error() -> None:
    points = {"model.name": {"values": ["speednet_small", "speednet", "resnet18"]}}
    space = make_space(points | CONDITIONAL, constraints={"params": {"max": 600_000}})
    never = Proposer(space)
    study = TrialStudy(space)
    run(study, 1)
    never.propose = lambda trials: wide  # type: ignore[method-assign]
    wide = Proposer(make_space(points | CONDITIONAL, points=[{"model.name": "speednet"}])).propose(
        study.trials
    )
    study._proposer = never
    with pytest.raises(UserError, match="constraints: 200 recipes in a row were refused"):
        study.propose()


OBJECTIVES = [{"metric": "val_accuracy"}, {"metric": "params"}]


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc"])
def test_several_objectives_give_a_front(sampler: str) -> None:
    names = {"model.name": {"values": ["speednet_small", "speednet", "resnet18"]}}
    space = make_space({**names, **CONDITIONAL}, objectives=OBJECTIVES, search={"sampler": sampler})
    study = TrialStudy(space)
    run_two(study, 14)
    front = {t.number for t in study.front}
    complete = [t for t in study.trials if t.state is TrialState.COMPLETE]
    for trial in complete:
        accuracy, size = trial.values
        beaten = any(
            (o.values[0] >= accuracy and o.values[1] <= size) and o.values != trial.values
            for o in complete
        )
        assert beaten != (trial.number in front)
    chosen = study.best(len(front))
    assert {t.number for t in chosen} == front
    accuracies = [t.values[0] for t in chosen]
    assert accuracies == sorted(accuracies, reverse=True)


def run_two(study: TrialStudy, trials: int) -> None:
    sizes = {"resnet18": 0.2, "speednet": 0.1, "speednet_small": 0.0}
    for _ in range(trials):
        proposal = study.propose()
        trial = study.trials[proposal.number]
        value = value_of(trial.params) + sizes[proposal.recipe.model.name]
        study.record(proposal.number, 1, value)
        (study.prune if proposal.number % 3 == 2 else study.complete)(proposal.number)


def test_the_network_is_counted_before_it_trains() -> None:
    study = TrialStudy(make_space(objectives=OBJECTIVES))
    number = study.propose().number
    assert attributes(study.trials[number])["params"] == 498_104
    study.record(number, 1, 0.5)
    study.complete(number)
    assert study.trials[number].values == [0.5, 498_104]


@pytest.fixture
def earlier(tmp_path: Path) -> RunFolder:
    """A finished search whose best rate is near 0.03."""
    parameters = {"optimizer.lr": {"min": 1e-3, "max": 1.0, "log": True}}
    space = make_space(parameters, search={"sampler": "qmc"})
    run_folder = RunFolder.create(tmp_path / "runs", space, "earlier")
    study = TrialStudy(space, url=sqlite_url(run_folder.study), name="earlier")
    for _ in range(20):
        number = study.propose().number
        study.record(number, 1, -abs(study.trials[number].params["optimizer.lr"] - 0.03))
        study.complete(number)
    study.fail(study.propose().number, "worker_killed", "killed")
    return run_folder


@pytest.mark.parametrize("by_path", [False, True])
def test_a_warm_start_teaches_the_sampler(
    earlier: RunFolder, by_path: bool, tmp_path: Path
) -> None:
    name = str(earlier.path) if by_path else "earlier"
    # Another range, and a parameter that the earlier search fixed: its trials count where they fit.
    parameters = {
        "optimizer.lr": {"min": 1e-2, "max": 1.0, "log": True},
        "tta": {"values": ["none", "flip"]},
    }
    space = make_space(parameters, warm_start=[name])
    others = load_warm_start(space, earlier.runs)
    assert 8 < len(others) < 20
    assert all(t.params["optimizer.lr"] >= 1e-2 and t.params["tta"] == "none" for t in others)
    url = sqlite_url(tmp_path / "study.db")

    def rates(study: TrialStudy) -> list[float]:
        return [study.propose().recipe.optimizer.lr for _ in range(5)]

    study = TrialStudy(space, url=url, name="warm", warm_start=others)
    warm = rates(study)
    cold = rates(TrialStudy(make_space(parameters)))
    # The baseline is first in any case.
    assert sum(abs(rate - 0.03) for rate in warm[1:]) < sum(abs(rate - 0.03) for rate in cold[1:])
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4]
    # Opened again, it knows them without being told.
    again = TrialStudy(space, url=url, name="warm")
    assert again.propose().recipe == study.propose().recipe


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({}, "earler", "warm_start.0: .*runs: no run is called earler; there are earlier"),
        (
            {"objective": {"metric": "val_loss"}},
            "earlier",
            r"earlier was searched for val_accuracy \(max\), and this is for val_loss \(min\)",
        ),
        (
            {
                "parameters": {"optimizer.lr": {"min": 2.0, "max": 3.0}},
                "base": {"optimizer": {"lr": 2.5}},
            },
            "earlier",
            "warm_start.0: no trial of earlier lies in this space",
        ),
    ],
)
def test_a_warm_start_must_fit(
    earlier: RunFolder, changes: dict[str, Any], name: str, message: str
) -> None:
    values = make_space(warm_start=[name]).model_dump() | changes
    with pytest.raises(UserError, match=message):
        load_warm_start(SearchSpace.model_validate(values), earlier.runs)


def test_a_warm_start_is_told_in_the_words_of_the_space(tmp_path: Path) -> None:
    """Steps of 0.1 add up to 0.30000000000000004."""
    steps = {"model.dropout": {"min": 0.1, "max": 0.5, "step": 0.1}}
    base = {"model": {"name": "speednet_small", "dropout": 0.1}}
    space = make_space(steps, base=base, search={"sampler": "grid"})
    run_folder = RunFolder.create(tmp_path, space, "steps")
    study = TrialStudy(space, url=sqlite_url(run_folder.study), name="steps")
    run(study, 5)
    values = {"model.dropout": {"values": [0.1, 0.2, 0.3]}}
    others = load_warm_start(make_space(values, base=base, warm_start=["steps"]), tmp_path)
    assert sorted(trial.params["model.dropout"] for trial in others) == [0.1, 0.2, 0.3]


def test_a_warm_start_and_constraints_go_with_gp(earlier: RunFolder) -> None:
    """All trials that it sees must have the same constraints, those of before have none."""
    parameters = {"optimizer.lr": {"min": 1e-2, "max": 1.0, "log": True}}
    limits = {"constraints": {"params": {"max": 10**9}}}
    space = make_space(parameters, warm_start=["earlier"], search={"sampler": "gp"}, **limits)
    study = TrialStudy(space, warm_start=load_warm_start(space, earlier.runs))
    for _ in range(3):
        end_by_rate(study)


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_range_that_was_made_wider_is_searched(
    sampler: str, is_warm: bool, earlier: RunFolder, tmp_path: Path
) -> None:
    """Samplers keep to the ranges that they see in earlier trials."""

    def space(highest: float) -> SearchSpace:
        return SearchSpace.model_validate(
            {
                "name": "wider",
                "base": {"model": {"name": "speednet_small"}},
                "parameters": {"optimizer.lr": {"min": 0.01, "max": highest, "log": True}},
                "search": {"sampler": sampler, "num_trials": 40},
                "warm_start": ["earlier"] if is_warm else [],
            }
        )

    url = sqlite_url(tmp_path / "study.db")
    before = load_warm_start(space(0.3), earlier.runs) if is_warm else []
    study = TrialStudy(space(0.3), url=url, warm_start=before)
    for _ in range(16):
        end_by_rate(study)
    wider = TrialStudy(space(3.0), url=url)
    rates = [end_by_rate(wider) for _ in range(10)]
    assert max(rates) > 1


def end_by_rate(study: TrialStudy) -> float:
    """A trial that is better the higher its rate."""
    proposal = study.propose()
    rate = proposal.recipe.optimizer.lr
    study.record(proposal.number, 1, rate)
    study.complete(proposal.number)
    return rate

"""From a finished search to the space of the next."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from cifartune.config import Choice, Range, SearchSpace
from cifartune.config.load import parse_space
from cifartune.errors import UserError
from cifartune.report.next_space import NextSpace, Revision, _valid, next_space, places_frame
from cifartune.report.searched import Searched
from cifartune.runs import RunFolder
from cifartune.tuning.proposals import distribution
from cifartune.tuning.study import TrialStudy

TRIALS = 40
WINNER = TRIALS

SPACE: dict[str, Any] = {
    "name": "toy",
    "base": {"model": {"name": "speednet_small"}, "epochs": 4, "optimizer": {"lr": 0.1}},
    "parameters": {
        "optimizer.lr": {"min": 0.001, "max": 1.0, "log": True},
        "model.dropout": {"min": 0.0, "max": 0.5, "step": 0.05},
        "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
        "optimizer.momentum": {"min": 0.5, "max": 0.9, "when": {"optimizer.name": "sgd"}},
    },
    "search": {"num_trials": TRIALS + 1},
}

GOLDEN = 0.6180339887498949


def anywhere(number: int, shift: float = 0.0) -> float:
    """A place between 0 and 1: those of successive numbers are spread evenly."""
    return (number * GOLDEN + shift) % 1


def place_in(name: str, share: float) -> Any:
    parameter = SearchSpace.model_validate(SPACE).parameters[name]
    return parameter.at(share, is_int=False)


def searched_of(
    tmp_path: Path, trials: int = TRIALS, space: dict[str, Any] | None = None, **shares: Any
) -> Searched:
    """A search whose trials were drawn in an order that has nothing to do with how good they are.

    `shares` say by a function of n where the n-th worst trial lies in a parameter's range, between
    0 and 1; in the others they lie anywhere.
    """
    searched_space = SearchSpace.model_validate(SPACE | (space or {}))
    run = RunFolder.create(tmp_path / "runs", searched_space)
    recorded = []
    order = [17 * number % (trials + 1) for number in range(trials + 1)]
    for n in order:
        point = searched_space.base.flat()
        if n:
            for place, (name, parameter) in enumerate(searched_space.parameters.items()):
                own = shares.get(name.rpartition(".")[2])
                share = own(n) if own else anywhere(n, 0.3 * place)
                point[name] = parameter.at(share, is_int=False)
        point = searched_space.point(point)
        recorded.append(
            create_trial(
                state=TrialState.COMPLETE,
                value=0.5 + n / 1000,
                params=point,
                distributions={
                    name: distribution(name, searched_space.parameters[name]) for name in point
                },
                intermediate_values={4: 0.5 + n / 1000},
            )
        )
    result = {"winner_trial": order.index(trials)}
    run.result.write_text(json.dumps(result))
    return Searched(run, TrialStudy.of(searched_space, recorded), result)


def revised(following: NextSpace, name: str) -> Revision:
    return next(revision for revision in following.revisions if revision.name == name)


def test_where_the_best_lie_anywhere_nothing_is_changed(tmp_path: Path) -> None:
    following = next_space(searched_of(tmp_path))
    assert [str(revision) for revision in following.revisions if revision.is_change] == []
    assert following.extension == ""
    assert following.space.base.optimizer.lr != 0.1  # the winner's
    assert "what is searched is the same." in following.as_file("toy")


def test_a_range_gets_wider_where_the_best_crowd_at_its_end(tmp_path: Path) -> None:
    searched = searched_of(tmp_path, lr=lambda n: anywhere(n) if n < 31 else 0.82 + n / 250)
    following = next_space(searched)
    revision = revised(following, "optimizer.lr")
    assert isinstance(revision.after, Range)
    assert (revision.after.min, revision.after.max) == (0.34, 3.0)  # narrower where they are not
    assert "10 of the best 10 are in the outermost fifth, at the upper end" in revision.reason
    assert "--set parameters.optimizer.lr.max=3 --num-trials 61" in following.extension


def test_where_the_field_ends_a_range_is_not_wider(tmp_path: Path) -> None:
    searched = searched_of(tmp_path, dropout=lambda n: anywhere(n) if n < 31 else 0.01)
    revision = revised(next_space(searched), "model.dropout")
    assert "-0.25 is not allowed there" in revision.reason
    assert isinstance(revision.after, Range) and revision.after.min == 0.0


def test_a_range_gets_narrower_around_the_best_and_the_winner(tmp_path: Path) -> None:
    def share(number: int) -> float:
        if number == WINNER:
            return 0.7
        return anywhere(number) if number < 31 else 0.45 + number / 1000

    following = next_space(searched_of(tmp_path, lr=share, dropout=share))
    rates = revised(following, "optimizer.lr").after
    assert isinstance(rates, Range)
    assert rates.min > 0.001 and rates.max < 1.0
    assert rates.contains(place_in("optimizer.lr", 0.7))
    dropout = revised(following, "model.dropout").after
    assert dropout == Range(min=0.2, max=0.4, step=0.05)  # by the steps of the range
    assert following.extension == ""


def test_a_value_that_is_only_in_the_worse_half_is_left_out(tmp_path: Path) -> None:
    searched = searched_of(tmp_path, name=lambda n: 0.1 if n < 12 else 0.5 if n % 2 else 0.9)
    following = next_space(searched)
    names = revised(following, "optimizer.name")
    assert names.after == Choice(values=["adamw", "muon"])
    assert names.reason == "no trial with sgd is in the better half"
    momentum = revised(following, "optimizer.momentum")
    assert momentum.after is None
    assert "it takes optimizer.name to be sgd, which is left out" in momentum.reason
    assert "optimizer.momentum" not in following.space.parameters


def test_one_value_that_is_left_is_fixed_in_the_base(tmp_path: Path) -> None:
    searched = searched_of(tmp_path, name=lambda n: 0.1 if n > 20 else 0.5 if n % 2 else 0.9)
    following = next_space(searched)
    assert revised(following, "optimizer.name").after is None
    assert following.space.base.optimizer.name == "sgd"
    momentum = following.space.parameters["optimizer.momentum"]
    assert momentum.when == {}  # it exists in all that is left


def test_too_few_trials_change_nothing(tmp_path: Path) -> None:
    following = next_space(searched_of(tmp_path, trials=11, lr=lambda n: 0.99))
    for revision in following.revisions:
        assert not revision.is_change
        assert revision.reason.startswith("too few trials to say: ")


@pytest.mark.parametrize("objective", ["val_accuracy", "val_loss"])
def test_the_file_is_read_back_and_knows_the_search(objective: str, tmp_path: Path) -> None:
    space = {"objective": {"metric": objective}}
    searched = searched_of(tmp_path, space=space, lr=lambda n: anywhere(n) ** 3)
    following = next_space(searched)
    text = following.as_file("toy")
    assert all(len(line) <= 100 for line in text.splitlines() if line.startswith("#"))
    read = parse_space(text, source="next")
    assert read.targets == searched.space.targets
    assert read.model_copy(update={"objective": None}) == following.space.model_copy(
        update={"objective": None}
    )
    assert (read.name, read.warm_start) == ("toy-next", ["toy"])


def test_places_are_of_the_logarithm_where_that_is_sampled(tmp_path: Path) -> None:
    places = places_frame(searched_of(tmp_path, lr=lambda n: anywhere(n)).study)
    own = places[places["parameter"] == "optimizer.lr"].set_index("trial")
    assert own["place"].tolist() == pytest.approx([anywhere(n) for n in range(40, 0, -1)])
    assert own["is_best"].tolist() == [True] * 10 + [False] * 30
    assert 0 not in own.index  # the baseline, which nobody drew


def test_an_unfinished_search_has_no_next(tmp_path: Path) -> None:
    searched = searched_of(tmp_path)
    searched.run.result.unlink()
    with pytest.raises(UserError, match=r"toy is not finished; go on with"):
        next_space(searched)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_does_nothing_is_seldom_changed(sampler: str, tmp_path: Path) -> None:
    """TPE lays its later trials, which are the better ones, close together in every parameter."""
    names = ("optimizer.lr", "optimizer.weight_decay", "model.dropout")
    ranges = dict(zip(names, ((0.001, 1.0), (1e-6, 1e-2), (0.0, 0.5)), strict=True))
    parameters = {
        name: {"min": low, "max": high, "log": name != "model.dropout"}
        for name, (low, high) in ranges.items()
    }
    searches, changed, found = 40, 0, 0
    for seed in range(searches):
        search = {"num_trials": 24, "sampler": sampler, "seed": seed}
        space = SearchSpace.model_validate(SPACE | {"parameters": parameters, "search": search})
        study, random = TrialStudy(space), Random(seed)
        for _ in range(24):
            proposal = study.propose()
            value = 0.8 + 0.1 * math.log10(proposal.recipe.optimizer.lr) + random.gauss(0, 0.02)
            study.record(proposal.number, 4, value)
            study.complete(proposal.number)
        run = RunFolder.create(tmp_path / "runs", space)
        run.result.write_text(f'{{"winner_trial": {study.best()[0].number}}}')
        following = next_space(Searched(run, study, None))
        changed += sum(revised(following, name).is_change for name in names[1:])
        rates = revised(following, "optimizer.lr").after
        found += isinstance(rates, Range) and rates.max > 1
    assert changed <= 0.12 * searches * len(names[1:])
    assert found >= 0.4 * searches


def test_rungs_that_its_trials_are_too_short_for_are_made_anew() -> None:
    """As where the best had few epochs, and the range of epochs gets narrower."""
    long = {"name": "long", "base": {"epochs": 30}, "scheduler": {"name": "hyperband"}}
    space = SearchSpace.model_validate(long)
    short = _valid(dict(space) | {"base": space.base.with_values({"epochs": 2})})
    assert (space.scheduler.brackets, short.scheduler.brackets) == (3, 1)
    assert (short.scheduler.name, short.scheduler.grace_period) == ("hyperband", 1)

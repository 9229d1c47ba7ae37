"""From a finished search to the space of the next: which ranges move, and why.

Each rule asks whether the best trials lie as they would by chance, at a level of 5 %: now and then,
a parameter that does nothing is changed all the same. What is proposed is to be looked at.
"""

import math
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from cifartune.config import Choice, Range, SearchSpace, make_space
from cifartune.config.load import dump_briefly
from cifartune.config.recipe import recipe_fields
from cifartune.config.smoke import valid_part
from cifartune.report.advice import EDGE, beyond, command_for_wider
from cifartune.report.searched import Searched
from cifartune.tuning.study import TrialStudy

BEST = 0.25
"""The share of the trials that count as the best."""

FEWEST_DRAWN = 12
"""From fewer trials that the sampler drew and that have a parameter, nothing is concluded."""

LEVEL = 0.05
"""How often chance alone may look like a reason."""

GROUP = 8
"""So many trials in the order of their numbers count as drawn at the same time."""

SHUFFLES = 2000
"""How often trials are shuffled to see what chance does."""

ZONE = 0.2
"""The share of a range, at either end, in which the best trials may crowd."""

INNER = 0.8
"""The share of the best trials that a narrower range is laid around."""

MARGIN = 0.1
"""The share of the old range by which it is wider than these on each side."""


@dataclass(frozen=True)
class Revision:
    """What becomes of a parameter.

    Attributes:
        name: Its dotted name.
        before: What was searched.
        after: What is searched next; None where it has one value from now on, or no use.
        reason: Why, or why not.
    """

    name: str
    before: Range | Choice
    after: Range | Choice | None
    reason: str

    @property
    def is_change(self) -> bool:
        """Whether anything is different."""
        return self.before != self.after

    def __str__(self) -> str:
        after = "no longer searched" if self.after is None else str(self.after)
        return f"{self.name}: {self.before} -> {after}: {self.reason}"


@dataclass(frozen=True)
class NextSpace:
    """A search to follow a finished one.

    Attributes:
        space: It is valid. Its base is the winner's recipe, and its sampler knows the trials of
            the finished search that lie in it.
        revisions: One for each parameter of the finished search, in its order.
        extension: What the user types to give that search itself the wider ranges, by which no
            trial is lost; empty where none is wider.
    """

    space: SearchSpace
    revisions: list[Revision]
    extension: str

    def as_file(self, origin: str) -> str:
        """The text of its file: only what is not left to defaults, and the reasons on top.

        Args:
            origin: The name of the finished search.
        """
        changed = [revision for revision in self.revisions if revision.is_change]
        told = f"# After the search {origin}, whose winner is the base"
        lines = [f"{told}:" if changed else f"{told}; what is searched is the same."]
        for revision in changed:
            lines += textwrap.wrap(f"# - {revision}.", 100, subsequent_indent="#   ")
        return "\n".join([*lines, dump_briefly(self.space)])


def next_space(searched: Searched) -> NextSpace:
    """The space to search next, by rules.

    - A range is changed only where trials do the better, the nearer they lie to the best.
    - It is made wider at an end where the best trials crowd: more of them lie in its outermost
      fifth than chance would put there.
    - It is made narrower where the best trials lie closer together than as many others do.
    - A value of a choice is left out where none of its trials is in the better half.

    The best are a quarter of the trials that the sampler drew, as the search ranks them. What the
    winner has stays in the space.

    Args:
        searched: A finished search.

    Raises:
        UserError: It is not finished.
    """
    winner = searched.study.trials[searched.run.winner].params
    space, drawn = searched.space, drawn_trials(searched.study)
    revisions: dict[str, Revision] = {}
    for name, parameter in space.ordered_parameters().items():
        own = [trial for trial in drawn if name in trial.params]
        if len(own) < FEWEST_DRAWN:
            reason = f"too few trials to say: {len(own)}, and it takes {FEWEST_DRAWN}"
            revision = Revision(name, parameter, parameter, reason)
        elif isinstance(parameter, Range):
            revision = _range(searched, name, parameter, own, winner.get(name))
        else:
            revision = _choice(name, parameter, own, winner.get(name))
        revisions[name] = _with_conditions(revision, revisions, winner)
    changed = _valid(
        dict(space)
        | {
            "name": f"{searched.run.name[:95]}-next",
            "base": space.base.with_values(winner),
            "parameters": {n: a for n in space.parameters if (a := revisions[n].after) is not None},
            "points": [],
            "warm_start": [searched.run.name],
        }
    )
    for name, revision in revisions.items():
        if revision.after is not None and name not in changed.parameters:
            reason = "has no effect with what is left of the others"
            revisions[name] = Revision(name, revision.before, None, reason)
    return NextSpace(
        changed, [revisions[name] for name in space.parameters], _extension(searched, revisions)
    )


def drawn_trials(study: TrialStudy) -> list[FrozenTrial]:
    """The trials that say where good recipes lie, the best first.

    Without the baseline, which the sampler did not draw, and without those that failed.
    """
    return [trial for trial in study.best(len(study.trials)) if trial.number]


def best_count(trials: int) -> int:
    """How many of so many trials count as the best."""
    return max(1, round(BEST * trials))


def places_frame(study: TrialStudy) -> pd.DataFrame:
    """Where trials lie in the ranges of the space: a row a trial and parameter.

    Columns: `parameter`, `trial`, `place` between 0 and 1, of the logarithm where that is sampled,
    or of a choice the place of the value in the list; `is_best`: whether the trial is among the
    best of those that have the parameter.
    """
    drawn = drawn_trials(study)
    rows = []
    for name, parameter in study.space.parameters.items():
        own = [trial for trial in drawn if name in trial.params]
        for rank, trial in enumerate(own):
            value = trial.params[name]
            if isinstance(parameter, Range):
                place = _place(parameter, value)
            else:
                place = [str(v) for v in parameter.values].index(str(value))
            rows.append((name, trial.number, float(place), rank < best_count(len(own))))
    return pd.DataFrame(rows, columns=["parameter", "trial", "place", "is_best"])


def _range(
    searched: Searched, name: str, parameter: Range, trials: list[FrozenTrial], kept: Any
) -> Revision:
    """A range, by the places of its trials, the best first."""
    places = np.array([_place(parameter, trial.params[name]) for trial in trials])
    if not _matters(places, np.array([trial.number for trial in trials])):
        reason = "it cannot be said that values near the best do better"
        return Revision(name, parameter, parameter, reason)
    count = best_count(len(places))
    best = places[:count]
    changes: dict[str, float] = {}
    reasons = []
    if _lie_close(places, count):
        low, high = np.quantile(best, [(1 - INNER) / 2, (1 + INNER) / 2])
        if kept is not None:
            low, high = min(low, _place(parameter, kept)), max(high, _place(parameter, kept))
        is_int = recipe_fields()[name] is int
        inner = {
            "min": _rounded(parameter, low - MARGIN, is_int=is_int, up=False),
            "max": _rounded(parameter, high + MARGIN, is_int=is_int, up=True),
        }
        changes = {side: end for side, end in inner.items() if end != getattr(parameter, side)}
        if changes:
            reasons.append(
                f"the best {count} of {len(places)} trials lie closer together than by chance"
            )
    for side, crowd in (("min", best <= ZONE), ("max", best >= 1 - ZONE)):
        if not _is_crowd(int(crowd.sum()), count):
            continue
        told = (
            f"{crowd.sum()} of the best {count} are in the outermost fifth, at the "
            f"{'lower' if side == 'min' else 'upper'} end"
        )
        bound = beyond(parameter, side)
        if command_for_wider(searched, [f"parameters.{name}.{side}={bound:g}"]):
            changes[side] = bound
            reasons.append(told)
        else:
            changes.pop(side, None)
            reasons.append(f"{told}, but {bound:g} is not allowed there")
    after = parameter.model_copy(update=changes)
    return Revision(name, parameter, after, "; ".join(reasons) or "the best lie all over it")


def _choice(name: str, parameter: Choice, trials: list[FrozenTrial], kept: Any) -> Revision:
    """A choice, by the ranks of the trials of each value, the best first."""
    from scipy.stats import hypergeom

    better = len(trials) // 2
    values = np.array([str(trial.params[name]) for trial in trials])

    def is_worse(value: object) -> bool:
        own = values == str(value)
        none_by_chance = float(hypergeom.pmf(0, len(trials), better, int(own.sum())))
        return not own[:better].any() and none_by_chance < LEVEL

    left = [value for value in parameter.values if value == kept or not is_worse(value)]
    out = [str(value) for value in parameter.values if value not in left]
    if not out:
        return Revision(name, parameter, parameter, "no value is surely worse than the others")
    reason = f"no trial with {' or '.join(out)} is in the better half"
    if len(left) > 1:
        return Revision(name, parameter, parameter.model_copy(update={"values": left}), reason)
    if kept is None:
        return Revision(name, parameter, parameter, f"{reason}, but the winner has none to fix")
    return Revision(name, parameter, None, f"{reason}, so that {left[0]} is left")


def _with_conditions(
    revision: Revision, earlier: Mapping[str, Revision], winner: Mapping[str, Any]
) -> Revision:
    """The parameter, as far as its conditions can still hold."""
    when: dict[str, list[Any]] = {}
    for name, allowed in revision.before.when.items():
        after = earlier[name].after
        if after is None:  # the winner has the value that is left
            left = [value for value in allowed if str(value) == str(winner.get(name))]
        else:
            left = when[name] = [value for value in allowed if after.contains(value)]
        if not left:
            reason = f"it takes {name} to be {' or '.join(map(str, allowed))}, which is left out"
            return Revision(revision.name, revision.before, None, reason)
    if revision.after is None or when == revision.before.when:
        return revision
    after = revision.after.model_copy(update={"when": when})
    return Revision(revision.name, revision.before, after, revision.reason)


def _place(parameter: Range, value: float) -> float:
    """Where a value lies in its range, between 0 and 1."""
    scale = math.log if parameter.log else float
    low, high = scale(parameter.min), scale(parameter.max)
    return (scale(value) - low) / (high - low)


def _rounded(parameter: Range, place: float, *, is_int: bool, up: bool) -> float:
    """The value at a place, rounded away from the middle: to a step, or to two digits.

    A place that is all but at the end of the range is its end.
    """
    if not EDGE < place < 1 - EDGE:
        return parameter.max if up else parameter.min
    if parameter.log:
        value = parameter.min * (parameter.max / parameter.min) ** place
    else:
        value = parameter.min + place * (parameter.max - parameter.min)
    to_whole = math.ceil if up else math.floor
    if parameter.step or is_int:
        step = parameter.step or 1
        rounded = parameter.min + step * to_whole(round((value - parameter.min) / step, 9))
    else:
        unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1) if value else 1.0
        rounded = unit * to_whole(round(value / unit, 9))
    return min(max(float(f"{rounded:.10g}"), parameter.min), parameter.max)


def _matters(places: npt.NDArray[np.float64], numbers: npt.NDArray[np.int64]) -> bool:
    """Whether trials do the better, the nearer they lie to the best.

    A sampler that learns lays its later trials close together, and these are the better ones, also
    in a parameter that does nothing. So ranks are shuffled only among trials that were drawn one
    after the other, and what is left of the order in time counts for nothing.

    Args:
        places: Of the trials in the range, the best first.
        numbers: Of the trials.
    """
    count, total = best_count(len(places)), len(places)
    in_time = numbers.argsort()
    places, ranks = places[in_time], in_time.astype(np.float64)
    group = np.arange(total) // GROUP
    random = np.random.default_rng(0)
    shuffled = ranks[(group + random.random((SHUFFLES, total))).argsort(axis=1)]
    every = np.vstack([ranks, shuffled])
    middle = np.median(places[every.argsort(axis=1)[:, :count]], axis=1, keepdims=True)
    distance = np.abs(places - middle)
    distance -= distance.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(distance, axis=1)
    if not spread.all():
        return False
    related = (distance * (every - ranks.mean())).sum(axis=1) / spread
    return bool(np.mean(related[1:] >= related[0]) < LEVEL)


def _lie_close(places: npt.NDArray[np.float64], count: int) -> bool:
    """Whether the first `count` places span less than as many of all of them would by chance."""
    random = np.random.default_rng(0)
    drawn = places[random.random((SHUFFLES, len(places))).argsort(axis=1)[:, :count]]
    ends = [(1 - INNER) / 2, (1 + INNER) / 2]
    spans = np.diff(np.quantile(drawn, ends, axis=1), axis=0)[0]
    return bool(np.mean(spans <= np.diff(np.quantile(places[:count], ends))[0]) < LEVEL)


def _is_crowd(crowd: int, count: int) -> bool:
    """Whether more of the best lie in a fifth of a range than chance would put there."""
    from scipy.stats import binomtest

    return bool(binomtest(crowd, count, ZONE, alternative="greater").pvalue < LEVEL)


def _valid(values: dict[str, Any]) -> SearchSpace:
    """The space of `values`, without the parameters that have no effect in it."""
    with suppress(ValidationError):
        return valid_part(values)
    # Its longest trial may be too short for the rungs of before.
    scheduler = values["scheduler"].model_copy(update={"grace_period": 1, "brackets": 1})
    try:
        return valid_part({**values, "scheduler": scheduler})
    except ValidationError:  # to be said in words
        return make_space(values, source="the next space")


def _extension(searched: Searched, revisions: Mapping[str, Revision]) -> str:
    """The command that makes the ranges of the search itself as wide, and gives it trials."""
    ends = []
    for name, revision in revisions.items():
        before, after = revision.before, revision.after
        if isinstance(before, Range) and isinstance(after, Range):
            ends += [f"parameters.{name}.min={after.min:g}"] * (after.min < before.min)
            ends += [f"parameters.{name}.max={after.max:g}"] * (after.max > before.max)
    return (ends and command_for_wider(searched, ends)) or ""

"""What to do next, by rules: each looks at one thing in the result, and says what it rests on."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from cifartune.config import Range, load_space
from cifartune.config.extension import check_extension
from cifartune.errors import UserError
from cifartune.report.document import Code, Part, Section, Text
from cifartune.report.frames import COMPLETE, FAILED, STOPPED, kind_of
from cifartune.report.searched import Searched
from cifartune.tuning.study import attributes, kept_epoch

EDGE = 0.05
"""A value is at the edge within this share of its range, or of the range's logarithm."""

FEWEST_COMPLETE = 6
"""Complete trials from which it is judged whether early stopping chose well."""

RANKED = 0.5
"""Below this rank correlation with the last epoch, a rung's values say little."""

MANY_FAILED = 0.2
"""A larger share of failed trials is worth a look."""

LATE = 0.75
"""The best trial came late if it is behind this share of all trials."""

MANY_LOOKS = 10
"""So many looks at the test set by all searches make it a validation set."""


@dataclass(frozen=True)
class Advice:
    """A thing to do: why, and the command that does it, if one does."""

    reason: str
    command: str = ""


def advice_section(searched: Searched) -> Section:
    """What to do next."""
    parts: list[Part] = []
    for one in advice(searched):
        parts.append(Text(one.reason))
        if one.command:
            parts.append(Code(one.command))
    if not parts:
        parts.append(Text("None of the rules of this section sees anything to do: use the models."))
    return Section("What to do next", parts)


def advice(searched: Searched) -> list[Advice]:
    """All that the rules say, what matters most first."""
    if searched.result is None:
        return [*_unfinished(searched), *_failures(searched)]
    if searched.space.stand_in:
        told = "It all works here. This was a check on few images: run the search itself next."
        return [Advice(told)]
    rules: tuple[Callable[[Searched], Iterator[Advice]], ...] = (
        _sealed,
        _not_told_apart,
        _edges,
        _late_winner,
        _rungs,
        _refit_epochs,
        _failures,
        _looks,
    )
    return [one for rule in rules for one in rule(searched)]


def _unfinished(searched: Searched) -> Iterator[Advice]:
    yield Advice(
        "The search is not finished. If nothing is at it any more, go on with it:",
        searched.run.resume_command,
    )


def _sealed(searched: Searched) -> Iterator[Advice]:
    """The test set is closed."""
    assert searched.result is not None
    if not searched.result["models"]:
        yield Advice(
            "The test set was not looked at for this winner. When nothing is to be changed any "
            "more, look once:",
            searched.run.command("evaluate"),
        )


def _not_told_apart(searched: Searched) -> Iterator[Advice]:
    """The winner cannot be told apart from the baseline: would more seeds help?"""
    result, space = searched.result, searched.space
    assert result is not None
    told = [v for v in result["verdicts"] if not v["rival"] or not result["winner_trial"]][:1]
    if not told or told[0]["verdict"] != "cannot be told apart":
        return
    folds, seeds = result["folds"], result["seeds"]
    difference = abs(told[0]["folds"]["value"])
    half = (told[0]["folds"]["high"] - told[0]["folds"]["low"]) / 2
    # The corrected t interval, whose part for shared training images no seed makes narrower.
    shared, more = 1 / (folds - 1), min(20, max(3, 3 * seeds))
    narrower = half * math.sqrt((1 / (folds * more) + shared) / (1 / (folds * seeds) + shared))
    rival = f"trial {told[0]['rival']}" if told[0]["rival"] else "the baseline"
    begin = (
        f"The winner and {rival} cannot be told apart: {100 * difference:.2f} points between "
        f"them, give or take {100 * half:.2f}. With {more} seeds a fold that becomes about "
        f"{100 * narrower:.2f}"
    )
    if difference > narrower and more > seeds:
        seeds_command = searched.run.command("resume", "--set", f"refit.seeds={more}")
        yield Advice(f"{begin}, which may be enough:", seeds_command)
        return
    tenfold = searched.new_search("refit.folds=10") if space.refit.folds < 10 else ""
    yield Advice(
        f"{begin}, which is still more than the difference. Take whichever is cheaper, or search "
        "where the differences are larger"
        + (". Ten folds, in a search of their own, tell more than seeds do:" if tenfold else "."),
        tenfold,
    )


def _edges(searched: Searched) -> Iterator[Advice]:
    """The winner lies at the edge of a range, and the range can be made wider."""
    assert searched.winner is not None
    params = searched.study.trials[searched.winner].params
    for name, parameter in searched.space.parameters.items():
        if not isinstance(parameter, Range) or name not in params:
            continue
        for side, bound in _near(parameter, float(params[name])):
            wider = command_for_wider(
                searched, [f"parameters.{name}.{side}={beyond(parameter, side):g}"]
            )
            if wider is not None:
                yield Advice(
                    f"The winner's {name}, {params[name]:.3g}, is at the edge of what was "
                    f"searched, {parameter}: better values may lie beyond {bound:g}. Make the "
                    "range wider, and give it trials to look there:",
                    wider,
                )


def _near(parameter: Range, value: float) -> Iterator[tuple[str, float]]:
    """The ends of its range that a value is at."""
    scale = math.log if parameter.log else float
    low, high, place = scale(parameter.min), scale(parameter.max), scale(value)
    if (place - low) / (high - low) <= EDGE:
        yield "min", parameter.min
    if (high - place) / (high - low) <= EDGE:
        yield "max", parameter.max


def beyond(parameter: Range, side: str) -> float:
    """A bound further out: by a factor of 3 where the logarithm is sampled, else by half."""
    sign = 1 if side == "max" else -1
    bound: float = getattr(parameter, side)
    if parameter.log:
        return float(f"{bound * 3.0**sign:.2g}")
    width = (parameter.max - parameter.min) / 2
    if step := parameter.step:
        width = step * max(1, round(width / step))
    elif float(parameter.min).is_integer() and float(parameter.max).is_integer():
        width = math.ceil(width)  # which may be one of whole numbers
    return float(f"{bound + sign * width:.4g}")


def command_for_wider(searched: Searched, settings: Sequence[str]) -> str | None:
    """The command that makes ranges wider and gives the search trials to look there.

    Args:
        searched: The search.
        settings: Such as `parameters.optimizer.lr.max=3`.

    Returns:
        None where that is not allowed.
    """
    trials = searched.space.search.num_trials
    more = trials + max(1, trials // 2)
    changes = [*settings, f"search.num_trials={more}"]
    try:
        check_extension(searched.space, load_space(searched.run.space_file, changes))
    except UserError:
        return None
    return searched.extension(more, *settings)


def _late_winner(searched: Searched) -> Iterator[Advice]:
    """The best trial came late, so that the search was still finding better ones."""
    trials, winner = len(searched.study.trials), searched.winner
    assert winner is not None
    if winner >= LATE * trials and trials >= FEWEST_COMPLETE:
        yield Advice(
            f"The winner is trial {winner} of {trials}: better ones were still being found. Give "
            "the search more trials:",
            searched.extension(2 * searched.space.search.num_trials),
        )


def _rungs(searched: Searched) -> Iterator[Advice]:
    """Most trials were stopped at the first rung: did it choose well?"""
    study, space = searched.study, searched.space
    stops = space.rungs
    trials = [t for t in study.trials if t.intermediate_values]
    stopped = [t for t in trials if kind_of(t) == STOPPED]
    if not stops or 2 * len(at_first := _ended_at(stopped, stops[0])) <= len(trials):
        return
    complete = [t for t in trials if kind_of(t) == COMPLETE and stops[0] in t.intermediate_values]
    begin = (
        f"{len(at_first)} of {len(trials)} trials were stopped after epoch {stops[0]}, at the "
        "first rung"
    )
    longer = searched.new_search(f"scheduler.grace_period={2 * stops[0]}")
    if 2 * stops[0] >= space.max_epochs:
        longer = ""
    if len(complete) < FEWEST_COMPLETE:
        yield Advice(
            f"{begin}, and only {len(complete)} came to their end: too few to say whether that "
            "rung chooses well."
            + (" A longer grace period is the safer choice in another search:" if longer else ""),
            longer,
        )
        return
    from scipy.stats import spearmanr

    early = [t.intermediate_values[stops[0]] for t in complete]
    late = [t.intermediate_values[kept_epoch(t)] for t in complete]
    ranks = float(spearmanr(early, late).statistic)
    if not ranks >= RANKED:  # NaN where all are alike
        yield Advice(
            f"{begin}. Of the {len(complete)} that came to their end, the values at that rung say "
            f"little about the last ones (rank correlation {ranks:.2f}): good recipes may have "
            "been stopped." + (" In another search, begin to stop later:" if longer else ""),
            longer,
        )


def _ended_at(trials: list[Any], epoch: int) -> list[Any]:
    return [trial for trial in trials if max(trial.intermediate_values) == epoch]


def _refit_epochs(searched: Searched) -> Iterator[Advice]:
    """The refit was shorter than the trial that won."""
    result = searched.result
    assert result is not None
    own = searched.study.recipe(searched.study.trials[result["winner_trial"]]).last_epoch
    if searched.space.refit.epochs and searched.space.refit.epochs < own:
        yield Advice(
            f"The folds had {searched.space.refit.epochs} epochs each (refit.epochs), the winner's "
            f"recipe has {own}: the final models may gain by training as long. That is another "
            "search, of which the winner's recipe can be the base:",
            searched.new_search("refit.epochs=null"),
        )


def _failures(searched: Searched) -> Iterator[Advice]:
    """Many trials failed: by what, and where in the space."""
    trials = [t for t in searched.study.trials if t.state is not TrialState.RUNNING]
    failed = [t for t in trials if kind_of(t) == FAILED]
    if not failed or len(failed) < MANY_FAILED * len(trials):
        return
    kinds = [str(attributes(t).get("failure", "unknown")).replace("_", " ") for t in failed]
    most = max(dict.fromkeys(kinds), key=kinds.count)
    where = ""
    sound = [t for t in trials if kind_of(t) in (COMPLETE, STOPPED)]
    name = "optimizer.lr"
    rates = [sorted(t.params[name] for t in some if name in t.params) for some in (failed, sound)]
    if all(rates):
        middle = [values[len(values) // 2] for values in rates]
        where = f" The median {name} is {middle[0]:.2g} among them, {middle[1]:.2g} among the rest."
    yield Advice(
        f"{len(failed)} of {len(trials)} trials failed, {kinds.count(most)} by: {most}.{where} "
        "Narrower ranges in another search would not pay for such trials."
    )


def _looks(searched: Searched) -> Iterator[Advice]:
    """The test set was looked at often."""
    assert searched.result is not None
    looks = searched.result["test_looks_of_all_searches"]
    if looks >= MANY_LOOKS:
        yield Advice(
            f"The test set was looked at {looks} times by searches with these images: choose by "
            "cross-validation, and leave it closed (search --sealed)."
        )

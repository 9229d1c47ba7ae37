"""What of a search may be changed once it has trials: what gives it more to do, and no more."""

from collections.abc import Iterator
from typing import Any

from cifartune.config.parameters import Range
from cifartune.config.space import SearchSpace
from cifartune.errors import UserError

FREE = {
    "search.num_trials",
    "search.time_budget",
    "search.max_concurrent",
    "search.sampler",
    "refit.top_k",
    "refit.seeds",
    "refit.baseline",
    "refit.all_images",
}
"""Keys that may be anything."""

MORE_WORK = {
    "search.num_trials",
    "search.time_budget",
    "refit.top_k",
    "refit.seeds",
    "refit.baseline",
    "refit.all_images",
}
"""Those by which a finished search gets more to do."""

REASONS = {
    "name": "the run is called so",
    "objective": "its trials were judged by it",
    "objectives": "its trials were judged by them",
    "base": "it is trial 0, and the rest of every other",
    "constraints": "its trials were refused by them",
    "points": "they were its first trials",
    "warm_start": "its sampler began with them",
    "data": "its trials were trained on these images",
    "search.seed": "all its draws come from it",
    "scheduler": "its trials were stopped by it",
    "refit.folds": "its folds are drawn",
    "refit.epochs": "its folds were trained for as many",
    "stand_in": "the images are put aside",
}
"""Why a key, or a section, of a search that has begun must stay."""

Changes = dict[str, tuple[Any, Any]]


def check_extension(before: SearchSpace, after: SearchSpace) -> Changes:
    """What was changed: each key with its value before and after.

    Raises:
        UserError: Something was changed that would make the trials of before another search's.
    """
    changes = changed_keys(before, after)
    wrong = []
    for key in changes:
        section, _, name = key.partition(".")
        if section in ("resources", "checkpoints", "parameters") or key in FREE:
            continue  # parameters are looked at one by one
        reason = REASONS.get(key) or REASONS[section]
        wrong.append(f"{key}: cannot be changed in a search that has begun: {reason}")
    if after.refit.seeds < before.refit.seeds:
        wrong.append("refit.seeds: may only be raised: models of the others may be there")
    names = [*before.parameters, *(n for n in after.parameters if n not in before.parameters)]
    for name in names:
        if problem := _narrowed(before.parameters.get(name), after.parameters.get(name)):
            wrong.append(f"parameters.{name}: {problem}")
    if wrong:
        raise UserError("\n".join(wrong))
    return changes


def changed_keys(before: SearchSpace, after: SearchSpace) -> Changes:
    """Each key that differs, with its value before and after."""
    found = _differences(before.model_dump(), after.model_dump())
    return {".".join(where): values for where, values in found}


def _narrowed(before: Any, after: Any) -> str:
    """Why a parameter is not the one that it was, with room added; empty if it is."""
    if before == after:
        return ""
    if before is None or after is None:
        return "cannot be added or left out: the trials of before were sampled without"
    ranges = isinstance(before, Range) and isinstance(after, Range)
    kept = ("log", "step", "when")
    if not ranges or any(getattr(before, key) != getattr(after, key) for key in kept):
        return "only min and max may be changed: the trials of before were sampled by the rest"
    if after.min > before.min or after.max < before.max:
        return (
            f"may only be made wider than {before.min:g} to {before.max:g}: trials of before lie "
            "there"
        )
    if not after.contains(before.min):
        return f"min must be {before.min:g} less a multiple of step, {before.step:g}"
    return ""


def _differences(before: Any, after: Any, *where: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The places in two nested dictionaries that differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from _differences(before.get(key), after.get(key), *where, key)
    elif before != after:
        yield where, (before, after)

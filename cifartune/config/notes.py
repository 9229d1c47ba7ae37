"""What is allowed in a search space and may still not be what was meant."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cifartune.config.checks import GRID_LIMIT, count_points
from cifartune.config.effects import EFFECTS
from cifartune.config.parameters import Choice
from cifartune.config.parts import Parts
from cifartune.config.problems import number
from cifartune.config.recipe import WEIGHT_FILES

if TYPE_CHECKING:
    from cifartune.config.space import SearchSpace


def notes(space: "SearchSpace") -> list[str]:
    """The notes on a valid `space`, a line each.

    A smoke space has none: they would be of how it was shrunk.
    """
    if space.stand_in:
        return []
    return [note for look in _NOTES for note in look(Parts(space))]


def _waste(parts: Parts) -> Iterator[str]:
    """A parameter that is sampled where it has no effect."""
    for name, parameter in parts.parameters.items():
        conditions = parts.conditions(name)
        # Of several needs, one is enough: only a single one that can be met decides.
        can_be_met = [
            need
            for need in EFFECTS.get(name, [])
            if any(map(need.is_met_by, parts.possible(need.field, conditions)))
        ]
        for need in can_be_met if len(can_be_met) == 1 else []:
            values = parts.possible(need.field, conditions)
            good = [value for value in values if need.is_met_by(value)]
            searched = parts.parameters.get(need.field)
            if isinstance(searched, Choice) and len(good) < len(values):
                bad = ", ".join(str(value) for value in values if value not in good)
                yield (
                    f"parameters.{name} has no effect where {need.field} is {bad}; "
                    f"add when: {{{need.field}: [{', '.join(map(str, good))}]}}"
                    + ("" if not parameter.when else " to its conditions")
                )


def _grid_size(parts: Parts) -> Iterator[str]:
    space, is_grid = parts.space, parts.space.search.sampler == "grid"
    if not parts.parameters:
        if space.search.num_trials > 1:
            yield "nothing is searched: the baseline is the only trial"
        return
    count = count_points(space, GRID_LIMIT if is_grid else space.search.num_trials)
    if count < space.search.num_trials:
        yield f"the space has {count} points: the search ends after {count} trials"
    elif is_grid and count > space.search.num_trials:
        tried = space.search.num_trials
        yield f"the grid has {number(count)} points, of which {tried:,} are tried"


def _unmodelled(parts: Parts) -> Iterator[str]:
    if parts.space.search.sampler == "cmaes":
        others = [n for n, p in parts.parameters.items() if isinstance(p, Choice) or p.when]
        if others:
            yield f"cmaes draws choices and conditional parameters at random: {', '.join(others)}"


def _never_stops(parts: Parts) -> Iterator[str]:
    space = parts.space
    if space.scheduler.name != "none" and space.scheduler.grace_period == space.max_epochs > 1:
        yield "the scheduler stops nothing: scheduler.grace_period is as long as a trial"


def _inert(parts: Parts) -> Iterator[str]:
    """Settings that this search makes nothing of."""
    space, scheduler = parts.space, parts.space.scheduler
    acts = {
        "brackets": ["hyperband"],
        "min_trials": ["median"],
        "reduction_factor": ["asha", "hyperband"],
    }
    for key, names in acts.items():
        default = type(scheduler).model_fields[key].default
        if getattr(scheduler, key) != default and scheduler.name not in names:
            yield f"scheduler.{key} has no effect with the scheduler {scheduler.name}"
    if scheduler.name == "median" and scheduler.min_trials >= space.search.num_trials:
        yield "the scheduler stops nothing: scheduler.min_trials is as many as there are trials"
    is_default = space.refit.top_k == type(space.refit).model_fields["top_k"].default
    if space.refit.top_k > space.search.num_trials and not is_default:
        told = f"{space.refit.top_k} of {space.search.num_trials}"
        yield f"refit.top_k asks for more recipes than there are trials: {told}"


def _never_acts(parts: Parts) -> Iterator[str]:
    """A rule for the end of a run that cannot come true within its epochs."""
    if parts.parameters.keys() & {"epochs", "stopping.patience", "stopping.epoch"}:
        return
    base, last = parts.space.base, parts.space.max_epochs
    if base.stopping.metric != "none" and base.stopping.patience >= last:
        yield (
            f"stopping.metric ends no run: stopping.patience is {base.stopping.patience}, "
            f"of {last} epochs"
        )
    if base.stopping.epoch >= base.epochs:
        yield f"stopping.epoch has no effect: a run has {base.epochs} epochs"


def _foreign_weights(parts: Parts) -> Iterator[str]:
    """Weights of which nobody here knows what they were trained on."""
    searched = parts.parameters.get("model.weights")
    values = searched.values if isinstance(searched, Choice) else [parts.space.base.model.weights]
    for file in (str(value) for value in values if str(value).endswith(WEIGHT_FILES)):
        yield (
            f"model.weights: if {file} was trained on images of CIFAR-10, validation and "
            "cross-validation are of images that it knows, and tell nothing"
        )


_NOTES: list[Callable[[Parts], Iterator[str]]] = [
    _waste,
    _grid_size,
    _unmodelled,
    _never_stops,
    _inert,
    _never_acts,
    _foreign_weights,
]

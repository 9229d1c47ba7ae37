"""What must fit in a search space as a whole: each rule that spans more than one section."""

import math
from collections.abc import Callable, Iterator, Mapping, Set
from itertools import islice
from typing import TYPE_CHECKING, Any

from cifartune.config.effects import EFFECTS, FIXED, UNSEARCHED
from cifartune.config.networks import networks
from cifartune.config.parameters import Choice, Range, circles, point_of
from cifartune.config.parts import Parts
from cifartune.config.problems import (
    Problems,
    Where,
    hint,
    nearest,
    shown,
    unknown_key,
)
from cifartune.config.recipe import PACKAGE_NETWORKS

if TYPE_CHECKING:
    from cifartune.config.space import SearchSpace

Problem = tuple[Where, str]

MOST_CHECKED = 1000
"""Values of a range that are checked one by one."""

GRID_LIMIT = 100_000
"""The most points of a grid; as many trials a search may have."""


def problems(space: "SearchSpace", broken: Set[Where] = frozenset()) -> Problems:
    """The rules that `space` breaks.

    Args:
        space: Each section of it is valid by itself.
        broken: Places that were not, and have their default here: nothing is said about what
            depends on them.
    """
    found: Problems = {}
    for stage in _STAGES:
        # A parameter that is wrong in itself is left out of what follows.
        parts = Parts(space, {*broken, *(w[:2] for w in found if w[0] == "parameters")})
        for check in stage:
            for where, rule in check(parts):
                found.setdefault(where, rule)
    return found


def _names(parts: Parts) -> Iterator[Problem]:
    for name in parts.written:
        if name in FIXED:
            yield ("parameters", name), FIXED[name]
        elif name in UNSEARCHED:
            yield ("parameters", name), UNSEARCHED[name]
        elif name not in parts.fields:
            yield ("parameters", name), unknown_key(name, parts.left, parts.given)


def _domains(parts: Parts) -> Iterator[Problem]:
    """Every bound and value must be a legal value of the field."""
    for name, parameter in parts.parameters.items():
        if name not in parts.fields:
            continue
        field, where = parts.fields[name], ("parameters", name)
        if isinstance(parameter, Choice):
            for index, value in enumerate(parameter.values):
                if rule := field.check(value):
                    yield (*where, "values", index), rule
            if len(parameter.values) == 1 and not parameter.when:
                only = parameter.values[0]
                yield where, f"has one value: write {name} = {only} in base, where it is fixed"
            continue
        if field.kind not in (int, float):
            yield where, "is no number: use values: [...] in place of min and max"
            continue
        for key in ("min", "max", "step"):
            value = getattr(parameter, key)
            if field.kind is int and value is not None and value != int(value):
                yield (*where, key), f"must be a whole number, as {name} is, got {value}"
            elif key != "step" and (rule := field.check(field.kind(value))):
                yield (*where, key), rule
        is_whole = parameter.step is None or parameter.step == int(parameter.step)
        ends = (int(parameter.min), int(parameter.max)) if field.kind is int and is_whole else ()
        if ends and not any(map(field.check, ends)):
            between = (parameter.every(is_int=True) or [])[1:MOST_CHECKED]
            # A range whose bounds are legal, and of which some in between is not.
            wrong = [(value, rule) for value in between if (rule := field.check(value))]
            if wrong:
                yield where, f"holds {wrong[0][0]}: {wrong[0][1]}"


def _conditions(parts: Parts) -> Iterator[Problem]:
    for name, parameter in parts.parameters.items():
        for other, wanted in parameter.when.items():
            where = ("parameters", name, "when", other)
            if not parts.known("parameters", other):
                continue
            if other in parts.fields and other not in parts.parameters:
                yield where, f"{other} is not searched: it is not among the parameters"
            elif other not in parts.parameters:
                yield where, unknown_key(other, parts.names)
            else:
                yield from _condition(parts, where, parts.parameters[other], wanted)
    yield from circles(parts.waiting).items()
    for name, parameter in parts.ordered.items():
        needs = parts.conditions(name)
        never = [other for other, values in needs.items() if not values]
        # Told once, of the parameter that brings the contradiction, and not of all that need it.
        if never and all(parts.conditions(other).get(never[0], [0]) for other in parameter.when):
            rule = f"can never hold: the conditions on {never[0]} exclude each other"
            yield ("parameters", name, "when"), rule


def _condition(
    parts: Parts, where: Where, other: Range | Choice, wanted: list[Any]
) -> Iterator[Problem]:
    name = str(where[-1])
    if never := [value for value in wanted if not other.contains(value)]:
        words = [str(value) for value in other.values] if isinstance(other, Choice) else []
        meant = [word for value in never for word in nearest(str(value), words)]
        told = " or ".join(map(shown, never))
        yield where, f"can never be {told}: {name} is {other}{hint(list(dict.fromkeys(meant)))}"
        return
    for value in wanted:
        if rule := parts.fields[name].check(value):
            yield where, rule
            return
    if isinstance(other, Range) and other.step is None and parts.fields[name].kind is float:
        yield where, f"is met by chance alone: {name} is {other}; give that a step, or values"


def _baseline(parts: Parts) -> Iterator[Problem]:
    """The baseline is trial 0, so it must lie in the space."""
    if parts.space.base.seed:
        yield ("base", "seed"), FIXED["seed"]
    for name in point_of(parts.ordered, parts.base):
        where, parameter = ("base", *name.split(".")), parts.parameters[name]
        is_known = parts.base_is_known([name, *parts.conditions(name)])
        if is_known and not parameter.contains(parts.base[name]):
            yield (
                where,
                f"is {parts.base[name]}, but parameters.{name} is {parameter}: "
                "the baseline is trial 0 and must lie in the space",
            )


def _sizes(parts: Parts) -> Iterator[Problem]:
    space = parts.space
    if not (parts.known("data") and parts.known("stand_in")):
        return
    rest = 50_000 - space.data.validation - space.stand_in
    if rest < (space.data.train_subset or 10):
        yield ("stand_in",), "must leave enough of the 50,000 images for data to take its share"
        return
    if parts.known("refit", "folds") and space.refit.folds * 10 > space.refit_images:
        yield (
            ("refit", "folds"),
            f"must leave ten images a fold, one of each class: at most {space.refit_images // 10} "
            f"of {space.refit_images:,} images, got {space.refit.folds}",
        )
    sizes = {("base", "batch_size"): space.base.batch_size}
    if searched := parts.parameters.get("batch_size"):
        sizes["parameters", "batch_size"] = searched.largest()
    for where, size in sizes.items():
        if parts.known(*where) and size > space.train_images:
            yield where, f"must be at most the {space.train_images:,} training images, got {size:,}"


def _scheduler(parts: Parts) -> Iterator[Problem]:
    space, scheduler = parts.space, parts.space.scheduler
    are_known = parts.known("objective") and parts.known("objectives")
    if scheduler.metric and scheduler.metric not in [t.metric for t in space.targets]:
        if are_known and parts.known("scheduler", "metric"):
            yield ("scheduler", "metric"), f"is no objective of this search, got {scheduler.metric}"
    elif not space.target.is_measured and are_known and parts.known("scheduler", "metric"):
        measured = [t.metric for t in space.targets if t.is_measured]
        if measured:
            rule = f"is required: {space.target.metric} is the same at every epoch; name the "
            yield ("scheduler", "metric"), rule + f"objective to stop by, such as {measured[0]}"
        else:
            key = "objectives" if space.objectives else "objective"
            yield (key,), "must have a metric that training changes, such as val_accuracy"


def _rungs(parts: Parts) -> Iterator[Problem]:
    space, scheduler = parts.space, parts.space.scheduler
    needed = [("scheduler", "name"), ("scheduler", "grace_period"), ("parameters", "epochs")]
    if scheduler.name == "none" or not all(parts.known(*where) for where in needed):
        return
    if not parts.base_is_known(["epochs", "stopping.epoch"]):
        return
    grace = scheduler.grace_period
    if grace > space.max_epochs:
        yield (
            ("scheduler", "grace_period"),
            f"must be at most the {space.max_epochs} epochs of a trial, got {grace}",
        )
    elif scheduler.name != "median" and parts.known("scheduler"):
        rungs = rung_count(grace, space.max_epochs, scheduler.reduction_factor)
        if rungs > space.max_epochs:
            yield (
                ("scheduler", "reduction_factor"),
                f"must leave fewer rungs than the {space.max_epochs} epochs of a trial, such as 3; "
                f"got {scheduler.reduction_factor}",
            )
        elif scheduler.name == "hyperband" and scheduler.brackets > rungs:
            yield (
                ("scheduler", "brackets"),
                f"must be at most the number of rungs, {rungs}: grace_period {grace}, "
                f"{space.max_epochs} epochs; got {scheduler.brackets}",
            )


def rung_count(grace_period: int, max_epochs: int, reduction_factor: float) -> int:
    """How many rungs successive halving has: at grace_period, times the factor, and so on."""
    return int(math.log(max_epochs / grace_period) / math.log(reduction_factor) + 1)


def _objectives(parts: Parts) -> Iterator[Problem]:
    space = parts.space
    if space.objective and space.objectives:
        yield ("objective",), "excludes objectives: a search has one or the other"
    metrics = [target.metric for target in space.targets]
    for index, metric in enumerate(metrics):
        others = [m for i, m in enumerate(metrics[:index]) if parts.known("objectives", i)]
        if metric in others and parts.known("objectives", index):
            yield ("objectives", index, "metric"), f"is given twice: {metric}"
    if len(metrics) > 1 and space.search.sampler == "cmaes":
        yield ("search", "sampler"), "must not be cmaes, which takes one objective, not several"


def _sampler(parts: Parts) -> Iterator[Problem]:
    space = parts.space
    first = 1 + len(space.points)
    if parts.stands("points") and space.search.num_trials < first:
        yield (
            ("search", "num_trials"),
            f"must be at least {first}: the baseline and the points come first, "
            f"got {space.search.num_trials}",
        )
    if space.search.sampler != "grid":
        return
    for name, parameter in parts.parameters.items():
        field = parts.fields.get(name)
        if field and parameter.every(is_int=field.kind is int) is None:
            yield ("parameters", name), "must have a step, or values, for the sampler grid"
    is_whole = not parts.waiting and parts.parameters == space.parameters
    if is_whole and GRID_LIMIT < count_points(space, GRID_LIMIT) < math.inf:
        rule = (
            f"must not be grid: the space has more than {GRID_LIMIT:,} points; qmc spreads evenly"
        )
        yield ("search", "sampler"), rule


def count_points(space: "SearchSpace", limit: int) -> float:
    """The points of a space, counted to one above `limit`; infinite on a continuum."""
    points = space.grid()
    return math.inf if points is None else sum(1 for _ in islice(points, limit + 1))


def _points(parts: Parts) -> Iterator[Problem]:
    space = parts.space
    # What a point leaves out is the baseline's: without that, each value is looked at by itself.
    is_whole = parts.base_is_known(parts.names)
    seen = {_key(point_of(parts.ordered, parts.base)): "the baseline, which is trial 0"}
    for index, given in enumerate(space.points):
        where = ("points", index)
        if not parts.known(*where):
            continue
        rules = {name: _point(parts, name, value) for name, value in given.items()}
        wrong = {name: rule for name, rule in rules.items() if rule}
        yield from (((*where, name), rule) for name, rule in wrong.items())
        others = {*given, *(other for name in given for other in parts.conditions(name))}
        if wrong or not is_whole or others - parts.parameters.keys():
            continue
        point = point_of(parts.ordered, {**parts.base, **given})
        for name in given.keys() - point.keys():
            yield (*where, name), "does not exist at this point: its `when` is not met"
        for name, value in point.items():
            if name not in given and not parts.parameters[name].contains(value):
                yield (*where, name), f"is required here: the baseline's {value} is out of range"
        if (key := _key(point)) in seen:
            yield where, f"is the same point as {seen[key]}"
        seen.setdefault(key, f"points.{index}")


def _point(parts: Parts, name: str, value: Any) -> str | None:
    """The rule that a value of a point breaks by itself."""
    if name not in parts.parameters and parts.known("parameters", name):
        is_field = name in parts.fields
        return "is not searched" if is_field else unknown_key(name, parts.names)
    parameter = parts.parameters.get(name)
    if parameter is None:
        return None
    return (
        parts.fields[name].check(value)
        if parameter.contains(value)
        else f"must be {parameter}, got {shown(value)}"
    )


def _key(point: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(point.items()))


def _effects(parts: Parts) -> Iterator[Problem]:
    for name in parts.parameters:
        needs = EFFECTS.get(name, [])
        if not needs or not all(_is_known(parts, need.field) for need in needs):
            continue
        conditions = parts.conditions(name)
        possible = {need.field: parts.possible(need.field, conditions) for need in needs}
        if not any(need.is_met_by(value) for need in needs for value in possible[need.field]):
            wanted = " or ".join(need.text for need in needs)
            is_now = ", ".join(
                f"{field} is {' or '.join(map(str, values))}" for field, values in possible.items()
            )
            if len(needs) > 4:
                wanted, is_now = f"{needs[0].text} or another of its kind", "none of them acts"
            yield ("parameters", name), f"has no effect: it takes {wanted}, and {is_now}"


def _is_known(parts: Parts, field: str) -> bool:
    return parts.known("parameters", field) and parts.known("base", *field.split("."))


def _weights(parts: Parts) -> Iterator[Problem]:
    """ImageNet weights only for networks that have them."""
    if not (_is_known(parts, "model.name") and _is_known(parts, "model.weights")):
        return
    for word in ("imagenet", *PACKAGE_NETWORKS):
        for where, names in _networks_with(parts, word).items():
            without = [n for n in names if n in networks() and not _has_weights(n, word)]
            if without:
                told = " or ".join(without)
                rule = (
                    "timm has no weights for it"
                    if word == "imagenet"
                    else f"the package has weights of {PACKAGE_NETWORKS[word]} alone"
                )
                yield where, f"cannot be {word} with {told}: {rule}"


def _networks_with(parts: Parts, weights: str) -> dict[Where, list[Any]]:
    """The networks that may come with `weights`, for each place that asks for these."""
    searched, every = parts.parameters.get("model.weights"), parts.possible("model.name", {})
    cases: dict[Where, list[Any]] = {}
    if isinstance(searched, Choice) and weights in searched.values:
        conditions = parts.conditions("model.weights")
        cases["parameters", "model.weights"] = parts.possible("model.name", conditions)
    if parts.base["model.weights"] == weights and (searched is None or searched.when):
        # The baseline's value counts where the parameter does not exist.
        exists = (
            searched.when["model.name"] if searched and [*searched.when] == ["model.name"] else []
        )
        cases["base", "model", "weights"] = [name for name in every if name not in exists]
    return cases


def _workers(parts: Parts) -> Iterator[Problem]:
    """What several workers can not do together."""
    if not parts.known("resources") or parts.space.resources.workers == 1:
        return
    rules: dict[str, tuple[tuple[Any, ...], str]] = {
        "compile": (("auto", "never"), "must be auto or never with several workers"),
        "hard_examples": ((1.0,), "must be 1 with several workers, who see a part of a batch each"),
    }
    for name, (allowed, rule) in rules.items():
        if not _is_known(parts, name):
            continue
        where = ("parameters", name) if name in parts.parameters else ("base", name)
        if any(value not in allowed for value in parts.possible(name, {})):
            yield where, rule


def _has_weights(name: str, weights: str) -> bool:
    if weights == "imagenet":
        return networks()[name].has_weights
    return PACKAGE_NETWORKS[weights] == name


_STAGES: list[list[Callable[[Parts], Iterator[Problem]]]] = [
    [_names, _domains],
    [_conditions],
    [
        _baseline,
        _sizes,
        _scheduler,
        _rungs,
        _objectives,
        _sampler,
        _points,
        _effects,
        _weights,
        _workers,
    ],
]

"""A search shrunk to a check that everything works."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cifartune.config.effects import acts_late
from cifartune.config.networks import networks
from cifartune.config.parameters import Choice, Range
from cifartune.config.problems import describe
from cifartune.config.space import SearchSpace
from cifartune.config.specs import DataSpec, RefitSpec, ResourceSpec

SMALL_FAMILIES = ("resnet", "speednet")
"""Networks that take images of 16 pixels; others may need those that they were given."""


def smoke_space(space: SearchSpace) -> SearchSpace:
    """The same search, small enough to run in a minute anywhere."""
    # Two epochs: what is decided or kept after the first is tried too.
    small = {"epochs": 2, "batch_size": min(space.base.batch_size, 128)}
    searched = space.parameters.get("model.name")
    names = searched.values if isinstance(searched, Choice) else [space.base.model.name]
    if all(networks()[str(name)].family in SMALL_FAMILIES for name in names):
        small["model.resolution"] = 16
    values = space.base.flat()
    kept: dict[str, Range | Choice] = {}
    for name, parameter in space.ordered_parameters().items():
        # A condition on what is no longer searched is fixed by the baseline: it holds or not.
        open_conditions = {k: v for k, v in parameter.when.items() if k in kept}
        fixed = parameter.when.keys() - open_conditions
        varies = isinstance(parameter, Range) or len(parameter.values) > 1 or open_conditions
        holds = all(values[k] in parameter.when[k] for k in fixed)
        is_late = acts_late(name, parameter, values)
        if name not in small and not is_late and varies and holds:
            kept[name] = parameter.model_copy(update={"when": open_conditions})
    changes = {
        "name": f"{space.name[:94]}-smoke",
        "base": space.base.with_values(small),
        "parameters": kept,
        "points": [],
        "warm_start": [],
        "data": DataSpec(validation=512, train_subset=512),
        "search": space.search.model_copy(update={"num_trials": 2}),
        "scheduler": space.scheduler.model_copy(
            update={
                "grace_period": 1,
                "brackets": 1,
                "reduction_factor": max(2.0, space.scheduler.reduction_factor),
            }
        ),
        "resources": ResourceSpec(),
        "refit": RefitSpec(
            top_k=1,
            folds=2,
            seeds=min(2, space.refit.seeds),
            baseline=space.refit.baseline,
            all_images=space.refit.all_images,
        ),
        "stand_in": 512,
    }
    return valid_part(dict(space) | changes)


def valid_part(values: Mapping[str, Any]) -> SearchSpace:
    """The space of `values`, without the parameters that have no place in it."""
    try:
        return SearchSpace.model_validate(values)
    except ValidationError as error:
        wrong = {w[1] for w in describe(error, SearchSpace, values) if w[0] == "parameters"}
        if not wrong:
            raise
    # What a parameter needed to act, or to exist, is no longer searched.
    kept = {name: p for name, p in values["parameters"].items() if name not in wrong}
    return valid_part({**values, "parameters": kept})

"""The search space: a baseline recipe, what may vary around it, and how to search."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cifartune.config import checks, notes
from cifartune.config.parameters import Choice as Choice
from cifartune.config.parameters import Parameter, Range, Value, in_order, point_of
from cifartune.config.problems import RulesBroken, rule_broken
from cifartune.config.recipe import Recipe, Section, is_nested
from cifartune.config.specs import (
    CheckpointSpec,
    DataSpec,
    EpochMetric,
    RefitSpec,
    ResourceSpec,
    SchedulerSpec,
    SearchSpec,
)

NetworkMetric = Literal["params", "flops"]

METRICS: dict[str, Literal["max", "min"]] = {
    "val_accuracy": "max",
    "val_loss": "min",
    "train_accuracy": "max",
    "train_loss": "min",
    "params": "min",
    "flops": "min",
}
"""What can be searched for, each with its only sensible direction."""

NETWORK_METRICS = ("params", "flops")
"""Known before training: trainable and frozen weights; operations of one image's forward pass."""


class Objective(Section):
    """What the search maximises or minimises.

    A metric of training counts at the last epoch that a trial reached, or at the one that its
    recipe keeps.
    """

    metric: EpochMetric | NetworkMetric = Field(
        "val_accuracy",
        description="Measured after each epoch, or a property of the network: its number of "
        "weights (params), or the operations of one image's forward pass (flops).",
    )
    mode: Literal["max", "min"] = Field("max", description="Follows from the metric if left out.")

    @model_validator(mode="before")
    @classmethod
    def _mode_follows(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "mode" not in data:
            return {**data, "mode": METRICS.get(str(data.get("metric")), "max")}
        return data

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        if METRICS[self.metric] != self.mode:
            raise rule_broken(
                ("mode",), f"must be {METRICS[self.metric]} for {self.metric}, got {self.mode}"
            )
        return self

    @property
    def is_measured(self) -> bool:
        """Whether each epoch has a value of its own."""
        return self.metric not in NETWORK_METRICS


class Bound(Section):
    """What a property of the network may be."""

    min: float | None = Field(None, ge=0, description="The least that is allowed.")
    max: float | None = Field(None, ge=0, description="The most that is allowed.")

    @model_validator(mode="after")
    def _check(self) -> "Bound":
        if self.min is None and self.max is None:
            raise ValueError("must have a min or a max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must be at most max, got {self.min:,.0f} and {self.max:,.0f}")
        return self

    def excess(self, value: float) -> float:
        """How far `value` is outside, as a share of the bound that it breaks; else 0 or less."""
        above = [] if self.max is None else [(value - self.max) / max(self.max, 1)]
        below = [] if self.min is None else [(self.min - value) / max(self.min, 1)]
        return max(above + below)


class SearchSpace(Section):
    """A whole search, as a file under `search_spaces/` describes it."""

    name: str = Field(description="Names the run.")
    objective: Objective | None = Field(
        None, description="What is searched for; validation accuracy if left out."
    )
    objectives: list[Objective] | None = Field(
        None,
        min_length=1,
        description="Several objectives, in place of objective: the answer is a Pareto front. "
        "The refit chooses by the one that the scheduler uses.",
    )
    base: Recipe = Field(description="The hand-set recipe: defaults of the rest, and trial 0.")
    parameters: dict[str, Parameter] = Field(
        default_factory=dict, description="Recipe fields to search, by dotted name."
    )
    constraints: dict[NetworkMetric, Bound] = Field(
        default_factory=dict,
        description="What a network may be; a recipe that breaks this is refused untrained.",
    )
    points: list[dict[str, Value]] = Field(
        default_factory=list,
        description="Points to try first, after the baseline: values of searched fields by dotted "
        "name. What a point leaves out has the baseline's value.",
    )
    warm_start: list[str] = Field(
        default_factory=list,
        description="Earlier searches, by name or folder, from whose trials the sampler learns.",
    )
    data: DataSpec = Field(
        default_factory=lambda: DataSpec(), description="The images that the search sees."
    )
    search: SearchSpec = Field(
        default_factory=lambda: SearchSpec(), description="How candidates are proposed."
    )
    scheduler: SchedulerSpec = Field(
        default_factory=lambda: SchedulerSpec(), description="Which trials are stopped early."
    )
    resources: ResourceSpec = Field(
        default_factory=lambda: ResourceSpec(), description="What one trial gets."
    )
    checkpoints: CheckpointSpec = Field(
        default_factory=lambda: CheckpointSpec(), description="What stays of trials on the disk."
    )
    refit: RefitSpec = Field(
        default_factory=lambda: RefitSpec(),
        description="The cross-validation of the best recipes.",
    )
    stand_in: int = Field(
        0,
        ge=0,
        le=40_000,
        description="Training images to evaluate on in place of the test set, as --smoke does; "
        "the search and the refit then see only as many images as data asks for.",
    )

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
            raise ValueError(
                "must begin with a letter or digit and go on with letters, digits, dots, hyphens "
                f"and underscores, 100 at the most, got {name!r}"
            )
        return name

    @field_validator("parameters", "points", mode="before")
    @classmethod
    def _has_dotted_names(cls, given: Any) -> Any:
        points = enumerate(given) if isinstance(given, list) else ()
        for where, named in [((), given), *(((index,), point) for index, point in points)]:
            for name, value in named.items() if isinstance(named, Mapping) else ():
                if rule := is_nested(name, value):
                    raise rule_broken((*where, name), rule)
        return given

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> "SearchSpace":
        broken = (info.context or {}).get("broken", frozenset())
        if problems := checks.problems(self, broken):
            raise RulesBroken(problems)
        return self

    @property
    def targets(self) -> list[Objective]:
        """The objectives, one or several."""
        return self.objectives or [self.objective or Objective()]

    @property
    def target(self) -> Objective:
        """The objective that stops trials, ranks them and chooses what is refit."""
        wanted = self.scheduler.metric
        return next((t for t in self.targets if t.metric == wanted), self.targets[0])

    @property
    def asks_for_networks(self) -> bool:
        """Whether an objective or a constraint is a property of the network."""
        return bool(self.constraints) or not all(target.is_measured for target in self.targets)

    @property
    def train_images(self) -> int:
        """Images that a trial of the search trains on."""
        return self.data.train_subset or 50_000 - self.data.validation - self.stand_in

    @property
    def refit_images(self) -> int:
        """Images that the refit's folds share: all, or in a smoke run what the search saw."""
        return self.data.validation + self.train_images if self.stand_in else 50_000

    @property
    def max_epochs(self) -> int:
        """The most epochs for which a recipe of the space may be trained."""
        epochs = self.parameters.get("epochs")
        most = max(self.base.epochs, epochs.largest() if epochs else 0)
        end = 0 if "stopping.epoch" in self.parameters else self.base.stopping.epoch
        return min(most, end or most)

    @property
    def rungs(self) -> list[int]:
        """The epochs after which trials may be stopped; none where no rung is fixed beforehand."""
        found, rung = list[int](), float(self.scheduler.grace_period)
        while self.scheduler.name in ("asha", "hyperband") and rung < self.max_epochs:
            found.append(math.ceil(rung))
            rung *= self.scheduler.reduction_factor
        return found

    def ordered_parameters(self) -> dict[str, Range | Choice]:
        """The parameters, each after those that its `when` names.

        Raises:
            RulesBroken: The conditions form a circle.
        """
        return in_order(self.parameters)

    def point(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The point of the space where searched fields have `values`: those that exist there."""
        return point_of(self.ordered_parameters(), values)

    def with_value(self, recipe: Recipe, name: str, value: Any) -> Recipe:
        """A recipe with another value of a searched field, and with what the space then asks for.

        A conditional parameter that exists there, and that cannot have the recipe's value, has its
        first.
        """
        values, point = {**recipe.flat(), name: value}, dict[str, Any]()
        for other, parameter in self.ordered_parameters().items():
            if not parameter.applies(point):
                continue
            if parameter.when and other != name and not parameter.contains(values[other]):
                values[other] = parameter.at(0.0, is_int=_is_int(other))
            point[other] = values[other]
        return recipe.with_values({**point, name: value})

    def grid(self) -> Iterator[dict[str, Any]] | None:
        """Every point of the space, or None where a range has no steps."""
        ordered = self.ordered_parameters()
        values = {name: p.every(is_int=_is_int(name)) for name, p in ordered.items()}
        if any(some is None for some in values.values()):
            return None

        def points(names: list[str], point: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if not names:
                yield point
                return
            name, *rest = names
            if ordered[name].applies(point):
                for value in values[name] or ():
                    yield from points(rest, {**point, name: value})
            else:
                yield from points(rest, point)

        return points(list(ordered), {})

    def notes(self) -> list[str]:
        """What is allowed and may still not be what was meant."""
        return notes.notes(self)


def _is_int(name: str) -> bool:
    return isinstance(Recipe().flat()[name], int)

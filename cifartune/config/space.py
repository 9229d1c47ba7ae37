"""The search space: a baseline recipe, what may vary around it, and how to search."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from cifartune.config.parameters import Choice as Choice
from cifartune.config.parameters import Parameter, Range, Value, largest
from cifartune.config.problems import RuleBroken, UnknownKey, Where, describe
from cifartune.config.recipe import Recipe, Section, recipe_fields

METRICS: dict[str, Literal["max", "min"]] = {
    "val_accuracy": "max",
    "val_loss": "min",
    "train_accuracy": "max",
    "train_loss": "min",
}
"""What can be searched for, each with its only sensible direction."""


class Objective(Section):
    """What the search maximises or minimises, at the last epoch that a trial reached."""

    metric: Literal["val_accuracy", "val_loss", "train_accuracy", "train_loss"] = "val_accuracy"
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
            raise RuleBroken(
                ("mode",), f"must be {METRICS[self.metric]} for {self.metric}, got {self.mode}"
            )
        return self


class DataSpec(Section):
    """The images that the search sees. The refit always uses all of them."""

    validation: int = Field(5000, ge=10, le=49_990, description="Validation images.")
    train_subset: int | None = Field(
        None, ge=10, le=49_990, description="Training images of a trial; all that are left if out."
    )

    @model_validator(mode="after")
    def _check(self) -> "DataSpec":
        if self.validation + (self.train_subset or 10) > 50_000:
            raise ValueError("validation and train_subset must not exceed 50,000 images together")
        return self


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", value.strip())
        if match is None:
            raise ValueError(f"must be a time such as 90s, 30m or 2h, got {value!r}")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    return value


class SearchSpec(Section):
    """How candidates are proposed."""

    sampler: Literal["tpe", "random"] = "tpe"
    num_trials: int = Field(64, ge=1, le=100_000, description="Trials, the baseline included.")
    seed: int = Field(0, ge=0, lt=2**32, description="The one seed behind every random draw.")
    max_concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    time_budget: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_seconds)] = Field(
        None, description="Time after which no trial is started or continued: 90s, 30m, 2h."
    )


class SchedulerSpec(Section):
    """Which trials are stopped early.

    `asha` is asynchronous successive halving, https://arxiv.org/abs/1810.05934.
    """

    name: Literal["asha", "none"] = "asha"
    grace_period: int = Field(1, ge=1, description="Epochs before a trial can be stopped.")
    reduction_factor: float = Field(
        3.0, gt=1, description="A share of 1/reduction_factor of the trials passes each rung."
    )


class ResourceSpec(Section):
    """What one trial gets."""

    workers: Literal[1] = Field(1, description="Ray Train workers a trial.")
    cpus: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"


class RefitSpec(Section):
    """The cross-validation of the best recipes on all 50,000 training images."""

    top_k: int = Field(3, ge=1, le=100, description="Recipes to refit.")
    folds: int = Field(5, ge=2, le=20, description="Stratified folds.")
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="Epochs of a refit; the recipe's own if left out."
    )


class SearchSpace(Section):
    """A whole search, as a file under `search_spaces/` describes it."""

    name: str = Field(description="Names the run.")
    objective: Objective = Field(default_factory=lambda: Objective())
    base: Recipe = Field(description="The hand-set recipe: defaults of the rest, and trial 0.")
    parameters: dict[str, Parameter] = Field(
        default_factory=dict, description="Recipe fields to search, by dotted name."
    )
    data: DataSpec = Field(default_factory=lambda: DataSpec())
    search: SearchSpec = Field(default_factory=lambda: SearchSpec())
    scheduler: SchedulerSpec = Field(default_factory=lambda: SchedulerSpec())
    resources: ResourceSpec = Field(default_factory=lambda: ResourceSpec())
    refit: RefitSpec = Field(default_factory=lambda: RefitSpec())
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

    @model_validator(mode="after")
    def _check(self) -> "SearchSpace":
        fields = recipe_fields()
        for name, parameter in self.parameters.items():
            if name not in fields:
                raise UnknownKey(("parameters", name), sorted(fields))
            if name in FIXED:
                raise RuleBroken(("parameters", name), FIXED[name])
            self._check_domain(name, parameter, fields[name])
            self._check_condition(name, parameter, fields)
        self.ordered_parameters()
        self._check_baseline()
        self._check_sizes()
        return self

    def _check_domain(self, name: str, parameter: Range | Choice, kind: type) -> None:
        """Every bound and value must be a legal value of the field."""
        if isinstance(parameter, Choice):
            for index, value in enumerate(parameter.values):
                self._check_value(("parameters", name, "values", index), value)
            return
        if kind not in (int, float):
            raise RuleBroken(
                ("parameters", name), "is no number: use values: [...] in place of min and max"
            )
        for key in ("min", "max", "step"):
            number = getattr(parameter, key)
            if kind is int and number is not None and number != int(number):
                raise RuleBroken(
                    ("parameters", name, key), f"must be a whole number, as {name} is, got {number}"
                )
            if key != "step":
                self._check_value(("parameters", name, key), kind(number))

    def _check_value(self, where: Where, value: Value) -> None:
        try:
            self.base.with_values({str(where[1]): value})
        except ValidationError as error:
            rule, *_ = describe(error, Recipe, {}).values()
            raise RuleBroken(where, rule) from None

    def _check_condition(
        self, name: str, parameter: Range | Choice, fields: Mapping[str, type]
    ) -> None:
        for other, wanted in parameter.when.items():
            where = ("parameters", name, "when", other)
            if other in fields and other not in self.parameters:
                raise RuleBroken(where, f"{other} is not searched: it is not among the parameters")
            if other not in self.parameters:
                raise UnknownKey(where, sorted(self.parameters))
            for value in wanted:
                if not self.parameters[other].contains(value):
                    raise RuleBroken(
                        where, f"can never be {value!r}: {other} is {self.parameters[other]}"
                    )

    def _check_baseline(self) -> None:
        """The baseline is trial 0, so it must lie in the space."""
        if self.base.seed:
            raise RuleBroken(("base", "seed"), FIXED["seed"])
        values = self.base.flat()
        for name, parameter in self.parameters.items():
            if parameter.applies(values) and not parameter.contains(values[name]):
                raise RuleBroken(
                    ("base", *name.split(".")),
                    f"is {values[name]}, but parameters.{name} is {parameter}: "
                    "the baseline is trial 0 and must lie in the space",
                )

    def _check_sizes(self) -> None:
        data, grace = self.data, self.scheduler.grace_period
        if self.scheduler.name == "asha" and grace > self.base.epochs:
            raise RuleBroken(
                ("scheduler", "grace_period"),
                f"must be at most base.epochs = {self.base.epochs}, got {grace}",
            )
        rest = 50_000 - data.validation - self.stand_in
        if rest < (data.train_subset or 10):
            raise RuleBroken(
                ("stand_in",), "must leave enough of the 50,000 images for data to take its share"
            )
        images = data.train_subset or rest
        sizes = {("base", "batch_size"): self.base.batch_size}
        if searched := self.parameters.get("batch_size"):
            sizes["parameters", "batch_size"] = largest(searched)
        for where, size in sizes.items():
            if size > images:
                rule = f"must be at most the {images:,} training images, got {size:,}"
                raise RuleBroken(where, rule)

    def ordered_parameters(self) -> dict[str, Range | Choice]:
        """The parameters, each after those that its `when` names.

        Raises:
            RuleBroken: The conditions form a circle.
        """
        ordered: dict[str, Range | Choice] = {}
        rest = dict(self.parameters)
        while rest:
            ready = [name for name, p in rest.items() if not p.when.keys() & rest.keys()]
            if not ready:
                circle = next(iter(rest))
                raise RuleBroken(("parameters", circle, "when"), "depends on itself in a circle")
            ordered |= {name: rest.pop(name) for name in ready}
        return ordered

    def smoke(self) -> "SearchSpace":
        """The same search shrunk to a check that everything works, in a minute anywhere."""
        small = {
            "epochs": 1,
            "batch_size": min(self.base.batch_size, 128),
            "model.resolution": 16,
        }
        values = self.base.flat()
        kept: dict[str, Range | Choice] = {}
        for name, parameter in self.ordered_parameters().items():
            # A condition on what is no longer searched is fixed by the baseline: it holds or not.
            open_conditions = {k: v for k, v in parameter.when.items() if k in kept}
            fixed = parameter.when.keys() - open_conditions
            if name not in small and all(values[k] in parameter.when[k] for k in fixed):
                kept[name] = parameter.model_copy(update={"when": open_conditions})
        changes = {
            "name": f"{self.name[:94]}-smoke",
            "base": self.base.with_values(small),
            "parameters": kept,
            "data": DataSpec(validation=512, train_subset=512),
            "search": self.search.model_copy(update={"num_trials": 2}),
            "scheduler": self.scheduler.model_copy(update={"grace_period": 1}),
            "resources": ResourceSpec(),
            "refit": RefitSpec(top_k=1, folds=2),
            "stand_in": 512,
        }
        return SearchSpace.model_validate(dict(self) | changes)


FIXED = {"seed": "is drawn for each trial from search.seed: set that instead"}
"""Recipe fields that a file must not set, with the reason."""

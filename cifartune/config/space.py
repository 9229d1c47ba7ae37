"""The search space: a baseline recipe, what may vary around it, and how to search."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from cifartune.config.recipe import Recipe, Section, recipe_fields

Value = bool | int | float | str

METRICS: dict[str, Literal["max", "min"]] = {
    "val_accuracy": "max",
    "val_loss": "min",
    "train_accuracy": "max",
    "train_loss": "min",
}
"""What can be searched for, each with its only sensible direction."""


class Conditional(Section):
    """A parameter that may exist only under certain values of others."""

    when: dict[str, Value | list[Value]] = Field(
        default_factory=dict,
        description="Other parameters and the value, or list of values, that each must have.",
    )

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether the parameter exists, given the values of those that it depends on."""
        return all(
            values[name] in (allowed if isinstance(allowed, list) else [allowed])
            for name, allowed in self.when.items()
        )


class Range(Conditional):
    """A number between two bounds, both included."""

    min: float = Field(description="Lower bound.")
    max: float = Field(description="Upper bound.")
    log: bool = Field(False, description="Sample uniformly in the logarithm.")
    step: float | None = Field(None, gt=0, description="Distance between allowed values.")

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.min >= self.max:
            raise ValueError(f"min must be less than max, got {self.min:g} and {self.max:g}")
        if self.log and self.min <= 0:
            raise ValueError(f"min must be above 0 where log is true, got {self.min:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        return self


class Choice(Conditional):
    """One of a list of values."""

    values: list[Value] = Field(min_length=1, description="The values to choose from.")

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: list[Value]) -> list[Value]:
        if len(set(values)) < len(values):
            raise ValueError("values must differ from each other")
        return values


def _kind(value: Any) -> str:
    if isinstance(value, Choice) or (isinstance(value, Mapping) and "values" in value):
        return "choice"
    return "range"


Parameter = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Range, Tag("range")], Discriminator(_kind)
]


class Objective(Section):
    """What the search maximises or minimises, at the last epoch that a trial reached."""

    metric: Literal["val_accuracy", "val_loss", "train_accuracy", "train_loss"] = "val_accuracy"
    mode: Literal["max", "min"] = Field("max", description="Follows from the metric if left out.")

    @model_validator(mode="before")
    @classmethod
    def _mode_follows(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "mode" not in data:
            return {**data, "mode": METRICS.get(data.get("metric", "val_accuracy"), "max")}
        return data

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        if METRICS[self.metric] != self.mode:
            raise ValueError(f"{self.metric} wants mode: {METRICS[self.metric]}, got {self.mode}")
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
            raise ValueError(f"a time such as 90s, 30m or 2h is wanted, got {value!r}")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    return value


class SearchSpec(Section):
    """How candidates are proposed."""

    sampler: Literal["tpe", "random"] = "tpe"
    num_trials: int = Field(64, ge=1, le=100_000, description="Trials, the baseline included.")
    seed: int = Field(0, ge=0, lt=2**32, description="The one seed behind every random draw.")
    max_concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    time_budget: Annotated[float | None, BeforeValidator(_seconds), Field(gt=0)] = Field(
        None, description="Time after which no trial is started or continued: 90s, 30m, 2h."
    )


class SchedulerSpec(Section):
    """Which trials are stopped early.

    `asha` is asynchronous successive halving, https://arxiv.org/abs/1810.05934.
    """

    name: Literal["asha", "none"] = "asha"
    grace_period: int = Field(1, ge=1, description="Epochs before a trial can be stopped.")
    reduction_factor: float = Field(
        3, gt=1, description="A share of 1/reduction_factor of the trials passes each rung."
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

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Names the run.")
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

    @model_validator(mode="after")
    def _check(self) -> "SearchSpace":
        fields = recipe_fields()
        for name, parameter in self.parameters.items():
            if name not in fields:
                # An unknown key is told with its suggestion by the file reader.
                raise UnknownKey(("parameters", name), sorted(fields))
            if name in FIXED:
                raise RuleBroken(("parameters", name), FIXED[name])
            self._check_domain(name, parameter, fields[name])
            self._check_condition(name, parameter)
        self.ordered_parameters()
        if "seed" in self.base.model_fields_set:
            raise RuleBroken(("base", "seed"), FIXED["seed"])
        if self.scheduler.name == "asha" and self.scheduler.grace_period > self.base.epochs:
            raise RuleBroken(
                ("scheduler", "grace_period"),
                f"must be at most base.epochs = {self.base.epochs}, "
                f"got {self.scheduler.grace_period}",
            )
        images = self.data.train_subset or 50_000 - self.data.validation
        largest = max([self.base.batch_size, *_numbers(self.parameters.get("batch_size"))])
        if largest > images:
            raise RuleBroken(
                ("base", "batch_size"), f"must be at most the {images} training images"
            )
        return self

    def _check_domain(self, name: str, parameter: Range | Choice, kind: type) -> None:
        """Every bound and value must be a legal value of the field; so must the baseline's."""
        baseline = self.base.flat()[name]
        if isinstance(parameter, Range):
            if kind not in (int, float):
                raise RuleBroken(
                    ("parameters", name), "is no number: use values: [...] in place of min and max"
                )
            numbers = [parameter.min, parameter.max, parameter.step or 0]
            if kind is int and any(number != int(number) for number in numbers):
                raise RuleBroken(("parameters", name), "is a whole number, and so are its bounds")
            for key in ("min", "max"):
                self._check_value((name, key), kind(getattr(parameter, key)))
            fits = parameter.min <= baseline <= parameter.max
            shape = f"between {parameter.min:g} and {parameter.max:g}"
            if fits and parameter.step:
                steps = (baseline - parameter.min) / parameter.step
                fits = abs(steps - round(steps)) < 1e-6
                shape += f" in steps of {parameter.step:g}"
        else:
            for value in parameter.values:
                self._check_value((name, "values"), value)
            fits = baseline in parameter.values
            shape = f"one of {', '.join(map(str, parameter.values))}"
        if not fits and parameter.applies(self.base.flat()):
            raise RuleBroken(
                ("base", *name.split(".")),
                f"is {baseline}, but parameters.{name} wants {shape}: "
                "the baseline is trial 0 and must lie in the space",
            )

    def _check_value(self, where: tuple[str, str], value: Value) -> None:
        try:
            self.base.with_values({where[0]: value})
        except ValidationError as error:
            raise RuleBroken(("parameters", *where), error.errors()[0]["msg"]) from None

    def _check_condition(self, name: str, parameter: Range | Choice) -> None:
        for other, wanted in parameter.when.items():
            where = ("parameters", name, "when", other)
            if other not in self.parameters:
                raise UnknownKey(where, sorted(self.parameters))
            controller = self.parameters[other]
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if isinstance(controller, Choice) and value not in controller.values:
                    raise RuleBroken(where, f"can never be {value!r}")

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
        base = self.base.with_values(
            {"epochs": 1, "batch_size": min(self.base.batch_size, 128), "model.resolution": 16}
        )
        kept = {
            name: parameter
            for name, parameter in self.parameters.items()
            if name not in ("epochs", "batch_size", "model.resolution")
        }
        return self.model_copy(
            update={
                "name": f"{self.name}-smoke",
                "base": base,
                "parameters": kept,
                "data": DataSpec(validation=512, train_subset=512),
                "search": self.search.model_copy(update={"num_trials": 2}),
                "scheduler": self.scheduler.model_copy(update={"grace_period": 1}),
                "refit": RefitSpec(top_k=1, folds=2),
                "stand_in": 512,
            }
        )


FIXED = {"seed": "is drawn for each trial from search.seed: set that instead"}
"""Recipe fields that a file must not set, with the reason."""


class RuleBroken(ValueError):
    """A rule between keys is broken at one of them, `where`."""

    def __init__(self, where: tuple[str, ...], rule: str) -> None:
        super().__init__(rule)
        self.where = where


class UnknownKey(RuleBroken):
    """A key names nothing; `known` holds what it could have been."""

    def __init__(self, where: tuple[str, ...], known: list[str]) -> None:
        super().__init__(where, "unknown key")
        self.known = known


def _numbers(parameter: Range | Choice | None) -> list[int]:
    if isinstance(parameter, Range):
        return [int(parameter.max)]
    return [int(value) for value in parameter.values] if parameter else []

"""The search space: a baseline recipe, what may vary around it, and how to search."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
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

EpochMetric = Literal["val_accuracy", "val_loss", "train_accuracy", "train_loss"]
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
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value.strip())
        if match is None:
            raise ValueError(f"must be a time such as 90s, 30m, 2h or 1d, got {value!r}")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    return value


def _seconds_or_auto(value: Any) -> Any:
    return value if value == "auto" else _seconds(value)


class SearchSpec(Section):
    """How candidates are proposed."""

    sampler: Literal["tpe", "random", "cmaes", "gp", "qmc", "grid"] = Field(
        "tpe",
        description="tpe: multivariate tree-structured Parzen estimator; random; cmaes: CMA-ES, "
        "numbers only, choices at random; gp: a Gaussian process; qmc: a scrambled Sobol "
        "sequence; grid: every point once, in random order.",
    )
    num_trials: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Trials, the baseline included.",
        validation_alias=AliasChoices("num_trials", "num_samples", "max_trials"),
    )
    seed: int = Field(0, ge=0, lt=2**32, description="The one seed behind every random draw.")
    max_concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Trials at a time, at the most; auto: as many as there is room for."
    )
    time_budget: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_seconds)] = Field(
        None,
        description="Time after which no trial is started or continued: 90s, 30m, 2h, 1d, or "
        "seconds. The refit comes after it.",
    )


class SchedulerSpec(Section):
    """Which trials are stopped early."""

    name: Literal["asha", "hyperband", "median", "none"] = Field(
        "asha",
        description="asha: asynchronous successive halving, https://arxiv.org/abs/1810.05934; "
        "hyperband: the same in several brackets, whose first rungs come later and later; "
        "median: stop what is worse than the median of the others so far; none.",
    )
    metric: EpochMetric | None = Field(
        None, description="The objective that decides; the first if left out."
    )
    grace_period: int = Field(1, ge=1, description="Epochs before a trial can be stopped.")
    reduction_factor: float = Field(
        3.0,
        gt=1,
        description="asha, hyperband: a share of 1/reduction_factor of the trials passes a rung.",
    )
    brackets: int = Field(3, ge=1, le=10, description="hyperband: brackets.")
    min_trials: int = Field(
        3, ge=1, description="median: trials that must have come as far before one is stopped."
    )


class ResourceSpec(Section):
    """What one trial gets."""

    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Ray Train workers a trial, which share its batches, cores and GPUs.",
    )
    cpus: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="CPU cores a trial."
    )
    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="GPUs, or the share of one, a trial; auto: one, or a share where it is found "
        "that several trials on a GPU train more together.",
    )
    isolation: Literal["slot", "process"] = Field(
        "slot",
        description="slot: processes train one trial after the other; process: each trial starts "
        "processes of its own, ten seconds or more.",
    )
    epoch_timeout: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0)], BeforeValidator(_seconds_or_auto)
    ] = Field(
        "auto",
        description="Time that an epoch may take, such as 30m, before its process is taken to "
        "hang, and killed; auto: 30 times what it should take, and ten minutes at least.",
    )


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?B)", value.strip())
        if match is None:
            raise ValueError(f"must be a size such as 500MB or 5GB, got {value!r}")
        return float(match[1]) * 1000 ** ["B", "kB", "MB", "GB", "TB"].index(match[2])
    return value


class CheckpointSpec(Section):
    """What stays of trials on the disk. Those under way keep what they need to go on."""

    keep: int = Field(
        3,
        ge=0,
        le=1000,
        description="Complete trials, the best so far, whose weights are kept, as "
        "trials/<number>/weights.safetensors.",
    )
    max_bytes: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_bytes)] = Field(
        None,
        description="Size of these at the most, such as 5GB: fewer are kept then; no limit if left "
        "out.",
    )


class RefitSpec(Section):
    """The cross-validation of the best recipes on all 50,000 training images."""

    top_k: int = Field(3, ge=1, le=100, description="Recipes to refit.")
    folds: int = Field(5, ge=2, le=20, description="Stratified folds.")
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="Epochs of a refit; the recipe's own if left out."
    )
    seeds: int = Field(
        1, ge=1, le=20, description="Training runs of each fold, which differ by their seed alone."
    )
    baseline: bool = Field(
        True,
        description="Whether the baseline is refit too, so that the answer says whether it was "
        "beaten; it may win.",
    )
    all_images: bool = Field(
        True,
        description="Whether the winner is trained once more, on all images, beside the ensemble "
        "of its folds.",
    )


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

    def ordered_parameters(self) -> dict[str, Range | Choice]:
        """The parameters, each after those that its `when` names.

        Raises:
            RulesBroken: The conditions form a circle.
        """
        return in_order(self.parameters)

    def point(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The point of the space where searched fields have `values`: those that exist there."""
        return point_of(self.ordered_parameters(), values)

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

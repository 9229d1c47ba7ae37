"""The sections of a search-space file that say how to search, and with what."""

import re
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from cifartune.config.section import Section

EpochMetric = Literal["val_accuracy", "val_loss", "train_accuracy", "train_loss"]


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
        "out. Checkpoints of trials under way and the weights of the refit are not counted.",
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

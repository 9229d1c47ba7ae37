"""What passes between the driver and its slots. Importing this loads neither torch nor ray."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from cifartune.config import Recipe, SearchSpace


@dataclass(frozen=True)
class Job:
    """One training run for a slot.

    Attributes:
        id: Unique among the jobs of a search, such as `trial-3` or `refit-3-fold-0`.
        recipe: What to train.
        folder: Where the job's checkpoint and outputs are written.
        data_root: Where the prepared images are.
        splits: The npz file of the search's splits.
        fold: The fold of the refit, or `ALL_IMAGES`; None for the search's own split. The weights
            and held-out logits of a refit's runs are kept.
        keeps_weights: Whether a trial's are kept, too, when it has come to its end.
    """

    id: str
    recipe: Recipe
    folder: Path
    data_root: Path
    splits: Path
    fold: int | None = None
    keeps_weights: bool = False


@dataclass(frozen=True)
class Probe:
    """A look before the first trial: which parameters do nothing, and what recipes cost.

    Attributes:
        id: As a job's.
        space: Its searched parameters are moved one by one.
        recipes: What to measure, each for half a second or more.
        folder: Where a checkpoint is written for a moment.
        data_root: Where the prepared images are.
        splits: The npz file of the search's splits.
    """

    id: str
    space: SearchSpace
    recipes: list[Recipe]
    folder: Path
    data_root: Path
    splits: Path


@dataclass(frozen=True)
class Cost:
    """What training a recipe costs in a slot.

    Attributes:
        train_rate: Training images a second, in the first epoch at least.
        eval_rate: Images a second in evaluation, without test-time augmentation.
        build_seconds: From a recipe to the end of its first step.
        checkpoint_seconds: To write a checkpoint.
        checkpoint_bytes: Its size.
        weights_bytes: The size of the network's weights alone.
        later_rate: Training images a second after the first epoch, where features are kept from
            there on; else as in the first.
        predict_rate: Images a second through the whole network, where evaluation has its features;
            else as in evaluation.
    """

    train_rate: float
    eval_rate: float
    build_seconds: float
    checkpoint_seconds: float
    checkpoint_bytes: int
    weights_bytes: int
    later_rate: float | None = None
    predict_rate: float | None = None


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        idle: Parameters that change nothing, each with two values that were tried.
        costs: The cost of each recipe of the probe.
        memory_bytes: The most memory that the slot used: of the GPU where it has one, else of the
            process.
    """

    idle: dict[str, tuple[Any, Any]]
    costs: list[Cost]
    memory_bytes: int


class Verdict(Enum):
    """What a slot does after an epoch of a job."""

    GO_ON = "go on"
    """Writes the epoch's checkpoint and begins the next."""
    LEAVE = "leave"
    """Writes the epoch's checkpoint and gives the job up: another time it goes on from there."""
    STOP = "stop"
    """Gives the job up."""


@dataclass(frozen=True)
class Seat:
    """Where a slot's process runs.

    Attributes:
        node: Ray's id of the machine.
        pid: The process there.
    """

    node: str
    pid: int


@dataclass(frozen=True)
class Progress:
    """An epoch is done; the slot waits to hear how to go on.

    Attributes:
        epoch: Its number, from 1.
        metrics: What it brought.
        is_last: Whether the run ends with it.
    """

    epoch: int
    metrics: dict[str, float]
    is_last: bool = False


@dataclass(frozen=True)
class Finished:
    """The job is done; `facts` says how it ran."""

    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The job ended in a failure.

    Attributes:
        kind: Of the recipe: `non_finite_loss`; `out_of_memory`, also in the smallest parts of a
            step; `unfit_network`; `error`, any other exception on its way. Of the machine:
            `worker_killed`, `node_lost`; `timeout`, an epoch that would not end; `files`, which
            could not be read or written; `disk_full`; `no_slots`, none is left. `stopped`: nobody
            wants the job any more.
        message: One line for people.
        epoch: The epoch in which it happened, where that is known.
        crowded: Whether it might have gone well with no other job on its machine.
    """

    kind: str
    message: str
    epoch: int | None = None
    crowded: bool = False

    @property
    def blames_recipe(self) -> bool:
        """Whether the sampler should keep away from such recipes."""
        return self.kind in ("non_finite_loss", "out_of_memory", "unfit_network", "error")

    @property
    def stopped(self) -> bool:
        """Whether the job was taken off the board."""
        return self.kind == "stopped"

    @property
    def slot_lost(self) -> bool:
        """Whether the slot died, so that another may try the job again."""
        return self.kind in ("worker_killed", "node_lost", "timeout")


Message = Progress | Finished | Failed
Work = Job | Probe

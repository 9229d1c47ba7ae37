"""A logged run, trained again from MLflow alone: does the same come out?"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cifartune.commit import is_code_known
from cifartune.data import load_train
from cifartune.data.splits import splits_of
from cifartune.errors import Interrupted, UserError, first_line
from cifartune.models.errors import UnfitNetwork
from cifartune.originals import Original
from cifartune.training import EpochResult, NonFiniteLoss, SplitImages, Trainer
from cifartune.training.classifier import predict, weights_digest
from cifartune.training.failures import is_out_of_memory
from cifartune.tuning.jobs import environment, load_split

DEVIATIONS = 1.96
"""Standard deviations within which 95 % of normally distributed values lie."""


@dataclass(frozen=True)
class Pair:
    """An accuracy of the original run, and that of the new one on the same images."""

    name: str
    then: float
    now: float
    images: int

    @property
    def bound(self) -> float:
        """How far apart they may be: a yardstick, and not a test.

        1.96 standard deviations of the difference of two binomial shares: so far apart, in 95 of
        100 cases at the most, are two models that are as good, each on so many images of its own.
        These are the same images, on which two models differ by less; and training runs have luck
        of their own, by which they differ by more.
        """
        mean = (self.then + self.now) / 2
        return DEVIATIONS * math.sqrt(2 * mean * (1 - mean) / self.images)

    @property
    def agrees(self) -> bool:
        """Whether they are no further apart than that."""
        return abs(self.then - self.now) <= self.bound

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.then:.2%} then, {self.now:.2%} now, on {self.images:,} images; "
            f"{100 * abs(self.then - self.now):.2f} points apart, of {100 * self.bound:.2f} "
            "allowed: as far as equal models are in 95 of 100 cases, each on so many images of its "
            "own"
        )


@dataclass(frozen=True)
class Reproduction:
    """What came out the second time.

    Attributes:
        same_weights: Whether the weights are the same, bit for bit.
        is_promised: Whether they have to be: on a CPU, by the same versions on the same hardware,
            and the same code, which a commit names.
        pairs: The accuracies of both runs.
        failure: Why the new run did not come to its end; empty if it did.
    """

    same_weights: bool
    is_promised: bool
    pairs: tuple[Pair, ...] = ()
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether as much is the same as can be asked for."""
        if self.same_weights:
            return True
        return bool(self.pairs) and all(p.agrees for p in self.pairs) and not self.is_promised

    @property
    def verdict(self) -> str:
        """The outcome in a line."""
        if self.failure:
            return f"not reproduced: {self.failure}"
        if self.same_weights:
            return "reproduced: the same weights, bit for bit"
        if not all(pair.agrees for pair in self.pairs):
            return "not reproduced: the weights differ, and the accuracy by more than is allowed"
        if self.is_promised:
            accuracy = "; the accuracy is within what is allowed" if self.pairs else ""
            return (
                "not reproduced: the weights differ, and on this CPU, with the same versions and "
                f"threads, they have to be the same{accuracy}"
            )
        if not self.pairs:
            return "not reproduced: the weights differ, and there is no accuracy to compare"
        return "reproduced: other weights, and the accuracy is within what is allowed"


def differences(original: Original) -> list[str]:
    """In what this process, with one worker, differs from those that trained a run."""
    then = {**original.environment, "workers": str(original.workers)}
    now = {**environment(torch.device(original.device)), "workers": "1"}
    return [
        f"{name}: {then.get(name, 'not known')} then, {now.get(name, 'not known')} now"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]


def reproduce(
    original: Original,
    data_root: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    stop: threading.Event | None = None,
) -> Reproduction:
    """Trains a run again, in this process, with as many threads as then.

    What several workers trained together, one trains as well: its steps are the same, but not their
    rounding, nor what dropout draws.

    Args:
        original: The run.
        data_root: The prepared images.
        say: Called with a line for each difference and each epoch.
        stop: Ends it after the epoch under way when set.

    Raises:
        UserError: It cannot be trained here: it needs a GPU, weights or memory that are not there.
        Interrupted: It was told to stop.
    """
    device = torch.device(original.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        gpu = original.environment.get("gpu", "one")
        raise UserError(
            f"{original.name}: was trained on a GPU ({gpu}), and there is none here: on a CPU "
            "another run would come out; try it on a machine with a GPU"
        )
    different = differences(original)
    is_same = device.type == "cpu" and not different
    commit = original.environment.get("commit", "unknown")
    is_promised = is_same and is_code_known(commit)
    if not (original.curve or is_same):
        raise UserError(
            f"{original.name}: trained on all images, so that there is no accuracy to compare, and "
            "its weights come out the same only on the same CPU with the same versions; take a fold"
        )
    say(f"{original.name}: {original.recipe.model.name} on the {device.type} again")
    for difference in different:
        say(f"different: {difference}")
    if is_same and not is_promised:
        say(f"perhaps different: the code, of the commit {commit}: other weights may come out")
    before = torch.get_num_threads()
    torch.set_num_threads(original.threads)
    try:
        split = _split(original, data_root, device)
        trainer = Trainer(original.recipe, split, device=device)
        for result in trainer:
            say(_epoch_line(original, result))
            if stop is not None and stop.is_set():
                raise Interrupted
        return Reproduction(
            same_weights=weights_digest(trainer.classifier) == original.digest,
            is_promised=is_promised,
            pairs=tuple(_pairs(original, trainer)),
        )
    except NonFiniteLoss as failure:
        return Reproduction(same_weights=False, is_promised=is_promised, failure=str(failure))
    except UnfitNetwork as error:  # above all, weights to start from that are not here
        raise UserError(f"{original.name}: {error}") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                f"{original.name}: does not fit the memory here: {first_line(error)}"
            ) from None
        raise
    finally:
        torch.set_num_threads(before)


def _epoch_line(original: Original, result: EpochResult) -> str:
    then = original.curve.get(result.epoch)
    if then is None:  # all images train, or a GPU took another way to the end
        return f"epoch {result.epoch}: train_loss {result.train_loss:.4f}"
    return f"epoch {result.epoch}: val_accuracy {result.val_accuracy:.2%}, {then:.2%} then"


def _split(original: Original, data_root: Path, device: torch.device) -> SplitImages:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "splits.npz"
        splits_of(original.space, load_train(data_root).labels).save(path)
        return load_split(path, data_root, fold=original.fold, device=device)


def _pairs(original: Original, trainer: Trainer) -> list[Pair]:
    """The accuracies of both runs on the images that neither trained on."""
    held_out, images = trainer.split.validation, len(trainer.split.validation)
    if not (images and original.curve):
        return []
    now = trainer.history[trainer.kept_epoch - 1].val_accuracy
    pairs = [Pair("val_accuracy", original.val_accuracy, now, images)]
    if original.held_out_accuracy is not None:
        logits = predict(
            trainer.classifier, trainer.split.images[held_out], precision=trainer.recipe.precision
        )
        now = (logits.argmax(1) == trainer.split.labels[held_out]).double().mean().item()
        pairs.append(Pair("held_out_accuracy", original.held_out_accuracy, now, images))
    return pairs

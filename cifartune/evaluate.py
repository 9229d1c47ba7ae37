"""The final models, and the one look at the test set."""

import datetime
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifartune.calibration import Calibration, fit_temperature
from cifartune.config import SearchSpace
from cifartune.data.cifar10 import LabelledImages
from cifartune.data.looks import looks
from cifartune.data.splits import Splits
from cifartune.data.test_set import look_at_test, why_not
from cifartune.errors import UserError
from cifartune.files import write_atomically
from cifartune.final_models import model_files
from cifartune.refit import Candidate
from cifartune.runs import RunFolder
from cifartune.statistics import Accuracy
from cifartune.training.classifier import Classifier, load_classifier, predict_views
from cifartune.training.device import choose_device, resolve

WARM_UP = 100
"""Images that each network predicts before its time is taken."""


def temperatures(winner: Candidate, labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """For each final model, the temperature by which out-of-fold predictions are best scaled.

    An ensemble of folds has no such predictions of its own, since each image trained most of its
    members, and the model of all images has none at all: theirs is that of a single fold's model.
    """
    known = labels[winner.predictions.indices]
    one = fit_temperature(winner.predictions.logits[0], known)
    found = {"folds": one, "all_images": one}
    if winner.snapshots:
        found["snapshots"] = fit_temperature(winner.snapshots.logits, known)
    return found


@dataclass(frozen=True)
class Tested:
    """A final model on the test set, or on what stands in for it.

    Attributes:
        networks: How many it averages.
        weights: Their weights and statistics, in all.
        accuracy: With the recipe's test-time augmentation.
        plain_accuracy: Without it.
        calibration: Of its probabilities; the temperature was found out of fold.
        seconds_per_image: Of prediction with test-time augmentation, on `device`.
        device: `cuda`, or `cpu` with its threads.
    """

    networks: int
    weights: int
    accuracy: Accuracy
    plain_accuracy: Accuracy
    calibration: Calibration
    seconds_per_image: float
    device: str

    def as_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return asdict(self)


Predictions = dict[str, npt.NDArray[Any]]
"""The labels, and of each model the logarithms of its probabilities, float32 (N, 10), with
test-time augmentation and, as `<model>_plain`, without."""


def judge(
    models: Mapping[str, Sequence[Path]],
    temperatures: Mapping[str, float],
    images: LabelledImages,
) -> tuple[dict[str, Tested], Predictions]:
    """Judges final models: each is the mean probability of the networks in its files.

    Args:
        models: The files of each model, by its name. A file may be in several.
        temperatures: By which the logarithm of each model's probabilities is divided.
        images: Which of them had no part in anything before.
    """
    device = choose_device()
    pixels = torch.from_numpy(images.images)
    outputs: dict[Path, _Output] = {}
    for path in dict.fromkeys(path for paths in models.values() for path in paths):
        outputs[path] = _predict(load_classifier(path), pixels, device)
    tested: dict[str, Tested] = {}
    predictions: Predictions = {"labels": np.asarray(images.labels)}
    for name, paths in models.items():
        members = [outputs[path] for path in paths]
        logs = _log_mean([member.probabilities for member in members])
        plain = _log_mean([member.plain for member in members])
        predictions |= {name: logs, f"{name}_plain": plain}
        threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        tested[name] = Tested(
            networks=len(members),
            weights=sum(member.weights for member in members),
            accuracy=_accuracy(logs, images),
            plain_accuracy=_accuracy(plain, images),
            calibration=Calibration.at(temperatures[name], logs, images.labels),
            seconds_per_image=sum(member.seconds for member in members) / len(images.labels),
            device=device.type + threads,
        )
    return tested, predictions


@dataclass(frozen=True)
class _Output:
    """What one network says of all images: probabilities, float32 (N, 10)."""

    probabilities: npt.NDArray[np.float32]
    plain: npt.NDArray[np.float32]
    seconds: float
    weights: int


def _predict(classifier: Classifier, pixels: Tensor, device: torch.device) -> _Output:
    precision = resolve(classifier.recipe, device).precision
    classifier = classifier.to(device)
    predict_views(classifier, pixels[:WARM_UP], precision=precision)  # allocates, and is not timed
    start = time.perf_counter()
    views = predict_views(classifier, pixels, precision=precision)
    logits, plain = (view.softmax(1).cpu().numpy() for view in views)  # waits for the device
    seconds = time.perf_counter() - start
    weights = sum(tensor.numel() for tensor in classifier.state_dict().values())
    return _Output(logits, plain, seconds, weights)


def _log_mean(probabilities: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    mean = np.mean(probabilities, axis=0, dtype=np.float64)
    tiny = np.finfo(np.float32).tiny  # where all members say 0
    return np.log(mean + tiny).astype(np.float32)


def _accuracy(logits: npt.NDArray[np.float32], images: LabelledImages) -> Accuracy:
    right = logits.argmax(1) == images.labels
    return Accuracy.of(int(right.sum()), len(right))


def save_predictions(predictions: Predictions, path: Path) -> None:
    """Writes them to an npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **predictions)
    write_atomically(path, buffer.getvalue())


def refuse_another_look(run: RunFolder, trial: int) -> None:
    """Makes sure that the models of a trial were not judged on the test set before.

    Raises:
        UserError: They were; says when, and with what outcome.
    """
    if seen := run.looks_for(trial):
        accuracy = Accuracy(**seen[-1]["models"]["folds"]["accuracy"])
        raise UserError(
            f"{run.name}: the winner, trial {trial}, was evaluated at {seen[-1]['time']}: "
            f"{accuracy}; a second look at the same images tells nothing new. To look all the "
            "same: --again"
        )


def why_no_look(run: RunFolder, space: SearchSpace, winner: int, data_root: Path) -> str | None:
    """Why a search does not look at the test set by itself, as it does once; None if it does.

    Empty where its user knows: it is sealed, or these models were judged. A second look, at another
    winner or at more models after an extension, is the user's to ask for.
    """
    if run.is_sealed or run.looks_for(winner):
        return ""
    if space.stand_in:
        return None
    if run.looks or any(one.get("run") == run.id for one in looks(data_root)):
        return "this search has looked before"
    error = why_not(data_root)
    return str(error) if error else None


def look(
    run: RunFolder,
    space: SearchSpace,
    winner: Candidate,
    train: LabelledImages,
    splits: Splits,
    data_root: Path,
) -> None:
    """Judges a search's final models on the test set, or on its stand-in, and keeps what is seen.

    Args:
        run: Where the models are, and what is seen of them is kept.
        space: The search's; a smoke run has a stand-in.
        winner: Whose models.
        train: All training images.
        splits: The search's.
        data_root: Where the test images are, and looks at them are counted.

    Raises:
        UserError: The test images are not there, or looks cannot be counted.
    """
    if space.stand_in:
        images = stand_in(train, splits.stand_in)
    else:
        images = look_at_test(data_root, run=run.id, name=run.name, trial=winner.number)
    models = model_files(run, winner.number)
    tested, predictions = judge(models, temperatures(winner, train.labels), images)
    before = run.looks
    save_predictions(predictions, run.test_predictions(len(before) + 1))
    seen = {
        "trial": winner.number,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "models_sha256": run.models_digest(winner.number),
        "models": {name: model.as_dict() for name, model in tested.items()},
    }
    write_atomically(run.evaluation, json.dumps([*before, seen], indent=1))


def stand_in(train: LabelledImages, indices: npt.NDArray[np.int64]) -> LabelledImages:
    """The training images that stand in for the test set of a smoke run."""
    return LabelledImages(train.images[indices], train.labels[indices])

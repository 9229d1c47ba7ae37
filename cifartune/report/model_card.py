"""The model card: what is exported, by what it was trained, how good it is, and for what."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cifartune.data import CLASSES
from cifartune.files import write_atomically
from cifartune.report.answer import percent
from cifartune.report.figures import png
from cifartune.runs import RunFolder
from cifartune.statistics import Interval


def write_model_card(run: RunFolder, result: dict[str, Any], image: npt.NDArray[np.uint8]) -> None:
    """Writes the card of a search's winner, and beside it an example of what the model takes.

    Args:
        run: The folder of the search.
        result: What result.json holds.
        image: A training image, uint8 (3, 32, 32).
    """
    write_atomically(run.model_card, model_card(result))
    write_atomically(run.example, png(Image.fromarray(image.transpose(1, 2, 0))))


def model_card(result: dict[str, Any]) -> str:
    """What whoever takes the model should know of it, in Markdown; `result` is result.json's."""
    tested = (result["models"] or {}).get("folds")
    label = "test images" if result["test_set"] == "CIFAR-10 test" else "images in their place"
    lines = [
        f"- {result['folds']}-fold cross-validation on {result['images']:,} training images: "
        f"{Interval(**result['cv_accuracy'])}"
    ]
    calibration = result["calibration"]
    of_what = "of a single fold's model, out of fold"
    if tested:
        lines.append(f"- the {label}: {Interval(**tested['accuracy'])}")
        calibration, of_what = tested["calibration"], f"on the {label}"
    accuracies, recipe = "\n".join(lines), result["winner"]
    network, optimizer = recipe["model"]["name"], recipe["optimizer"]
    return f"""\
# The winner of {result["name"]}

Classifies 32 x 32 colour images into the ten classes of CIFAR-10: {", ".join(CLASSES)}.

- input: uint8 (N, 32, 32, 3), RGB
- output: float32 (N, 10), the probabilities of the classes in that order
- the mean of {result["folds"] * result["seeds"]} networks ({network}), each trained on all but one
  fold; normalisation and test-time augmentation ({recipe["tta"]}) are inside
- `model.pt2`: a program of PyTorch's, which needs no other package

## Recipe

| trial {result["winner_trial"]} | |
|---|---|
| optimizer | {optimizer["name"]} |
| learning rate, weight decay | {optimizer["lr"]:.3g}, {optimizer["weight_decay"]:.3g} |
| epochs, batch size | {recipe["epochs"]}, {recipe["batch_size"]} |
| augmentation strength | {recipe["augment"]["strength"]:.3g} |
| dropout | {recipe["model"]["dropout"]:.3g} |

All of it: `winner` in result.json.

## Data

CIFAR-10 (Krizhevsky 2009): {result["images"]:,} training images, each used by all networks but that
of its fold.

## Accuracy, with 95 % intervals

{accuracies}

Calibration {of_what}: expected error {percent(calibration["error"])}, and
{percent(calibration["scaled_error"])} at temperature {calibration["temperature"]:.2f}.

## Use and limits

For comparing methods, and for teaching. It knows these ten classes and gives every image one of
them; photographs of another kind, size or crop are not what was measured. About half a per cent of
CIFAR-10's labels are wrong (Northcutt et al. 2021). Not for decisions about people or safety.
"""

"""A trained network with everything around it: uint8 images in, logits out."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.config.recipe import Recipe
from cifartune.files import write_atomically
from cifartune.models import build_model
from cifartune.models.weights import RUN_METADATA
from cifartune.training.device import MEMORY_FORMATS, autocast
from cifartune.training.images import Normalization, resize

EVAL_PIXELS = 1000 * 32 * 32
"""Pixels of a channel in a batch of evaluation: larger ones spend their time on memory."""


def eval_batch(recipe: Recipe) -> int:
    """How many images are evaluated at a time."""
    return max(1, EVAL_PIXELS // recipe.model.resolution**2)


class Classifier(nn.Module):
    """Resizes, normalises and classifies images; averages over test-time augmentation.

    Args:
        network: Maps normalised floats (N, 3, H, W) to logits (N, 10).
        recipe: Gives the resolution and the test-time augmentation.
        normalization: The statistics of the data that `network` was trained on.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, recipe: Recipe, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.register_buffer("mean", normalization.mean.clone())
        self.register_buffer("deviation", normalization.deviation.clone())

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, 32, 32) -> the network's input, float32 (N, 3, resolution, resolution).

        In the recipe's memory format: of weights and input, a convolution takes channels last.
        """
        images = resize(images, self.recipe.model.resolution)
        memory_format = MEMORY_FORMATS.get(self.recipe.memory_format, torch.channels_last)
        return Normalization(self.mean, self.deviation)(images, memory_format)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, 32, 32) -> logits, float32 (N, 10)."""
        return self.views(images)[0]

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits with the recipe's test-time augmentation, and those of the images alone."""
        x = self.prepare(images)
        plain: Tensor = self.network(x).float()
        if self.recipe.tta == "none":
            return plain, plain
        logits = (plain + self.network(x.flip(3)).float()) / 2
        if self.recipe.tta == "flip":
            return logits, plain
        # K. Jordan's, https://arxiv.org/abs/2404.00498: half the weight is the centre's.
        shift, side = max(1, x.shape[-1] // 32), x.shape[-1]
        padded = F.pad(x, (shift,) * 4, "reflect")
        corners = padded[..., :side, :side], padded[..., -side:, -side:]
        first, second = (
            (self.network(corner).float() + self.network(corner.flip(3)).float()) / 2
            for corner in corners
        )
        return logits / 2 + (first + second) / 4, plain


class Ensemble(nn.Module):
    """Averages the class probabilities of several classifiers.

    Maps uint8 images (N, 3, 32, 32) to probabilities, float32 (N, 10).
    """

    def __init__(self, members: list[Classifier]) -> None:
        super().__init__()
        self.recipe = members[0].recipe
        self.members = nn.ModuleList(members)

    @property
    def classifiers(self) -> list[Classifier]:
        """Its members by their type."""
        return [member for member in self.members if isinstance(member, Classifier)]

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images).softmax(1) for member in self.members]).mean(0)


def predict(model: "Classifier | Ensemble", images: Tensor, *, precision: str = "fp32") -> Tensor:
    """Runs `model` in evaluation mode over uint8 images (N, 3, 32, 32), in large batches.

    Args:
        model: A `Classifier` or an `Ensemble`; images are moved to its device.
        images: On any device.
        precision: `fp32`, `bf16` or `fp16`, the arithmetic of the networks.

    Returns:
        What `model` returns, float32 (N, 10), on its device.
    """
    [outputs] = _in_batches(model, lambda batch: (model(batch),), images, precision)
    return outputs


def predict_views(
    model: Classifier, images: Tensor, *, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """As `predict`: logits with the recipe's test-time augmentation, and those without."""
    logits, plain = _in_batches(model, model.views, images, precision)
    return logits, plain


@torch.inference_mode()
def _in_batches(
    model: "Classifier | Ensemble",
    outputs: Callable[[Tensor], tuple[Tensor, ...]],
    images: Tensor,
    precision: str,
) -> list[Tensor]:
    device = next(model.parameters()).device
    model.eval()
    with autocast(device, precision):
        batches = images.split(eval_batch(model.recipe))
        parts = [outputs(batch.to(device)) for batch in batches]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def save_classifier(classifier: Classifier, path: Path, *, epochs: int | None = None) -> None:
    """Writes weights, statistics and recipe to one safetensors file, whole or not at all.

    Args:
        classifier: On any device.
        path: The file.
        epochs: How many it was trained for, if the file is to say.
    """
    tensors = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    about = {"recipe": classifier.recipe.model_dump(), "epochs": epochs}
    # Under one key: safetensors writes several in an order of chance.
    write_atomically(path, save(tensors, {RUN_METADATA: json.dumps(about)}))


def weights_digest(classifier: Classifier) -> str:
    """SHA-256 of all weights and statistics: their names, types, shapes and values, in hexadecimal.

    It does not depend on the device, nor on the order in memory.
    """
    digest = sha256()
    for name, tensor in sorted(classifier.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def trained_epochs(path: Path) -> int:
    """How many epochs a file that `save_classifier` wrote with that number was trained for."""
    return int(_about(path)["epochs"])


def load_classifier(path: Path) -> Classifier:
    """Reads what `save_classifier` wrote, on the CPU, in evaluation mode."""
    classifier = untrained(Recipe.model_validate(_about(path)["recipe"]))
    load_model(classifier, path)
    return classifier


def untrained(
    recipe: Recipe, mean: Sequence[float] = (0.0,) * 3, deviation: Sequence[float] = (1.0,) * 3
) -> Classifier:
    """The classifier of `recipe` whose weights are still to be read, in evaluation mode."""
    shape = (1, 3, 1, 1)
    statistics = Normalization(torch.tensor(mean).view(shape), torch.tensor(deviation).view(shape))
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten at once
        model = recipe.model.model_copy(update={"weights": "none"})
        classifier = Classifier(build_model(model), recipe, statistics)
    memory_format = MEMORY_FORMATS.get(recipe.memory_format, torch.channels_last)
    return classifier.to(memory_format=memory_format).eval()


def _about(path: Path) -> dict[str, Any]:
    """What a file of weights says about the run that they come from."""
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()[RUN_METADATA])
    return about

"""Final models: from files of weights to class probabilities, and what is exported of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cifartune.config import Recipe
from cifartune.errors import UserError
from cifartune.final_models import FinalModel, export_program, model_files
from cifartune.models import build_model
from cifartune.runs import RunFolder
from cifartune.training import SplitImages
from cifartune.training.classifier import Classifier, predict, save_classifier
from cifartune.training.images import Normalization


@pytest.fixture
def weights(split: SplitImages, recipe: Recipe, tmp_path: Path) -> list[Path]:
    """The files of two untrained networks, each of which looks at an image and its mirror image."""
    recipe = recipe.with_values({"tta": "flip"})
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        classifier = Classifier(
            build_model(recipe.model), recipe, Normalization.make("split", split)
        )
        save_classifier(classifier, path)
    return paths


@pytest.fixture
def images(split: SplitImages) -> torch.Tensor:
    return split.images[:7].permute(0, 2, 3, 1)


def test_the_ensemble_averages_probabilities(weights: list[Path], split: SplitImages) -> None:
    model, images = FinalModel.load(weights), split.images[:5]
    one, other = (predict(member, images).softmax(1) for member in model.ensemble.classifiers)
    found = model.predict(images.permute(0, 2, 3, 1))
    np.testing.assert_allclose(found, (one + other) / 2, rtol=1e-6)
    assert found.dtype == np.float32


def test_arrays_and_tensors_alike(weights: list[Path], images: torch.Tensor) -> None:
    model = FinalModel.load(weights)
    read_only = images.numpy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(model.predict(read_only), model.predict(images))
    assert model.predict(images[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (np.zeros((2, 3, 32, 32), np.uint8), r"uint8 \(2, 3, 32, 32\)"),
        (np.zeros((2, 32, 32, 3), np.float32), r"float32 \(2, 32, 32, 3\)"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \(32, 32, 3\)"),
    ],
)
def test_other_arrays_are_refused(weights: list[Path], wrong: np.ndarray, got: str) -> None:
    with pytest.raises(ValueError, match=rf"must be uint8 \(N, 32, 32, 3\), got {got}"):
        FinalModel.load(weights).predict(wrong)


def test_the_exported_program_gives_the_same(
    weights: list[Path], images: torch.Tensor, tmp_path: Path
) -> None:
    model = FinalModel.load(weights)
    export_program(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 3, 7):
        found = program(images[:count]).detach().numpy()
        np.testing.assert_allclose(found, model.predict(images[:count]), rtol=1e-4, atol=1e-6)


def test_files_that_are_no_weights(weights: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        FinalModel.load([tmp_path / "none.safetensors"])
    weights[1].write_bytes(weights[1].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"1\.safetensors: no weights of this cifartune: "):
        FinalModel.load(weights)


def test_which_files_make_a_model(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert model_files(run, 3) == {}
    parts = ("fold-0", "fold-0-seed-1", "fold-1", "fold-1-seed-1")
    # The last is of an extension that was interrupted.
    for part in (*parts, "all-images", "fold-0-seed-2"):
        run.part(3, part).mkdir(parents=True)
        for file in ("weights.safetensors", "logits.npy"):
            (run.part(3, part) / file).touch()
    run.part(3, "fold-2").mkdir()  # it was under way when the candidate was dropped
    found = model_files(run, 3)
    assert [path.parent.name for path in found["folds"]] == list(parts)
    assert [path.parent.name for path in found["all_images"]] == ["all-images"]
    assert "snapshots" not in found
    snapshot = run.part(3, "fold-0") / "snapshots" / "4" / "weights.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.touch()
    named = [
        str(path.parent.relative_to(run.refit / "trial-3"))
        for path in model_files(run, 3)["snapshots"]
    ]
    assert named == ["fold-0/snapshots/4", "fold-0", "fold-1"]

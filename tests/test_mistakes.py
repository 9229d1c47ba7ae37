"""The error analysis, on predictions whose mistakes are known."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from cifartune.calibration import calibration_error
from cifartune.data import CLASSES, LabelledImages
from cifartune.refit.out_of_fold import OutOfFold
from cifartune.report.image_sheet import Part, image_sheet
from cifartune.report.mistakes import (
    confidently_wrong,
    confusion,
    hardest,
    judged,
    likely_label_errors,
    per_class,
    probabilities_of,
    reliability,
    write_mistakes,
)
from cifartune.statistics import Accuracy

Labels = npt.NDArray[np.uint8]


def predictions_of(logits: npt.NDArray[np.float32], indices: npt.NDArray[np.int64]) -> OutOfFold:
    """As a refit of two folds leaves them; logits (S, N, 10)."""
    fold = (np.arange(len(indices)) % 2).astype(np.int8)
    return OutOfFold(indices, fold, logits, np.zeros_like(logits))


def noisy_logits(labels: Labels, seed: int = 0) -> npt.NDArray[np.float32]:
    """Logits (N, 10) of a model that knows the classes well, and some better than others."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1, (len(labels), 10))
    logits[np.arange(len(labels)), labels] += 4 + 0.3 * labels
    return logits.astype(np.float32)


@pytest.fixture
def labels() -> Labels:
    return np.random.default_rng(1).integers(0, 10, 2000).astype(np.uint8)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def test_confusion_counts_true_by_predicted() -> None:
    table = confusion(np.array([3, 3, 3, 5, 0]), np.array([3, 5, 5, 5, 9]))
    assert table.loc["cat", "cat"] == 1 and table.loc["cat", "dog"] == 2
    assert table.loc["dog", "dog"] == 1 and table.loc["airplane", "truck"] == 1
    assert table.to_numpy().sum() == 5
    assert list(table.index) == list(table.columns) == list(CLASSES)


def test_classes_have_intervals_precision_recall_and_f1() -> None:
    true = np.array([0] * 8 + [1] * 4)
    predicted = np.array([0] * 6 + [1] * 2 + [1] * 3 + [0])
    table = per_class(true, predicted).set_index("class")
    airplane = table.loc["airplane"]
    interval = Accuracy.of(6, 8)
    assert airplane["images"] == 8 and airplane["accuracy"] == airplane["recall"] == 6 / 8
    assert (airplane["accuracy_low"], airplane["accuracy_high"]) == (interval.low, interval.high)
    assert airplane["precision"] == pytest.approx(6 / 7)
    assert airplane["f1"] == pytest.approx(2 * 6 / (2 * 6 + 1 + 2))
    assert table.loc["automobile", "precision"] == pytest.approx(3 / 5)
    assert table["images"]["truck"] == 0 and np.isnan(table["accuracy"]["truck"])


def test_reliability_has_the_bins_of_the_calibration_error() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(10, 0.3), 500)
    labels = random.integers(0, 10, 500)
    bins = reliability(labels, probabilities)
    assert bins["images"].sum() == 500 and (bins["images"] > 0).all()
    assert bins["confidence"].is_monotonic_increasing
    error = (bins["images"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / 500
    assert error == pytest.approx(calibration_error(probabilities, labels))
    last = bins.iloc[-1]
    sure = probabilities.max(1) > 14 / 15
    right = int((probabilities.argmax(1) == labels)[sure].sum())
    interval = Accuracy.of(right, int(sure.sum()))
    assert tuple(last[["accuracy", "low", "high"]]) == (interval.value, interval.low, interval.high)


def test_mistakes_are_ranked_by_confidence() -> None:
    probabilities = np.full((4, 10), 0.01)
    for row, (label, p) in enumerate([(3, 0.7), (3, 0.9), (5, 0.8), (5, 0.95)]):
        probabilities[row, label] = p
    true = np.array([3, 5, 3, 4])
    images = judged(np.array([10, 20, 30, 40]), true, probabilities)
    wrong = confidently_wrong(images)
    assert list(wrong["index"]) == [40, 20, 30]
    first = wrong.loc[0]
    assert (first["true"], first["predicted"], first["p_predicted"]) == ("deer", "dog", 0.95)
    assert first["p_true"] == 0.01


def test_the_hardest_are_chosen_in_each_class(labels: Labels) -> None:
    probabilities = softmax(noisy_logits(labels))
    images = judged(np.arange(len(labels)), labels, probabilities)
    chosen = hardest(images, 3)
    assert list(chosen["true"]) == [name for name in CLASSES for _ in range(3)]
    for name, own in chosen.groupby("true"):
        others = images[(images["true"] == name) & ~images["index"].isin(own["index"])]
        assert own["p_true"].max() <= others["p_true"].min()


def test_planted_label_errors_rank_on_top(labels: Labels) -> None:
    """Sixty labels are replaced after the model, which knows nothing of it, has answered."""
    random = np.random.default_rng(2)
    planted = random.choice(len(labels), 60, replace=False)
    given = labels.copy()
    given[planted] = (given[planted] + random.integers(1, 10, 60)) % 10
    indices = np.arange(len(labels)) + 7
    found = likely_label_errors(indices, given, softmax(noisy_logits(labels)))
    assert np.isin(found["index"] - 7, planted).mean() > 0.9
    # A third of all images is known less surely than the mean of their class.
    assert np.isin(planted + 7, found["index"]).mean() > 0.6
    assert (found["margin"] < 0).all() and found["margin"].is_monotonic_increasing
    top = found.head(30)
    places = top["index"].to_numpy() - 7
    assert np.isin(places, planted).all()
    assert list(top["label"]) == [CLASSES[label] for label in given[places]]
    assert list(top["suggested"]) == [CLASSES[label] for label in labels[places]]


def test_each_class_has_a_threshold_of_its_own() -> None:
    """Cats are known with 0.6, dogs with 0.95: an answer of 0.7 is sure of a cat alone."""
    labels = np.array([3] * 10 + [5] * 10 + [7] * 2)
    probabilities = np.full((22, 10), 1e-3)
    probabilities[:10, 3], probabilities[:10, 5] = 0.6, 0.39
    probabilities[10:20, 5] = 0.95
    probabilities[20, 3], probabilities[20, 7] = 0.7, 0.29
    probabilities[21, 5], probabilities[21, 7] = 0.7, 0.29
    found = likely_label_errors(np.arange(22), labels, probabilities)
    assert list(found["index"]) == [20]
    assert found.loc[0, "margin"] == pytest.approx(0.29 - 0.7)


def test_a_label_that_is_more_probable_is_not_doubted() -> None:
    """Dog reaches its threshold and cat does not, but cat is the more probable."""
    labels = np.array([3] * 9 + [3] + [5] * 10)
    probabilities = np.full((20, 10), 1e-3)
    probabilities[:9, 3] = 0.99
    probabilities[9, 3], probabilities[9, 5] = 0.52, 0.47
    probabilities[10:, 5], probabilities[10:, 2] = 0.4, 0.3
    assert likely_label_errors(np.arange(20), labels, probabilities).empty


def test_probabilities_are_the_mean_over_seeds(labels: Labels) -> None:
    logits = np.stack([noisy_logits(labels, seed) for seed in range(3)])
    found = probabilities_of(predictions_of(logits, np.arange(len(labels))))
    assert found == pytest.approx(softmax(logits).mean(0))


def test_everything_is_written_of_real_images(cifar: LabelledImages, tmp_path: Path) -> None:
    indices = np.arange(100, 900)
    logits = noisy_logits(cifar.labels[indices])
    logits[7] = np.eye(10)[(cifar.labels[107] + 1) % 10] * 20  # as sure as wrong
    paths = write_mistakes(predictions_of(logits[None], indices), cifar, tmp_path / "mistakes")
    assert [path.name for path in paths] == [
        "confusion.csv",
        "classes.csv",
        "mistakes.csv",
        "label_errors.csv",
        "hardest.png",
        "label_errors.png",
    ]
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths), "nothing half-written is left"
    tables = {path.name: pd.read_csv(path) for path in paths if path.suffix == ".csv"}
    wrong = logits.argmax(1) != cifar.labels[indices]
    assert set(tables["mistakes.csv"]["index"]) == set(indices[wrong])
    assert tables["mistakes.csv"].loc[0, "index"] == 107
    assert tables["label_errors.csv"].loc[0, "index"] == 107
    counts = tables["confusion.csv"].set_index("true")
    assert counts.to_numpy().sum() == 800 and np.diag(counts).sum() == (~wrong).sum()
    assert tables["classes.csv"]["images"].sum() == 800
    large = cifar.images[107].repeat(3, 1).repeat(3, 2).transpose(1, 2, 0)
    for path in paths[4:]:
        with Image.open(path) as picture:
            assert _holds(np.asarray(picture), large)


def test_a_sheet_without_images_says_so(cifar: LabelledImages, tmp_path: Path) -> None:
    perfect = 20 * np.eye(10, dtype=np.float32)[cifar.labels]
    paths = write_mistakes(predictions_of(perfect[None], np.arange(1000)), cifar, tmp_path)
    assert pd.read_csv(paths[2]).empty and pd.read_csv(paths[3]).empty
    empty = image_sheet([Part(["title"], [])], cifar.images)
    with_one = image_sheet([Part(["title"], [(0, "cat", "dog", 0.9)])], cifar.images)
    assert np.asarray(empty).min() < 128 and empty.size == with_one.size
    assert not _holds(np.asarray(empty), np.asarray(with_one)[40:100, 20:100])


def _holds(picture: npt.NDArray[np.uint8], part: npt.NDArray[np.uint8]) -> bool:
    """Whether `part` is somewhere in `picture`, pixel by pixel."""
    height, width = part.shape[:2]
    corner = (picture == part[0, 0]).all(2)
    return any(
        (picture[y : y + height, x : x + width] == part).all()
        for y, x in np.argwhere(corner)
        if y + height <= picture.shape[0] and x + width <= picture.shape[1]
    )

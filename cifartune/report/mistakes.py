"""What a recipe gets wrong, by models that never saw the images: tables and contact sheets."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from cifartune.calibration import BINS, bins_of
from cifartune.data import CLASSES, LabelledImages
from cifartune.files import write_atomically
from cifartune.report.figures import png
from cifartune.report.image_sheet import SHOWN, Part, image_sheet
from cifartune.statistics import Accuracy

if TYPE_CHECKING:  # the refit brings Ray
    from cifartune.refit.out_of_fold import OutOfFold
    from cifartune.results import OutOfFoldPredictions

Labels = npt.NDArray[np.integer]
Probabilities = npt.NDArray[np.float64]

LABEL_RULE = (
    "Suggestions, to be looked at: confident learning, arxiv.org/abs/1911.00068",
    "The models give another class at least the mean probability that it has among images labelled "
    "so, and more than they give the label.",
)
"""What the list of likely label errors says of itself."""


def probabilities_of(predictions: "OutOfFold | OutOfFoldPredictions") -> Probabilities:
    """The class probabilities of each image, float64 (N, 10): the mean over seeds."""
    from scipy.special import softmax

    of_seeds: Probabilities = softmax(predictions.logits.astype(np.float64), axis=2)
    mean: Probabilities = of_seeds.mean(0)
    return mean


def confusion(labels: Labels, predicted: Labels) -> pd.DataFrame:
    """Counts of images: a row for each true class, a column for each predicted one, by name."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predicted, labels=range(len(CLASSES)))
    rows = pd.Index(CLASSES, name="true")
    return pd.DataFrame(counts, index=rows, columns=pd.Index(CLASSES, name="predicted"))


def per_class(labels: Labels, predicted: Labels) -> pd.DataFrame:
    """A row for each class: images, accuracy with Wilson's interval, precision, recall and F1.

    The accuracy among the images of a class is its recall. What cannot be said of a class without
    images is NaN.
    """
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=range(len(CLASSES)), zero_division=np.nan
    )
    right = np.bincount(labels[labels == predicted], minlength=len(CLASSES))
    unknown = {"value": np.nan, "low": np.nan, "high": np.nan}
    accuracies = [
        Accuracy.of(int(count), int(total)).as_dict() if total else unknown
        for count, total in zip(right, images, strict=True)
    ]
    return pd.DataFrame(
        {
            "class": CLASSES,
            "images": images,
            "accuracy": [accuracy["value"] for accuracy in accuracies],
            "accuracy_low": [accuracy["low"] for accuracy in accuracies],
            "accuracy_high": [accuracy["high"] for accuracy in accuracies],
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
    )


def reliability(labels: Labels, probabilities: Probabilities, bins: int = BINS) -> pd.DataFrame:
    """How often the models are right where they are how sure: the reliability diagram.

    Returns:
        A row for each bin of confidence, of equal width, that has images: `confidence`, its mean,
        `images`, and `accuracy` with Wilson's interval, `low` and `high`.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    images = pd.DataFrame({"confidence": confidence, "right": right})
    rows = []
    for _, own in images.groupby(bins_of(confidence, bins)):
        accuracy = Accuracy.of(int(own["right"].sum()), len(own))
        ends = {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}
        rows.append({"confidence": own["confidence"].mean(), "images": len(own), **ends})
    return pd.DataFrame(rows, columns=["confidence", "images", "accuracy", "low", "high"])


def judged(
    indices: npt.NDArray[np.int64], labels: Labels, probabilities: Probabilities
) -> pd.DataFrame:
    """A row for each image: index, true and predicted class, and the probability of both.

    Args:
        indices: Of the images among all training images, (N,).
        labels: Of these images, (N,).
        probabilities: (N, 10).
    """
    predicted, rows, names = probabilities.argmax(1), np.arange(len(labels)), np.array(CLASSES)
    return pd.DataFrame(
        {
            "index": indices,
            "true": names[labels],
            "predicted": names[predicted],
            "p_true": probabilities[rows, labels],
            "p_predicted": probabilities[rows, predicted],
        }
    )


def confidently_wrong(images: pd.DataFrame) -> pd.DataFrame:
    """The images of `judged` that are predicted wrong, the surest prediction first."""
    wrong: pd.DataFrame = images[images["true"] != images["predicted"]]
    return wrong.sort_values(["p_predicted", "index"], ascending=[False, True], ignore_index=True)


def hardest(images: pd.DataFrame, count: int) -> pd.DataFrame:
    """Of each class, the `count` images whose true class is given the least probability.

    Returns:
        Rows of `judged`, class by class.
    """
    in_order = images.sort_values(["p_true", "index"])
    own = [in_order[in_order["true"] == name].head(count) for name in CLASSES]
    return pd.concat(own, ignore_index=True)


def likely_label_errors(
    indices: npt.NDArray[np.int64], labels: Labels, probabilities: Probabilities
) -> pd.DataFrame:
    """Images whose label the models contradict surely enough that it may be wrong.

    Confident learning (Northcutt et al., https://arxiv.org/abs/1911.00068): a class counts for an
    image where its probability reaches the mean that it has among the images labelled so; of such
    classes, the most probable. Where that is not the label, off the diagonal of the confident
    joint, and more probable than the label, the image is listed. These are suggestions: models err,
    too.

    Args:
        indices: Of the images among all training images, (N,).
        labels: As they are given, (N,).
        probabilities: By models that did not train on the image, (N, 10).

    Returns:
        index, label, suggested, p_label, p_suggested, and margin: the label's probability less the
        largest of the others, by which the rows are sorted, the least first.
    """
    classes, rows = np.arange(probabilities.shape[1]), np.arange(len(labels))
    # No image is said to be of a class that none is labelled as.
    thresholds = np.array(
        [probabilities[labels == c, c].mean() if (labels == c).any() else np.inf for c in classes]
    )
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    suggested = confident.argmax(1)
    own = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -1.0
    margin = own - others.max(1)
    listed = (confident.max(1) >= 0) & (suggested != labels) & (margin < 0)
    names = np.array(CLASSES)
    frame = pd.DataFrame(
        {
            "index": indices,
            "label": names[labels],
            "suggested": names[suggested],
            "p_label": own,
            "p_suggested": probabilities[rows, suggested],
            "margin": margin,
        }
    )
    suspects: pd.DataFrame = frame[listed]
    return suspects.sort_values(["margin", "index"], ignore_index=True)


def write_mistakes(predictions: "OutOfFold", train: LabelledImages, folder: Path) -> list[Path]:
    """Writes the error analysis of a refit into `folder`, each file whole or not at all.

    - confusion.csv: counts, true by predicted class;
    - classes.csv: accuracy with interval, precision, recall and F1 of each class;
    - mistakes.csv: every image that is predicted wrong, the surest prediction first;
    - label_errors.csv: images whose label may be wrong, the likeliest first;
    - hardest.png, label_errors.png: the first of them, and the hardest of each class, as pictures.

    Args:
        predictions: The refit's; of several seeds, the mean probabilities count.
        train: All training images.
        folder: Made where it is missing.

    Returns:
        The paths of the files.
    """
    indices = predictions.indices
    labels = np.asarray(train.labels)[indices]
    probabilities = probabilities_of(predictions)
    images = judged(indices, labels, probabilities)
    wrong, suspects = confidently_wrong(images), likely_label_errors(indices, labels, probabilities)
    predicted, of_all = probabilities.argmax(1), f"of {len(images):,} images"
    surest = [
        f"Wrong with the most confidence: the first of the {len(wrong):,} {of_all} that are wrong",
        "true -> predicted",
    ]
    least = ["The hardest of each class", "the true one is given the least probability"]
    suspected = [
        f"Likely label errors: the first of {len(suspects):,} {of_all}",
        *LABEL_RULE,
        "label -> suggested",
    ]
    answers = "true", "predicted", "p_predicted"
    of_each = hardest(images, SHOWN // len(CLASSES))
    by_answer = [Part.of(surest, wrong, answers), Part.of(least, of_each, answers)]
    by_label = [Part.of(suspected, suspects, ("label", "suggested", "p_suggested"))]
    files: dict[str, bytes | str] = {
        "confusion.csv": confusion(labels, predicted).to_csv(),
        "classes.csv": per_class(labels, predicted).to_csv(index=False),
        "mistakes.csv": wrong.to_csv(index=False),
        "label_errors.csv": suspects.to_csv(index=False),
        "hardest.png": png(image_sheet(by_answer, train.images)),
        "label_errors.png": png(image_sheet(by_label, train.images)),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]

import numpy as np
import numpy.typing as npt
import pytest

from cifartune.calibration import Calibration, calibration_error, fit_temperature

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def calibrated(count: int, seed: int = 0) -> tuple[Floats, Labels]:
    """Logits whose softmax is the chance of each label, and labels drawn so."""
    random = np.random.default_rng(seed)
    logits = 2 * random.standard_normal((count, 10))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(1)
    return logits, labels


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits)
    told: Floats = powers / powers.sum(1, keepdims=True)
    return told


def test_the_error_is_the_distance_from_confidence_to_accuracy_bin_by_bin() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0])
    # Bins of a half: all four in (0.5, 1]: |2 - 2.95| / 4.
    assert calibration_error(probabilities, labels, bins=2) == pytest.approx(0.95 / 4)
    # Bins of a fifth: (0.8, 1]: 0.9, right; (0.6, 0.8]: 0.8, wrong, and 0.7, right; 0.55, wrong.
    by_hand = (abs(1 - 0.9) + abs(1 - 1.5) + abs(0 - 0.55)) / 4
    assert calibration_error(probabilities, labels, bins=5) == pytest.approx(by_hand)
    # Bins of a twentieth: each alone.
    alone = (0.1 + 0.8 + 0.3 + 0.55) / 4
    assert calibration_error(probabilities, labels, bins=20) == pytest.approx(alone)


def test_a_bin_has_its_upper_end() -> None:
    # 0.5 and 0.25 lie on ends of bins. With (0.25, 0.5] both 0.5 and 0.4 are one bin.
    probabilities = np.array([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25]])
    labels = np.array([0, 1])
    assert calibration_error(probabilities, labels, bins=4) == pytest.approx(abs(1 - 0.9) / 2)
    certain = np.eye(3)
    assert calibration_error(certain, np.arange(3)) == 0
    assert calibration_error(certain, np.array([1, 2, 0])) == 1


def test_calibrated_predictions_have_next_to_no_error() -> None:
    logits, labels = calibrated(100_000)
    assert calibration_error(softmax(logits), labels) < 0.006
    assert calibration_error(softmax(3 * logits), labels) > 0.1


def test_the_error_is_that_of_the_class_that_is_told() -> None:
    probabilities = softmax(calibrated(500)[0])
    labels = np.random.default_rng(1).integers(0, 10, 500)
    shuffled = np.random.default_rng(2).permutation(10)
    places = np.argsort(shuffled)
    error = calibration_error(probabilities, labels)
    assert calibration_error(probabilities[:, shuffled], places[labels]) == pytest.approx(error)
    with pytest.raises(ValueError, match="one image"):
        calibration_error(probabilities[:0], labels[:0])


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.8, 6.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = calibrated(50_000)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.02)


def test_no_other_temperature_has_a_lower_loss() -> None:
    logits, labels = calibrated(200)
    logits = (3 * logits).astype(np.float32)
    best = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        told = softmax(logits.astype(np.float64) / temperature)
        return float(-np.log(told[np.arange(200), labels]).mean())

    others = best * np.exp([-2, -0.1, -0.001, 0.001, 0.1, 2])
    assert all(loss(best) < loss(other) for other in others)


def test_large_logits_and_logits_that_are_all_right_or_all_wrong_are_no_trouble() -> None:
    logits, labels = calibrated(1000)
    shifted = logits + 1e4 * np.arange(1000)[:, None]  # softmax does not see it
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels))
    right, wrong = 50 * np.eye(10)[labels], -50 * np.eye(10)[labels]
    assert 0.01 <= fit_temperature(right, labels) < 2
    assert fit_temperature(wrong, labels) == pytest.approx(100, rel=1e-3)
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(np.full((3, 10), np.nan), labels[:3])
    with pytest.raises(ValueError, match="one image"):
        fit_temperature(logits[:0], labels[:0])


def test_what_is_measured_before_and_after() -> None:
    from sklearn.metrics import log_loss

    logits, labels = calibrated(20_000)
    confident = 2 * logits
    found = Calibration.at(2.0, confident, labels)
    before, after = softmax(confident), softmax(logits)
    assert found.log_loss == pytest.approx(log_loss(labels, before, labels=np.arange(10)))
    assert found.scaled_log_loss == pytest.approx(log_loss(labels, after, labels=np.arange(10)))
    assert found.error == pytest.approx(calibration_error(before, labels))
    assert found.scaled_error == pytest.approx(calibration_error(after, labels))
    assert Calibration(**found.as_dict()) == found
    # An ensemble has probabilities, not logits.
    assert Calibration.at(2.0, np.log(before), labels).as_dict() == pytest.approx(found.as_dict())
    assert (confident.argmax(1) == (confident / 2).argmax(1)).all()


def test_a_fold_is_scaled_as_the_other_folds_want_it() -> None:
    logits, labels = calibrated(30_000)
    fold = np.arange(30_000) % 3
    scale = np.array([1.0, 3.0, 3.0])[fold]
    found = Calibration.out_of_fold(logits * scale[:, None], labels, fold)
    assert 1 < found.temperature < 3
    # Fold 0 is divided by what folds 1 and 2 want, 3, and these by what one of them and it want.
    by_hand = np.empty_like(logits)
    for one in range(3):
        others = fit_temperature((logits * scale[:, None])[fold != one], labels[fold != one])
        by_hand[fold == one] = (logits * scale[:, None])[fold == one] / others
    assert found.scaled_error == pytest.approx(calibration_error(softmax(by_hand), labels))
    assert found.temperature == fit_temperature(logits * scale[:, None], labels)
    with pytest.raises(ValueError, match="two folds"):
        Calibration.out_of_fold(logits, labels, np.zeros(30_000, dtype=np.int64))


def test_scaling_mends_what_is_too_sure() -> None:
    logits, labels = calibrated(30_000)
    found = Calibration.out_of_fold(2.5 * logits, labels, np.arange(30_000) % 5)
    assert found.temperature == pytest.approx(2.5, rel=0.02)
    assert found.scaled_error < 0.01 < 0.05 < found.error
    assert found.scaled_log_loss < found.log_loss
    same = Calibration.out_of_fold(logits, labels, np.arange(30_000) % 5)
    assert same.temperature == pytest.approx(1, rel=0.02)
    assert same.scaled_log_loss == pytest.approx(same.log_loss, rel=1e-3)

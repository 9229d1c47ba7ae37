import pytest

from cifartune.statistics import Accuracy


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in
        # Medicine 17 (1998), table I: Wilson's score method without continuity correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(correct: int, total: int, low: float, high: float) -> None:
    accuracy = Accuracy.of(correct, total)
    assert accuracy.value == correct / total
    assert (accuracy.low, accuracy.high) == pytest.approx((low, high), abs=5e-5)


def test_an_accuracy_can_be_written_and_read() -> None:
    accuracy = Accuracy.of(9012, 10_000)
    assert Accuracy(**accuracy.as_dict()) == accuracy
    assert str(accuracy) == "90.12% (95 % interval 89.52% to 90.69%)"

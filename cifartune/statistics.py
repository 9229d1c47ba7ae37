"""Intervals: how sure a measured accuracy is."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, total: int) -> "Accuracy":
        """The accuracy of `correct` among `total` images, with Wilson's interval.

        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
        """
        from scipy.stats import binomtest

        interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
        return cls(correct / total, float(interval.low), float(interval.high))

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2%} (95 % interval {self.low:.2%} to {self.high:.2%})"

"""What coverage.py found, as the section of docs/PERFORMANCE.md to which docs/METHOD.md refers."""

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]

TABLES: list[tuple[str, str, list[tuple[str, Callable[[Row], str]]]]] = [
    (
        "interval of an accuracy",
        "The 95 % intervals of an accuracy hold the truth: the mean over all training sets, or "
        "that over training runs on the images at hand.",
        [
            ("seeds", lambda row: str(row["world"]["seeds"])),
            ("by folds, all training sets", lambda row: rate(row, "folds")),
            ("by folds, these images", lambda row: rate(row, "folds, these images")),
            ("Wilson's, all training sets", lambda row: rate(row, "pooled")),
        ],
    ),
    (
        "interval of a difference",
        "The 95 % interval of a difference by folds holds the mean over all training sets.",
        [
            ("seeds", lambda row: str(row["world"]["seeds"])),
            ("by folds", lambda row: rate(row, "folds")),
            ("as if seeds were folds", lambda row: rate(row, "folds and seeds")),
        ],
    ),
    (
        "verdict",
        "The first of two recipes, which is ahead by so many points, is called better, or worse.",
        [
            ("ahead by", lambda row: gap(row, 0, 1)),
            ("better", lambda row: rate(row, "better", 0.0)),
            ("worse", lambda row: rate(row, "worse", 0.0)),
        ],
    ),
    (
        "best candidate dropped",
        "The best candidate, ahead of the others by so many points, is dropped in the race.",
        [
            ("candidates", lambda row: str(len(row["world"]["accuracies"]))),
            ("ahead by", lambda row: gap(row, 0, 1)),
            ("dropped", lambda row: rate(row, "dropped")),
        ],
    ),
    (
        "candidate behind dropped",
        "The last of three candidates, behind by so many points, is dropped in the race.",
        [
            ("behind by", lambda row: gap(row, 0, 2)),
            ("dropped", lambda row: rate(row, "dropped")),
            ("by the third fold", lambda row: rate(row, "dropped_by_fold_3")),
        ],
    ),
    (
        "whole refit",
        "Race, choice of the winner and verdicts, one after the other: the winner is called better "
        "than the baseline, or than any. Where the second is ahead by 0 points, all are as good, "
        "and each of these is an error.",
        [
            ("candidates", lambda row: str(len(row["world"]["accuracies"]))),
            ("second ahead by", lambda row: gap(row, 1, 0)),
            ("than the baseline", lambda row: rate(row, "baseline")),
            ("than any", lambda row: rate(row, "any")),
            ("somebody was dropped", lambda row: rate(row, "dropped")),
        ],
    ),
    (
        "winner called better",
        "The best of equal recipes is called better, where the error rate is shared among so many "
        "comparisons.",
        [
            ("candidates", lambda row: str(len(row["world"]["accuracies"]))),
            ("comparisons", lambda row: str(row["comparisons"])),
            ("than the baseline", lambda row: rate(row, "baseline")),
            ("than the next", lambda row: rate(row, "runner-up")),
            ("than either", lambda row: rate(row, "any")),
        ],
    ),
    (
        "best of 64 trials by images alone",
        "What `compare` refuses: the best of 64 equal trials is called better than the baseline by "
        "McNemar's test on the 5,000 images that chose it.",
        [("better", lambda row: rate(row, "better"))],
    ),
]
"""Of each case: its name, what is asked, and the columns behind those of all."""


def coverage(result: Row) -> Iterator[str]:
    """All tables of what is there."""
    real = result["real"]
    yield (
        "Bars: Wilson's interval covers 94 to 96 %, the corrected resampled t at least 93 %. The "
        "luck of a training run and that of a training set are standard deviations of accuracy, in "
        "points; that of training sets is drawn for each recipe alone."
    )
    yield "\nWilson's interval, summed over all counts:\n"
    yield "| images | accuracy | covers |"
    yield "|---|---|---|"
    for row in result["wilson"]:
        yield (
            f"| {row['images']:,} | {100 * row['accuracy']:.0f} % | {100 * row['coverage']:.2f} % |"
        )
    for name, asked, columns in TABLES:
        rows = [row for row in result["simulated"] if row["name"] == name]
        if not rows:
            continue
        yield f"\n{asked}\n"
        yield f"| luck of a run | of a training set | {' | '.join(c for c, _ in columns)} | n |"
        yield f"|{'---|' * (len(columns) + 3)}"
        for row in rows:
            world = row["world"]
            cells = [f"{100 * world['training']:g}", f"{100 * world['data']:g}"]
            cells += [figure(row) for _, figure in columns]
            yield f"| {' | '.join(cells)} | {row['n']:,} |"
    yield (
        f"\nReal trainings: in {real['corrected_t_holds']} of {real['draws']} draws the interval "
        "by folds holds the mean accuracy of the fold models on the other images (bar: 35 of 40); "
        f"Wilson's in {real['wilson_holds']}."
    )


def rate(row: Row, name: str, otherwise: float | None = None) -> str:
    """A rate in percent; `otherwise`: where the file has none because it never happened."""
    share = row.get(name, otherwise)
    return "not measured" if share is None else f"{100 * share:.1f} %"


def gap(row: Row, first: int, second: int) -> str:
    """How many points one recipe is ahead of another."""
    accuracies = row["world"]["accuracies"]
    return f"{100 * (accuracies[first] - accuracies[second]):.1f}".replace("-0.0", "0.0")

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from cifartune.refit.race import Dropped, drop
from cifartune.statistics import Interval, Right

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"

Folds = npt.NDArray[np.int64]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def predictions(*right: Sequence[int], images: int = 1000) -> tuple[dict[int, Right], Folds]:
    """Candidates 0, 1, ... that get so many images of each fold right, the first of the fold."""
    fold = np.repeat(np.arange(len(right[0])), images)
    ranks = np.arange(len(fold)) % images
    return {n: (ranks < np.array(own)[fold])[None] for n, own in enumerate(right)}, fold


def test_who_is_clearly_behind_is_dropped_with_what_was_found() -> None:
    good, bad = (940, 945, 938), (860, 870, 852)
    scores, fold = predictions(good, bad)
    found = drop(scores, fold, folds=5, candidates=2)
    assert list(found) == [1]
    dropped = found[1]
    differences = (np.array(bad) - good) / 1000
    # Nadeau and Bengio: 1/3 + 0.2/0.8 times the variance, which here is below that of the images.
    by_images = np.mean([-d * (1 + d) * 1000 / 999 for d in differences]) / 1000
    assert differences.var(ddof=1) < by_images
    deviation = np.sqrt((1 / 3 + 1 / 4) * by_images)
    p = stats.t.cdf(differences.mean() / deviation, 2)
    half = stats.t.ppf(0.975, 2) * deviation
    assert (dropped.rival, dropped.folds) == (0, 3)
    assert dropped.level == pytest.approx(0.05 / 3)
    assert dropped.p == pytest.approx(p) and p < dropped.level
    assert dropped.difference.value == pytest.approx(differences.mean())
    assert dropped.difference.high == pytest.approx(differences.mean() + half)
    assert dropped.difference.low == pytest.approx(differences.mean() - half)


def test_the_variance_of_folds_counts_where_it_is_more_than_that_of_images() -> None:
    good, bad = (940, 945, 938), (860, 900, 820)
    scores, fold = predictions(good, bad)
    assert drop(scores, fold, folds=5, candidates=2) == {}
    # With the same mean, but steady:
    steady, _ = predictions(good, (859, 864, 857))
    assert list(drop(steady, fold, folds=5, candidates=2)) == [1]
    # A plain test would drop the other too.
    differences = (np.array(bad) - good) / 1000
    assert stats.ttest_1samp(differences, 0, alternative="less").pvalue < 0.05


def test_two_folds_with_the_same_difference_prove_nothing() -> None:
    scores, fold = predictions((940, 940), (935, 935))
    assert drop(scores, fold, folds=5, candidates=2) == {}
    scores, fold = predictions((940, 940), (940, 940))
    assert drop(scores, fold, folds=5, candidates=2) == {}


def test_more_candidates_and_more_looks_ask_for_more() -> None:
    scores, fold = predictions((940, 945, 938), (910, 914, 909))
    assert list(drop(scores, fold, folds=5, candidates=2)) == [1]
    assert drop(scores, fold, folds=5, candidates=20) == {}


def test_the_rival_is_the_one_that_the_test_is_surest_of() -> None:
    good, better, bad = (940, 945, 938), (950, 953, 947), (860, 870, 852)
    scores, fold = predictions(good, bad, better)
    found = drop(scores, fold, folds=5, candidates=3)
    assert {number: dropped.rival for number, dropped in found.items()} == {1: 2}
    # Of two that are the same, the first trial.
    scores, fold = predictions(good, good, bad)
    assert drop(scores, fold, folds=5, candidates=3)[2].rival == 0


def test_neither_the_order_of_candidates_nor_that_of_images_matters() -> None:
    from simulated_folds import World

    right, fold = next(World((0.94, 0.9, 0.95, 0.91)).draws(1, seed=1))
    seen = fold < 3
    scores, fold = {7 * n: own[:, seen] for n, own in enumerate(right)}, fold[seen]
    found = drop(scores, fold, folds=5, candidates=4)
    assert set(found) == {7, 21}
    assert drop(dict(reversed(scores.items())), fold, folds=5, candidates=4) == found
    order = np.random.default_rng(0).permutation(len(fold))
    mixed = drop(
        {n: own[:, order] for n, own in scores.items()}, fold[order], folds=5, candidates=4
    )
    assert {n: one.rival for n, one in mixed.items()} == {n: one.rival for n, one in found.items()}
    assert [one.p for one in mixed.values()] == pytest.approx([one.p for one in found.values()])


def test_scores_may_be_losses_and_seeds_several() -> None:
    random = np.random.default_rng(0)
    fold = np.repeat(np.arange(3), 500)
    low, high = (random.exponential(mean, (2, 1500)) for mean in (0.2, 0.4))
    found = drop({3: -low, 5: -high}, fold, folds=5, candidates=2)
    assert list(found) == [5] and found[5].difference.value == pytest.approx(-0.2, abs=0.03)
    # Runs of the same folds leave the degrees of freedom as they are: two.
    gains = [(low - high)[:, fold == one] for one in range(3)]
    differences = np.array([gain.mean(1) for gain in gains])
    images = np.mean([gain.var(1, ddof=1) for gain in gains]) / 500
    variance = max(differences.var(ddof=1), images)
    statistic = differences.mean() / np.sqrt((1 / 6 + 1 / 4) * variance)
    assert found[5].p == pytest.approx(stats.t.cdf(statistic, 2))
    assert drop({3: low, 5: high}, fold, folds=5, candidates=2).keys() == {3}


def test_what_cannot_be_asked_is_refused() -> None:
    scores, fold = predictions((900, 900, 900), (900, 900, 900))
    with pytest.raises(ValueError, match="3 of 3 folds"):
        drop(scores, fold, folds=3, candidates=2)
    one, first = predictions((900,), (900,))
    with pytest.raises(ValueError, match="1 of 5 folds"):
        drop(one, first, folds=5, candidates=2)
    with pytest.raises(ValueError, match="2 of 1 candidates"):
        drop(scores, fold, folds=5, candidates=1)
    assert drop({4: scores[0]}, fold, folds=5, candidates=3) == {}


def test_what_was_found_can_be_written_and_read() -> None:
    dropped = Dropped(3, 2, Interval(-0.03, -0.04, -0.02), 0.001, 0.0125)
    told = json.loads(json.dumps(dropped.as_dict()))
    assert Dropped(**{**told, "difference": Interval(**told["difference"])}) == dropped
    assert replace(dropped, rival=4) != dropped


@pytest.mark.parametrize("training", [0.002, 0.005])
@pytest.mark.parametrize(("candidates", "gap"), [(2, 0.0), (4, 0.0), (4, 0.001), (10, 0.001)])
def test_the_best_is_dropped_in_five_percent_of_refits_at_most(
    training: float, candidates: int, gap: float
) -> None:
    # benchmarks/results/coverage.json has the measured rates of many more refits.
    from simulated_folds import World, race_outcomes

    world = World((0.94 + gap, *(candidates - 1) * [0.94]), training=training, data=training / 2)
    assert race_outcomes(world, 200, of=0)["dropped"] <= 0.02


def test_without_its_care_the_rule_would_drop_the_best_far_more_often() -> None:
    from simulated_folds import World

    world = World(4 * (0.94,), training=0.005, data=0.0025)
    dropped, refits = 0, 200
    for right, fold in world.draws(refits, seed=0):
        accuracies = np.array([[own[0][fold == f].mean() for f in range(4)] for own in right])
        leads = accuracies[0] - accuracies[1:]
        for done in (2, 3, 4):
            deviation = leads[:, :done].std(1, ddof=1) / np.sqrt(done)
            limit = -stats.t.ppf(0.95, done - 1) * deviation
            if (leads[:, :done].mean(1) < limit).any():
                dropped += 1
                break
    assert dropped > 0.15 * refits


@pytest.mark.parametrize(
    ("training", "by_fold_3", "at_all"), [(0.002, 0.8, 0.95), (0.005, 0.5, 0.8)]
)
def test_who_is_three_points_behind_is_mostly_dropped_after_three_folds(
    training: float, by_fold_3: float, at_all: float
) -> None:
    from simulated_folds import World, race_outcomes

    world = World((0.94, 0.94, 0.91), training=training, data=training / 2)
    found = race_outcomes(world, 200, of=2)
    assert found["dropped_by_fold_3"] > by_fold_3
    assert found["dropped"] > at_all

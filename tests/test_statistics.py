import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cifartune.statistics import (
    Accuracy,
    Right,
    compare,
    corrected_t,
    corrected_t_test,
    fold_accuracies,
    fold_differences,
    paired,
)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def pair(both: int, only_first: int, only_second: int, neither: int) -> tuple[Right, Right]:
    """Two models that get so many images right, both, one of them, or neither."""
    counts = (both, only_first, only_second, neither)
    first = np.repeat([True, True, False, False], counts)
    return first, np.repeat([True, False, True, False], counts)


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


@pytest.mark.parametrize(("correct", "total"), [(9012, 10_000), (47_031, 50_000), (40, 40)])
def test_statsmodels_has_the_same_interval(correct: int, total: int) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    accuracy = Accuracy.of(correct, total)
    expected = proportion.proportion_confint(correct, total, alpha=0.05, method="wilson")
    assert (accuracy.low, accuracy.high) == pytest.approx(expected, abs=1e-9)


def test_an_accuracy_can_be_written_and_read() -> None:
    accuracy = Accuracy.of(9012, 10_000)
    assert Accuracy(**accuracy.as_dict()) == accuracy
    assert str(accuracy) == "90.12% (95 % interval 89.52% to 90.69%)"


def test_more_runs_are_not_more_images() -> None:
    right = np.array([[True] * 90 + [False] * 10, [True] * 94 + [False] * 6])
    accuracy = Accuracy.of_runs(right)
    assert accuracy.value == 0.92
    one = Accuracy.of(92, 100)
    assert (accuracy.low, accuracy.high) == (one.low, one.high)
    assert Accuracy.of_runs(right[:1]) == Accuracy.of(90, 100)


@pytest.mark.parametrize("accuracy", [0.90, 0.94, 0.96])
@pytest.mark.parametrize("images", [10_000, 50_000])
def test_wilsons_interval_covers_what_it_says(accuracy: float, images: int) -> None:
    # Not drawn but summed over all counts: 94.9 to 95.1 %, in benchmarks/results/coverage.json.
    from simulated_folds import wilson_coverage

    assert 0.948 < wilson_coverage(accuracy, images) < 0.952


def test_the_corrected_interval_is_as_by_hand() -> None:
    values = [0.938, 0.942, 0.940, 0.945, 0.935]  # mean 0.940, variance 5.8e-5 / 4
    deviation = np.sqrt((1 / 5 + 0.2 / 0.8) * 5.8e-5 / 4)
    half = 2.7764451 * deviation  # of Student's t with four degrees of freedom
    found = corrected_t(values, 0.2)
    assert found.value == pytest.approx(0.94)
    assert (found.low, found.high) == pytest.approx((0.94 - half, 0.94 + half))
    # Against independent training sets it is 1.5 times as wide: the root of 1 + 5 / 4.
    plain = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found.high - found.low == pytest.approx(1.5 * (plain[1] - plain[0]))


def test_the_corrected_test_is_that_of_scikit_learns_example() -> None:
    # scikit-learn's user guide, "Statistical comparison of models using grid search", which states
    # t = 0.750 and p = 0.227, one-sided, for a radial and a linear kernel.
    from sklearn.datasets import make_moons
    from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
    from sklearn.svm import SVC

    images, labels = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    radial, linear = (
        cross_val_score(
            SVC(kernel=kernel, random_state=0), images, labels, scoring="roc_auc", cv=folds
        )
        for kernel in ("rbf", "linear")
    )
    differences = (radial - linear).tolist()
    assert corrected_t_test(differences, 0.1) / 2 == pytest.approx(0.227, abs=5e-4)
    found = corrected_t(differences, 0.1)
    deviation = (found.high - found.value) / stats.t.ppf(0.975, 99)
    assert found.value / deviation == pytest.approx(0.750, abs=5e-4)


def test_interval_and_test_agree() -> None:
    differences = [0.004, 0.001, 0.006, 0.003, 0.002]
    found = corrected_t(differences, 0.2)
    shifted = [difference - found.low for difference in differences]
    assert corrected_t_test(shifted, 0.2) == pytest.approx(0.05)
    negative = [-difference for difference in differences]
    assert corrected_t_test(negative, 0.2) == corrected_t_test(differences, 0.2)


def test_runs_of_the_same_folds_add_no_degrees_of_freedom() -> None:
    values = [0.94, 0.95, 0.93, 0.96, 0.94, 0.95]
    found = corrected_t(values, 1 / 3, seeds=2)
    half = stats.t.ppf(0.975, 2) * np.sqrt((1 / 6 + 1 / 2) * np.var(values, ddof=1))
    assert found.high - found.value == pytest.approx(half)
    differences = [value - 0.93 for value in values]
    p = corrected_t_test(differences, 1 / 3, seeds=2)
    statistic = np.mean(differences) / np.sqrt((1 / 6 + 1 / 2) * np.var(values, ddof=1))
    assert p == pytest.approx(2 * stats.t.sf(statistic, 2))


def test_a_variance_that_is_known_is_the_least() -> None:
    steady = [0.01, 0.01, 0.01]
    alone = corrected_t(steady, 0.2)
    assert (alone.low, alone.value, alone.high) == pytest.approx((0.01, 0.01, 0.01))
    assert corrected_t_test(steady, 0.2) == pytest.approx(0, abs=1e-12)
    assert corrected_t_test([0.0, 0.0, 0.0], 0.2) == 1
    found = corrected_t(steady, 0.2, least_variance=1e-4)
    half = stats.t.ppf(0.975, 2) * np.sqrt((1 / 3 + 1 / 4) * 1e-4)
    assert found.high - found.value == pytest.approx(half)
    p = corrected_t_test(steady, 0.2, least_variance=1e-4)
    assert p == pytest.approx(2 * stats.t.sf(0.01 / np.sqrt((1 / 3 + 1 / 4) * 1e-4), 2))
    assert corrected_t([0.0, 0.2], 0.2, least_variance=1e-4) == corrected_t([0.0, 0.2], 0.2)


@pytest.mark.parametrize(("values", "seeds"), [([0.9], 1), ([0.9, 0.8], 2), ([0.9, 0.8, 0.7], 2)])
def test_one_fold_has_no_interval(values: list[float], seeds: int) -> None:
    with pytest.raises(ValueError, match="two or more folds"):
        corrected_t(values, 0.2, seeds=seeds)
    with pytest.raises(ValueError, match="two or more folds"):
        corrected_t_test(values, 0.2, seeds=seeds)


def test_the_interval_of_a_difference_is_bonett_and_prices() -> None:
    # The two examples of Fagerland, Lydersen and Laake, "Statistical Analysis of Contingency
    # Tables" (2017), chapter 8, with the results of the authors' R package `contingencytables`.
    cavo = paired(*pair(59, 6, 16, 80))
    assert cavo.difference.value == pytest.approx(-0.0621, abs=5e-5)
    limits = cavo.difference.low, cavo.difference.high
    assert limits == pytest.approx((-0.1195, -0.0032), abs=5e-5)
    assert cavo.p == pytest.approx(0.052479, abs=5e-7)  # McNemar's exact conditional test
    assert (cavo.only_first, cavo.only_second) == (6, 16)
    # Bentur's by hand: (2 - 8) / 23 +- 1.96 * sqrt((2/23 + 8/23 - (6/23)^2) / 23).
    bentur = paired(*pair(1, 1, 7, 12)).difference
    half = 1.959964 * np.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    assert (bentur.low, bentur.high) == pytest.approx((-6 / 23 - half, -6 / 23 + half))


@pytest.mark.parametrize(("ahead", "behind"), [(0, 0), (3, 0), (5, 5), (40, 61), (1520, 1405)])
def test_mcnemars_exact_test_is_that_of_statsmodels(ahead: int, behind: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    expected = tables.mcnemar([[50, ahead], [behind, 20]], exact=True).pvalue
    assert paired(*pair(50, ahead, behind, 20)).p == pytest.approx(expected)
    assert paired(*pair(50, behind, ahead, 20)).p == pytest.approx(expected)


def test_two_that_always_disagree_and_two_that_never_do() -> None:
    apart = paired(*pair(0, 30, 0, 0)).difference
    assert apart.value == apart.high == 1 and 0.8 < apart.low < 1
    same = paired(*pair(30, 0, 0, 10))
    assert same.difference.value == 0 and same.difference.low == -same.difference.high
    assert same.p == 1
    with pytest.raises(ValueError, match="same images"):
        paired(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="same images"):
        paired(np.ones(0, dtype=bool), np.ones(0, dtype=bool))


def test_bonett_and_prices_interval_covers_what_it_says() -> None:
    random = np.random.default_rng(0)
    count, more, less = 10_000, 0.032, 0.028
    drawn = random.multinomial(count, [more, less, 1 - more - less], size=1000)
    covers = []
    for ahead, behind, rest in drawn:
        found = paired(*pair(rest, ahead, behind, 0)).difference
        covers.append(found.low <= more - less <= found.high)
    assert 0.93 < np.mean(covers) < 0.97  # 1000 of them


def folds_of(images: int, folds: int = 5) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(images) * folds // images


def test_accuracies_and_differences_are_of_each_seed_and_fold() -> None:
    right = np.array([[1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 1, 1]], dtype=bool)
    fold = np.array([0, 1, 0, 1, 0, 1])
    assert fold_accuracies(right, fold) == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert fold_accuracies(right[0], fold) == pytest.approx([1 / 3, 2 / 3])
    none = np.zeros_like(right)
    assert fold_differences(none, right, fold) == pytest.approx([-1 / 3, -2 / 3, -2 / 3, -2 / 3])
    with pytest.raises(ValueError, match="shorter"):
        fold_differences(right, right[0], fold)


def test_who_is_better_is_told_from_both_sides() -> None:
    from simulated_folds import World

    right, fold = next(World((0.95, 0.93)).draws(1, seed=0))
    found, turned = compare(right[0], right[1], fold), compare(right[1], right[0], fold)
    assert (found.verdict, turned.verdict) == ("better", "worse")
    assert found.folds and turned.folds and found.folds_p == turned.folds_p
    assert found.folds.low == pytest.approx(-turned.folds.high)
    assert found.images.p == turned.images.p < 1e-6
    assert found.images == paired(right[0, 0], right[1, 0])
    # One run of each need not be told as one of several.
    assert compare(right[0, 0], right[1, 0], fold) == found
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == "better"


def test_a_recipe_cannot_be_told_from_itself() -> None:
    from simulated_folds import World

    right, fold = next(World((0.94,), seeds=2).draws(1, seed=0))
    found = compare(right[0], right[0], fold)
    assert found.verdict == "cannot be told apart"
    assert (found.images.p, found.folds_p) == (1, 1)


def test_what_only_images_or_only_folds_say_is_not_enough() -> None:
    fold = folds_of(5000)
    rank = np.arange(5000) % 1000
    base = rank < 900

    def ahead_by(*gains: int) -> Right:
        limits = 900 + np.array(gains)
        told: Right = rank < limits[fold]
        return told

    # Far ahead in one fold alone: a lucky run. McNemar's test is sure, folds are not.
    lucky = compare(ahead_by(60, 1, 2, 0, 0), base, fold)
    assert lucky.images.p < 1e-9 and lucky.folds_p and lucky.folds_p > 0.05
    assert lucky.verdict == "cannot be told apart"
    # One image ahead in every fold: folds are sure, the images are too few.
    steady = compare(ahead_by(1, 1, 1, 1, 1), base, fold)
    assert steady.folds_p == pytest.approx(0, abs=1e-9) and steady.images.p > 0.05
    assert steady.verdict == "cannot be told apart"
    assert compare(ahead_by(20, 25, 22, 19, 21), base, fold).verdict == "better"
    # Without folds the images speak for themselves, of these models.
    alone = compare(ahead_by(60, 1, 2, 0, 0), base, None)
    assert (alone.verdict, alone.folds, alone.folds_p) == ("better", None, None)


def test_more_comparisons_ask_for_more() -> None:
    fold, rank = folds_of(5000), np.arange(5000) % 1000
    ahead, base = rank < (900 + np.array([20, 32, 9, 26, 13]))[fold], rank < 900
    found = compare(ahead, base, fold)
    assert found.folds_p and 0.01 < found.folds_p < 0.05
    assert found.verdict == "better"
    assert compare(ahead, base, fold, comparisons=5).verdict == "cannot be told apart"


def test_folds_that_are_missing_count_for_what_a_fold_holds_out() -> None:
    from simulated_folds import World

    right, fold = next(World((0.95, 0.94)).draws(1, seed=0))
    seen = fold < 3
    first, second, three = right[0][:, seen], right[1][:, seen], fold[seen]
    differences = fold_differences(first, second, three)
    told = compare(first, second, three, total_folds=5)
    assert told.folds == corrected_t(differences, 1 / 5)
    assert told.folds_p == corrected_t_test(differences, 1 / 5)
    assert compare(first, second, three).folds == corrected_t(differences, 1 / 3)


def test_seeds_that_only_one_of_them_has_are_left_out() -> None:
    from simulated_folds import World

    right, fold = next(World((0.95, 0.94), seeds=3).draws(1, seed=0))
    assert compare(right[0], right[1, :2], fold) == compare(right[0, :2], right[1, :2], fold)
    three = compare(right[0], right[1], fold)
    assert three.folds and three.folds.value == pytest.approx(
        float(right[0].mean() - right[1].mean())
    )
    with pytest.raises(ValueError, match="two or more folds"):
        compare(right[0], right[1], np.zeros_like(fold))


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("training", [0.0005, 0.005])
def test_the_corrected_interval_covers_at_least_what_it_should(training: float, seeds: int) -> None:
    # benchmarks/results/coverage.json has the coverage in many more.
    from simulated_folds import World, accuracy_coverage, difference_coverage

    one = World((0.94,), training=training, data=training / 2, seeds=seeds)
    assert accuracy_coverage(one, 300)["folds"] >= 0.93
    two = World((0.943, 0.94), training=training, data=training / 2, seeds=seeds)
    assert difference_coverage(two, 300)["folds"] >= 0.93


def test_what_the_corrections_are_for() -> None:
    from simulated_folds import World, accuracy_coverage, difference_coverage

    # Wilson's interval knows nothing of the luck of training.
    lucky = accuracy_coverage(World((0.94,), training=0.005, data=0.002), 400)
    assert lucky["pooled"] < 0.7 < 0.93 <= lucky["folds"]
    # Seeds are no folds: where images decide, ten runs say what one says.
    alike = World((0.94, 0.94), training=0.0, data=0.0, leaning=0.5, seeds=10)
    found = difference_coverage(alike, 200)
    assert found["folds and seeds"] < 0.93 <= found["folds"]


@pytest.mark.parametrize("training", [0.0005, 0.002, 0.005])
def test_equal_recipes_are_told_apart_in_five_percent_at_most(training: float) -> None:
    from simulated_folds import World, verdicts

    equal = World((0.94, 0.94), training=training, data=training / 2)
    assert verdicts(equal, 500).get("cannot be told apart", 0) >= 0.95


def test_one_point_is_mostly_told_where_runs_differ_little() -> None:
    from simulated_folds import World, verdicts

    assert verdicts(World((0.95, 0.94), training=0.002, data=0.001), 200)["better"] > 0.7


def test_the_best_of_equal_recipes_is_called_better_in_five_percent_at_most() -> None:
    from simulated_folds import World, winners

    assert winners(World(6 * (0.94,)), 300, comparisons=15)["any"] <= 0.05


def test_the_luck_of_training_images_is_counted_only_as_far_as_the_folds_show_it() -> None:
    """docs/METHOD.md: the interval by folds is about training again on these images."""
    from simulated_folds import World, accuracy_coverage

    found = accuracy_coverage(World((0.94,), training=0.002, data=0.005), 300)
    assert found["folds"] < 0.85 < 0.93 <= found["folds, these images"]


def test_accuracies_on_the_images_at_hand_are_those_that_runs_have_on_average() -> None:
    from simulated_folds import World

    world = World((0.94, 0.9), training=0.0, data=0.02, leaning=0.0)
    draws = zip(world.draws(20, seed=1), world.given_images(20, seed=1), strict=True)
    for (right, _), given in draws:
        assert right.mean((1, 2)) == pytest.approx(given, abs=0.006)
        assert np.abs(given - world.accuracies).max() > 0


@pytest.mark.parametrize("count", [2, 4])
def test_race_and_verdict_together_err_in_five_percent_at_most(count: int) -> None:
    from simulated_folds import World, refits

    found = refits(World(count * (0.94,)), 200)
    assert found["baseline"] <= found["any"] <= 0.05


def test_race_and_verdict_together_find_who_is_far_ahead() -> None:
    from simulated_folds import World, refits

    found = refits(World((0.92, 0.95, 0.94), training=0.001, data=0.0005), 50)
    assert found["baseline"] > 0.9 and found["dropped"] > 0.9


def test_the_best_of_many_trials_looks_better_on_the_images_that_chose_it() -> None:
    """Which is why `compare` gives no verdict there."""
    from simulated_folds import World, chosen_trials

    assert chosen_trials(World(65 * (0.94,), images=5000), 100)["better"] > 0.25


def test_whatever_is_simulated_is_told() -> None:
    from coverage import cases
    from coverage_page import TABLES, coverage

    asked = list(cases())
    assert {case.name for case in asked} == {name for name, _, _ in TABLES}
    rates = {"folds": 0.5, "better": 0.25, "dropped": 0.125, "baseline": 0.75, "any": 1.0}
    rows = [{**case.about(), "n": 7, **rates} for case in asked]
    real = {"draws": 40, "corrected_t_holds": 39, "wilson_holds": 30}
    lines = list(coverage({"real": real, "wilson": [], "simulated": rows}))
    told = [line for line in lines if line.endswith("| 7 |")]
    assert len(told) == len(asked) == len(set(map(repr, rows)))
    assert told[0] == "| 0.05 | 0.02 | 1 | 50.0 % | not measured | not measured | 7 |"
    tables = "\n".join(lines).split("\n\n")
    for table in tables:
        rows_of_it = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows_of_it}) <= 1, table
    assert "39 of 40" in lines[-1]

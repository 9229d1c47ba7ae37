"""The answer of a search for its report: verdict, accuracies, the winner, the leaderboard."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd
import yaml

from cifartune.config import Recipe
from cifartune.report.answer import percent, verdict_lines, views
from cifartune.report.document import Code, Figure, Folded, Part, Section, Table, Text, Tone
from cifartune.report.figures import BLUE, GREY, ORANGE
from cifartune.report.frames import COMPLETE, FAILED, STOPPED, kind_of, leaderboard_frame
from cifartune.report.searched import Searched
from cifartune.report.tables import show, show_value
from cifartune.tuning.study import kept_epoch

LEADERBOARD = 20
"""Trials on the leaderboard at the most; all are in trials.csv."""

Told = dict[str, Any]
"""An interval as result.json holds it: `value`, `low`, `high`."""


def verdict(searched: Searched) -> tuple[str, Tone]:
    """The answer in a sentence, and how sure it is: `sure`, `open`, or `none`."""
    result = searched.result
    if result is None:
        return _so_far(searched), "none"
    winner, trials = result["winner_trial"], result["trials"]["total"]
    # Recipes that were refused have numbers, too.
    refused = result["trials"]["refused"]
    name = f"Trial {winner}" + (f", of {trials} trained," if refused else f" of {trials}")
    of_baseline = [one for one in result["verdicts"] if not one["rival"]]
    if not winner and len(result["candidates"]) == 1:
        return f"The baseline alone was refit: {_recipe_accuracy(result)} out of fold.", "none"
    if not winner:
        rival = result["verdicts"][0]
        best, by = f"trial {rival['rival']}, the next best", _difference(rival["folds"])
        told = f"The hand-set baseline won over {trials - 1} other trials: "
        if rival["verdict"] == "better":
            return f"{told}better than {best}, by {by}.", "sure"
        if rival["verdict"] == "worse":  # where the search chooses by loss
            return f"{told}it has the least loss, and is less accurate than {best}: {by}.", "open"
        return f"{told}it cannot be told apart from {best} ({by}).", "open"
    if not of_baseline:
        why = "whose refit failed" if 0 in result["failed_refits"] else "which was not refit"
        return (
            f"{name} won, with {_recipe_accuracy(result)} out of fold; it was "
            f"not held against the baseline, {why}.",
            "none",
        )
    [told] = of_baseline
    by = _difference(told["folds"])
    if told["verdict"] == "cannot be told apart":
        return (
            f"{name} came out first, but cannot be told apart from the hand-set baseline: {by}.",
            "open",
        )
    if told["verdict"] == "worse":  # where the search chooses by loss
        return (
            f"{name} has the least loss, and is less accurate than the hand-set baseline: {by}.",
            "open",
        )
    return (
        f"{name} won: better than the hand-set baseline by {by.lstrip('+')}.",
        "sure",
    )


def _so_far(searched: Searched) -> str:
    """What can be said of an unfinished search."""
    if searched.best is None:
        return "No trial has a result yet."
    trial = searched.study.trials[searched.best]
    value = show(searched.metric, trial.intermediate_values[kept_epoch(trial)])
    name = f"trial {trial.number}" if trial.number else "the baseline"
    return (
        f"No answer yet. The best trial so far is {name}, with {searched.metric} {value}, which "
        "these images chose: it will be worse on others."
    )


def _difference(told: Told) -> str:
    value, low, high = (100 * told[key] for key in ("value", "low", "high"))
    return f"{value:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})"


def _recipe_accuracy(result: dict[str, Any]) -> str:
    return _with_interval(result["cv_accuracy_by_folds"])


def _with_interval(told: Told) -> str:
    return f"{told['value']:.2%} ({told['low']:.2%} to {told['high']:.2%})"


def how_sure(searched: Searched) -> list[str]:
    """What follows the verdict: the p-values, and what the winner is worth on other images."""
    result = searched.result
    if result is None:
        return []
    [*lines] = verdict_lines(result)
    lines = [line.strip() for line in lines if line.startswith("  ")][:1]
    told = [f"How sure: {lines[0]}."] if lines else []
    accuracy = f"Trained again, its recipe gets {_recipe_accuracy(result)} of unseen images right"
    if test := result["test_accuracy"]:
        name = "the test set" if _is_real(result) else "the images that stand in for the test set"
        accuracy += f"; the ensemble of its fold models {_with_interval(test)} of {name}"
    return [*told, f"{accuracy}."]


def _is_real(result: dict[str, Any]) -> bool:
    return bool(result["test_set"] == "CIFAR-10 test")


def headlines(searched: Searched) -> list[tuple[str, str, str]]:
    """The first numbers of a finished search: label, value, remark."""
    result = searched.result
    if result is None:
        return []
    folds, test = result["cv_accuracy_by_folds"], result["test_accuracy"]
    found = [
        (
            f"{result['folds']}-fold cross-validation",
            percent(folds["value"]),
            f"the recipe: {folds['low']:.2%} to {folds['high']:.2%}",
        )
    ]
    if test:
        label = "test set, fold ensemble" if _is_real(result) else "stand-in, fold ensemble"
        remark = f"95 %: {test['low']:.2%} to {test['high']:.2%}"
        found.append((label, percent(test["value"]), remark))
    else:
        found.append(("test set", "closed", "not looked at yet"))
    for told in result["verdicts"]:
        if result["winner_trial"] and not told["rival"]:
            points = f"{100 * told['folds']['value']:+.2f}"
            found.append(("points over the baseline", points, told["verdict"]))
    counts = Counter(map(kind_of, searched.study.trials))
    ends = f"{counts[COMPLETE]} complete, {counts[STOPPED]} stopped, {counts[FAILED]} failed"
    found.append(("trials", f"{result['trials']['total']:,}", ends))
    return found


def accuracy_section(searched: Searched) -> Section:
    """The winner's accuracies, from the most hopeful to the most honest."""
    result = searched.result
    assert result is not None
    kept, refit = result["validation_epoch"], result["refit_epoch"]
    told = percent(result["baseline_validation_accuracy"])
    rows = [
        ["validation", percent(result["validation_accuracy"]), "", _of_validation(told, kept)],
    ]
    if same := result["cv_accuracy_of_validation_images"]:
        meaning = "The same images, one view, by fold models that never saw them."
        rows.append(["the same, out of fold", *_cells(same), meaning])
    folds = f"{result['folds']}-fold CV"
    rows.append(
        [
            f"{folds}, these models",
            *_cells(result["cv_accuracy"]),
            f"All {result['images']:,} images, each judged by the one model that never saw it: "
            "what these models get on more such images.",
        ]
    )
    rows.append(
        [
            f"{folds}, the recipe",
            *_cells(result["cv_accuracy_by_folds"]),
            "What training the recipe again on these images brings: counts the luck of a run.",
        ]
    )
    if unchosen := result["cv_accuracy_of_images_that_chose_nothing"]:
        meaning = "Out of fold on the images that had no part in choosing who is refit."
        rows.append(["outside validation", *_cells(unchosen), meaning])
    if snapshots := result["snapshot_cv_accuracy"]:
        meaning = "Out of fold, each fold the ensemble of its cycles' ends."
        rows.append(["snapshots", *_cells(snapshots), meaning])
    if result["test_accuracy"]:
        name = "test" if _is_real(result) else "stand-in for the test set"
        looks = result["test_looks"]
        meaning = "The ensemble of the fold models on images that played no part before" + (
            f"; look {looks} by this search." if _is_real(result) else "."
        )
        rows.append([name, *_cells(result["test_accuracy"]), meaning])
    parts: list[Part] = [Table(["accuracy", "", "95 % interval", "what it means"], rows)]
    epochs = f"Each fold was trained for up to {refit} epochs."
    parts.append(Text(f"From the most hopeful to the most honest. {epochs}", "note"))
    parts.append(Figure(lambda: _accuracies_chart(result), "The accuracies, with their intervals"))
    return Section("Accuracy", parts)


def _of_validation(baseline: str, epoch: int) -> str:
    return (
        f"After epoch {epoch} of the trial, one view, by the very images that chose it: flattered. "
        f"The baseline had {baseline}."
    )


def _cells(told: Told) -> tuple[str, str]:
    return percent(told["value"]), f"{told['low']:.2%} to {told['high']:.2%}"


def _accuracies_chart(result: dict[str, Any]) -> Any:
    from cifartune.report.charts import interval_chart

    alone = {"value": result["validation_accuracy"], "low": None, "high": None}
    shown = [
        ("validation", alone, GREY),
        ("CV, these models", result["cv_accuracy"], BLUE),
        ("CV, the recipe", result["cv_accuracy_by_folds"], BLUE),
        ("test" if _is_real(result) else "stand-in", result["test_accuracy"], ORANGE),
    ]
    rows = [
        {"name": name, **told, "colour": colour}
        for name, told, colour in shown
        if told and told["value"] is not None
    ]
    return interval_chart(pd.DataFrame(rows).astype({"low": float, "high": float}), "accuracy")


def winner_section(searched: Searched) -> Section:
    """What the winner changes against the baseline, and its recipe to copy."""
    result = searched.result
    assert result is not None
    parts: list[Part] = []
    number = result["winner_trial"]
    if result["changed"]:
        names = {
            name: f"{name} (of the refit)"
            for name in ("epochs", "stopping.epoch")
            if name not in searched.space.parameters
        }
        rows = [
            [names.get(field, field), show_exact(before), show_exact(after)]
            for field, (before, after) in result["changed"].items()
        ]
        parts.append(Text(f"Trial {number} changes these fields of the hand-set baseline:"))
        parts.append(Table(["field", "baseline", "winner"], rows))
    else:
        parts.append(Text("The baseline itself won: nothing is changed."))
    recipe = Recipe.model_validate(result["winner"]).model_dump(exclude={"seed"})
    text = yaml.safe_dump({"base": recipe}, default_flow_style=None, sort_keys=False, width=76)
    parts.append(
        Folded("The whole recipe, as the base of a space file", [Code(text.rstrip(), "yaml")])
    )
    return Section("The winner", parts)


def show_exact(value: Any) -> str:
    """Four digits, so that what differs looks different."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def leaderboard_section(searched: Searched) -> Section:
    """The refit recipes with their verdicts, and the best trials."""
    result, metric = searched.result, searched.metric
    parts: list[Part] = []
    if result is not None:
        parts += _candidates(result)
    board = leaderboard_frame(searched.study, LEADERBOARD)
    if not len(board):
        return Section("Leaderboard", [*parts, Text("No trial has a result yet.")])
    has_interval = bool(board["low"].notna().any())
    headings = ["trial", "", "epoch", metric, *(["95 % interval"] if has_interval else [])]
    names = [name for name in searched.space.parameters if board[name].notna().any()]
    rows = []
    for row in board.to_dict("records"):
        interval = [f"{row['low']:.2%} to {row['high']:.2%}"] if has_interval else []
        values = ["" if pd.isna(row[name]) else show_value(row[name]) for name in names]
        number = f"{row['trial']}{'' if row['trial'] else ' (baseline)'}"
        epochs = f"{row['epoch']}/{row['last_epoch']}"
        rows.append([number, row["kind"], epochs, show(metric, row["value"]), *interval, *values])
    numbers = list(board["trial"])
    marked = numbers.index(searched.winner) if searched.winner in numbers else None
    count = len(searched.study.trials)
    shown = f"The best {len(rows)} of {count:,} trials" if count > len(rows) else "All trials"
    parts.append(
        Text(
            f"{shown}: complete ones first, then those that came furthest, as values after "
            "different numbers of epochs do not compare."
            + (
                f" Wilson's intervals for {searched.space.data.validation:,} validation images, "
                "without the luck of the training run, and of images that chose: they flatter."
                if has_interval
                else ""
            )
            + " All trials, with their whole recipes, are in trials.csv."
        )
    )
    parts.append(Table([*headings, *names], rows, marked))
    return Section("Leaderboard", parts)


def _candidates(result: dict[str, Any]) -> Iterator[Part]:
    """The recipes that were refit, with intervals and verdicts."""
    verdicts = {one["rival"]: one for one in result["verdicts"]}
    opposite = {"better": "worse", "worse": "better"}
    rows = []
    for one in result["candidates"]:
        number, told = one["trial"], verdicts.get(one["trial"])
        words = "the winner"
        if told is not None:
            words = opposite.get(told["verdict"], told["verdict"])
            words += f", {_difference(_negated(told['folds']))}"
        if one["dropped"]:
            words += f"; dropped after {one['dropped']['folds']} folds"
        name = str(number) if number else "0 (baseline)"
        rows.append([name, *_cells(one["cv_accuracy_by_folds"]), f"{one['cv_loss']:.4f}", words])
    yield Text(
        f"The recipes that were refit by {result['folds']}-fold cross-validation on "
        f"{result['images']:,} images ({views(result)}), against the winner:"
    )
    headings = ["trial", "out of fold", "95 % interval", "log loss", "against the winner"]
    yield Table(headings, rows, marked=0)
    if failed := result["failed_refits"]:
        yield Text(f"The refits of these trials failed: {', '.join(map(str, failed))}.", "warning")


def _negated(told: Told) -> Told:
    return {"value": -told["value"], "low": -told["high"], "high": -told["low"]}

"""The end of a search: its outcome as result.json, and as text for the terminal."""

import json
from textwrap import indent
from typing import Any

import yaml
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from cifartune.config import Recipe, SearchSpace
from cifartune.refit import Candidate
from cifartune.report.machine import hardware, versions
from cifartune.report.tables import Row, trials_table
from cifartune.statistics import Accuracy
from cifartune.tuning.study import TrialStudy, is_feasible

LEADERBOARD = 10


def outcome(
    study: TrialStudy,
    candidates: list[Candidate],
    test: Accuracy,
    *,
    name: str,
    seconds: dict[str, float],
    mlflow: dict[str, str],
) -> dict[str, Any]:
    """What result.json holds; accuracies are shares in [0, 1]."""
    winner, space = candidates[0], study.space
    trials, states = study.trials, [trial.state for trial in study.trials]
    return {
        "name": name,
        "objective": space.objective.model_dump(),
        "winner": winner.recipe.model_dump(),
        "winner_trial": winner.number,
        "baseline": space.base.model_dump(exclude={"seed"}),
        "changed": changes(space.base, winner.recipe, space),
        "validation_accuracy": trials[winner.number].user_attrs.get("val_accuracy"),
        "baseline_validation_accuracy": trials[0].user_attrs.get("val_accuracy"),
        "cv_accuracy": winner.accuracy.as_dict(),
        "fold_accuracies": winner.fold_accuracies,
        "candidates": [
            {"trial": c.number, "cv_accuracy": c.accuracy.as_dict(), "cv_loss": c.loss}
            for c in candidates
        ],
        "test_accuracy": test.as_dict(),
        "test_set": "stand-in cut from the training images" if space.stand_in else "CIFAR-10 test",
        "test_time_augmentation": winner.recipe.tta,
        "trials": {
            "total": len(trials),
            "complete": states.count(TrialState.COMPLETE),
            "pruned": states.count(TrialState.PRUNED),
            "failed": states.count(TrialState.FAIL),
            "infeasible": sum(not is_feasible(trial) for trial in trials),
        },
        "seconds": seconds,
        "hardware": hardware(),
        "versions": versions(),
        "mlflow": mlflow,
    }


def changes(base: Recipe, recipe: Recipe, space: SearchSpace) -> dict[str, list[Any]]:
    """The fields in which `recipe` differs from the baseline: [baseline's, its own].

    Only what was searched, and the refit's epochs: seeds differ in any case.
    """
    before, after = base.flat(), recipe.flat()
    names = [*space.parameters, "epochs"]
    return {n: [before[n], after[n]] for n in dict.fromkeys(names) if before[n] != after[n]}


def print_summary(result: dict[str, Any], study: TrialStudy, console: Console) -> None:
    """Prints leaderboard, winner, accuracies, time, and where to look further."""
    console.print("\n[bold]Leaderboard[/]")
    console.print(_leaderboard(study))
    number, trials = result["winner_trial"], result["trials"]
    console.print(
        f"\n{trials['total']} trials: {trials['complete']} complete, {trials['pruned']} stopped "
        f"early, of them {trials['infeasible']} infeasible; {trials['failed']} failed.\n",
        highlight=False,
    )
    console.print(f"[bold]Winner: trial {number}.[/] Against the baseline it changes")
    for field, (before, after) in result["changed"].items():
        console.print(f"  {field:24} {_exact(before):>10} -> {_exact(after)}", highlight=False)
    if not result["changed"]:
        console.print("  nothing: the baseline itself won")
    console.print("\n[bold]Its recipe[/], as the base of a space file")
    recipe = {key: _rounded(value) for key, value in result["winner"].items() if key != "seed"}
    text = yaml.safe_dump(recipe, default_flow_style=None, sort_keys=False, width=58)
    console.print(indent(text.rstrip(), "  "), highlight=False, markup=False)
    lines = [
        ("validation", _percent(result["validation_accuracy"])),
        ("", f"baseline {_percent(result['baseline_validation_accuracy'])}"),
        (f"{len(result['fold_accuracies'])}-fold CV", _interval(result["cv_accuracy"])),
        ("test", f"{_interval(result['test_accuracy'])}, fold ensemble, once"),
    ]
    if result["test_set"] != "CIFAR-10 test":
        lines[-1] = ("stand-in", f"{_interval(result['test_accuracy'])}, no test images used")
    console.print("\n[bold]Accuracy[/]")
    for label, text in lines:
        console.print(f"  {label:12} {text}", highlight=False)
    seconds = result["seconds"]
    parts = ", ".join(f"{name} {show_time(s)}" for name, s in seconds.items() if name != "total")
    console.print(f"\n[bold]Time[/] {show_time(seconds['total'])}: {parts}", highlight=False)


def _leaderboard(study: TrialStudy) -> Table:
    ends = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped"}
    rows = []
    for trial in study.best(LEADERBOARD):
        recipe = study.recipe(trial)
        epoch, value = max(trial.intermediate_values.items())
        state = ends.get(trial.state, "unfinished")
        rows.append(Row(trial.number, recipe.flat(), recipe.epochs, state, epoch, value))
    return trials_table(study.space.objective.metric, list(study.space.parameters), rows)


def show_time(seconds: float) -> str:
    """A duration for people."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def to_json(result: dict[str, Any]) -> str:
    """The text of result.json."""
    return json.dumps(result, indent=2) + "\n"


def _exact(value: Any) -> str:
    """Four digits, so that what differs looks different."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rounded(value: Any) -> Any:
    """Floats to four digits, in sections too; result.json has them all."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _interval(accuracy: dict[str, float]) -> str:
    return str(Accuracy(**accuracy))


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"

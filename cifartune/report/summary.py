"""The end of a search: its outcome as result.json, and as text for the terminal."""

import json
from textwrap import indent
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from cifartune.config import Recipe, SearchSpace
from cifartune.refit import Candidate
from cifartune.report.machine import hardware, versions
from cifartune.report.planned import size, used_table
from cifartune.report.tables import Row, short, show, show_time, trials_table
from cifartune.runs import RunFolder
from cifartune.statistics import Accuracy
from cifartune.tuning.disk import freed_bytes
from cifartune.tuning.study import (
    REFUSED,
    TrialStudy,
    attributes,
    is_feasible,
    kept_epoch,
)

LEADERBOARD = 10


def outcome(
    study: TrialStudy,
    candidates: list[Candidate],
    test: Accuracy,
    snapshots: Accuracy | None = None,
    *,
    run: RunFolder,
    seconds: dict[str, float],
    mlflow: dict[str, str],
) -> dict[str, Any]:
    """What result.json holds; accuracies are shares in [0, 1]."""
    winner, space = candidates[0], study.space
    trials = study.trials
    trained = [t for t in trials if attributes(t).get("failure") != REFUSED]
    states = [trial.state for trial in trained]
    return {
        "name": run.name,
        "changes": run.changes,
        "objective": space.target.model_dump(),
        "objectives": [target.model_dump() for target in space.targets],
        "winner": winner.recipe.model_dump(),
        "winner_trial": winner.number,
        "baseline": space.base.model_dump(exclude={"seed"}),
        "changed": changes(space.base, winner.recipe, space),
        "validation_accuracy": attributes(trials[winner.number]).get("val_accuracy"),
        "baseline_validation_accuracy": attributes(trials[0]).get("val_accuracy"),
        "cv_accuracy": winner.accuracy.as_dict(),
        "fold_accuracies": winner.fold_accuracies,
        "candidates": [
            {"trial": c.number, "cv_accuracy": c.accuracy.as_dict(), "cv_loss": c.loss}
            for c in candidates
        ],
        "test_accuracy": test.as_dict(),
        "snapshot_ensemble": _snapshot_ensemble(winner, snapshots),
        "test_looks": len(run.looks),
        "test_set": "stand-in cut from the training images" if space.stand_in else "CIFAR-10 test",
        "test_time_augmentation": winner.recipe.tta,
        "trials": {
            "total": len(trained),
            "complete": states.count(TrialState.COMPLETE),
            "pruned": states.count(TrialState.PRUNED),
            "failed": states.count(TrialState.FAIL),
            "infeasible": sum(not is_feasible(trial) for trial in trained),
            "refused": len(trials) - len(trained),
        },
        "pareto_front": [
            {"trial": t.number, **_values(space, t)}
            for t in (study.front if len(space.targets) > 1 else [])
        ],
        "seconds": seconds,
        "planned": json.loads(run.plan.read_text()) if run.plan.exists() else None,
        "used": _used(study, candidates, run, seconds),
        "freed_bytes": freed_bytes(run.trials),
        "hardware": hardware(),
        "versions": versions(),
        "mlflow": mlflow,
    }


def _values(space: SearchSpace, trial: FrozenTrial) -> dict[str, float]:
    """The objectives of a complete trial, by metric."""
    metrics = [target.metric for target in space.targets]
    return dict(zip(metrics, trial.values, strict=True))


def _snapshot_ensemble(winner: Candidate, test: Accuracy | None) -> dict[str, Any] | None:
    if winner.snapshots is None or test is None:
        return None
    return {
        "cv_accuracy": winner.snapshots.accuracy.as_dict(),
        "test_accuracy": test.as_dict(),
        "models": len(winner.snapshots.weights),
    }


def _used(
    study: TrialStudy, candidates: list[Candidate], run: RunFolder, seconds: dict[str, float]
) -> dict[str, Any]:
    """What the search took, under the names that the plan has for it."""
    space = study.space
    epochs = sum(len(trial.intermediate_values) for trial in study.trials)
    folds = space.refit.folds
    refit_epochs = sum(candidate.epochs for candidate in candidates)
    files = [f for f in run.path.rglob("*") if f.is_file() and run.ray not in f.parents]
    logged = run.program.stat().st_size if run.program.exists() else 0
    return {
        "epochs": epochs,
        "refit_epochs": refit_epochs,
        "all_images": epochs * space.train_images
        + refit_epochs * space.refit_images * (folds - 1) // folds,
        **{stage: seconds.get(stage) for stage in ("start", "search", "refit", "total")},
        "memory": max((attributes(t).get("memory_bytes", 0) for t in study.trials), default=0),
        "disk": sum(file.stat().st_size for file in files) + logged,
    }


def changes(base: Recipe, recipe: Recipe, space: SearchSpace) -> dict[str, list[Any]]:
    """The fields in which `recipe` differs from the baseline: [baseline's, its own].

    Only what was searched, and the refit's epochs: seeds differ in any case.
    """
    before, after = base.flat(), recipe.flat()
    names = [*space.parameters, "epochs", "stopping.epoch"]
    return {n: [before[n], after[n]] for n in dict.fromkeys(names) if before[n] != after[n]}


def print_summary(result: dict[str, Any], study: TrialStudy, console: Console) -> None:
    """Prints leaderboard, winner, accuracies, time, and where to look further."""
    console.print("\n[bold]Leaderboard[/]")
    console.print(_leaderboard(study, console.width))
    number, trials = result["winner_trial"], result["trials"]
    console.print(
        f"\n{trials['total']} trials: {trials['complete']} complete, {trials['pruned']} stopped "
        f"early, of them {trials['infeasible']} infeasible; {trials['failed']} failed"
        + (f"; {refused} recipes refused untrained" if (refused := trials["refused"]) else "")
        + ".\n",
        highlight=False,
    )
    if result["pareto_front"]:
        console.print("[bold]Pareto front[/]: no other trial is better in every objective")
        console.print(_front(result["pareto_front"]))
        console.print()
    console.print(f"[bold]Winner: trial {number}.[/] Against the baseline it changes")
    for field, (before, after) in result["changed"].items():
        if field in ("epochs", "stopping.epoch") and field not in study.space.parameters:
            field = f"{field} (of the refit)"
        console.print(f"  {field:24} {_exact(before):>10} -> {_exact(after)}", highlight=False)
    if not result["changed"]:
        console.print("  nothing: the baseline itself won")
    console.print("\n[bold]Its recipe[/], as the base of a space file")
    recipe = {key: _rounded(value) for key, value in result["winner"].items() if key != "seed"}
    text = yaml.safe_dump(recipe, default_flow_style=None, sort_keys=False, width=58)
    console.print(indent(text.rstrip(), "  "), highlight=False, markup=False)
    looks = "once" if result["test_looks"] == 1 else f"look {result['test_looks']} of this search"
    lines = [
        ("validation", _percent(result["validation_accuracy"])),
        ("", f"baseline {_percent(result['baseline_validation_accuracy'])}"),
        (f"{len(result['fold_accuracies'])}-fold CV", _interval(result["cv_accuracy"])),
        ("test", f"{_interval(result['test_accuracy'])}, fold ensemble, {looks}"),
    ]
    if result["test_set"] != "CIFAR-10 test":
        lines[-1] = ("stand-in", f"{_interval(result['test_accuracy'])}, no test images used")
    if snapshots := result["snapshot_ensemble"]:
        lines += [
            ("snapshots", f"{_interval(snapshots['cv_accuracy'])}, CV: the ends of all cycles"),
            ("", f"{_interval(snapshots['test_accuracy'])}, {lines[-1][0]}, in the same look"),
        ]
    console.print("\n[bold]Accuracy[/]")
    for label, text in lines:
        console.print(f"  {label:12} {text}", highlight=False)
    seconds = result["seconds"]
    parts = ", ".join(f"{name} {show_time(s)}" for name, s in seconds.items() if name != "total")
    console.print(f"\n[bold]Time[/] {show_time(seconds['total'])}: {parts}", highlight=False)
    freed = f"; {size(result['freed_bytes'])} of checkpoints and weights were freed on the way"
    console.print(f"\n[bold]Disk[/] {size(result['used']['disk'])}{freed}", highlight=False)
    if result["planned"]:
        console.print("\n[bold]Planned and used[/]")
        console.print(used_table(result["planned"], result["used"]))


def _front(front: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in front[0]:
        table.add_column(short(name), justify="right")
    metric = list(front[0])[1]
    for trial in sorted(front, key=lambda row: -row[metric]):
        table.add_row(*(show(name, value) for name, value in trial.items()))
    return table


def _leaderboard(study: TrialStudy, width: int) -> Table:
    ends = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped"}
    rows = []
    for trial in study.best(LEADERBOARD):
        recipe = study.recipe(trial)
        epoch, value = max(trial.intermediate_values), trial.intermediate_values[kept_epoch(trial)]
        state = ends.get(trial.state, "unfinished")
        rows.append(Row(trial.number, trial.params, recipe.last_epoch, state, epoch, value))
    space = study.space
    return trials_table(space.target.metric, list(space.parameters), rows, width=width)


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

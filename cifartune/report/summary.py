"""The end of a search as text for the terminal."""

from textwrap import indent
from typing import Any

import yaml
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from cifartune.report.answer import MODELS, accuracy_lines, percent, verdict_lines, views
from cifartune.report.planned import size, used_table
from cifartune.report.tables import Row, short, show, show_time, trials_table
from cifartune.report.terminal import point_out
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy, kept_epoch

LEADERBOARD = 10


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
    text = yaml.safe_dump(recipe, default_flow_style=None, sort_keys=False, width=48)
    console.print(indent(text.rstrip(), "  "), highlight=False, markup=False)
    console.print("\n[bold]Verdict[/]")
    for line in verdict_lines(result):
        console.print(f"  {line}", highlight=False)
    console.print("\n[bold]Accuracy[/]")
    for label, text in accuracy_lines(result):
        console.print(f"  {label:12} {text}", highlight=False)
    if result["models"]:
        console.print(f"\n[bold]Final models[/] on {_test_set(result)}; {views(result)}")
        console.print(_models(result))
    seconds = result["seconds"]
    parts = ", ".join(f"{name} {show_time(s)}" for name, s in seconds.items() if name != "total")
    console.print(f"\n[bold]Time[/] {show_time(seconds['total'])}: {parts}", highlight=False)
    freed = f"; {size(result['freed_bytes'])} of checkpoints and weights were freed on the way"
    console.print(f"\n[bold]Disk[/] {size(result['used']['disk'])}{freed}", highlight=False)
    if result["planned"]:
        console.print("\n[bold]Planned and used[/]")
        console.print(used_table(result["planned"], result["used"]))


def print_links(run: RunFolder, console: Console, report: str) -> None:
    """Prints where to look further: MLflow, the report, and the files."""
    console.print("\n[bold]Look further[/]")
    point_out(console, "MLflow", run.ui_command)
    point_out(console, "report", report)
    point_out(console, "outcome", str(run.result))
    point_out(console, "every trial", str(run.trials_csv))
    point_out(console, "mistakes", str(run.mistakes))
    point_out(console, "notebooks", "notebooks/")


def _test_set(result: dict[str, Any]) -> str:
    if result["test_set"] != "CIFAR-10 test":
        return "training images that stand in, no test images used"
    every = result["test_looks_of_all_searches"]
    looks = "one look" if result["test_looks"] == 1 else f"{result['test_looks']} looks"
    return f"the test set: {looks} by this search, {every} by all with these images"


def _models(result: dict[str, Any]) -> Table:
    """The final models, a row each; calibration errors before and after temperature scaling."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in (
        "",
        "nets",
        "accuracy",
        "one view",
        "log loss",
        "calibration",
        "ms/image",
    ):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, model in result["models"].items():
        calibration = model["calibration"]
        table.add_row(
            MODELS[name],
            str(model["networks"]),
            percent(model["accuracy"]["value"]),
            percent(model["plain_accuracy"]["value"]),
            f"{calibration['log_loss']:.3f}",
            f"{calibration['error']:.1%} -> {calibration['scaled_error']:.1%}",
            f"{1000 * model['seconds_per_image']:.2g}",
        )
    return table


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


def _exact(value: Any) -> str:
    """Four digits, so that what differs looks different."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rounded(value: Any) -> Any:
    """Floats to four digits, in sections too; result.json has them all."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value

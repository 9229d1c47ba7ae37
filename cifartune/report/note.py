"""A search in MLflow's words for people: the description of its run, in Markdown."""

import platform
from typing import Any

from cifartune.config import SearchSpace
from cifartune.config.parameters import Choice, Range
from cifartune.report.answer import percent, verdict_lines
from cifartune.runs import RunFolder
from cifartune.statistics import Interval
from cifartune.tracking.model import ALIAS, registered_name


def running_note(space: SearchSpace, run: RunFolder) -> str:
    """What a search is about that has no outcome yet: what it varies, where, how to watch it."""
    rows = "\n".join(f"| `{name}` | {_domain(p)} |" for name, p in space.parameters.items())
    scheduler = space.scheduler.name
    stopped = "" if scheduler == "none" else f"; {scheduler} stops the weaker ones"
    return f"""\
**Not finished**: {space.search.num_trials} trials of up to {space.max_epochs} epochs{stopped}.
The best by `{space.target.metric}` and the baseline are then refit on {space.refit.folds} folds.

| searched | |
|---|---|
{rows}

On {platform.node()}, in `{run.path}`. The trials side by side: the view "{run.name}: trials" under
*Views*, or `cifartune ui {run.name}`. Each run's model metrics are its learning
curves; how busy the machine is stands under this run's system metrics.
"""


def outcome_note(result: dict[str, Any], run: RunFolder) -> str:
    """What a search found, how sure that is, and how to use it.

    Args:
        result: What result.json holds.
        run: The folder of the search.
    """
    winner, name = result["winner_trial"], result["name"]
    tested = result["test_accuracy"]
    label = "test" if result["test_set"] == "CIFAR-10 test" else "stand-in for the test"
    accuracies = {
        f"{result['folds']}-fold cross-validation, these models": result["cv_accuracy"],
        "the same, the recipe": result["cv_accuracy_by_folds"],
        f"{label}, fold ensemble": tested,
    }
    rows = "\n".join(
        f"| {what} | {Interval(**accuracy)} |" for what, accuracy in accuracies.items() if accuracy
    )
    changed = "\n".join(
        f"| `{field}` | {_exact(before)} | {_exact(after)} |"
        for field, (before, after) in result["changed"].items()
    )
    changes = f"\n| changed | baseline | winner |\n|---|---|---|\n{changed}\n" if changed else ""
    verdict = " ".join(line.strip() for line in list(verdict_lines(result))[:1])
    return f"""\
**Trial {winner} won.** {verdict}

| accuracy | |
|---|---|
| validation, which chose it | {percent(result["validation_accuracy"])} |
{rows}
{changes}
    cifartune reproduce {name}    # trains the winner's trial again
    cifartune ui {name}           # the trials side by side
    mlflow models serve -m models:/{registered_name(run)}@{ALIAS} --env-manager local
"""


def _domain(parameter: Range | Choice) -> str:
    if isinstance(parameter, Choice):
        return ", ".join(map(str, parameter.values))
    return f"{parameter.min:g} to {parameter.max:g}" + (", log" if parameter.log else "")


def _exact(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

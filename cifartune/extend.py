"""A search that gets more to do: the checks before it, and what is kept of how it was."""

from collections.abc import Callable, Sequence
from typing import Any

from cifartune.clock import Clock
from cifartune.config import SearchSpace, load_space
from cifartune.config.extension import MORE_WORK, check_extension
from cifartune.errors import UserError
from cifartune.runs import RunFolder


def space_to_resume(
    run: RunFolder,
    overrides: Sequence[str],
    tell: Callable[[str], Any] = lambda line: None,
) -> SearchSpace:
    """The space to go on with: the run's, changed as `--set` changes a file, and kept so.

    Args:
        run: The search's folder.
        overrides: The changes.
        tell: Called with a line for the user where another process has to be waited for.

    Raises:
        UserError: A change is not allowed, the space's file was edited, or the search has nothing
            left to do.
    """
    with run.locked(tell):
        if run.space_was_edited:
            raise UserError(
                f"{run.space_file}: was edited by hand, and the trials of before may not fit what "
                "it says now; put it back as it was (MLflow has it with the search's run), and "
                "change a search by options: --num-trials, --time-budget or --set"
            )
        before, after = load_space(run.space_file), load_space(run.space_file, overrides)
        changes = check_extension(before, after)
        if run.result.exists():
            _check_work(run, before, after, bool(changes.keys() & MORE_WORK))
        if changes:
            run.change(after)
        return after


def _check_work(run: RunFolder, before: SearchSpace, after: SearchSpace, is_more: bool) -> None:
    """Refuses to go on with a finished search that has nothing to do."""
    trials, budget = before.search.num_trials, after.search.time_budget
    if after.search.num_trials < trials:
        raise UserError(
            f"{run.name} is finished: it had {trials} trials; --num-trials must be more"
        )
    if not is_more:
        raise UserError(
            f"{run.name} is finished: {run.result} holds its outcome; give it more to do with "
            f"--num-trials, of which it had {trials}, or --time-budget"
        )
    spent = Clock(run.clock).seconds.get("search", 0.0)
    wants_trials = before.search != after.search
    if wants_trials and budget is not None and budget <= spent:
        raise UserError(
            f"{run.name}: its trials took {spent:.0f} s, and its time budget is {budget:.0f} s; "
            "give it more time, too: --time-budget"
        )

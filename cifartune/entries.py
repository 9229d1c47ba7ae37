"""Recipes of finished searches, by the names that users have for them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from cifartune.errors import UserError
from cifartune.outputs import LOGITS, PLAIN_LOGITS, WEIGHTS
from cifartune.runs import RunFolder


@dataclass(frozen=True)
class Entry:
    """A recipe that is compared, or whose models are used.

    Attributes:
        name: What the user calls it.
        run: The folder of its search.
        trial: The trial that found it.
        rivals: How many refits the images have decided between, where it is the winner; else 1.
    """

    name: str
    run: RunFolder
    trial: int
    rivals: int = 1

    @property
    def was_refit(self) -> bool:
        """Whether there are out-of-fold predictions of it."""
        return self.run.out_of_fold(self.trial).exists()

    @property
    def logits(self) -> Path:
        """The trial's own, of the validation images, without test-time augmentation.

        They are there if the trial is one of those that are kept.
        """
        folder = self.run.trials / str(self.trial)
        plain = folder / PLAIN_LOGITS
        return plain if plain.exists() else folder / LOGITS

    @property
    def weights(self) -> Path:
        """The trial's own, which are kept with its logits."""
        return self.run.trials / str(self.trial) / WEIGHTS


def find_entries(names: Sequence[str], runs: Path, tracking_uri: str) -> list[Entry]:
    """What the user named: searches, NAME:TRIAL of them, or runs of MLflow by their ids.

    Raises:
        UserError: One is not there, not finished or has no predictions, two are the same, or there
            are fewer than two.
    """
    if len(names) < 2:
        raise UserError("compare: two searches or trials are needed at least, such as: a b, a:3 a")
    entries = [find_entry(name, runs, tracking_uri) for name in names]
    for (first, entry), (second, other) in combinations(zip(names, entries, strict=True), 2):
        if (entry.run.path, entry.trial) == (other.run.path, other.trial):
            same = f"trial {entry.trial} of {entry.run.name}"
            raise UserError(f"compare: {first} and {second} are the same, {same}; name it once")
    return entries


def find_entry(text: str, runs: Path, tracking_uri: str) -> Entry:
    """One of the above: NAME is its winner, an id of MLflow what that is a run of."""
    name, colon, number = text.rpartition(":")
    if colon and not re.fullmatch(r"[0-9]{1,9}", number):
        raise UserError(f"{text}: after ':' comes the number of a trial, such as {name}:0")
    if not (name if colon else text):
        raise UserError(
            f"{text!r} names nothing; name a search, a trial of it such as quick:3, or "
            "the id of an MLflow run"
        )
    trial = int(number) if colon else None
    if not colon and re.fullmatch(r"[0-9a-f]{32}", text) and not (runs / text).exists():
        run, trial = _find_logged(text, runs, tracking_uri)
    else:
        run = RunFolder.open(runs, name if colon else text)
    if not run.result.exists():
        raise UserError(
            f"{text}: search {run.name} is not finished; go on with: {run.resume_command}"
        )
    winner, refits = run.winner, len(run.outcome["candidates"])
    if trial is None:
        entry = Entry(run.name, run, winner, refits)
        if not entry.was_refit:
            raise UserError(
                f"{text}: {run.out_of_fold(winner)} is missing; remove {run.result}, and both are "
                f"made again by: {run.resume_command}"
            )
        return entry
    entry = Entry(f"{run.name}:{trial}", run, trial, refits if trial == winner else 1)
    if not entry.was_refit and not entry.logits.exists():
        raise UserError(f"{text}: {_why_nothing_is_known(entry)}")
    return entry


def _find_logged(run_id: str, runs: Path, uri: str) -> tuple[RunFolder, int | None]:
    """The search of an MLflow run, and the trial if it is not that of the search itself."""
    from cifartune.tracking import check_server
    from cifartune.tracking.lookup import look_up

    check_server(uri)
    search, key = look_up(uri, run_id)
    match = re.fullmatch(r"search|(?:trial|refit)-(\d+)", key)
    if not match:
        raise UserError(f"{run_id}: is {key}; name the run of a search, a refit or a trial")
    for path in sorted(runs.glob("*/run.json")):
        run = RunFolder(path.parent)
        with suppress(UserError):  # of another search, whatever that is
            if run.id == search:
                return run, int(match[1]) if match[1] else None
    raise UserError(
        f"{run_id}: the folder of its search is not in {runs}; say where it is with --runs"
    )


def _why_nothing_is_known(entry: Entry) -> str:
    from optuna.trial import TrialState

    from cifartune.tuning.recorded import recorded_trials

    run, number = entry.run, entry.trial
    try:
        trials = recorded_trials(run)
    except KeyError:
        return f"the study of {run.name} is not there"
    if number >= len(trials):
        return f"{run.name} has no trial {number}: its last is {len(trials) - 1}"
    refit = {path.parent.name.removeprefix("trial-") for path in run.refit.glob("*/oof.npz")}
    kept = {path.parent.name for path in run.trials.glob(f"*/{LOGITS}")}
    if trials[number].state is TrialState.COMPLETE:
        reason = "was not refit, and its logits are not kept (checkpoints.keep)"
    else:
        reason = "was not refit, and did not come to its end"
    known = ", ".join(sorted(filter(str.isdigit, refit | kept), key=int)) or "none"
    return f"trial {number} {reason}; of {run.name}, these are kept: {known}"

"""Trials of earlier searches, for the sampler of a new one."""

from pathlib import Path

from optuna.trial import FrozenTrial, create_trial

from cifartune.config import Choice, SearchSpace, load_space
from cifartune.config.parameters import is_among
from cifartune.errors import UserError
from cifartune.runs import RunFolder
from cifartune.tuning.proposals import distribution
from cifartune.tuning.recorded import recorded_trials
from cifartune.tuning.study import TrialStudy, is_feasible


def load_warm_start(space: SearchSpace, runs: Path) -> list[FrozenTrial]:
    """The finished trials of the searches in `space.warm_start`, in terms of `space`.

    A trial counts where its recipe has a value of the space for each parameter that exists there;
    what else differs between the two recipes is not looked at.

    Args:
        space: The new search.
        runs: The folder of all runs, where a search is found by its name.

    Raises:
        UserError: There is no such search, it had another objective, or none of its trials lies
            in the space.
    """
    found = []
    for index, name in enumerate(space.warm_start):
        where = f"warm_start.{index}"
        try:
            path = Path(name) if "/" in name else runs / name
            run = RunFolder.open(path.parent, path.name)
            earlier = load_space(run.space_file)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if earlier.targets != space.targets:
            ours, theirs = (
                " and ".join(f"{t.metric} ({t.mode})" for t in s.targets) for s in (space, earlier)
            )
            raise UserError(f"{where}: {name} was searched for {theirs}, and this is for {ours}")
        if not run.has_trials():
            raise UserError(f"{where}: {name} has no trials")
        study = TrialStudy(earlier)
        finished = [trial for trial in recorded_trials(run) if trial.state.is_finished()]
        trials = [_translated(space, study, trial) for trial in finished]
        if not any(trials):
            raise UserError(f"{where}: no trial of {name} lies in this space")
        found += [trial for trial in trials if trial is not None]
    return found


def _translated(space: SearchSpace, study: TrialStudy, trial: FrozenTrial) -> FrozenTrial | None:
    """A trial of another study as this space's sampler sees it; None if it lies outside."""
    if not trial.values or not is_feasible(trial):
        return None
    ordered = space.ordered_parameters()
    point = space.point(study.recipe(trial).flat())
    if not all(ordered[name].contains(value) for name, value in point.items()):
        return None
    for name, value in point.items():
        # As the space writes it: steps of 0.1 add up to 0.30000000000000004.
        if isinstance(parameter := ordered[name], Choice):
            point[name] = next(v for v in parameter.values if is_among(value, [v]))
    return create_trial(
        state=trial.state,
        params=point,
        distributions={name: distribution(name, ordered[name]) for name in point},
        values=trial.values,
        intermediate_values=trial.intermediate_values,
    )

"""What a search found, as result.json holds it."""

import json
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cifartune.config import Recipe, SearchSpace
from cifartune.data.looks import looks
from cifartune.outputs import WEIGHTS
from cifartune.refit import Candidate, verdicts
from cifartune.refit.candidates import Labels
from cifartune.refit.run import refit_trials
from cifartune.report.machine import hardware, versions
from cifartune.runs import RunFolder
from cifartune.training.classifier import trained_epochs
from cifartune.tuning.disk import freed_bytes
from cifartune.tuning.study import REFUSED, TrialStudy, attributes, is_feasible, kept_epoch


def outcome(
    study: TrialStudy,
    candidates: list[Candidate],
    labels: Labels,
    *,
    run: RunFolder,
    data_root: Path,
    seconds: dict[str, float],
    mlflow: dict[str, str],
) -> dict[str, Any]:
    """What result.json holds; accuracies are shares in [0, 1].

    docs/METHOD.md says what each number means, and from which file it follows.

    Args:
        study: The trials.
        candidates: The winner first.
        labels: Of all training images.
        run: Where the files are; what was seen of the test set is read from there.
        data_root: Beside the images, all looks at the test set are counted.
        seconds: By stage.
        mlflow: Where it is logged.

    Raises:
        UserError: What was seen of the test set cannot be read.
    """
    winner, space = candidates[0], study.space
    trials = study.trials
    trained = [t for t in trials if attributes(t).get("failure") != REFUSED]
    states = [trial.state for trial in trained]
    seen = run.looks_for(winner.number)
    models = seen[-1]["models"] if seen else None
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
        "validation_epoch": kept_epoch(trials[winner.number]),
        "refit_epoch": winner.recipe.last_epoch,
        "baseline_validation_accuracy": attributes(trials[0]).get("val_accuracy"),
        "verdicts": [verdict.as_dict() for verdict in verdicts(candidates, labels)],
        **{k: v for k, v in _told(winner).items() if k not in ("trial", "dropped")},
        "folds": space.refit.folds,
        "seeds": space.refit.seeds,
        "images": len(winner.predictions.indices),
        "calibration": winner.calibration(labels).as_dict(),
        "candidates": [_told(candidate) for candidate in candidates],
        "failed_refits": sorted(
            {trial.number for trial in refit_trials(study, run)} - {c.number for c in candidates}
        ),
        "models": models,
        "test_accuracy": models["folds"]["accuracy"] if models else None,
        "snapshot_cv_accuracy": winner.snapshots.accuracy.as_dict() if winner.snapshots else None,
        "test_set": "stand-in cut from the training images" if space.stand_in else "CIFAR-10 test",
        "test_looks": 0 if space.stand_in else len(run.looks),
        "test_looks_of_all_searches": len(looks(data_root)),
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
        "planned": run.read_plan(),
        "used": _used(study, candidates, run, seconds),
        "freed_bytes": freed_bytes(run.trials),
        "hardware": hardware(),
        "versions": versions(),
        "mlflow": mlflow,
    }


def to_json(result: dict[str, Any]) -> str:
    """The text of result.json."""
    return json.dumps(result, indent=2) + "\n"


def changes(base: Recipe, recipe: Recipe, space: SearchSpace) -> dict[str, list[Any]]:
    """The fields in which `recipe` differs from the baseline: [baseline's, its own].

    Only what was searched, and the refit's epochs: seeds differ in any case.
    """
    before, after = base.flat(), recipe.flat()
    names = [*space.parameters, "epochs", "stopping.epoch"]
    return {n: [before[n], after[n]] for n in dict.fromkeys(names) if before[n] != after[n]}


def _told(candidate: Candidate) -> dict[str, Any]:
    """What result.json holds of it; a t interval of few folds may reach beyond all accuracies."""
    folds = candidate.folds.within(0, 1).as_dict()
    return candidate.as_dict() | {"cv_accuracy_by_folds": folds}


def _values(space: SearchSpace, trial: FrozenTrial) -> dict[str, float]:
    """The objectives of a complete trial, by metric."""
    metrics = [target.metric for target in space.targets]
    return dict(zip(metrics, trial.values, strict=True))


def _used(
    study: TrialStudy, candidates: list[Candidate], run: RunFolder, seconds: dict[str, float]
) -> dict[str, Any]:
    """What the search took, under the names that the plan has for it."""
    space = study.space
    epochs = sum(len(trial.intermediate_values) for trial in study.trials)
    folds = space.refit.folds
    fold_epochs = sum(candidate.epochs for candidate in candidates)
    whole = run.all_images(candidates[0].number) / WEIGHTS
    whole_epochs = trained_epochs(whole) if whole.exists() else 0
    files = [f for f in run.path.rglob("*") if f.is_file() and run.ray not in f.parents]
    logged = run.program.stat().st_size if run.program.exists() else 0
    return {
        "epochs": epochs,
        "refit_epochs": fold_epochs + whole_epochs,
        "all_images": epochs * space.train_images
        + fold_epochs * space.refit_images * (folds - 1) // folds
        + whole_epochs * space.refit_images,
        **{stage: seconds.get(stage) for stage in ("start", "search", "refit", "total")},
        "memory": max((attributes(t).get("memory_bytes", 0) for t in study.trials), default=0),
        "disk": sum(file.stat().st_size for file in files) + logged,
    }

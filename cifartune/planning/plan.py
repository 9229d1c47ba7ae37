"""From a rehearsal and a few measured recipes to time, memory and disk."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cifartune.config import Recipe, SearchSpace
from cifartune.config.checks import count_points
from cifartune.config.recipe import recipe_fields
from cifartune.planning.costs import Costs, kind_of, snapshots_of
from cifartune.planning.rehearsal import MOST_TRIALS, Rehearsed
from cifartune.seeds import derive_seed
from cifartune.tuning.checkpoints import KEPT
from cifartune.tuning.messages import Probed

MEASURED = 6
"""Recipes that are measured at the most: the kinds of recipe that the space has most of."""

DRAWN = 300
"""Points of the space that are drawn to see of what kind they are."""

TEST_IMAGES = 10_000
EXPORT_SECONDS = 2.0
"""To export and log one fold's network, about; measured on two cores."""

LOGITS_BYTES = 80
"""Of an image's logits, with test-time augmentation and without."""

TRIAL_BYTES = 20_000
"""Of databases for a trial and its epochs, about."""

LONG_SECONDS = 3 * 3600
"""A search that takes longer is worth a word on how to make it shorter."""


@dataclass(frozen=True)
class Plan:
    """What a search is expected to take; times in seconds, sizes in bytes.

    A recipe that may end a run early (`stopping.metric`) is planned as if it never did.

    Attributes:
        trials: Trials of the search.
        reaching: How many trials are expected to reach an epoch, by epoch: the first, those at
            which trials are stopped, the last.
        epochs: Epochs of all trials together.
        epochs_low: The fewest that a rehearsal took.
        epochs_high: The most.
        images: Training images that these epochs see.
        refit_jobs: Training runs of all refits, as if no recipe were dropped on the way.
        refit_epochs: Epochs of all of them together.
        refit_images: Training images that these epochs see.
        start: Until the first trial begins.
        first_epoch: From there to the first result.
        longest_epoch: What an epoch takes, at the most, with all that comes before and after it.
        search: All trials, bounded by the time budget.
        time_budget: The bound; None: there is none.
        refit: The cross-validation, and the model of all images. The time budget does not bound it.
        evaluate: The test set, and the export of the model.
        device_hours: Hours of GPUs, or of CPU cores where there are none.
        device: `GPU` or `core`.
        memory: The most memory that a slot used in the probe: of the GPU, or of the process.
        disk: What stays on the disk at the end, checkpoints of running trials included.
        slots: Trials at a time.
        packing: What trials that share a GPU bring, in words; empty where none do.
        rates: Training images a second that were measured, by kind of recipe.
        savings: Changes that make a long search shorter, as `--set` takes them, each with the
            seconds that it saves.
    """

    trials: int
    reaching: dict[int, float]
    epochs: float
    epochs_low: float
    epochs_high: float
    images: float
    refit_jobs: int
    refit_epochs: float
    refit_images: float
    start: float
    first_epoch: float
    longest_epoch: float
    search: float
    time_budget: float | None
    refit: float
    evaluate: float
    device_hours: float
    device: str
    memory: int
    disk: float
    slots: int
    packing: str
    rates: dict[str, float]
    savings: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds from the command to the end."""
        return self.start + self.search + self.refit + self.evaluate

    def as_dict(self) -> dict[str, Any]:
        """All values by name, for JSON."""
        return asdict(self) | {"total": self.total, "all_images": self.images + self.refit_images}


def recipes_to_measure(space: SearchSpace) -> list[Recipe]:
    """One recipe of each kind that costs something else: the baseline, then the most frequent.

    Each network is measured once before any is a second time: they differ the most.
    """
    random = np.random.default_rng(derive_seed(space.search.seed, "kinds"))
    ordered = space.ordered_parameters()
    recipes = [space.base]
    for shares in random.random((DRAWN, len(ordered))):
        values = {
            name: parameter.at(share, is_int=recipe_fields()[name] is int)
            for (name, parameter), share in zip(ordered.items(), shares, strict=True)
        }
        recipes.append(space.base.with_values(space.point(values)))
    first: dict[tuple[Any, ...], Recipe] = {}
    for recipe in recipes:
        first.setdefault(kind_of(recipe), recipe)
    often = [kind for kind, _ in Counter(map(kind_of, recipes)).most_common()]
    often.insert(0, kind_of(space.base))
    of_network = {first[kind].model.name: kind for kind in reversed(often)}
    leading = sorted(of_network.values(), key=often.index)
    return [first[kind] for kind in dict.fromkeys([*leading, *often])][:MEASURED]


def make_plan(
    space: SearchSpace,
    rehearsals: Sequence[Sequence[Rehearsed]],
    recipes: Sequence[Recipe],
    probed: Probed,
    *,
    slots: int,
    cpus: float,
    gpus: float,
    start: float,
    packing: str = "",
) -> Plan:
    """The plan of a search.

    Args:
        space: The search.
        rehearsals: How it may go.
        recipes: What was measured.
        probed: What measuring them found.
        slots: Trials at a time.
        cpus: Cores of a slot.
        gpus: GPUs of a slot.
        start: Seconds until the first trial begins.
        packing: What trials that share a GPU bring, in words.
    """
    costs = Costs(space, recipes, probed.costs)
    scale = [_longer(space, run) for run in rehearsals]
    epochs = [
        s * sum(trial.epochs for trial in run) for s, run in zip(scale, rehearsals, strict=True)
    ]
    images = fmean(epochs) * space.train_images
    search = fmean(
        s * _makespan((costs.trial(t.recipe, t.epochs) for t in run), slots)
        for s, run in zip(scale, rehearsals, strict=True)
    )
    if space.search.time_budget is not None and search > space.search.time_budget:
        share = space.search.time_budget / search
        epochs, images, search = [e * share for e in epochs], images * share, search * share
    chosen = [_refit(space, run) for run in rehearsals]
    folds, runs = space.refit.folds, space.refit.folds * space.refit.seeds
    refit = fmean(
        _makespan((costs.fold(recipe) for _ in range(runs) for recipe in run), slots)
        + (costs.whole(run[0]) if space.refit.all_images else 0)
        for run in chosen
    )
    fold_epochs = fmean(runs * sum(recipe.last_epoch for recipe in run) for run in chosen)
    whole_epochs = fmean(run[0].last_epoch * space.refit.all_images for run in chosen)
    base = costs.of(space.base)
    views = space.base.views
    tested = space.stand_in or TEST_IMAGES
    predicting = base.predict_rate or base.eval_rate
    snapshots = snapshots_of(space.base)
    # By the ensemble of the folds, and where there are snapshots by that of all of them.
    looks = runs + folds * snapshots + space.refit.all_images
    evaluate = looks * views * tested / predicting + runs * EXPORT_SECONDS
    total = start + search + refit + evaluate
    kept = max(cost.weights_bytes for cost in probed.costs)
    best = kept if space.base.stopping.keep == "best" else 0  # in the checkpoint, once there is one
    trials = _trials(space, rehearsals)
    refits = round(fmean(map(len, chosen)))
    return Plan(
        trials=trials,
        reaching=_reaching(space, rehearsals, scale),
        epochs=fmean(epochs),
        epochs_low=min(epochs),
        epochs_high=max(epochs),
        images=images,
        refit_jobs=refits * runs + space.refit.all_images,
        refit_epochs=fold_epochs + whole_epochs,
        refit_images=(fold_epochs * (folds - 1) / folds + whole_epochs) * space.refit_images,
        start=start,
        first_epoch=costs.trial(space.base, 1),
        longest_epoch=max(costs.whole_epoch(recipe) for recipe, _ in costs.measured),
        search=search,
        time_budget=space.search.time_budget,
        refit=refit,
        evaluate=evaluate,
        device_hours=total / 3600 * slots * (gpus or cpus),
        device="GPU" if gpus else "core",
        memory=probed.memory_bytes,
        # The folds' weights, and the winner's twice more: exported, and logged.
        disk=(refits * (1 + snapshots) + 2) * runs * kept
        + (space.refit.all_images + min(space.checkpoints.keep, trials)) * kept
        # Their logits, beside the weights and once more together.
        + refits * space.refit.seeds * space.refit_images * 2 * LOGITS_BYTES
        + slots * KEPT * (max(cost.checkpoint_bytes for cost in probed.costs) + best)
        + trials * TRIAL_BYTES,
        slots=slots,
        packing=packing,
        rates={costs.name(recipe): c.train_rate for recipe, c in costs.measured},
        savings=_savings(space, search, refit) if total > LONG_SECONDS else {},
    )


def _trials(space: SearchSpace, rehearsals: Sequence[Sequence[Rehearsed]]) -> int:
    """The trials of the search: fewer than asked for where the space has fewer points."""
    rehearsed, wanted = max(map(len, rehearsals)), _wanted(space)
    return rehearsed if rehearsed < min(wanted, MOST_TRIALS) else wanted


def _wanted(space: SearchSpace) -> int:
    """The trials that the search may have: each point of a space that has an end comes once."""
    return int(min(space.search.num_trials, count_points(space, space.search.num_trials)))


def _longer(space: SearchSpace, run: Sequence[Rehearsed]) -> float:
    """How much longer the whole search is than a rehearsal of its first trials."""
    more = _wanted(space) - len(run)
    if more <= 0 or len(run) < MOST_TRIALS:
        return 1.0  # it was rehearsed as a whole
    later = run[len(run) // 2 :]
    per_trial = fmean(trial.epochs for trial in later)
    return 1 + more * per_trial / sum(trial.epochs for trial in run)


def _reaching(
    space: SearchSpace, rehearsals: Sequence[Sequence[Rehearsed]], scale: Sequence[float]
) -> dict[int, float]:
    """Trials that reach the first epoch, the rungs and the last, on average."""
    last, scheduler = space.max_epochs, space.scheduler
    # A trial is stopped at a rung: those that go on train the epoch after it.
    milestones = {1, last, *(rung + 1 for rung in space.rungs)}
    if scheduler.name == "median":
        milestones |= {min(last, scheduler.grace_period + 1), -(-last // 2)}
    trials = _wanted(space)
    return {
        epoch: fmean(
            sum(trial.epochs >= epoch for trial in run)
            * (trials / max(1, len(run)) if s > 1 else 1)
            for run, s in zip(rehearsals, scale, strict=True)
        )
        for epoch in sorted(milestones)
    }


def _refit(space: SearchSpace, run: Sequence[Rehearsed]) -> list[Recipe]:
    """The recipes as refit, if each trial keeps its last epoch and none is dropped on the way."""
    values = {"epochs": space.refit.epochs, "stopping.epoch": 0} if space.refit.epochs else {}
    recipes = [trial.recipe for trial in run if trial.is_best]
    if space.refit.baseline and not run[0].is_best:
        recipes.append(space.base)
    return [recipe.with_values(values) for recipe in recipes]


def _makespan(seconds: Iterable[float], slots: int) -> float:
    """When the last of several jobs ends that are begun in order, `slots` at a time."""
    ends = [0.0] * slots
    for job in seconds:
        ends[ends.index(min(ends))] += job
    return max(ends)


def _savings(space: SearchSpace, search: float, refit: float) -> dict[str, float]:
    """What would make the search shorter, the most effective first."""
    options = {}
    refits = space.refit.top_k + space.refit.baseline
    if space.refit.top_k > 1:
        options["refit.top_k=1"] = refit * (1 - (1 + space.refit.baseline) / refits)
    elif space.refit.baseline:
        options["refit.baseline=false"] = refit / 2
    if space.refit.folds > 3:
        # Fewer folds, each on fewer images: 2 / 3 of all instead of 4 / 5.
        epochs = {n: n - 1 for n in (space.refit.folds, 3)}
        options["refit.folds=3"] = refit * (1 - epochs[3] / epochs[space.refit.folds])
    if space.data.train_subset is None and space.train_images > 20_000:
        options["data.train_subset=10000"] = search * (1 - 10_000 / space.train_images)
    if space.search.num_trials >= 16:
        options[f"search.num_trials={space.search.num_trials // 2}"] = search / 2
    if space.base.epochs >= 8 and "epochs" not in space.parameters:
        shorter = refit if space.refit.epochs is None else 0.0
        options[f"base.epochs={space.base.epochs // 2}"] = (search + shorter) / 2
    if search > 3600:
        options["search.time_budget=1h"] = search - 3600
    best = sorted(options, key=lambda change: -options[change])[:4]
    if refit > LONG_SECONDS and (of_refit := [c for c in options if c.startswith("refit.")]):
        # What shortens the search alone would leave that.
        best = list(dict.fromkeys([*best[:3], max(of_refit, key=lambda c: options[c])]))
    return {change: options[change] for change in best}

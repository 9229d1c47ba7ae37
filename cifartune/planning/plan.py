"""From a rehearsal and a few measured recipes to time, memory and disk."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cifartune.config import Recipe, SearchSpace
from cifartune.config.effects import augments
from cifartune.config.recipe import recipe_fields
from cifartune.planning.rehearsal import MOST_TRIALS, Rehearsed
from cifartune.schedule import restart_epochs
from cifartune.seeds import derive_seed
from cifartune.tuning.checkpoints import KEPT
from cifartune.tuning.messages import Cost, Probed

MEASURED = 6
"""Recipes that are measured at the most: the kinds of recipe that the space has most of."""

DRAWN = 300
"""Points of the space that are drawn to see of what kind they are."""

TEST_IMAGES = 10_000
EXPORT_SECONDS = 2.0
"""To export and log one fold's network, about; measured on two cores."""

PROCESS_SECONDS = 10.0
"""To start the processes of a job that has its own, about; measured on two cores."""

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
        refit_jobs: Folds of all refits.
        refit_epochs: Epochs of all of them together.
        refit_images: Training images that these epochs see.
        start: Until the first trial begins.
        first_epoch: From there to the first result.
        longest_epoch: What an epoch takes, at the most, with all that comes before and after it.
        search: All trials, bounded by the time budget.
        time_budget: The bound; None: there is none.
        refit: The cross-validation, which the time budget does not bound.
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
    """One recipe of each kind that costs something else: the baseline, then the most frequent."""
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
        first.setdefault(_kind(recipe), recipe)
    often = [kind for kind, _ in Counter(map(_kind, recipes)).most_common()]
    base = _kind(space.base)
    kinds = [base, *(kind for kind in often if kind != base)][:MEASURED]
    return [first[kind] for kind in kinds]


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
    costs = _Costs(space, recipes, probed.costs)
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
    folds = space.refit.folds
    refit = fmean(
        _makespan((costs.fold(recipe) for recipe in run for _ in range(folds)), slots)
        for run in chosen
    )
    refit_epochs = fmean(folds * sum(recipe.last_epoch for recipe in run) for run in chosen)
    base = costs.of(space.base)
    views = space.base.views
    tested = space.stand_in or TEST_IMAGES
    predicting = base.predict_rate or base.eval_rate
    snapshots = _snapshots(space.base)
    # By the ensemble of the folds, and where there are snapshots by that of all of them.
    looks = folds * (2 + snapshots if snapshots else 1)
    evaluate = looks * views * tested / predicting + folds * EXPORT_SECONDS
    total = start + search + refit + evaluate
    kept = max(cost.weights_bytes for cost in probed.costs)
    best = kept if space.base.stopping.keep == "best" else 0  # in the checkpoint, once there is one
    trials = _trials(space, rehearsals)
    top_k = min(space.refit.top_k, trials)
    return Plan(
        trials=trials,
        reaching=_reaching(space, rehearsals, scale),
        epochs=fmean(epochs),
        epochs_low=min(epochs),
        epochs_high=max(epochs),
        images=images,
        refit_jobs=top_k * folds,
        refit_epochs=refit_epochs,
        refit_images=refit_epochs * space.refit_images * (folds - 1) / folds,
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
        disk=(top_k * (1 + snapshots) + 2) * folds * kept
        + min(space.checkpoints.keep, trials) * kept
        + top_k * space.refit_images * 40
        + slots * KEPT * (max(cost.checkpoint_bytes for cost in probed.costs) + best)
        + trials * TRIAL_BYTES,
        slots=slots,
        packing=packing,
        rates={costs.name(recipe): c.train_rate for recipe, c in costs.measured},
        savings=_savings(space, search, refit) if total > LONG_SECONDS else {},
    )


class _Costs:
    """What recipes cost: what was measured, and for others what comes nearest."""

    def __init__(
        self, space: SearchSpace, recipes: Sequence[Recipe], costs: Sequence[Cost]
    ) -> None:
        self._space = space
        self.measured = list(zip(recipes, costs, strict=True))

    def of(self, recipe: Recipe) -> Cost:
        """The cost of the measured recipe that has most in common with `recipe`."""
        kind = _kind(recipe)

        def alike(pair: tuple[Recipe, Cost]) -> tuple[bool, int]:
            other = _kind(pair[0])
            same_network = pair[0].model.name == recipe.model.name
            return same_network, sum(a == b for a, b in zip(kind, other, strict=True))

        return max(self.measured, key=alike)[1]

    def trial(self, recipe: Recipe, epochs: int) -> float:
        """Seconds of a trial that is trained for `epochs`."""
        cost, space = self.of(recipe), self._space
        trained = _epochs(cost, epochs, space.train_images, space.data.validation)
        return self._begin(cost) + trained

    def fold(self, recipe: Recipe) -> float:
        """Seconds of one fold of a recipe's refit."""
        cost, images = self.of(recipe), self._space.refit_images
        held_out = images / self._space.refit.folds
        trained = _epochs(cost, recipe.last_epoch, images - held_out, held_out)
        predicted = recipe.views * held_out / (cost.predict_rate or cost.eval_rate)
        return self._begin(cost) + trained + predicted * (1 + _snapshots(recipe))

    def _begin(self, cost: Cost) -> float:
        """Seconds until a job's first step."""
        is_new = self._space.resources.isolation == "process"
        return cost.build_seconds + PROCESS_SECONDS * is_new

    def whole_epoch(self, recipe: Recipe) -> float:
        """Seconds of the first epoch on all images of the refit, and of what follows the last."""
        cost, images = self.of(recipe), self._space.refit_images
        rest = _epochs(cost, 1, images, images) + cost.build_seconds
        return rest + recipe.views * images / (cost.predict_rate or cost.eval_rate)

    def name(self, recipe: Recipe) -> str:
        """What tells a recipe from the others that were measured."""
        kinds = zip(*(_kind(other) for other, _ in self.measured), strict=True)
        (_, network), *traits = _traits(recipe)
        next(kinds)  # the network is said in any case
        named = [
            word for (_, word), others in zip(traits, kinds, strict=True) if len(set(others)) > 1
        ]
        return ", ".join([network, *named])


_KIND = (
    *("model.name", "model.stem", "model.resolution", "model.depth", "model.width"),
    *("model.channels", "model.squeeze_excite", "model.trainable", "data.small_side"),
    *("augment.copies", "batch_size", "optimizer.name"),
    *("precision", "memory_format", "compile", "micro_batch"),
)
"""The fields that decide what an image costs."""


def _epochs(cost: Cost, epochs: int, train_images: float, evaluated: float) -> float:
    """Seconds of the first `epochs` of a run."""
    first, later = cost.train_rate, cost.later_rate or cost.train_rate
    training = train_images * (1 / first + (epochs - 1) / later)
    return training + epochs * (evaluated / cost.eval_rate + cost.checkpoint_seconds)


def _snapshots(recipe: Recipe) -> int:
    """How many epochs of a fold are kept beside its last."""
    return len(restart_epochs(recipe))


def _kind(recipe: Recipe) -> tuple[Any, ...]:
    return tuple(value for value, _ in _traits(recipe))


def _traits(recipe: Recipe) -> list[tuple[Any, str]]:
    """What decides the cost of an image, each trait as it is compared and as it is said."""
    values = recipe.flat()
    share = round(4 * recipe.data.small_share) if recipe.data.small_side else 0
    twice = recipe.optimizer.sam_rho > 0  # two gradients a step
    kept = recipe.model.trainable != "all" and not augments(recipe)  # features
    return [
        *((_alike(value), str(value)) for value in (values[name] for name in _KIND)),
        (share, f"small images for {share / 4:.0%}"),
        (twice, "with sharpness" if twice else "plain steps"),
        (kept, "features kept" if kept else "features not kept"),
    ]


def _alike(value: Any) -> Any:
    """The same for numbers that are less than a factor of two apart."""
    return round(math.log2(1 + value)) if type(value) is int else value


def _trials(space: SearchSpace, rehearsals: Sequence[Sequence[Rehearsed]]) -> int:
    """The trials of the search: fewer than asked for where the space has fewer points."""
    rehearsed, wanted = max(map(len, rehearsals)), space.search.num_trials
    return rehearsed if rehearsed < min(wanted, MOST_TRIALS) else wanted


def _longer(space: SearchSpace, run: Sequence[Rehearsed]) -> float:
    """How much longer the whole search is than a rehearsal of its first trials."""
    more = space.search.num_trials - len(run)
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
    milestones = {1, last}
    if scheduler.name in ("asha", "hyperband"):
        rung = float(scheduler.grace_period)
        while rung < last:
            # A trial is stopped at a rung: those that go on train the epoch after it.
            milestones.add(int(rung) + 1)
            rung *= scheduler.reduction_factor
    elif scheduler.name == "median":
        milestones |= {min(last, scheduler.grace_period + 1), -(-last // 2)}
    trials = space.search.num_trials
    return {
        epoch: fmean(
            sum(trial.epochs >= epoch for trial in run)
            * (trials / max(1, len(run)) if s > 1 else 1)
            for run, s in zip(rehearsals, scale, strict=True)
        )
        for epoch in sorted(milestones)
    }


def _refit(space: SearchSpace, run: Sequence[Rehearsed]) -> list[Recipe]:
    """The recipes as refit, if each trial keeps its last epoch."""
    values = {"epochs": space.refit.epochs, "stopping.epoch": 0} if space.refit.epochs else {}
    return [trial.recipe.with_values(values) for trial in run if trial.is_best]


def _makespan(seconds: Iterable[float], slots: int) -> float:
    """When the last of several jobs ends that are begun in order, `slots` at a time."""
    ends = [0.0] * slots
    for job in seconds:
        ends[ends.index(min(ends))] += job
    return max(ends)


def _savings(space: SearchSpace, search: float, refit: float) -> dict[str, float]:
    """What would make the search shorter, the most effective first."""
    options = {}
    if space.refit.top_k > 1:
        options["refit.top_k=1"] = refit * (1 - 1 / space.refit.top_k)
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

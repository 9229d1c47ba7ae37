"""Measures whether intervals hold the truth as often as they say, and how often a verdict errs.

    python benchmarks/coverage.py [simulated|real|both] [--draws N] [--simulations N] [--threads N]
                                  [--length short|full] [--device cpu|cuda]

`simulated`: cross-validations that only pretend to train, so that the truth is known.
`real`: 6,000 of the training images are drawn, a small network is cross-validated on them, and the
intervals are held against the mean accuracy of the five fold models on the other 44,000.

What is done is kept and not done again. --length short is a few simulations, and one draw of one
epoch, kept apart.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from measured import RESULTS, ROOT, commit, keep
from simulated_folds import (
    FOLDS,
    World,
    accuracy_coverage,
    chosen_trials,
    difference_coverage,
    race_outcomes,
    refits,
    verdicts,
    wilson_coverage,
    winners,
)

from cifartune.config import Recipe, load_space
from cifartune.data import load_train
from cifartune.data.splits import make_splits
from cifartune.seeds import derive_seed
from cifartune.statistics import Accuracy, corrected_t, fold_accuracies
from cifartune.training import SplitImages, Trainer
from cifartune.training.device import choose_device
from cifartune.training.memory import run_keeping_memory

IMAGES = 6_000
"""Drawn for a cross-validation on real images."""

FILE = ROOT / "search_spaces" / "tutorial_net.yaml"
"""Its network is the fastest of ours that convolves, and its 62,006 weights train in seconds."""

EPOCHS = 8

NOISES = ((0.0005, 0.0002), (0.002, 0.001), (0.005, 0.002))
"""Standard deviations of accuracy: from run to run, and from training set to training set."""

NOISES_OF_DATA = ((0.002, 0.002), (0.0005, 0.002), (0.002, 0.005))
"""The same where training sets matter as much as runs or more: what the corrected t cannot see, as
two folds share most of their training images.
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A question to simulated cross-validations.

    Attributes:
        name: What is asked.
        world: Of which cross-validations.
        measure: Answers it from a number of them.
        asked: What else the answer depends on.
    """

    name: str
    world: World
    measure: Callable[[World, int], dict[str, float]]
    asked: dict[str, Any]

    def about(self) -> Row:
        """What tells it from others, for JSON."""
        world = asdict(self.world) | {"accuracies": list(self.world.accuracies)}
        return {"name": self.name, **self.asked, "world": world}

    def is_answered_by(self, row: Row) -> bool:
        """Whether `row` has the rates of this case."""
        return self.about().items() <= row.items()


def cases() -> Iterator[Case]:
    """All that is asked."""
    for training, data in (*NOISES, *NOISES_OF_DATA):

        def world(
            *accuracies: float, seeds: int = 1, t: float = training, d: float = data
        ) -> World:
            rounded = tuple(round(accuracy, 4) for accuracy in accuracies)
            return World(rounded, training=t, data=d, seeds=seeds)

        for seeds in (1, 3):
            yield Case("interval of an accuracy", world(0.94, seeds=seeds), accuracy_coverage, {})
            two = world(0.943, 0.94, seeds=seeds)
            yield Case("interval of a difference", two, difference_coverage, {})
        for gap in (0.0, 0.003, 0.01):
            yield Case("verdict", world(0.94 + gap, 0.94), verdicts, {})
        for count in (2, 4, 10):
            for gap in (0.0, 0.001):
                best = world(0.94 + gap, *(count - 1) * [0.94])
                yield Case("best candidate dropped", best, partial(race_outcomes, of=0), {})
        for gap in (0.01, 0.03):
            last = world(0.94, 0.94, 0.94 - gap)
            yield Case("candidate behind dropped", last, partial(race_outcomes, of=2), {})
        for others in ((0.94,), 3 * (0.94,), 9 * (0.94,), (0.95,), (0.95, 0.94, 0.94)):
            yield Case("whole refit", world(0.94, *others), refits, {})
    trials = World(65 * (0.94,), images=5_000)
    yield Case("best of 64 trials by images alone", trials, chosen_trials, {})
    # Where images decide and no luck, runs of a fold are all the same.
    alike = World((0.94, 0.94), training=0.0, data=0.0, leaning=0.5, seeds=10)
    yield Case("interval of a difference", alike, difference_coverage, {})
    for count in (3, 10):
        for comparisons in (2, count * (count - 1) // 2):
            measure = partial(winners, comparisons=comparisons)
            asked = {"comparisons": comparisons}
            yield Case("winner called better", World(count * [0.94]), measure, asked)


def main(options: argparse.Namespace) -> None:
    """Does what is not done yet, and keeps each part as it is done."""
    torch.set_num_threads(options.threads)
    path = RESULTS / f"coverage{'-short' * (options.length == 'short')}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    figures: dict[str, list[Row]] = {
        name: kept.get(name, []) for name in ("wilson", "simulated", "draws")
    }
    recipe = load_space(FILE).base.with_values({"epochs": options.epochs})
    run = {"recipe_id": recipe.id, "device": options.device}

    def save(name: str, row: Row) -> None:
        print(row, flush=True)
        figures[name].append(row)
        keep(
            path,
            f"python benchmarks/coverage.py --length {options.length} --device {options.device}",
            about=f"wilson: over all counts. simulated: rates among n cross-validations of {FOLDS} "
            f"folds. draws: {IMAGES:,} of the training images, {FOLDS} folds of {FILE.stem} by "
            f"{options.epochs} epochs; elsewhere is the mean accuracy of the {FOLDS} models on the "
            "other images, and holds says whether the interval of the folds has it.",
            real=summary([row for row in figures["draws"] if run.items() <= row.items()]),
            **figures,
        )

    if options.part != "real":
        simulate(figures, options.simulations, save)
    if options.part != "simulated":
        for draw in range(options.draws):
            about = {"draw": draw, **run}
            if not any(about.items() <= row.items() for row in figures["draws"]):
                found = measure(draw, recipe, torch.device(options.device))
                save("draws", {**about, **found, "commit": commit()})


def simulate(
    figures: dict[str, list[Row]], simulations: int, save: Callable[[str, Row], None]
) -> None:
    """Answers each case from `simulations` cross-validations or more."""
    for accuracy in (0.90, 0.94, 0.96):
        for images in (10_000, 50_000):
            about = {"accuracy": accuracy, "images": images}
            if not any(about.items() <= row.items() for row in figures["wilson"]):
                coverage = round(wilson_coverage(accuracy, images), 5)
                save("wilson", {**about, "coverage": coverage})
    asked = list(cases())
    figures["simulated"] = [  # what is asked no more is left out
        row for row in figures["simulated"] if any(case.is_answered_by(row) for case in asked)
    ]
    for case in asked:
        old = [row for row in figures["simulated"] if case.is_answered_by(row)]
        if any(row["n"] >= simulations for row in old):
            continue
        for row in old:
            figures["simulated"].remove(row)
        found = case.measure(case.world, simulations)
        rates = {name: round(rate, 5) for name, rate in found.items()}
        save("simulated", {**case.about(), "n": simulations, **rates})


def measure(draw: int, recipe: Recipe, device: torch.device) -> Row:
    """Cross-validates `recipe` on images drawn, and holds its intervals against all the others."""
    start = time.perf_counter()
    data = load_train()
    order = np.random.default_rng(derive_seed(draw, "coverage")).permutation(len(data.labels))
    own, others = np.sort(order[:IMAGES]), np.sort(order[IMAGES:])
    seed = derive_seed(draw, "coverage", "folds")
    splits = make_splits(data.labels[own], validation=0, train_subset=None, folds=FOLDS, seed=seed)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
    right, elsewhere = np.zeros(IMAGES, dtype=np.bool_), []
    for fold in range(FOLDS):
        train, held_out = splits.held_out(fold)
        split = SplitImages(
            images, labels, torch.from_numpy(own[train]), torch.from_numpy(own[held_out])
        )
        values = {"seed": derive_seed(draw, "coverage", fold)}
        trainer = Trainer(recipe.with_values(values), split, device=device)
        for _ in trainer:
            pass
        for part in (own[held_out], others):
            classes = trainer.predict(images[part]).argmax(1).cpu().numpy()
            is_right = classes == data.labels[part]
            if part is others:
                elsewhere.append(float(is_right.mean()))
            else:
                right[held_out] = is_right
    truth = float(np.mean(elsewhere))
    values_of_folds = fold_accuracies(right[None], splits.fold)
    row: Row = {"fold_accuracies": [round(value, 5) for value in values_of_folds]}
    row["elsewhere"] = round(truth, 5)
    wilson, by_folds = Accuracy.of_runs(right[None]), corrected_t(values_of_folds, 1 / FOLDS)
    for name, interval in (("wilson", wilson), ("corrected_t", by_folds)):
        row[name] = [round(interval.low, 5), round(interval.high, 5)]
        row[f"{name}_holds"] = interval.low <= truth <= interval.high
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def summary(draws: list[Row]) -> Row:
    """In how many of the draws each interval holds the mean accuracy on the other images."""
    return {
        "draws": len(draws),
        "wilson_holds": sum(row["wilson_holds"] for row in draws),
        "corrected_t_holds": sum(row["corrected_t_holds"] for row in draws),
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["simulated", "real", "both"], default="both")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--simulations", type=int, default=2000, help="of each case, at the least")
    parser.add_argument("--threads", type=int, default=1, help="more gain little here")
    parser.add_argument("--length", choices=["short", "full"], default="full")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=choose_device().type)
    options = parser.parse_args()
    options.epochs = EPOCHS
    if options.length == "short":
        options.draws, options.simulations, options.epochs = 1, 20, 1
    return options


if __name__ == "__main__":
    run_keeping_memory(partial(main, arguments()))

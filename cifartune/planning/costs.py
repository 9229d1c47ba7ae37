"""What jobs take, by what was measured of their recipes."""

import math
from collections.abc import Sequence
from typing import Any

from cifartune.config import Recipe, SearchSpace
from cifartune.config.effects import augments
from cifartune.schedule import restart_epochs
from cifartune.tuning.messages import Cost

PROCESS_SECONDS = 10.0
"""To start the processes of a job that has its own, about; measured on two cores."""


class Costs:
    """What recipes cost: what was measured, and for others what comes nearest."""

    def __init__(
        self, space: SearchSpace, recipes: Sequence[Recipe], costs: Sequence[Cost]
    ) -> None:
        self._space = space
        self.measured = list(zip(recipes, costs, strict=True))

    def of(self, recipe: Recipe) -> Cost:
        """The cost of the measured recipe that has most in common with `recipe`."""
        kind = kind_of(recipe)

        def alike(pair: tuple[Recipe, Cost]) -> tuple[bool, int]:
            other = kind_of(pair[0])
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
        return self._begin(cost) + trained + predicted * (1 + snapshots_of(recipe))

    def whole(self, recipe: Recipe) -> float:
        """Seconds of training a recipe on all images of the refit."""
        cost = self.of(recipe)
        return self._begin(cost) + _epochs(cost, recipe.last_epoch, self._space.refit_images, 0)

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
        kinds = zip(*(kind_of(other) for other, _ in self.measured), strict=True)
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


def snapshots_of(recipe: Recipe) -> int:
    """How many epochs of a fold are kept beside its last."""
    return len(restart_epochs(recipe))


def kind_of(recipe: Recipe) -> tuple[Any, ...]:
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

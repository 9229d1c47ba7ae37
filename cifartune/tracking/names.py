"""What a search's runs are called in MLflow, and which of the recipe's fields they show."""

from typing import Any

from cifartune.config import Recipe, SearchSpace

SHOWN = 2
"""So many searched fields stand in a trial's name: more are cut off in MLflow's table."""


class Names:
    """The names and parameters of the runs of a search.

    The search's own run has what all trials share, and a trial's what is its own, so that they can
    be compared without looking for what differs among eighty fields that do not. Numbers have the
    digits that fit a column; the whole recipe, with all of them, is a tag.

    Args:
        space: The search.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._base = space.base.flat()
        self._digits = max(2, len(str(space.search.num_trials - 1)))

    def shared(self) -> dict[str, str]:
        """The baseline's fields that are not searched; trials have seeds of their own."""
        own = {*self._space.parameters, "seed"}
        return {name: _readable(value) for name, value in self._base.items() if name not in own}

    def own(self, recipe: Recipe) -> dict[str, str]:
        """A recipe's fields that are searched and exist in it, and what else the baseline has not.

        That is nothing of a trial's recipe; of a refit's, the epochs, where they are others.
        """
        values = recipe.flat()
        others = {
            name: value
            for name, value in values.items()
            if name not in self._space.parameters and name != "seed" and value != self._base[name]
        }
        shown = self._space.point(values) | others
        return {name: _readable(value) for name, value in shown.items()}

    def trial(self, number: int, recipe: Recipe) -> str:
        """Such as `trial 07 · adamw, lr 0.0031`: sorted like its number."""
        return f"trial {number:0{self._digits}} · {self._difference(number, recipe)}"

    def _difference(self, number: int, recipe: Recipe) -> str:
        if not number:
            return "baseline"
        values = self._space.point(recipe.flat())
        told = [_short(name, values[name]) for name in self._space.parameters if name in values]
        return ", ".join(told[:SHOWN])


def refit_name(number: int) -> str:
    """Such as `refit of trial 7`."""
    return f"refit of trial {number}"


def part_name(part: str) -> str:
    """Of a training run of a refit: `fold 3`, `fold 3 (seed 1)`, `all images`."""
    words = part.split("-")
    if words[2:3] == ["seed"]:
        return f"{' '.join(words[:2])} (seed {words[3]})"
    return " ".join(words)


def _readable(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _short(name: str, value: Any) -> str:
    """A field's value for people: `adamw`, `lr 0.0031`."""
    section, _, field = name.rpartition(".")
    if section and field == "name":  # optimizer.name, model.name: the word says which it is
        return str(value)
    return f"{field} {value:.2g}" if isinstance(value, float) else f"{field} {value}"

"""A search space taken apart: what several of its rules ask of it."""

from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

from cifartune.config.effects import FIXED, UNSEARCHED
from cifartune.config.fields import all_fields
from cifartune.config.parameters import Choice, Range, split_in_order
from cifartune.config.problems import Where, nearest

if TYPE_CHECKING:
    from cifartune.config.space import SearchSpace


class Parts:
    """A space, of which some places may be wrong.

    Args:
        space: Each section of it is valid by itself.
        broken: Places that are not the file's own: it is wrong there.
    """

    def __init__(self, space: "SearchSpace", broken: Set[Where] = frozenset()) -> None:
        self.space = space
        self.base = space.base.flat()
        self.fields = all_fields()
        wrong = {str(w[1]) for w in broken if w[:1] == ("parameters",) and len(w) > 1}
        self.parameters = {n: p for n, p in space.parameters.items() if n not in wrong}
        self.written = sorted({*space.parameters, *wrong})
        self.given = [name for name in self.written if name in self.fields]
        self.left = sorted(self.fields.keys() - {*self.given, *FIXED, *UNSEARCHED})
        meant = {n for name in wrong - self.fields.keys() for n in self._meant(name)}
        self.names = sorted({*self.given, *meant})
        self._broken = {*broken, *(("parameters", name) for name in meant)}
        self.ordered, self.waiting = split_in_order(self.parameters)

    def _meant(self, wrong: str) -> list[str]:
        """The fields that a wrong name of a parameter, or of a section, may stand for."""
        inside = [name for name in self.left if name.startswith(f"{wrong}.")]
        return inside or nearest(wrong, self.left)

    def known(self, *where: str | int) -> bool:
        """Whether all that stands there is the file's own."""
        return self.stands(*where) and not any(b[: len(where)] == where for b in self._broken)

    def stands(self, *where: str | int) -> bool:
        """Whether what stands there is the file's own, apart from what lies below."""
        return not any(where[: len(b)] == b for b in self._broken)

    def base_is_known(self, names: Iterable[str]) -> bool:
        """Whether the baseline's values of these fields are the file's own."""
        return all(self.known("base", *name.split(".")) for name in names)

    def fits(self, name: str, value: Any) -> bool:
        """Whether a parameter can have a value, by its own entry."""
        parameter, field = self.parameters[name], self.fields[name]
        return parameter.contains(value) and field.check(value) is None

    def conditions(self, name: str) -> dict[str, list[Any]]:
        """What others must be for a parameter to exist: its own conditions and all theirs."""
        found: dict[str, list[Any]] = {}
        seen, waiting = {name}, [name]
        while waiting:
            parameter = self.parameters.get(waiting.pop())
            for other, allowed in parameter.when.items() if parameter else ():
                found[other] = [v for v in found.get(other, allowed) if v in allowed]
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return found

    def possible(self, name: str, conditions: Mapping[str, list[Any]]) -> list[Any]:
        """What a field may be under `conditions`; of a range, its bounds."""
        if name in conditions:
            return conditions[name]
        parameter = self.parameters.get(name)
        if parameter is None:
            return [self.base[name]]
        values = list(parameter.values) if isinstance(parameter, Choice) else []
        if isinstance(parameter, Range):
            values = [parameter.min, parameter.max]
        return list(dict.fromkeys([*values, self.base[name]])) if parameter.when else values

"""What may vary: a parameter of the search is a range of numbers or a choice of values."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from cifartune.config.problems import Problems, RulesBroken, names_of, rule_broken
from cifartune.config.recipe import Section

Value = bool | int | float | str
Values = Annotated[list[Value], Field(min_length=1)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def is_among(value: Any, values: Sequence[Any]) -> bool:
    """Whether `value` is one of `values`, whatever steps of 0.1 add up to; true is not 1."""
    return any(
        isinstance(value, bool) == isinstance(other, bool)
        and (value == other or (isinstance(value, float) and _is_close(value, other)))
        for other in values
    )


def _is_close(value: float, other: Any) -> bool:
    return isinstance(other, int | float) and math.isclose(value, other, rel_tol=1e-9)


MOST_STEPS = 100_000
"""Steps of a range at the most: each value may be listed."""

NARROWEST = 1e-9
"""The width of a range, as a share of its upper bound, below which samplers fail."""


class Conditional(Section):
    """A parameter that may exist only under certain values of others."""

    when: dict[str, Annotated[Values, BeforeValidator(_as_list)]] = Field(
        default_factory=dict,
        description="Other parameters and the value, or list of values, that each must have.",
    )

    def applies(self, point: Mapping[str, Any]) -> bool:
        """Whether the parameter exists at a point: the values of those parameters that do.

        What depends on a parameter that does not exist does not exist either.
        """
        return all(
            name in point and is_among(point[name], allowed) for name, allowed in self.when.items()
        )


class Range(Conditional):
    """A number between two bounds, both included."""

    min: float = Field(
        description="Lower bound.", validation_alias=AliasChoices("min", "lower", "low", "minval")
    )
    max: float = Field(
        description="Upper bound.", validation_alias=AliasChoices("max", "upper", "high", "maxval")
    )
    log: bool = Field(False, description="Sample uniformly in the logarithm.")
    step: float | None = Field(None, gt=0, description="Distance between allowed values.")

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.min >= self.max:
            raise ValueError(f"min must be less than max, got {self.min:g} and {self.max:g}")
        if self.max - self.min < NARROWEST * abs(self.max):
            raise ValueError(
                f"min and max must differ by more than rounding, got {self.min!r} and {self.max!r}"
            )
        if self.log and self.min <= 0:
            raise ValueError(f"min must be above 0 where log is true, got {self.min:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None and (self.max - self.min) / self.step > MOST_STEPS:
            raise ValueError(
                f"step must leave at most {MOST_STEPS:,} values, got {self.step:g}; leave it out"
            )
        # In decimals, as Optuna counts: it would leave out a max that is only nearly a multiple.
        low, high, step = (Decimal(str(x or 0)) for x in (self.min, self.max, self.step))
        if step and (high - low) % step:
            raise ValueError(f"max must be min plus a multiple of step, got {self.max:g}")
        return self

    def contains(self, value: Any) -> bool:
        """Whether `value` can be sampled."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        steps = (value - self.min) / self.step if self.step else 0
        return self.min <= value <= self.max and abs(steps - round(steps)) < 1e-6

    def every(self, *, is_int: bool) -> Sequence[Any] | None:
        """All values that can be sampled, or None where they lie on a continuum."""
        if is_int:
            return range(int(self.min), int(self.max) + 1, int(self.step or 1))
        if self.step is None:
            return None
        steps = round((self.max - self.min) / self.step)
        return [min(self.min + i * self.step, self.max) for i in range(steps + 1)]

    def at(self, share: float, *, is_int: bool) -> Any:
        """The value at `share`, in [0, 1), of the way: uniform where `share` is."""
        if self.log:
            half = 0.5 if is_int else 0.0
            low, high = math.log(self.min - half), math.log(self.max + half)
            value = math.exp(low + share * (high - low))
            value = round(value) if is_int else value
            return min(max(value, type(value)(self.min)), type(value)(self.max))
        if values := self.every(is_int=is_int):
            return values[int(share * len(values))]
        return self.min + share * (self.max - self.min)

    def largest(self) -> int:
        """The largest value, of a parameter that is a whole number."""
        return int(self.max)

    def __str__(self) -> str:
        steps = f" in steps of {self.step:g}" if self.step else ""
        return f"between {self.min:g} and {self.max:g}{steps}"


RANGE_KEYS = {
    key
    for name, info in Range.model_fields.items()
    if name not in Conditional.model_fields
    for key in names_of(name, info)
}
"""The keys of a range that a choice has not."""


class Choice(Conditional):
    """One of a list of values."""

    values: Values = Field(description="The values to choose from.")

    @model_validator(mode="before")
    @classmethod
    def _no_range(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key in RANGE_KEYS:
                raise rule_broken((key,), "excludes values: a parameter has one or the other")
        return data

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: list[Value]) -> list[Value]:
        if len(set(values)) < len(values):
            raise ValueError("values must differ from each other")
        return values

    def contains(self, value: Any) -> bool:
        """Whether `value` can be sampled."""
        return is_among(value, self.values)

    def every(self, *, is_int: bool) -> list[Any]:
        """All values that can be sampled."""
        return list(self.values)

    def at(self, share: float, *, is_int: bool) -> Any:
        """The value at `share`, in [0, 1), of the way: uniform where `share` is."""
        return self.values[int(share * len(self.values))]

    def largest(self) -> int:
        """The largest value, of a parameter that is a whole number."""
        return max(map(int, self.values))

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "range" if value.keys() & RANGE_KEYS and "values" not in value else "choice"
    return "choice" if isinstance(value, Choice) else "range"


Parameter = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Range, Tag("range")], Discriminator(_kind)
]


Parameters = dict[str, Range | Choice]


def in_order(parameters: Mapping[str, Range | Choice]) -> dict[str, Range | Choice]:
    """The parameters, each after those that its `when` names.

    Raises:
        RulesBroken: The conditions form a circle.
    """
    ordered, rest = split_in_order(parameters)
    if rest:
        raise RulesBroken(circles(rest))
    return ordered


def split_in_order(parameters: Mapping[str, Range | Choice]) -> tuple[Parameters, Parameters]:
    """The parameters in order, and those that wait for each other or for such."""
    ordered: Parameters = {}
    rest = dict(parameters)
    while ready := [name for name, p in rest.items() if not p.when.keys() & rest.keys()]:
        ordered |= {name: rest.pop(name) for name in ready}
    return ordered, rest


def circles(waiting: Mapping[str, Range | Choice]) -> Problems:
    """One rule for each circle, at its first parameter; `waiting` all wait for another of them."""
    problems: Problems = {}
    rest = dict(waiting)
    while rest:
        name, passed = next(iter(rest)), list[str]()
        while name not in passed:
            passed.append(name)
            name = next(other for other in rest[name].when if other in rest)
        circle = passed[passed.index(name) :]
        first = next(name for name in waiting if name in circle)
        problems["parameters", first, "when"] = "depends on itself in a circle"
        _, rest = split_in_order({n: p for n, p in rest.items() if n not in circle})
    return problems


def point_of(ordered: Mapping[str, Range | Choice], values: Mapping[str, Any]) -> dict[str, Any]:
    """Of `values`, by dotted name, those whose parameter exists."""
    point: dict[str, Any] = {}
    for name, parameter in ordered.items():
        if parameter.applies(point):
            point[name] = values[name]
    return point

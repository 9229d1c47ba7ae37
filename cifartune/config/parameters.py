"""What may vary: a parameter of the search is a range of numbers or a choice of values."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from cifartune.config.problems import RuleBroken
from cifartune.config.recipe import Section

Value = bool | int | float | str
Values = Annotated[list[Value], Field(min_length=1)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Conditional(Section):
    """A parameter that may exist only under certain values of others."""

    when: dict[str, Annotated[Values, BeforeValidator(_as_list)]] = Field(
        default_factory=dict,
        description="Other parameters and the value, or list of values, that each must have.",
    )

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether the parameter exists, given a recipe's values by dotted name."""
        return all(values[name] in allowed for name, allowed in self.when.items())


class Range(Conditional):
    """A number between two bounds, both included."""

    min: float = Field(description="Lower bound.")
    max: float = Field(description="Upper bound.")
    log: bool = Field(False, description="Sample uniformly in the logarithm.")
    step: float | None = Field(None, gt=0, description="Distance between allowed values.")

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.min >= self.max:
            raise ValueError(f"min must be less than max, got {self.min:g} and {self.max:g}")
        if self.log and self.min <= 0:
            raise ValueError(f"min must be above 0 where log is true, got {self.min:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if not self.contains(self.max):
            raise ValueError(f"max must be min plus a multiple of step, got {self.max:g}")
        return self

    def contains(self, value: Any) -> bool:
        """Whether `value` can be sampled."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        steps = (value - self.min) / self.step if self.step else 0
        return self.min <= value <= self.max and abs(steps - round(steps)) < 1e-6

    def __str__(self) -> str:
        steps = f" in steps of {self.step:g}" if self.step else ""
        return f"between {self.min:g} and {self.max:g}{steps}"


class Choice(Conditional):
    """One of a list of values."""

    values: Values = Field(description="The values to choose from.")

    @model_validator(mode="before")
    @classmethod
    def _no_range(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key in Range.model_fields and key not in Choice.model_fields:
                raise RuleBroken((key,), "excludes values: a parameter has one or the other")
        return data

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: list[Value]) -> list[Value]:
        if len(set(values)) < len(values):
            raise ValueError("values must differ from each other")
        return values

    def contains(self, value: Any) -> bool:
        """Whether `value` can be sampled."""
        return value in self.values

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "range" if value.keys() & {"min", "max"} and "values" not in value else "choice"
    return "choice" if isinstance(value, Choice) else "range"


Parameter = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Range, Tag("range")], Discriminator(_kind)
]


def largest(parameter: Range | Choice) -> int:
    """The largest value of a parameter that is a whole number."""
    return int(parameter.max if isinstance(parameter, Range) else max(map(int, parameter.values)))

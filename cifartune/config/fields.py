"""The recipe's fields, one by one: what each may be, read from the recipe's own types."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cifartune.config.problems import number, rule_of
from cifartune.config.recipe import Recipe, Section


@dataclass(frozen=True)
class RecipeField:
    """One field of the recipe.

    Attributes:
        name: Its dotted name, such as `optimizer.lr`.
        kind: `int`, `float`, `bool` or `str`; a choice among words is `str`.
        default: Its value in `Recipe()`.
        description: One sentence or two.
        info: Pydantic's own record of it.
    """

    name: str
    kind: type
    default: Any
    description: str
    info: FieldInfo

    @property
    def words(self) -> tuple[str, ...]:
        """The values that the field may have, where it is a choice among words."""
        return words_of(self.info)

    @property
    def domain(self) -> str:
        """What the field may be, for people, such as `number, above 0, at most 10`."""
        return domain_of(self.info)

    def check(self, value: Any) -> str | None:
        """The rule that `value` breaks, or None if the field may have it."""
        try:
            self._adapter.validate_python(value)
        except ValidationError as error:
            return rule_of(error)
        return None

    @property
    def _adapter(self) -> TypeAdapter[Any]:
        return _adapter(self.name)


@cache
def all_fields() -> dict[str, RecipeField]:
    """Every field of the recipe, by dotted name."""
    default = Recipe().flat()
    return {
        name: RecipeField(name, type(default[name]), default[name], info.description or "", info)
        for name, info in _walk(Recipe)
    }


def words_of(info: FieldInfo) -> tuple[str, ...]:
    """The words that a field may be, where its type is a choice among them."""
    return get_args(info.annotation) if get_origin(info.annotation) is Literal else ()


def domain_of(info: FieldInfo) -> str:
    """What a field may be, for people."""
    return ", ".join([_type_text(info.annotation), *_bounds(info.metadata)])


_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}


def _type_text(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts)) if len(parts) > 1 else str(parts[0])
    if origin is Annotated:
        return ", ".join([_type_text(parts[0]), *_bounds(parts[1:])])
    if origin in (Union, UnionType):
        known = [_type_text(part) for part in parts if part is not type(None)]
        return " or ".join(known)
    if origin is list:
        return f"list of {_type_text(parts[0])}"
    return _TYPES.get(annotation, "section")


def _bounds(metadata: Any) -> Iterator[str]:
    for part in metadata:
        if isinstance(part, FieldInfo):
            yield from _bounds(part.metadata)
        text = getattr(part, "domain", None)  # of our own validators
        if text:
            yield text
        for key, form in _BOUNDS.items():
            if (bound := getattr(part, key, None)) is not None:
                yield form.format(number(bound))


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for key, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _walk(kind, f"{prefix}{key}.")
        else:
            yield prefix + key, info


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    info = all_fields()[name].info
    config = {"strict": True, "allow_inf_nan": False}
    kind: Any = Annotated[info.annotation, info]
    return TypeAdapter(kind, config=config)  # type: ignore[arg-type]

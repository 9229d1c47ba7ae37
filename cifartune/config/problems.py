"""What is wrong with what a user wrote, in words: one rule for each place that breaks one."""

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Where = tuple[str | int, ...]
"""A place in a file: keys, and indices in lists, from the outside in."""


class RuleBroken(ValueError):
    """A rule is broken at `where`, counted from the section whose validator raises this."""

    def __init__(self, where: Where, rule: str) -> None:
        super().__init__(rule)
        self.where = where


class UnknownKey(RuleBroken):
    """The last key of `where` names none of those that are `known`."""

    def __init__(self, where: Where, known: Sequence[str]) -> None:
        super().__init__(where, "unknown key" + _hint(nearest(str(where[-1]), known)))


def describe(error: ValidationError, model: type[BaseModel], data: Any) -> dict[Where, str]:
    """The rule that each place in `data` breaks, as `model` found it.

    One mistake is one entry, where pydantic reports one for each type that a value does not fit,
    or a misspelt key both as unknown and as missing.
    """
    found: dict[Where, list[ErrorDetails]] = {}
    for detail in error.errors():
        found.setdefault(_where(detail, data), []).append(detail)
    meant = {
        where: nearest(str(where[-1]), _keys_left(model, data, where[:-1]))
        for where, details in found.items()
        if details[0]["type"] == "extra_forbidden"
    }
    misspelt = {(*where[:-1], key) for where, key in meant.items()}
    return {
        where: "unknown key" + _hint(meant[where]) if where in meant else _rule(details)
        for where, details in found.items()
        if not (details[0]["type"] == "missing" and where in misspelt)
    }


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be."""
    if len(name) < 2:
        return None
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return close[0]
    # A forgotten section is as common as a misspelling: lr for optimizer.lr.
    ends = {key.rpartition(".")[2]: key for key in reversed(known)}
    close = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1, cutoff=0.6)
    return ends[close[0]] if close else None


def _hint(name: str | None) -> str:
    return f"; did you mean {name}?" if name else ""


def _where(detail: ErrorDetails, data: Any) -> Where:
    """The place in `data`: pydantic's, without the names of the types that it tried."""
    where: list[str | int] = []
    for part in detail["loc"]:
        is_key = isinstance(data, Mapping) and part in data
        if is_key or (isinstance(data, list) and isinstance(part, int)):
            where.append(part)
            data = data[part]
    if detail["type"] == "missing":
        where.append(detail["loc"][-1])
    return (*where, *getattr(_cause(detail), "where", ()))


def _cause(detail: ErrorDetails) -> Exception | None:
    """The exception of our own validator that found the problem, if one did."""
    cause: Exception | None = detail.get("ctx", {}).get("error")
    return cause


def _rule(details: Sequence[ErrorDetails]) -> str:
    first = details[0]
    if cause := _cause(first):
        return str(cause)
    if first["type"] == "missing":
        return "is required"
    *others, last = dict.fromkeys(_wanted(detail) for detail in details)
    wanted = f"{', '.join(others)} or {last}" if others else last
    hint = ""
    if first["type"] == "literal_error":
        literals = wanted.replace(" or ", ", ").split(", ")
        hint = _hint(nearest(str(first["input"]), literals))
    return f"must be {wanted}, got {_shown(first['input'])}{hint}"


_WANTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "text",
    "list_type": "a list, [...]",
    "dict_type": "a section, {{key: value}}",
    "model_type": "a section, {{key: value}}",
    "too_short": "a list of at least one value",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}


def _wanted(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "literal_error":
        return str(context["expected"]).replace("'", "")
    if context.get("class_name") == "Range":
        return "{min: ..., max: ...} or {values: [...]}"
    if detail["type"] not in _WANTED:
        return f"valid ({detail['msg']})"
    numbers = {key: _number(value) for key, value in context.items()}
    return _WANTED[detail["type"]].format(**numbers)


def _number(value: Any) -> str:
    return f"{int(value):,}" if isinstance(value, float) and value.is_integer() else f"{value}"


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring = 2, 60


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else _short.repr(value)


def _keys_left(model: type[BaseModel], data: Any, where: Where) -> list[str]:
    """The valid keys that the section at `where` does not have yet, and those below with dots."""
    models = [model]
    for part in where:
        data = data[part]
        fields = [found.model_fields[str(part)] for found in models if part in found.model_fields]
        # A part that is no field is a key of a dictionary: its value is what the models describe.
        models = [below for field in fields for below in _models(field.annotation)] or models
    return [key for found in models for key in _keys(found) if key not in data]


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name}.{key}" for key in _keys(field.annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that are named somewhere in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)

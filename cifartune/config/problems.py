"""What is wrong with what a user wrote, in words: one rule for each place that breaks one."""

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from rapidfuzz.distance import OSA

Where = tuple[str | int, ...]
"""A place in a file: keys, and indices in lists, from the outside in."""

Problems = dict[Where, str]
"""The rule that each place breaks."""


UNKNOWN = "unknown key"
REQUIRED = "is required"
GIVEN = ", which is given too"


class RulesBroken(ValueError):
    """Rules are broken at places, counted from the section whose validator raises this."""

    def __init__(self, problems: Problems) -> None:
        super().__init__("; ".join(problems.values()))
        self.problems = problems


def rule_broken(where: Where, rule: str) -> RulesBroken:
    """One rule is broken, at `where`."""
    return RulesBroken({where: rule})


def unknown_key(key: str, left: Sequence[str], given: Sequence[str] = ()) -> str:
    """The rule that `key` breaks, which is no valid key.

    A dot where the file has sections is as common as a misspelling.

    Args:
        key: What is written.
        left: The valid keys that stand nowhere yet.
        given: Those that do.
    """
    section, dot, rest = key.partition(".")
    if dot and (key in left or key in given):
        return f"{UNKNOWN}; write {section}: {{{rest}: ...}}"
    meant, meant_given = _meant(key, left, given)
    return UNKNOWN + hint(meant or [f"{' or '.join(meant_given)}{GIVEN}"] * bool(meant_given))


def hint(names: Sequence[str]) -> str:
    """What may have been meant, to be put after a rule."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Those of `known` that `name` was probably meant to be: more than one if it is a tie.

    By the number of letters to insert, delete, replace or swap (optimal string alignment).
    """
    if found := _nearest(name, known):
        return found
    if len(name) > 1 and (found := [k for k in known if k.startswith(name) or name.startswith(k)]):
        return found[:3]
    # A forgotten section is as common as a misspelling: lr for optimizer.lr.
    ends: dict[str, list[str]] = {}
    for key in known:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    return [key for end in _nearest(name.rpartition(".")[2], list(ends)) for key in ends[end]]


def _meant(
    name: str, left: Sequence[str], given: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """What `name` was meant to be: keys that are left or else, if none is near, that are given."""
    if found := _nearest(name, left):
        return found, []
    if found := _nearest(name, given):
        return [], found
    found = nearest(name, left)
    return found, [] if found else nearest(name, given)


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    if len(name) < 2:
        return []
    distances = {key: OSA.distance(name.lower(), key.lower()) for key in known}
    smallest = min(distances.values(), default=0)
    # Up to a third of the letters may be wrong, and one in any case.
    if smallest > max(1, len(name) // 3):
        return []
    return [key for key, distance in distances.items() if distance == smallest][:3]


def describe(error: ValidationError, model: type[BaseModel], data: Any) -> Problems:
    """The rule that each place in `data` breaks, as `model` found it.

    One mistake is one entry, where pydantic reports one for each type that a value does not fit,
    or a misspelt key both as unknown and as missing.
    """
    found: dict[Where, list[ErrorDetails]] = {}
    problems: Problems = {}
    for detail in error.errors():
        where = _where(detail, data)
        if isinstance(cause := _cause(detail), RulesBroken):
            problems |= {(*where, *below): rule for below, rule in cause.problems.items()}
        else:
            found.setdefault(where, []).append(detail)
    misspelt: set[Where] = set()
    for where, details in found.items():
        if details[0]["type"] == "extra_forbidden":
            section, key = where[:-1], str(where[-1])
            models = _models_at(model, section)
            if same := _same_key_given(models, _at(data, section), key):
                problems[where] = f"is another name for {same}, which is given too"
            else:
                left, given = _keys(models, _at(data, section))
                problems[where] = unknown_key(key, left, given)
                meant, _ = _meant(key, left, given)
                misspelt |= {(*section, *_canonical(models, name)) for name in meant}
    for where, details in found.items():
        if details[0]["type"] == "missing" and where not in misspelt:
            problems[where] = REQUIRED
        elif where not in problems and details[0]["type"] != "missing":
            problems[where] = _rule(details)
    return problems


def fields_meant(model: type[BaseModel], data: Any, where: Where) -> set[Where]:
    """The fields whose value an unknown key may have been meant to give.

    Where no name is near, that is every field that its section leaves out; a top-level key that
    is near to none is no section at all.
    """
    section, key = where[:-1], str(where[-1])
    models = _models_at(model, section)
    left, given = _keys(models, _at(data, section))
    meant, meant_given = _meant(key, left, given)
    names = meant or (left if section and not meant_given else [])
    return {(*section, *_canonical(models, name)) for name in names}


def other_names(model: type[BaseModel], where: Where) -> list[str]:
    """The other keys under which a file may give the field at `where`."""
    for found in _models_at(model, where[:-1]):
        for name, info in found.model_fields.items():
            if where[-1] in (names := names_of(name, info)):
                return [other for other in names if other != where[-1]]
    return []


def rule_of(error: ValidationError) -> str:
    """The rule that a single value breaks, as its type found it."""
    return _rule(error.errors())


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
    return tuple(where)


def _cause(detail: ErrorDetails) -> Exception | None:
    """The exception of our own validator that found the problem, if one did."""
    cause: Exception | None = detail.get("ctx", {}).get("error")
    return cause


def _rule(details: Sequence[ErrorDetails]) -> str:
    first = details[0]
    if cause := _cause(first):
        return str(cause)
    *others, last = dict.fromkeys(text for detail in details for text in _wanted(detail))
    wanted = f"{', '.join(others)} or {last}" if others else last
    meant = []
    if isinstance(first["input"], str):
        meant = nearest(first["input"], [word for detail in details for word in _words(detail)])
    return f"must be {wanted}, got {shown(first['input'])}{hint(meant)}"


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
    "model_attributes_type": "a section, {{key: value}}",
    "too_short": "a list of at least one value",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}


def _wanted(detail: ErrorDetails) -> list[str]:
    """What a value must be, in words; several where there is a choice."""
    context = detail.get("ctx", {})
    if words := _words(detail):
        return words
    if context.get("class_name") == "Range":
        return ["{min: ..., max: ...}", "{values: [...]}"]
    if detail["type"] not in _WANTED:
        return [f"valid ({detail['msg']})"]
    numbers = {key: number(value) for key, value in context.items()}
    return [_WANTED[detail["type"]].format(**numbers)]


def _words(detail: ErrorDetails) -> list[str]:
    """The words that a literal may be; pydantic quotes each."""
    if detail["type"] != "literal_error":
        return []
    expected = str(detail.get("ctx", {})["expected"])
    return re.findall(r"'([^']*)'", expected) or [expected]


def number(value: Any) -> str:
    """A number for people: 50,000 and not 50000.0."""
    whole = isinstance(value, float) and value.is_integer()
    return f"{int(value):,}" if whole or isinstance(value, int) else f"{value}"


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring = 2, 60


def shown(value: Any) -> str:
    """A value as a file would have it, shortened."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else _short.repr(value)


def _at(data: Any, where: Where) -> Any:
    for part in where:
        data = data[part]
    return data


def _models_at(model: type[BaseModel], where: Where) -> list[type[BaseModel]]:
    """The models that may describe the section at `where`."""
    models = [model]
    for part in where:
        fields = [
            info
            for found in models
            for name, info in found.model_fields.items()
            if part in names_of(name, info)
        ]
        # A part that is no field is a key of a dictionary: its value is what the models describe.
        models = [below for field in fields for below in _models(field.annotation)] or models
    return models


def names_of(name: str, info: FieldInfo) -> list[str]:
    """The keys under which a file may give a field; the first is its own."""
    alias = info.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [name]


def _keys(
    models: Sequence[type[BaseModel]], section: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """The valid keys, with dots below, of fields that `section` leaves out, and that it gives."""
    left: list[str] = []
    given: list[str] = []
    for names in (names for found in models for names in _names_in(found)):
        (given if section.keys() & set(names) else left).extend(names)
    return left, given


def _names_in(model: type[BaseModel]) -> Iterator[list[str]]:
    """Each field's names."""
    for name, info in model.model_fields.items():
        yield names_of(name, info)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for names in _names_in(info.annotation):
                yield [f"{name}.{below}" for below in names]


def _same_key_given(
    models: Sequence[type[BaseModel]], section: Mapping[str, Any], key: str
) -> str | None:
    """The other name under which `section` gives the field that is also called `key`."""
    for found in models:
        for name, info in found.model_fields.items():
            if key in (names := names_of(name, info)):
                return next((other for other in names if other != key and other in section), None)
    return None


def _canonical(models: Sequence[type[BaseModel]], key: str) -> tuple[str, ...]:
    """The place, from the models' section on, of the field that a key with dots gives."""
    head, _, below = key.partition(".")
    for found in models:
        for name, info in found.model_fields.items():
            if head in names_of(name, info):
                return name, *(_canonical(list(_models(info.annotation)), below) if below else ())
    return (key,)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that are named somewhere in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)

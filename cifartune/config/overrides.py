"""Changes of single keys on the command line: `--set search.num_trials=8`."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from cifartune.config.fields import all_fields
from cifartune.config.parameters import RANGE_KEYS, Choice, Range
from cifartune.config.problems import Where, names_of, other_names, unknown_key
from cifartune.config.space import SearchSpace
from cifartune.errors import UserError


def apply_override(
    data: Mapping[str, Any], override: str, read: Callable[[str], Any]
) -> tuple[dict[str, Any], Where]:
    """A copy of a file's data with one key changed, and the key's place.

    The key is dotted, `base.optimizer.lr`, also where a name has dots of its own,
    `parameters.optimizer.lr.max`. A parameter that is set to null is no longer searched. What the
    file gives under another name of the same key, such as `lower` for `min`, is replaced, and a
    range by `values`, or the other way round.

    Args:
        data: What the file holds; need not be valid.
        override: `key=value`.
        read: From a value's text to the value.

    Raises:
        UserError: There is no `=`, or a part of the key is no section of the file.
    """
    key, equals, text = override.partition("=")
    searched = data.get("parameters")
    names = {*all_fields(), *(searched if isinstance(searched, Mapping) else ())}
    where = _place(key.strip(), names)
    if not equals or not all(where):
        raise UserError(f"--set {override}: must be key=value, such as search.num_trials=8")
    value = read(text)
    remove = where[0] == "parameters" and len(where) == 2 and value is None
    if remove and where[1] not in names:
        raise UserError(f"--set {override}: {where[1]}: {unknown_key(where[1], sorted(names))}")
    others = [*other_names(SearchSpace, where), *_excluded(where)]
    return _changed(data, where, value, remove, override, others), where


_PARAMETER_KEYS = {
    key
    for model in (Choice, Range)
    for name, info in model.model_fields.items()
    for key in names_of(name, info)
}


def _place(key: str, names: Set[str]) -> tuple[str, ...]:
    top, *rest = key.split(".")
    if top != "parameters" or not rest:
        return top, *rest
    # The names of parameters have dots; so have those in a condition. Of a name that is none, the
    # end is told by what follows.
    ends = [end for end in range(len(rest), 0, -1) if ".".join(rest[:end]) in names]
    ends += [end for end in range(1, len(rest)) if rest[end] in _PARAMETER_KEYS]
    end = next(iter(ends), len(rest))
    inner = rest[end:]
    if inner[:1] == ["when"] and len(inner) > 1:
        inner = ["when", ".".join(inner[1:])]
    return top, ".".join(rest[:end]), *inner


def _excluded(where: Where) -> Set[str]:
    """The keys of a parameter that cannot stand beside the one that is set."""
    if where[0] != "parameters" or len(where) != 3:
        return frozenset()
    if where[2] == "values":
        return RANGE_KEYS
    return {"values"} if where[2] in RANGE_KEYS else frozenset()


def _changed(
    section: Any,
    where: tuple[str, ...],
    value: Any,
    remove: bool,
    override: str,
    others: Sequence[str],
) -> dict[str, Any]:
    if isinstance(section, list):
        raise UserError(
            f"--set {override}: set a list as a whole: --set 'points=[{{optimizer.lr: 0.1}}]'"
        )
    if not isinstance(section, Mapping | None):
        raise UserError(f"--set {override}: {where[0]} has no section to lie in")
    copy = dict(section or {})
    key, *rest = where
    if rest:
        copy[key] = _changed(copy.get(key), tuple(rest), value, remove, override, others)
        return copy
    copy = {k: v for k, v in copy.items() if k != key and k not in others}
    return copy if remove else {**copy, key: value}

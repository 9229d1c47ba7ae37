"""Search-space files: YAML in, a `SearchSpace` or one clear error out."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cifartune.config.overrides import apply_override
from cifartune.config.problems import (
    GIVEN,
    REQUIRED,
    UNKNOWN,
    Problems,
    Where,
    describe,
    fields_meant,
    hint,
    nearest,
)
from cifartune.config.recipe import Recipe
from cifartune.config.space import SearchSpace
from cifartune.errors import UserError


def load_space(path: str | Path, overrides: Sequence[str] = ()) -> SearchSpace:
    """Reads and checks a search-space file.

    Args:
        path: The file.
        overrides: Changes of its keys, each as `--set` takes it: `search.num_trials=8`.

    Raises:
        UserError: The file cannot be read, or breaks rules; every broken rule is named with its
            line, key and, for a misspelt name, the nearest valid one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_similar_file(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    return parse_space(text, source=str(path), overrides=overrides)


def parse_space(text: str, *, source: str, overrides: Sequence[str] = ()) -> SearchSpace:
    """Like `load_space`, from text; `source` names it in messages."""
    try:
        node, data = _read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}{_what_is_no_yaml(error)}") from None
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deeply") from None
    if node is None:
        raise UserError(f"{source}: the file is empty; search_spaces/quick.yaml shows the form")
    if not isinstance(data, dict):
        raise UserError(f"{source}:1: must be a section of keys and values, such as `name: quick`")
    changed: dict[Where, str] = {}
    for override in overrides:
        data, where = apply_override(data, override, _read_value)
        changed[where] = override
    space, problems = _validate(data)
    if space is not None:
        return space
    messages = []
    for where, rule in problems.items():
        message = f"{_dotted(where)}: {rule}"
        line, depth = _line(node, where)
        if option := _option(changed, where, depth):
            # What the file gives is what an option changes.
            messages.append((0, f"--set {option}: {message.replace(GIVEN, '')}"))
        else:
            messages.append((line, f"{source}:{line}: {message}"))
    raise UserError("\n".join(message for _, message in sorted(messages)))


def make_space(data: Mapping[str, Any], *, source: str) -> SearchSpace:
    """Like `load_space`, from what a file would hold; `source` names it in messages.

    A section may be an object, such as a `Recipe` as the base.
    """
    space, problems = _validate(_plain(data))
    if space is not None:
        return space
    raise UserError("\n".join(f"{source}: {_dotted(where)}: {r}" for where, r in problems.items()))


def make_recipe(data: Mapping[str, Any], *, source: str) -> Recipe:
    """The recipe that a file with this base would have; `source` names it in messages.

    Its `seed` is its own, which a file's base has not.

    Raises:
        UserError: It breaks rules, those that span sections included.
    """
    seed = data.get("seed", 0)
    base = {key: value for key, value in _plain(data).items() if key != "seed"}
    space, problems = _validate({"name": "recipe", "base": base})
    if type(seed) is not int or not 0 <= seed < 2**63:
        problems = {("base", "seed"): f"must be a whole number from 0, got {seed!r}", **problems}
    elif space is not None:
        return space.base.with_values({"seed": seed})
    told = [f"{source}: {_dotted(where[1:])}: {rule}" for where, rule in problems.items()]
    raise UserError("\n".join(told))


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with its sections as a file has them: no objects, and a `Recipe` without its seed."""
    return {
        key: value.model_dump(exclude={"seed"} if isinstance(value, Recipe) else None)
        if isinstance(value, BaseModel)
        else value
        for key, value in data.items()
    }


def _dotted(where: Where) -> str:
    return ".".join(map(str, where))


def _option(changed: dict[Where, str], where: Where, depth: int) -> str | None:
    """The last `--set` that bears on `where`, of which the file itself has `depth` parts."""
    for place, option in reversed(changed.items()):
        # It gave what is wrong, a part of that, or the section that the file does not have.
        if (
            where[: len(place)] == place
            or place[: min(len(where), depth + 1)] == (where[: depth + 1])
        ):
            return option
    return None


def _validate(data: dict[str, Any]) -> tuple[SearchSpace | None, Problems]:
    """The space, or else every problem: also of the sections that fit, where others do not."""
    problems: Problems = {}
    broken: set[Where] = set()
    for _ in range(ROUNDS):
        try:
            space = SearchSpace.model_validate(data, context={"broken": broken})
            return None if problems else space, _first_causes(problems)
        except ValidationError as error:
            found = describe(error, SearchSpace, data)
            problems = found | problems
            if any(not detail["loc"] for detail in error.errors()):
                break  # the sections fit by themselves, and all is said about the whole
        for where, rule in found.items():
            broken |= _in_doubt(data, where, rule)
        for where in found:
            data = _without(data, _unit(where))
        data = {"name": "unnamed", "base": {}, **data}  # that they are missing has been said
    return None, _first_causes(problems)


MOST_KEYS = 1000
"""Keys that a section may have, merged ones included."""

ROUNDS = 10
"""How often what is broken is put aside to look at the rest."""


def _unit(where: Where) -> Where:
    """The smallest thing around `where` that can be put aside as a whole."""
    if where[0] in ("objective", "data"):  # their keys have rules in common
        return where[:1]
    if where[0] in ("parameters", "objectives", "points", "warm_start", "constraints"):
        return where[:2]
    return where


def _in_doubt(data: dict[str, Any], where: Where, rule: str) -> set[Where]:
    """The places whose meant value is not known, because `rule` is broken at `where`."""
    if rule.startswith(UNKNOWN) and _unit(where) == where:
        return fields_meant(SearchSpace, data, where)
    return {_unit(where)}


def _without(data: dict[str, Any], where: Where) -> dict[str, Any]:
    """A copy of `data` without what stands at `where`."""
    key, *rest = str(where[0]), *where[1:]
    inner = data.get(key)
    if rest and isinstance(inner, dict):
        return {**data, key: _without(inner, tuple(rest))}
    if rest and isinstance(inner, list):  # the others keep their places
        empty = "" if key == "warm_start" else {}
        return {**data, key: [empty if i == rest[0] else item for i, item in enumerate(inner)]}
    return {k: v for k, v in data.items() if k != key}


def _first_causes(problems: Problems) -> Problems:
    """Without what is missing below an unknown name: nobody can say what belongs there."""
    return {
        where: rule
        for where, rule in problems.items()
        if rule != REQUIRED or not problems.get(where[:-1], "").startswith(UNKNOWN)
    }


def dump_space(space: SearchSpace) -> str:
    """The text of a file that `load_space` reads back as `space`."""
    return yaml.dump(space.model_dump(), Dumper=_Dumper, sort_keys=False)


def dump_briefly(space: SearchSpace) -> str:
    """The text of a file for people, of the same search: what has its default is left out."""
    given = space.model_dump(exclude_defaults=True)
    if space.objectives:  # each by its name, the default one too
        given["objectives"] = [
            {"metric": target.metric, **target.model_dump(exclude_defaults=True)}
            for target in space.objectives
        ]
    told = {key: value for key, value in given.items() if value != {} or key == "base"}
    return yaml.dump(told, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


def _read_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """The document as a tree that knows its lines, and as plain values."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return node, loader.construct_document(node) if node else None
    finally:
        loader.dispose()


def _read_value(text: str) -> Any:
    """The value that `text` stands for in YAML, or the text itself where it is none."""
    try:
        return _read_yaml(text)[1]
    except (yaml.YAMLError, RecursionError):
        return text


_TAG = "tag:yaml.org,2002:"
_WORDS = {
    "null": r"~|null|",
    "bool": r"true|false|True|False|TRUE|FALSE",
    # Not 010, which would be octal, and not thousands of digits, which Python refuses to read.
    "int": r"[-+]?(0|[1-9][\d_]{0,99})",
    "float": r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?|[-+]?\.inf|\.nan",
    "merge": r"<<",
}
"""What unquoted words mean, the first that matches in full; all others are text."""


class _Loader(yaml.SafeLoader):
    """YAML as people mean it, which is plainer and stricter than YAML 1.1.

    Words such as `no` and `on`, dates and 1:30 are text; 1e-3 is a number, and so is 5_000_000.
    A key is text and is given once. There are no tags.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        None: [(_TAG + kind, re.compile(rf"({form})\Z", re.ASCII)) for kind, form in _WORDS.items()]
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None):
            raise _Refused(f"the tag {event.tag} is not supported", event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        given = set()
        for key, _ in node.value:
            if key.tag not in (_TAG + "str", _TAG + "merge"):
                got = key.value if isinstance(key, yaml.ScalarNode) else "a list or section"
                raise _Refused(f"a key must be text, got {got}", key.start_mark)
            if key.value in given:
                raise _Refused(f"{key.value}: is given twice", key.start_mark)
            given.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        # Merges of merges double their keys each time: forty lines would fill the memory.
        if len(node.value) > MOST_KEYS:
            raise _Refused(f"more than {MOST_KEYS:,} keys in a section", node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would read as something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class _Refused(yaml.YAMLError):
    """Valid YAML that has no place here."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem)
        self.line = mark.line


def _what_is_no_yaml(error: yaml.YAMLError) -> str:
    if isinstance(error, _Refused):
        return f":{error.line + 1}: {error}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        reason = ": ".join(filter(None, [error.context, error.problem]))
        if "'\\t'" in reason:
            reason = "a tab: indent with spaces"
        return f":{error.problem_mark.line + 1}: not valid YAML: {reason}"
    return f": not valid YAML: {str(error).splitlines()[0]}"


def _line(node: yaml.Node, where: Where) -> tuple[int, int]:
    """The line, from 1, of the innermost key of `where` that the file writes, and its depth."""
    line = node.start_mark.line
    for depth, part in enumerate(where):
        if isinstance(node, yaml.MappingNode):
            # A merged key comes before the section's own, which overrides it.
            places = {key.value: (key, value) for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            places = {index: (value, value) for index, value in enumerate(node.value)}
        else:
            return line + 1, depth
        if part not in places:
            return line + 1, depth
        key, node = places[part]
        line = key.start_mark.line
    return line + 1, len(where)


def _similar_file(path: Path) -> str:
    names = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return hint([str(path.parent / close) for close in nearest(path.name, names)])

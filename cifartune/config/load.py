"""Search-space files: YAML in, a `SearchSpace` or one clear error out."""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cifartune.config.recipe import Recipe
from cifartune.config.space import Choice, Range, SearchSpace, UnknownKey
from cifartune.errors import UserError

Path_ = tuple[str | int, ...]


def load_space(path: str | Path) -> SearchSpace:
    """Reads and checks a search-space file.

    Raises:
        UserError: The file cannot be read, or breaks rules; every broken rule is named with its
            line, key and, for a misspelt name, the nearest valid one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(_unreadable(path, error)) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    return parse_space(text, source=str(path))


def parse_space(text: str, *, source: str) -> SearchSpace:
    """Like `load_space`, from text; `source` names it in messages."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = _Loader.construct(text)
    except yaml.YAMLError as error:
        raise UserError(_not_yaml(source, error)) from None
    if node is None:
        raise UserError(f"{source}: the file is empty; search_spaces/quick.yaml shows the form")
    lines = dict(_lines(node))
    if not isinstance(data, dict):
        raise UserError(f"{source}: a mapping of keys to values is wanted, such as `name: quick`")
    try:
        return SearchSpace.model_validate(data)
    except ValidationError as error:
        problems = [_problem(detail, lines, source) for detail in error.errors()]
        raise UserError("\n".join(dict.fromkeys(problems))) from None


class _Loader(yaml.SafeLoader):
    """YAML with what people mean: 1e-3 is a number, and a key given twice is an error."""

    @classmethod
    def construct(cls, text: str) -> Any:
        return yaml.load(text, Loader=cls)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text, for want of a dot and a sign; 5_000_000 stays a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        folder = path.parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        return f"{path}: no such file{_suggest(path.name, names)}"
    return f"{path}: cannot be read: {error.strerror or error}"


def _not_yaml(source: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    return f"{source}{line}: not valid YAML: {getattr(error, 'problem', None) or error}"


def _lines(node: yaml.Node, path: Path_ = ()) -> Iterator[tuple[Path_, int]]:
    """Each key's place in the file: its path and its line, from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _lines(value, (*path, index))


def _problem(detail: Any, lines: dict[Path_, int], source: str) -> str:
    cause = (detail.get("ctx") or {}).get("error")
    where: Path_ = (*_written(detail["loc"], lines), *getattr(cause, "where", ()))
    rule = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        rule = "unknown key" + _suggest(str(where[-1]), _keys_beside(where))
    elif isinstance(cause, UnknownKey):
        rule += _suggest(str(where[-1]), cause.known)
    elif detail["type"] == "missing":
        rule = "is required"
    elif detail["type"] == "literal_error":
        allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        rule = f"must be one of {allowed}; got {detail['input']!r}"
        rule += _suggest(str(detail["input"]), allowed.split(", "))
    elif cause is None:
        rule = f"{rule[0].lower()}{rule[1:]}, got {detail['input']!r}"
    line = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), 1)
    key = ".".join(map(str, where)) or "the file"
    return f"{source}:{line}: {key}: {rule}"


def _written(loc: Sequence[str | int], lines: dict[Path_, int]) -> Path_:
    """An error's location as the file writes it, without the tags of the types tried."""
    path: Path_ = ()
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (*path, part) in lines or (last and not str(part).isidentifier()) or not path:
            path = (*path, part)
        elif last and part not in ("choice", "range") and "[" not in str(part):
            path = (*path, part)
    return path


def _keys_beside(where: Path_) -> list[str]:
    """The valid keys of the section in which the last part of `where` stands."""
    if where[0] == "parameters" and len(where) == 3:
        return [*Range.model_fields, *Choice.model_fields]
    model: Any = SearchSpace
    for part in where[:-1]:
        model = _section(model, str(part))
    return list(model.model_fields) if model else []


def _section(model: Any, name: str) -> type[BaseModel] | None:
    annotation = model.model_fields[name].annotation if model and name in model.model_fields else 0
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next((a for a in get_args(annotation) if isinstance(a, type)), 0)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _suggest(name: str, known: Sequence[str]) -> str:
    # A forgotten section is as common as a misspelling: lr for optimizer.lr.
    ends = {k.split(".")[-1]: k for k in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        close = difflib.get_close_matches(name.split(".")[-1], ends, n=1, cutoff=0.6)
        close = [ends[c] for c in close]
    return f"; did you mean {close[0]}?" if close else ""


__all__ = ["Recipe", "load_space", "parse_space"]

"""A report as parts that a page and a Markdown text are made from."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # takes half a second, and Markdown has no figures
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Text:
    """A paragraph; a note stands back behind what it explains."""

    text: str
    kind: Literal["", "note", "warning"] = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under their headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: int | None = None
    """The row that stands out."""

    def is_number(self, column: int) -> bool:
        """Whether a column is one of numbers, to be set to the right."""
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(
            re.match(r"[-+<]? ?\d[\d.,]*(e[-+]?\d+)?( |$|%)", cell) for cell in cells
        )


@dataclass(frozen=True)
class Code:
    """Lines to copy: a command, or a file."""

    text: str
    language: str = "sh"


@dataclass(frozen=True)
class Figure:
    """A figure, drawn when a page is made; `least_width` in pixels, below which it scrolls."""

    draw: "Callable[[], go.Figure]"
    title: str = ""
    least_width: int = 0


@dataclass(frozen=True)
class Grid:
    """Small figures, as many side by side as there is room for."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Picture:
    """A PNG file."""

    path: Path
    title: str


@dataclass(frozen=True)
class Folded:
    """What only some readers want: closed until it is asked for."""

    title: str
    parts: "Sequence[Part]"


Tone = Literal["sure", "open", "none"]

Part = Text | Table | Code | Figure | Grid | Picture | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands below."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: What it is about.
        subtitle: In a line.
        notices: What must be known before anything else, such as that the search is unfinished.
        verdict: The answer, in a sentence.
        tone: How sure it is: `sure`, `open` (cannot be told apart), or `none`, where there is none.
        more: What follows the verdict.
        headlines: The first numbers: label, value, remark.
        sections: All else.
    """

    title: str
    subtitle: str
    notices: Sequence[str]
    verdict: str
    tone: Tone
    more: Sequence[str] = ()
    headlines: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def markdown(document: Document) -> str:
    """The document as Markdown: all of it but the figures; pictures are links."""
    lines = [f"# {_plain(document.title)}", "", _plain(document.subtitle), ""]
    for notice in document.notices:
        lines += [f"> {_plain(notice)}", ""]
    lines += [f"**{_plain(document.verdict)}**", ""]
    for text in document.more:
        lines += [_plain(text), ""]
    if document.headlines:
        lines += _table(Table(["", "", ""], document.headlines))
    for section in document.sections:
        body = list(_parts(section.parts))
        if body:
            lines += [f"## {_plain(section.title)}", "", *body]
    return "\n".join(lines).rstrip() + "\n"


def _parts(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        match part:
            case Text(text):
                yield from (_plain(text), "")
            case Table():
                yield from _table(part)
            case Code(text, language):
                fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
                yield from (f"{fence}{language}", *text.rstrip().splitlines(), fence, "")
            case Picture(path, title):
                yield from (f"[{_plain(title)}](<{path}>)", "")
            case Folded(title, inner):
                yield from (f"*{_plain(title)}*", "", *_parts(inner))
            case Figure() | Grid():
                pass


def _table(table: Table) -> list[str]:
    columns = range(len(table.headings))
    rule = ["--:" if table.is_number(column) else "---" for column in columns]
    rows = [[_plain(cell) for cell in row] for row in (table.headings, *table.rows)]
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])] + [""]


def _plain(text: str) -> str:
    """A text in one line that Markdown, and HTML in it, leaves as it is."""
    return re.sub(r"([\\`*<|\[\]])", r"\\\1", " ".join(text.split()))

"""A report as one HTML file that needs nothing else: no network, no other file."""

import re
from base64 import b64encode
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from cifartune.report.document import Document

if TYPE_CHECKING:  # takes half a second
    import plotly.graph_objects as go


def page(document: Document) -> str:
    """The document as HTML.

    Plotly's script is in the file once, pictures are data in it, and the page forbids itself to
    load anything (Content-Security-Policy). All texts are escaped.
    """
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "figure_json": figure_json,
        "data_uri": data_uri,
        "breakable": breakable,
    }
    environment.tests["kind"] = lambda part, name: type(part).__name__ == name
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    numbers = count()
    return template.render(
        document=document, plotly=get_plotlyjs(), new_number=lambda: next(numbers)
    )


def breakable(text: str) -> str:
    """A dotted name that may be broken behind its dots, escaped."""
    from markupsafe import Markup

    parts: list[str] = re.split(r"(?<=[._/])", text)
    return Markup("<wbr>").join(parts)


def figure_json(figure: "go.Figure") -> str:
    """A figure as JSON that can stand in a script of a page: no text in it can end the script."""
    text = str(figure.to_json())
    return text.replace("<", "\\u003c")


def data_uri(path: Path) -> str:
    """A PNG file as the address of an image."""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"

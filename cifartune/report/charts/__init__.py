"""The figures of a search: from the tables of `frames` to plotly, all with one look.

They are drawn as SVG alone: it prints, and needs no graphics card. Names and values that stem from
users are escaped, as plotly takes a text for HTML.
"""

from cifartune.report.charts.answers import confusion_chart, interval_chart, share_chart
from cifartune.report.charts.look import COLOURS
from cifartune.report.charts.parameters import importance_chart, parallel_coordinates, slice_chart
from cifartune.report.charts.trials import learning_curves, size_chart

__all__ = [
    "COLOURS",
    "confusion_chart",
    "importance_chart",
    "interval_chart",
    "learning_curves",
    "parallel_coordinates",
    "share_chart",
    "size_chart",
    "slice_chart",
]

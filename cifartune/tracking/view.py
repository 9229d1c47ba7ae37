"""The trials of a search in MLflow's table: a view that its menu "Views" lists by name.

MLflow keeps such views as tags of the experiment, as "Share" in its menu writes them: a name, and
which runs, in which order, with which columns.
"""

import json
from urllib.parse import urlencode

from cifartune.config import SearchSpace

PREFIX = "mlflow.sharedViewState."
"""What the tag's name begins with; the id of the view follows, which is the search's."""


NAME = "attributes.`Run Name`"


def view_of(space: SearchSpace, search: str, name: str, time: int) -> str:
    """The value of the tag: the trials of a search, the best first, with what was searched.

    Args:
        space: The search.
        search: Its id.
        name: Its name.
        time: When it is made, in milliseconds since 1970.
    """
    columns = _columns(space)
    state = {
        **_facets(space, search),
        "selectedColumns": columns,
        # By itself, MLflow sorts the metrics by name, behind the times.
        "columnOrder": ["0", NAME, *columns, "runDateAndNestInfo", "duration"],
        "columnWidths": {NAME: 220, **dict.fromkeys(columns, 110)},
        "runsHiddenMode": "SHOW_ALL",
    }
    view = {"name": f"{name}: trials", "createdAt": time, "state": json.dumps(state)}
    return json.dumps(view)


def view_address(experiment: str, search: str) -> str:
    """Where MLflow's pages show the view, below the address of the server."""
    return f"#/experiments/{experiment}/runs?{urlencode({'viewStateShareKey': search})}"


def plain_address(experiment: str, space: SearchSpace, search: str) -> str:
    """The same where the store has no view of the search: its trials, with MLflow's own columns."""
    facets = {key: _text(value) for key, value in _facets(space, search).items()}
    return f"#/experiments/{experiment}/runs?{urlencode(facets)}"


def _facets(space: SearchSpace, search: str) -> dict[str, str | bool]:
    return {
        "searchFilter": f"tags.`cifartune.search` = '{search}' AND tags.`cifartune.kind` = 'trial'",
        "orderByKey": f"metrics.`{value_metric(space)}`",
        "orderByAsc": space.target.mode == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
    }


def _text(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def value_metric(space: SearchSpace) -> str:
    """The metric by which trials are ranked.

    `objective` is that of the epoch that counts. It is there when a trial is over, and needed only
    where a recipe may keep another epoch than its last.
    """
    keeps: set[str] = {space.base.stopping.keep}
    if searched := space.parameters.get("stopping.keep"):
        keeps |= {str(value) for value in getattr(searched, "values", ())}
    return "objective" if "best" in keeps else space.target.metric


def _columns(space: SearchSpace) -> list[str]:
    metrics = dict.fromkeys(
        [value_metric(space), *(target.metric for target in space.targets), "val_loss"]
    )
    return [
        *(f"metrics.`{name}`" for name in metrics),
        *(f"params.`{name}`" for name in space.parameters),
        *(f"metrics.`{name}`" for name in ("trained_epochs", "seconds")),
        "tags.`cifartune.state`",
    ]

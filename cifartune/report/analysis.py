"""What a search's trials and mistakes show, for its report: why the winner won."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import pandas as pd

from cifartune.report.document import Figure, Folded, Grid, Part, Picture, Section, Table, Text
from cifartune.report.figures import BLUE
from cifartune.report.frames import curves_frame, points_frame, sizes_frame
from cifartune.report.importance import FEWEST_TRIALS, PED_ANOVA, importance_frame
from cifartune.report.searched import Searched
from cifartune.report.tables import show

if TYPE_CHECKING:  # takes half a second, and Markdown has no figures
    import plotly.graph_objects as go

Draw = Callable[[], "go.Figure"]

CONFUSIONS = 8
"""Pairs of classes that are told in words."""


def curves_section(searched: Searched) -> Section:
    """The learning curves, and how many trials came how far."""
    curves = curves_frame(searched.study)
    if not len(curves):
        return Section("Learning curves", [Text("No trial has finished an epoch.")])

    def draw() -> "go.Figure":
        from cifartune.report.charts import learning_curves

        return learning_curves(
            curves,
            searched.metric,
            rungs=searched.space.rungs,
            winner=searched.best,
            called=_called(searched),
        )

    reached = curves.groupby("trial")["epoch"].max()
    stops = searched.space.rungs
    rows = []
    for epoch in dict.fromkeys([*stops, int(reached.max())]):
        ended = curves[curves["epoch"] == reached[curves["trial"]].to_numpy()]
        here = ended[(ended["epoch"] == epoch) & (ended["kind"] == "stopped early")]
        rows.append([str(epoch), f"{(reached >= epoch).sum():,}", f"{len(here):,}"])
    stopped = Table(["epoch", "trials that reached it", "stopped there"], rows)
    scheduler = searched.space.scheduler
    told = {
        "asha": f"ASHA lets about one in {scheduler.reduction_factor:g} pass each rung",
        "hyperband": f"Hyperband lets about one in {scheduler.reduction_factor:g} pass each rung",
        "median": "What is worse than the median of the others so far is stopped",
        "none": "No trial was stopped early",
    }[scheduler.name]
    note = Text(f"{told}; the baseline is never stopped.", "note")
    return Section("Learning curves", [Figure(draw), note, stopped])


def parameters_section(searched: Searched) -> Section:
    """Which parameters mattered, and which of their values did well, at one and the same epoch."""
    title, space, epoch = "Parameters", searched.space, searched.epoch
    if not space.parameters:
        return Section(title, [Text("This search varies no parameter.")])
    if not epoch:
        return Section(title, [Text("No trial has been trained far enough yet to be compared.")])
    points = points_frame(searched.study, epoch)
    parts: list[Part] = [
        Text(
            f"Compared are the {len(points):,} trials that reached epoch {epoch}, by their "
            f"{searched.metric} after it: values after different numbers of epochs do not compare."
            + (
                " Recipes differ in their epochs, too, so that one may be further in its schedule."
                if "epochs" in space.parameters
                else ""
            )
        )
    ]
    parts += _importance(searched, epoch)
    if len(points) > 1:
        from_points = partial(_slice, points, searched)
        parts.append(
            Text(
                "Each parameter alone. Mind what this hides: the others vary as well, and the "
                "sampler tries more where it found good values. Blue: complete; grey: stopped "
                f"later; diamond: the {_called(searched)}."
            )
        )
        having = [name for name in space.parameters if points[name].notna().any()]
        parts.append(Grid([Figure(partial(from_points, name)) for name in having]))

        def together() -> "go.Figure":
            from cifartune.report.charts import parallel_coordinates

            return parallel_coordinates(
                points,
                space.parameters,
                searched.metric,
                space.target.mode,
                searched.best,
                _called(searched),
            )

        width = 110 * (len(space.parameters) + 1)
        parts.append(Figure(together, "All parameters together", least_width=max(640, width)))
    return Section(title, parts)


def _called(searched: Searched) -> str:
    """What the trial is called that figures show on top: the best has not won before the end."""
    return "winner" if searched.winner is not None else "best so far"


def _slice(points: pd.DataFrame, searched: Searched, name: str) -> "go.Figure":
    from cifartune.report.charts import slice_chart

    parameter = searched.space.parameters[name]
    return slice_chart(points, name, parameter, searched.metric, searched.best)


def _importance(searched: Searched, epoch: int) -> list[Part]:
    importance = importance_frame(searched.study, epoch)
    if not len(importance):
        return [
            Text(
                "How much each parameter mattered: no estimate. It takes "
                f"{FEWEST_TRIALS} trials at one epoch, and values that differ.",
                "note",
            )
        ]

    def draw() -> "go.Figure":
        from cifartune.report.charts import importance_chart

        return importance_chart(importance)

    rows = [
        [
            row["parameter"],
            row["method"],
            f"{row['share']:.0%}",
            f"{row['low']:.0%} to {row['high']:.0%}",
        ]
        for row in importance.to_dict("records")
    ]
    even = 1 / importance["parameter"].nunique()
    of_first = importance[importance["method"] == PED_ANOVA]
    clear = list(of_first[of_first["low"] > even]["parameter"])
    told = (
        f"By PED-ANOVA, more than an even share ({even:.0%}) is clear of chance for: "
        f"{', '.join(clear)}."
        if clear
        else f"No parameter's interval lies clear above an even share ({even:.0%}): from these "
        "trials it cannot be said which mattered most."
    )
    return [
        Figure(draw, "How much each parameter mattered"),
        Text(
            f"{told} PED-ANOVA asks in which parameters the better half of the trials differs from "
            "all; the random forest asks which predict the value, and leaves out parameters that "
            "only some trials have. Intervals span 95 % of the estimates from random halves of the "
            "trials; the dashed line is the even share."
        ),
        Folded("As a table", [Table(["parameter", "method", "share", "95 % interval"], rows)]),
    ]


def size_section(searched: Searched) -> Section | None:
    """Accuracy against what the network costs; None where nothing is known of that."""
    space = searched.space
    costs = [target.metric for target in space.targets if not target.is_measured]
    cost = costs[0] if costs else "params"
    sizes = sizes_frame(searched.study, cost)
    if not len(sizes):
        return None
    title = "Accuracy and size" if searched.metric.endswith("accuracy") else "Loss and size"
    if sizes["cost"].nunique() == 1:
        told = f"All complete trials have networks of one size: {sizes['cost'].iloc[0]:,.0f} {cost}"
        return Section(title, [Text(f"{told}.")])

    def draw() -> "go.Figure":
        from cifartune.report.charts import size_chart

        return size_chart(sizes, cost, searched.metric, searched.best, _called(searched))

    front = sizes[sizes["is_on_front"]].sort_values("cost")
    rows = [
        [str(row["trial"]), f"{row['cost']:,.0f}", show(searched.metric, row["value"])]
        for row in front.to_dict("records")
    ]
    return Section(
        title,
        [
            Figure(draw),
            Text("On the Pareto front: no other complete trial is better in both."),
            Table(["trial", cost, searched.metric], rows),
        ],
    )


def front_section(searched: Searched) -> Section | None:
    """The Pareto front of a search with several objectives; None where it has one."""
    result = searched.result
    if result is None or not result["pareto_front"]:
        return None
    front = result["pareto_front"]
    names = [name for name in front[0] if name != "trial"]
    front = sorted(front, key=lambda row: row[names[0]], reverse=True)
    rows = [[str(row["trial"]), *(show(name, row[name]) for name in names)] for row in front]
    text = Text("No other complete trial is better in every objective.")
    return Section("Pareto front", [text, Table(["trial", *names], rows)])


def mistakes_sections(searched: Searched) -> list[Section]:
    """Classes, confusion and the hardest images, by models that never saw them."""
    folder = searched.run.mistakes
    if searched.result is None or not (folder / "classes.csv").exists():
        return []
    classes = pd.read_csv(folder / "classes.csv")
    confusion = pd.read_csv(folder / "confusion.csv", index_col="true")
    rows = [
        [
            row["class"],
            f"{row['images']:,}",
            _percent(row["accuracy"]),
            f"{_percent(row['accuracy_low'])} to {_percent(row['accuracy_high'])}",
            _percent(row["precision"]),
        ]
        for row in classes.to_dict("records")
    ]

    @cache
    def in_order() -> pd.DataFrame:
        known = classes[classes["accuracy"].notna()].sort_values("accuracy", ascending=False)
        ends = {"class": "name", "accuracy": "value", "accuracy_low": "low"}
        return known.rename(columns={**ends, "accuracy_high": "high"}).assign(colour=BLUE)

    def draw_classes() -> "go.Figure":
        from cifartune.report.charts import interval_chart

        return interval_chart(in_order(), "share of the class's images that are right")

    def draw_confusion() -> "go.Figure":
        from cifartune.report.charts import confusion_chart

        return confusion_chart(confusion)

    headings = ["class", "images", "accuracy", "95 % interval", "precision"]
    pairs = [
        (int(count), f"{true} taken for {predicted}: {count:,}")
        for true, row in confusion.to_dict("index").items()
        for predicted, count in row.items()
        if true != predicted and count
    ]
    most = sorted(pairs, key=lambda pair: -pair[0])[:CONFUSIONS]
    told = "; ".join(text for _, text in most)
    found = [
        Section(
            "Classes",
            [
                Text(
                    "The winner's out-of-fold predictions: each image by a model that never saw it."
                ),
                Figure(draw_classes, "Accuracy of each class, with Wilson's interval"),
                Folded("As a table", [Table(headings, rows)]),
                Figure(draw_confusion, "Confusion: true classes down, predicted across", 560),
                Text(f"The most frequent confusions: {told}." if told else "There are none."),
            ],
        )
    ]
    pictures: list[Part] = [
        Picture(folder / name, title)
        for name, title in (
            ("hardest.png", "The surest mistakes, and the hardest images of each class"),
            ("label_errors.png", "Images whose label may be wrong, to be looked at"),
        )
        if (folder / name).exists()
    ]
    where = Text("All of them are in the folder mistakes, as tables.", "note")
    return [*found, Section("Hardest images", [*pictures, where])] if pictures else found


def _percent(value: float) -> str:
    return "unknown" if pd.isna(value) else f"{value:.1%}"

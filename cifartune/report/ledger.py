"""What a search took, and with what, for its report."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from cifartune.clock import Clock
from cifartune.passwords import without_password
from cifartune.report.answer import MODELS, percent, views
from cifartune.report.document import Code, Figure, Part, Section, Table, Text
from cifartune.report.figures import BLUE, GREY, ORANGE
from cifartune.report.frames import failures_frame, ledger_frame
from cifartune.report.planned import size, used_rows
from cifartune.report.searched import Searched
from cifartune.report.tables import show_time
from cifartune.tuning.study import attributes

if TYPE_CHECKING:  # takes half a second, and Markdown has no figures
    import plotly.graph_objects as go


STAGES = {"start": GREY, "search": BLUE, "refit": ORANGE}
"""Colours of the stages that take long."""


def models_section(searched: Searched) -> Section | None:
    """The final models, as far as the test set was looked at; None before the answer."""
    result = searched.result
    if result is None:
        return None
    title = "Final models"
    if not result["models"]:
        told = "The test set is closed: nobody has looked at it for this winner. To look, once:"
        return Section(title, [Text(told), Code(searched.run.command("evaluate"))])
    rows = []
    for name, model in result["models"].items():
        calibration = model["calibration"]
        rows.append(
            [
                MODELS[name],
                str(model["networks"]),
                f"{model['weights']:,}",
                f"{model['accuracy']['value']:.2%}",
                f"{model['accuracy']['low']:.2%} to {model['accuracy']['high']:.2%}",
                percent(model["plain_accuracy"]["value"]),
                f"{calibration['log_loss']:.3f}",
                f"{calibration['error']:.1%}",
                f"{calibration['scaled_error']:.1%}",
                f"{1000 * model['seconds_per_image']:.2g}",
            ]
        )
    headings = [
        "model",
        "networks",
        "weights",
        "accuracy",
        "95 % interval",
        "one view",
        "log loss",
        "calibration error",
        "scaled",
        "ms/image",
    ]
    device = next(iter(result["models"].values()))["device"]
    note = (
        f"Accuracy: {views(result)}. Calibration error before and after temperature scaling, whose "
        f"temperature was found out of fold. Time of prediction on {device}."
    )
    return Section(title, [Text(_looks(result)), Table(headings, rows), Text(note, "note")])


def _looks(result: dict[str, Any]) -> str:
    if result["test_set"] != "CIFAR-10 test":
        return "On training images that stand in for the test set, which was not opened."
    own, every = result["test_looks"], result["test_looks_of_all_searches"]
    looks = "one look" if own == 1 else f"{own} looks"
    return (
        f"On the test set, which had {looks} by this search and {every} by all searches with these "
        "images."
    )


def costs_section(searched: Searched) -> Section:
    """Where the time went, and what trials took."""
    result = searched.result
    seconds = dict(result["seconds"] if result else Clock(searched.run.clock).totals())
    total = seconds.pop("total", 0.0)
    trials = ledger_frame(searched.study)
    stages = {stage: spent for stage, spent in seconds.items() if spent}
    epochs = trials["epochs"][trials["epochs"] > 0]

    def draw() -> "go.Figure":
        from cifartune.report.charts import COLOURS, share_chart

        rows = [("time", *item, STAGES.get(item[0], GREY)) for item in stages.items()]
        rows += [("epochs of trials", kind, n, COLOURS[str(kind)]) for kind, n in epochs.items()]
        frame = pd.DataFrame(rows, columns=["whole", "part", "value", "colour"])
        units = {"time": show_time, "epochs of trials": "{:,.0f} epochs".format}
        return share_chart(frame, units)

    all_epochs = trials["epochs"].sum()
    rows = [
        [
            str(kind),
            f"{row['trials']:,.0f}",
            f"{row['epochs']:,.0f}",
            f"{row['epochs'] / all_epochs:.0%}" if all_epochs else "",
            f"{row['images']:,.0f}",
            show_time(row["seconds"]),
        ]
        for kind, row in trials.iterrows()
    ]
    told = ", ".join(f"{stage} {show_time(spent)}" for stage, spent in stages.items())
    parts: list[Part] = [Text(f"All took {show_time(total)} of wall time: {told}.")]
    if stages or len(epochs):
        parts.append(Figure(draw, "Where the time and the epochs went"))
    headings = ["trials that were", "trials", "epochs", "share", "images trained", "training time"]
    parts.append(Table(headings, rows))
    if result:
        used = result["used"]
        parts.append(
            Text(
                f"The refit trained {used['refit_epochs']:,} epochs; all in all, "
                f"{used['all_images']:,} images were trained on, counted as often as they were "
                f"seen. On the disk: {size(used['disk'])}; {size(result['freed_bytes'])} of "
                "checkpoints and weights were freed on the way."
            )
        )
        if result["planned"]:
            parts.append(Text("What was planned before the first trial, and what was used:"))
            rows = used_rows(result["planned"], used)
            parts.append(Table(["", "planned", "used", "used / planned"], rows))
    return Section("Cost", parts)


def failures_section(searched: Searched) -> Section | None:
    """The kinds of failure of trials; None where there is none."""
    failures = failures_frame(searched.study)
    if not len(failures):
        return None
    rows = [
        [row["failure"], f"{row['trials']:,}", str(row["first"]), row["message"]]
        for row in failures.to_dict("records")
    ]
    table = Table(["failure", "trials", "first", "what the first said"], rows)
    return Section("Failures", [table])


def origin_section(searched: Searched) -> Section:
    """Machine, versions, seed and commit: what the numbers stem from."""
    result, environment = searched.result, searched.environment()
    machine = dict(result["hardware"]) if result else {}
    versions = dict(result["versions"]) if result else {}
    if not result and environment:
        known = ("system", "processor", "gpu", "instructions", "commit")
        machine = {name: environment[name] for name in ("processor", "system") if environment[name]}
        versions = {name: text for name, text in environment.items() if name not in known}
    gpus = machine.pop("gpus", [])
    best = searched.study.trials[searched.best] if searched.best is not None else None
    rows = [
        ["machine", ", ".join(_machine(machine))],
        ["GPUs", ", ".join(gpus) or "none"],
        ["versions", ", ".join(f"{name} {text}" for name, text in versions.items())],
        ["commit of cifartune", environment.get("commit", "unknown")],
        ["seed", str(searched.space.search.seed)],
        ["sampler, scheduler", f"{searched.space.search.sampler}, {searched.space.scheduler.name}"],
        ["run", f"{searched.run.name}, id {searched.run.id}"],
    ]
    if best is not None:
        name = "winner's recipe" if searched.winner is not None else "best recipe so far"
        rows.append([name, f"id {searched.study.recipe(best).id}"])
        if digest := attributes(best).get("weights_sha256"):
            rows.append(["its trial's weights", f"SHA-256 {digest}"])
    if result and result["mlflow"].get("run_id"):
        uri = without_password(str(result["mlflow"]["uri"]))
        rows.append(["MLflow", f"run {result['mlflow']['run_id']} in {uri}"])
    for changes in searched.run.changes:
        told = ", ".join(f"{key} {before} -> {after}" for key, (before, after) in changes.items())
        rows.append(["extended", told])
    return Section("Where it comes from", [Table(["", ""], [row for row in rows if row[1]])])


def _machine(machine: dict[str, Any]) -> list[str]:
    units = {"cores": "{} cores", "memory_gib": "{} GiB of memory"}
    return [units.get(name, "{}").format(value) for name, value in machine.items()]


def commands_section(searched: Searched) -> Section:
    """What the reader types to go on, extend, look closer, and use the models."""
    command, more = searched.run.command, 2 * searched.space.search.num_trials
    parts: list[Part] = []
    if searched.result is None:
        parts += [Text("Go on with it:"), Code(command("resume"))]
        return Section("Commands", parts)
    commands = [
        ("Give it more trials:", searched.extension(more)),
        ("Train the winner's trial again: the same weights?", command("reproduce")),
        ("Hold it against another search on the same images:", command("compare", "OTHER")),
        ("Predict the classes of your own images:", command("predict", "IMAGE...")),
        ("Look at the test set (refused where these models were judged):", command("evaluate")),
        ("Check that study, files and MLflow fit together:", command("check")),
    ]
    for text, line in commands:
        parts += [Text(text), Code(line)]
    return Section("Commands", parts)

"""The plan of a search for the terminal, before and after."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from cifartune.planning import Plan
from cifartune.report.tables import show_time


def plan_lines(plan: Plan) -> list[str]:
    """The plan in a few lines."""
    reaching = [f"{count:.0f} reach epoch {epoch}" for epoch, count in plan.reaching.items()]
    budget = ""
    if plan.time_budget is not None:
        budget = f" (time budget {show_time(plan.time_budget)})"
    return [
        f"{plan.trials} trials, about {plan.epochs:,.0f} epochs "
        f"({plan.epochs_low:,.0f} to {plan.epochs_high:,.0f})",
        ", ".join(reaching),
        *filter(None, [plan.packing]),
        f"search {show_time(plan.search)}{budget}, refit {show_time(plan.refit)}",
        f"all {show_time(plan.total)}, {plan.device_hours:,.1f} {plan.device}-hours",
        f"{size(plan.memory)} of memory a slot, {size(plan.disk)} of disk",
    ]


def savings_lines(plan: Plan) -> list[str]:
    """How a long search becomes shorter."""
    return [
        f"--set {change:26} saves {show_time(seconds)}" for change, seconds in plan.savings.items()
    ]


def plan_table(plan: Plan) -> Table:
    """Every part of the plan in a row."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    span = f"{plan.epochs_low:,.0f} to {plan.epochs_high:,.0f} in rehearsals"
    refit_epochs = f"{plan.refit_jobs} jobs, {plan.refit_epochs:,.0f} epochs"
    rows = {
        "trials": f"{plan.trials:,}, {plan.slots} at a time",
        **({"packing": plan.packing} if plan.packing else {}),
        "reaching": "\n".join(
            f"epoch {epoch:<5} {count:,.1f}" for epoch, count in plan.reaching.items()
        ),
        "epochs": f"{plan.epochs:,.0f} ({span})",
        "images": f"{plan.images:,.0f} in the search, {plan.refit_images:,.0f} in the refit",
        "rate": "\n".join(f"{rate:>9,.0f} images/s  {name}" for name, rate in plan.rates.items()),
        "start": show_time(plan.start),
        "search": show_time(plan.search)
        + (f", bounded by the time budget {show_time(b)}" if (b := plan.time_budget) else ""),
        "refit": f"{show_time(plan.refit)}: {refit_epochs}; the time budget does not bound it",
        "evaluate": show_time(plan.evaluate),
        "all": f"{show_time(plan.total)}, {plan.device_hours:,.1f} {plan.device}-hours",
        "memory": f"{size(plan.memory)} a slot, the most in the probe",
        "disk": f"{size(plan.disk)} at the end",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def used_table(planned: Mapping[str, Any], used: Mapping[str, Any]) -> Table:
    """What was planned beside what was used."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "planned", "used", "used / planned"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in used_rows(planned, used):
        table.add_row(*row)
    return table


def used_rows(planned: Mapping[str, Any], used: Mapping[str, Any]) -> list[list[str]]:
    """Of all that was both planned and used: its name, the plan, what was used, and the ratio."""
    shown = {
        "epochs of the search": ("epochs", "{:,.0f}".format),
        "epochs of the refit": ("refit_epochs", "{:,.0f}".format),
        "images trained": ("all_images", "{:,.0f}".format),
        "search": ("search", show_time),
        "refit": ("refit", show_time),
        "all": ("total", show_time),
        "memory of a slot": ("memory", size),
        "disk": ("disk", size),
    }
    return [
        [name, show(planned[key]), show(used[key]), f"{used[key] / planned[key]:.0%}"]
        for name, (key, show) in shown.items()
        if used.get(key) and planned.get(key)
    ]


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

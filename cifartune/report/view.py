"""Where a search stands, drawn for a terminal of any size."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cifartune.report.standing import WHOLE, RefitRow, Standing
from cifartune.report.tables import Row, show, show_time, show_value, trials_table

LABEL = 9
"""Columns for the words on the left."""

RUNNING, BEST, REFITS = 6, 5, 5
"""Trials under way, of the best and refits that are shown at the most; of the last, what fits."""


@dataclass(frozen=True)
class Times:
    """Seconds of a search.

    Attributes:
        elapsed: Since its process began; None: no process is at it.
        spent: By stage, over all its processes.
    """

    elapsed: float | None
    spent: Mapping[str, float]


def draw(standing: Standing, console: Console, times: Times, *, height: int) -> RenderableType:
    """The search as it stands, in so many rows of the console.

    Of many trials those are shown that run, the best, and those that ended last.
    """
    width = console.width
    head: list[RenderableType] = [
        _headline(standing, times, width),
        _bar(standing, width),
        *(_line(label, text, width) for label, text in facts(standing, width)),
    ]
    tail: list[RenderableType] = [
        _line(label, text, width) for label, text in refit_lines(standing)
    ]
    if tail:
        tail.insert(0, Text(""))
    room = height - len(head) - len(tail) - 3  # a blank line, the heading and the caption
    while room > 0 and standing.rows:
        table = _trials(standing, room, width)
        lines = console.render_lines(table, console.options.update(height=None))
        if len(head) + 1 + len(lines) + len(tail) <= height:
            return Group(*head, Text(""), table, *tail)
        room -= 1
    return Group(*(head + tail)[:height])


def progress_text(standing: Standing) -> str:
    """How far it is: trials and epochs, or the runs and epochs of the refit."""
    if standing.refits:
        refit = standing.space.refit
        alive = [row for row in standing.refits.values() if not row.dropped]
        parts = [part for row in alive for part in row.parts.values()]
        runs = len(alive) * refit.folds * refit.seeds + refit.all_images
        done = sum(part.is_over for part in parts)
        told = f"refit, {done} of {runs} runs"
        return told if standing.stage == "refit" else f"{told}; final models"
    trials = standing.space.search.num_trials
    told = f"{standing.ended_count} of {trials} trials, {standing.epochs:,} "
    if standing.plan:
        return told + f"of about {max(standing.plan['epochs'], standing.epochs):,.0f} epochs"
    return told + "epochs"


def left_text(standing: Standing, times: Times) -> str:
    """How long it will still take, in words."""
    left = standing.seconds_left(times.spent)
    return "time left unknown" if left is None else f"about {show_time(left)} left"


def facts(standing: Standing, width: int) -> Iterator[tuple[str, str]]:
    """Trials by state, the best with what it changes, and the rungs: label and text."""
    counts = [f"{count} {state}" for state, count in standing.counts.items()]
    yield "trials", ", ".join(counts) or "none yet"
    ranked, metric = standing.ranked(), standing.space.target.metric
    if not ranked:
        return
    best, sign = ranked[0], 1 if standing.space.target.mode == "max" else -1
    yield "best", _told_of(standing, best)
    others = {name: value for name, value in best.objectives.items() if name != metric}
    if others:
        yield "", ", ".join(f"{name} {show(name, value)}" for name, value in others.items())
    highest = max(ranked, key=lambda row: sign * (row.value or 0.0))
    if highest is not best:  # which was stopped, or is not so far
        yield "ahead", _told_of(standing, highest)
    shown = highest if not best.number else best
    changes = [f"{name}~{show_value(value)}" for name, value in standing.changes(shown).items()]
    for line in textwrap.wrap(", ".join(changes), width - LABEL, max_lines=2, placeholder=" ..."):
        yield "", line.replace("~", " ")  # which keeps a name and its value in one line
    rungs = [
        f"{rung.epoch}: {rung.reached}" + (f" ({rung.stopped})" if rung.stopped else "")
        for rung in standing.rungs()
    ]
    if rungs:
        yield "reached", f"epoch {', '.join(rungs)}".replace(")", " stopped)", 1)


def refit_lines(standing: Standing) -> Iterator[tuple[str, str]]:
    """The refits, one in a line: label and text."""
    rows = list(standing.refits.items())
    label = "refit"
    for number, row in rows[:REFITS]:
        yield label, f"trial {f'{number}' if number else '0*':4} {_folds(standing, row)}"
        label = ""
    if len(rows) > REFITS:
        yield "", f"and {len(rows) - REFITS} more"
    for number, row in rows:
        if part := row.parts.get(WHOLE):
            told = "done" if part.is_over else f"epoch {part.epoch}/{row.epochs}"
            told = f"failed: {part.failure}" if part.failure else told
            yield "", f"all images, trial {number}: {told}"


def _folds(standing: Standing, row: RefitRow) -> str:
    if row.dropped:
        return f"dropped: {row.dropped}"
    runs = standing.space.refit.folds * standing.space.refit.seeds
    folds = row.folds()
    done = [part for part in folds if part.is_over]
    told = f"{len(done)} of {runs} folds"
    accuracies = [part.accuracy for part in done if part.accuracy is not None]
    if accuracies:
        told += f", {sum(accuracies) / len(accuracies):.2%}" + " so far" * (len(done) < runs)
    if running := [part for part in folds if not part.is_over]:
        told += "; " + ", ".join(f"epoch {part.epoch}/{row.epochs}" for part in running)
    return told


def _headline(standing: Standing, times: Times, width: int) -> Table:
    right = left_text(standing, times)
    if times.elapsed is not None:
        minutes, seconds = divmod(int(times.elapsed), 60)
        right = f"{minutes}:{seconds:02}, {right}"
    table = Table.grid(expand=True)
    table.width = width
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(no_wrap=True, justify="right")
    name = standing.process.get("name", standing.space.name)
    table.add_row(Text(f"{name}: {progress_text(standing)}", style="bold"), right)
    return table


def _bar(standing: Standing, width: int) -> Text:
    """What is done of the stage that is under way."""
    if standing.refits:
        done = standing.refit_epochs
        share = done / max(1, done + standing.refit_epochs_left)
    else:
        share = standing.ended_count / standing.space.search.num_trials
    filled = min(width, int(width * share))
    return Text.assemble(("━" * filled, "green"), ("─" * (width - filled), "dim"))


def _line(label: str, text: str, width: int) -> Text:
    line = Text(f"{label:{LABEL}}{text}", no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    line.stylize("bold", 0, len(label))
    return line


def _told_of(standing: Standing, row: Row) -> str:
    """A trial with its value, beside that of the baseline."""
    metric, baseline = standing.space.target.metric, standing.rows.get(0)
    name = f"trial {row.number}" if row.number else "the baseline"
    told = f"{name}: {metric} {show(metric, row.value or 0.0)} after {_epochs(row)}"
    if not row.number or baseline is None or baseline.value is None:
        return told
    return f"{told}; baseline {show(metric, baseline.value)} after {baseline.epoch}"


def _epochs(row: Row) -> str:
    return f"{row.epoch} epoch{'s' * (row.epoch != 1)}"


def _trials(standing: Standing, room: int, width: int) -> Table:
    """The table in about so many rows; each group of trials has a title."""
    running = [row for row in standing.rows.values() if row.state == "running"]
    groups = {"now": running[:RUNNING], "best": [], "last": []}
    left = room - len(groups["now"]) - 3
    over = [row for row in standing.ranked() if row.state != "running"]
    groups["best"] = over[: min(BEST, max(1, left // 2))]
    shown = {row.number for row in groups["best"]}
    last = [standing.rows[number] for number in reversed(standing.ended) if number not in shown]
    groups["last"] = last[: max(0, left - len(groups["best"]))]
    rows: list[Row] = []
    titles = {}
    for title, group in groups.items():
        if group:
            titles[len(rows)] = title
        rows += group
    space = standing.space
    return trials_table(
        space.target.metric, list(space.parameters), rows, width=width, titles=titles
    )

"""How a search is shown while it runs: a live view, plain lines, JSON, or next to nothing."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live

from cifartune.programs import program
from cifartune.report.event_log import Event, keep_events, line_of
from cifartune.report.standing import Standing
from cifartune.report.tables import show
from cifartune.report.view import Times, draw, left_text, progress_text
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy

STDOUT = 1

HEARTBEAT_SECONDS = 60.0
"""Of plain lines: how long nothing may be said while epochs go by."""


class View:
    """What a user sees of a search, event by event; nothing by default.

    Args:
        standing: The search, which knows each event before the view does.
        spent: Says where the time went so far, by stage in seconds.
    """

    def __init__(self, standing: Standing, spent: Callable[[], Mapping[str, float]]) -> None:
        self.standing = standing
        self._spent = spent

    def times(self) -> Times:
        """Where the time of the search went so far."""
        return Times(self.standing.elapsed(), self._spent())

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keeps what is live on the screen for the `with` block."""
        yield

    def note(self, event: Event) -> None:
        """Shows an event."""


def point_out(console: Console, label: str, text: str) -> None:
    """Prints a line with a label on the left."""
    console.print(f"  {label:14} {text}", highlight=False, soft_wrap=True, markup=False)


MakeView = Callable[[Standing, Callable[[], Mapping[str, float]]], View]


class Terminal(View):
    """A live view; where there is no terminal, a plain line at each milestone.

    Args:
        standing: The search.
        spent: As above.
        console: Where to write.
    """

    def __init__(
        self,
        standing: Standing,
        spent: Callable[[], Mapping[str, float]],
        *,
        console: Console,
    ) -> None:
        super().__init__(standing, spent)
        self._console = console
        self._live: Live | None = None
        self._last_line = 0.0  # nothing is said yet

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        self._console.print()
        with Live(
            console=self._console, get_renderable=self._draw, refresh_per_second=1
        ) as self._live:
            yield
        self._live = None

    def _draw(self) -> RenderableType:
        # The last row is the cursor's: a view that fills it would scroll.
        height = self._console.height - 1
        with self.standing.lock:  # this is another thread than that of the events
            return draw(self.standing, self._console, self.times(), height=height)

    def note(self, event: Event) -> None:
        if event["event"] == "slots":
            self._announce(event)
        if event["event"] == "note":
            point_out(self._console, event["about"], event["text"])
        if self._live:
            return
        line = self._milestone(event)
        is_epoch = event["event"] in ("epoch", "refit_epoch")
        if not line and is_epoch and time.monotonic() > self._last_line + HEARTBEAT_SECONDS:
            line = f"{progress_text(self.standing)}; {left_text(self.standing, self.times())}"
        if line:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
            self._last_line = time.monotonic()

    def _announce(self, slots: Event) -> None:
        process = self.standing.process
        told = f"{slots['count']} slot{'s' * (slots['count'] > 1)} of {slots['slot']}"
        trials = f"{process['trials']} trials of up to {process['max_epochs']} epochs"
        self._console.print(f"[bold]{process['name']}[/]: {trials} on {told}", highlight=False)
        if slots["dashboard"]:
            token = f"(token: {program('ray')} get-auth-token)"
            point_out(self._console, "Ray dashboard", f"{slots['dashboard']} {token}")
        point_out(self._console, "messages", process["log"])

    def _milestone(self, event: Event) -> str:
        kind, metric = event["event"], self.standing.space.target.metric
        if kind == "epoch" and not self._last_line:  # the first sign that it works, and how fast
            metrics = event["metrics"]
            return (
                f"trial {event['trial']:3}  epoch {event['epoch']}/{event['epochs']}  "
                f"{metric} {show(metric, event['value'])}  {metrics['seconds']:.1f} s  "
                f"{metrics['images_per_second']:,.0f} images/s"
            )
        if kind == "trial_ended" and event["trial"] in self.standing.rows:
            row = self.standing.rows[event["trial"]]
            parts = [f"trial {row.number:3}", row.state]
            if event["message"]:
                return f"{parts[0]}  {row.state}: {event['message']}"
            if row.value is not None:
                parts += [f"epoch {row.epoch}/{row.epochs}", f"{metric} {show(metric, row.value)}"]
            best = self.standing.ranked()[:1]
            return "  ".join(parts + ["best so far"] * (best == [row] and bool(row.number)))
        if kind == "refit_started":
            return f"refit of trial {event['trial']}: {event['epochs']} epochs a fold"
        if kind == "refit_part_ended":
            accuracy = event["accuracy"]
            told = f"refit of trial {event['trial']}  {event['part'].replace('-', ' ')}"
            if event.get("message"):  # those of an earlier version have none
                return f"{told}  failed: {event['message']}"
            return told + ("" if accuracy is None else f"  held-out accuracy {accuracy:.2%}")
        if kind == "refit_ended" and event["dropped"]:
            return f"refit of trial {event['trial']}  dropped: {event['dropped']}"
        return ""


class Quiet(View):
    """Notes on the error stream and, when all is over, the run's folder on the other."""

    def note(self, event: Event) -> None:
        if event["event"] == "note":
            print(f"cifartune: {event['about']}: {event['text']}", file=sys.stderr)
        elif event["event"] == "finished":
            print(self.standing.process["folder"], flush=True)


class JsonLines(View):
    """Every event as a line of JSON."""

    def note(self, event: Event) -> None:
        print_event(event)


def print_event(event: Event) -> None:
    """Writes an event to the standard output; without a reader, it is lost, and nothing else is.

    Not through `sys.stdout`, which cannot be used by Ctrl-C's handler while it is being used.
    """
    line = line_of(event).encode()
    try:
        while line:
            line = line[os.write(STDOUT, line) :]
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, STDOUT)
        os.close(nowhere)


def shown_by(
    make_view: MakeView,
    study: TrialStudy,
    run: RunFolder,
    spent: Callable[[], Mapping[str, float]],
) -> tuple[View, Callable[[Event], None]]:
    """Makes the view of a search that goes on after what its study holds.

    Returns:
        The view, and what is to be called with each event: it is kept, noted and shown.
    """
    standing = Standing(study.space, study.trials, run.read_plan())
    view = make_view(standing, spent)
    listeners = keep_events(run.events), standing.note, view.note
    one_at_a_time = threading.RLock()  # slots have threads, and Ctrl-C comes at any moment

    def tell(event: Event) -> None:
        with one_at_a_time:
            for listener in listeners:
                listener(event)

    return view, tell

"""The terminal: a live table of trials, or plain lines where there is no terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.trial import FrozenTrial
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cifartune.config import Recipe, SearchSpace
from cifartune.events import Observer
from cifartune.report.tables import Row, show, trials_table
from cifartune.tuning.study import attributes

ROWS = 15
"""Trials in the live table: those that run, then the best."""


class Progress(Observer):
    """Shows trials and refits as they run.

    Args:
        space: The search, whose parameters are the table's columns.
        console: Where to write. Where it is no terminal, every event is one plain line.
    """

    def __init__(self, space: SearchSpace, console: Console) -> None:
        self._space = space
        self._console = console
        self._metric = space.target.metric
        self._start = time.monotonic()
        self._rows: dict[int, Row] = {}
        self._parts: dict[tuple[int, str], tuple[int, float | None]] = {}
        self._refits: dict[int, int] = {}  # the epochs of each run
        self._dropped: dict[int, str] = {}
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keeps the live view on the screen for the `with` block."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, get_renderable=self._view, refresh_per_second=2) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def trial_started(self, number: int, recipe: Recipe) -> None:
        self._rows[number] = Row(number, self._space.point(recipe.flat()), recipe.last_epoch)

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        row = self._rows[number]
        row.epoch, row.value = epoch, metrics[self._metric]
        self._line(
            f"trial {number:3}  epoch {epoch}/{row.epochs}  "
            f"{self._metric} {show(self._metric, row.value)}  "
            f"{metrics['seconds']:.1f} s  {metrics['images_per_second']:,.0f} images/s"
        )

    def trial_ended(self, trial: FrozenTrial) -> None:
        if trial.number not in self._rows:
            return  # over before it began
        row = self._rows[trial.number]
        ends = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}
        failure = str(attributes(trial).get("failure", ""))
        row.state = failure.replace("_", " ") or ends[trial.state.name]
        message = attributes(trial).get("message")
        self._line(f"trial {trial.number:3}  {row.state}" + (f": {message}" if message else ""))

    def refit_started(self, number: int, recipe: Recipe) -> None:
        self._refits[number] = recipe.last_epoch
        self._line(f"refit of trial {number}: {recipe.last_epoch} epochs a fold")

    def part_epoch_ended(
        self, number: int, part: str, epoch: int, metrics: dict[str, float]
    ) -> None:
        accuracy = metrics.get("val_accuracy")
        self._parts[number, part] = epoch, accuracy
        told = "" if accuracy is None else f"val_accuracy {accuracy:.2%}  "
        self._line(
            f"refit of trial {number}  {part.replace('-', ' ')}  "
            f"epoch {epoch}/{self._refits[number]}  {told}{metrics['seconds']:.1f} s"
        )

    def refit_ended(self, number: int, metrics: dict[str, float], dropped: str = "") -> None:
        if dropped:
            self._dropped[number] = dropped
            self._line(f"refit of trial {number}  dropped: {dropped}")

    def _line(self, text: str) -> None:
        if self._live is None:
            self._console.print(text, highlight=False, soft_wrap=True)

    def _view(self) -> Group:
        table = trials_table(
            self._metric,
            list(self._space.parameters),
            self._shown_rows(),
            width=self._console.width,
        )
        return Group(self._headline(), table, *self._refit_lines())

    def _headline(self) -> Text:
        states = [row.state for row in self._rows.values()]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        told = ", ".join(f"{count} {state}" for state, count in counts.items()) or "starting"
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return Text(
            f"{self._space.name}: {len(states)}/{self._space.search.num_trials} trials "
            f"({told})  {minutes}:{seconds:02}",
            overflow="ellipsis",
            no_wrap=True,
        )

    def _shown_rows(self) -> list[Row]:
        sign = -1 if self._space.target.mode == "max" else 1

        def rank(row: Row) -> tuple[bool, int, float]:
            return (
                row.state != "running",
                -row.epoch,
                sign * (row.value if row.value is not None else 0),
            )

        return sorted(self._rows.values(), key=rank)[:ROWS]

    def _refit_lines(self) -> Iterator[Text]:
        for number, epochs in self._refits.items():
            parts = [
                f"{epoch}/{epochs}" * (epoch < epochs or accuracy is None)
                + ("" if accuracy is None else f" {accuracy:.1%}")
                for (trial, _), (epoch, accuracy) in sorted(self._parts.items())
                if trial == number
            ]
            told = "  ".join(part.strip() for part in parts) or "waiting"
            if number in self._dropped:
                told += f"  dropped: {self._dropped[number]}"
            yield Text(f"refit of trial {number}: {told}", style="bold")

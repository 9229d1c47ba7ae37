"""The whole job: search, refit, evaluate, report. Each stage goes on where it was interrupted."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cifartune.clock import Clock
from cifartune.config import SearchSpace
from cifartune.copies import copied
from cifartune.data import load_train
from cifartune.data.splits import Splits, splits_of
from cifartune.data.test_set import why_not
from cifartune.data.used import used_images
from cifartune.errors import Interrupted, UserError
from cifartune.events import Observer
from cifartune.files import leftovers, write_atomically
from cifartune.interrupt import ctrl_c
from cifartune.logs import log_to
from cifartune.passwords import without_password
from cifartune.report.event_log import EventLog
from cifartune.report.note import outcome_note, running_note
from cifartune.report.terminal import MakeView, Terminal, point_out, shown_by
from cifartune.runs import RunFolder
from cifartune.tracking import MlflowTracker, end_abandoned, outcome_of
from cifartune.tuning.cluster import OPEN, OWN, cluster, lets_everyone_in, load_ray
from cifartune.tuning.gone import what_can_be_mended
from cifartune.tuning.study import TrialStudy, attributes
from cifartune.tuning.warm_start import load_warm_start

if TYPE_CHECKING:  # torch and ray are loaded while Ray's processes start
    from cifartune.refit import Candidate, Refit
    from cifartune.tuning.slots import SlotPool


class Search:
    """One search in its folder, from the first trial to the summary.

    Args:
        space: The search, as it stands in the run's folder.
        run: Where everything is kept.
        data_root: The prepared images; of the test images, only the evaluation reads them.
        console: Where what it is about to do and the summary are shown.
        view: Makes what shows the search while it runs. Default: a terminal on `console`.
        command: The command line, for MLflow.
        started: When the command began, on the clock of `time.monotonic`.
        address: The Ray cluster to run on; see `cluster`.
    """

    def __init__(
        self,
        space: SearchSpace,
        run: RunFolder,
        *,
        data_root: Path,
        console: Console,
        view: MakeView | None = None,
        command: str = "",
        started: float | None = None,
        address: str = OWN,
    ) -> None:
        self.space = space
        self.run_folder = run
        self.console = console
        self._make_view = view or partial(Terminal, console=console)
        self._data_root = data_root
        self._uri = run.tracking_uri
        self._command = command
        self._address = address
        self._started = time.monotonic() if started is None else started
        self._stop = threading.Event()
        self._clock = Clock(run.clock)
        self._observers: list[Observer] = []

    def run(self) -> dict[str, Any]:
        """Runs or resumes the search to its end.

        Returns:
            What `result.json` holds.

        Raises:
            Interrupted: Ctrl-C; everything that is finished is kept.
            UserError: Another process runs it, the disk is full, the study's database is gone, the
                tracking store cannot be opened, no trial succeeded, or a fold failed.
        """
        with self._locked():
            load_ray(self._address)  # before the log, which takes over what Ray has set up
            with self._logged():
                return self._run()

    def evaluate(self, *, again: bool = False) -> dict[str, Any]:
        """Looks at the test set for the winner of a search whose trials and refit are done.

        Args:
            again: Whether to look once more, where that winner was looked at before.

        Returns:
            What `result.json` holds.

        Raises:
            UserError: The winner was evaluated before, the refit is not done, the test images are
                not there, or another process is at the search.
        """
        from cifartune.evaluate import refuse_another_look

        run = self.run_folder
        with self._locked(), self._logged():
            winner = run.winner
            if not again:
                refuse_another_look(run, winner)
            if not self.space.stand_in and (why := why_not(self._data_root)):
                raise why
            self._open()
            with self._tracked(is_done=True):
                self._splits = self._make_splits()
                candidates = self._refit(None).candidates()
                if not candidates or candidates[0].number != winner:
                    lacks = f"{run.name}: files of its refit are missing; they are made again by: "
                    raise UserError(lacks + run.resume_command)
                self._look(candidates[0], is_asked_for=True)
                result = self._conclude(candidates)
            self._summarize(result)
            return result

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the search's folder, without what a killed process left half-written.

        Where a copy of it is kept, that is brought up to date until the block ends.
        """
        run = self.run_folder
        with run.locked(self.console.print):
            for path in leftovers(run.path):
                path.unlink(missing_ok=True)
            with copied(run, self._note):
                yield

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Keeps messages in the search's log; a full disk is told with what to do."""
        with log_to(self.run_folder.log):
            try:
                yield
            except Exception as error:
                if told := what_can_be_mended(error, self.run_folder):
                    raise UserError(told) from None
                raise

    def _run(self) -> dict[str, Any]:
        self._open()
        with self._tracked(), ctrl_c(partial(self._note, label="Ctrl-C")) as self._stop:
            for observer in self._observers:
                observer.search_started()
            with self._slots() as pool, self._view.shown():
                self._run_trials(pool)
                candidates = self._run_refit(pool)
            self._look(candidates[0])
            result = self._conclude(candidates)
        self._summarize(result)
        return result

    def _open(self) -> None:
        """The study, the images, and who is told of what happens."""
        run = self.run_folder
        self._warm_start = [] if run.has_trials() else load_warm_start(self.space, run.runs)
        self._study = TrialStudy(
            self.space, url=run.study_url, name=run.study_name, warm_start=self._warm_start
        )
        facts = {"command": self._command, "space": self.space.name}
        self._has_begun = run.tracking.exists()
        self._tracker = MlflowTracker(self._uri, run, facts)

    @contextmanager
    def _tracked(self, *, is_done: bool = False) -> Iterator[None]:
        """Ends the search's MLflow runs as the `with` block ends, or as of one that is done."""
        status = "FAILED"
        try:
            self._train = load_train(self._data_root)
            self._view, tell = shown_by(
                self._make_view, self._study, self.run_folder, lambda: self._clock.seconds
            )
            events = EventLog(self.space, self.run_folder, tell)
            self._observers = [events, self._tracker]
            self._tracker.catch_up(self._study)
            yield
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise Interrupted from None
        finally:
            if self._study.trials:
                self._tracker.close("FINISHED" if is_done else status)
            else:  # nothing was searched: nothing is left behind
                self._tracker.discard()

    @contextmanager
    def _slots(self) -> Iterator["SlotPool"]:
        """Ray and the warm slots, and meanwhile the splits and the tracking store."""
        run, space = self.run_folder, self.space
        with ExitStack() as starting, cluster(self._address, name=run.name) as dashboard:
            starting.enter_context(self._clock.time("start", self._started))
            from cifartune.planning.ahead import patience, slots_for
            from cifartune.tuning.slots import SlotPool

            if self._address != OWN:
                self._join(dashboard)
            shape, packing = slots_for(space, self._data_root, stop=self._stop)
            for observer in self._observers:
                observer.slots_started(shape.count, str(shape), dashboard)
            for note in space.notes():
                self._note(note)
            pool = SlotPool(
                shape,
                name=run.name,
                storage=run.ray,
                owns_cluster=self._address == OWN,
                tell=self._note,
            )
            with pool:
                self._splits = self._make_splits()
                self._tracker.uses(used_images(self._data_root, self._train, self._splits))
                self._tracker.describe(running_note(space, run))
                if not run.plan.exists():
                    self._look_ahead(pool, packing)
                pool.patience = patience(space, run.plan)
                self._check_tracking()
                others = run.runs, self._uri, run.name
                # Which may take a while, and nobody waits for it.
                threading.Thread(target=end_abandoned, args=others, daemon=True).start()
                starting.close()
                yield pool

    def _check_tracking(self) -> None:
        """Makes sure that the store is open; what was begun goes on without, and says so."""
        if not self._has_begun:
            self._tracker.check()
        elif reason := self._tracker.why_away():
            told = f"{without_password(self._uri)} is away ({reason}): events are kept, to be sent"
            self._note(told, "MLflow")

    def _join(self, dashboard: str) -> None:
        """Makes sure that every machine of a cluster that is not ours can take part."""
        from cifartune.tuning.machines import join

        if lets_everyone_in(dashboard):
            self._note(OPEN)
        if count := join(self.run_folder.path.parent, self._data_root):
            self._note(f"freed what {count} slots of drivers that are gone held")

    def _look_ahead(self, pool: "SlotPool", packing: str) -> None:
        """Stops where a parameter does nothing, and says what the search will cost."""
        from cifartune.planning.ahead import look_ahead
        from cifartune.report.planned import plan_lines, savings_lines

        plan = look_ahead(
            self.space,
            pool,
            folder=self.run_folder.trials,
            data_root=self._data_root,
            splits=self.run_folder.splits,
            started=self._started,
            packing=packing,
            warm_start=self._warm_start,
            stop=self._stop,
        )
        write_atomically(self.run_folder.plan, json.dumps(plan.as_dict()))
        for observer in self._observers:
            observer.planned(plan.as_dict())
        for number, line in enumerate(plan_lines(plan)):
            point_out(self.console, "" if number else "plan", line)
        for number, line in enumerate(savings_lines(plan)):
            point_out(self.console, "" if number else "to be faster", line)

    def _make_splits(self) -> Splits:
        """The search's splits: drawn once, then read, so that a resumed search sees the same."""
        path = self.run_folder.splits
        if not path.exists():
            splits_of(self.space, self._train.labels).save(path)
        return Splits.load(path)

    def _run_trials(self, pool: "SlotPool") -> None:
        from cifartune.tuning.search import run_trials

        budget = self.space.search.time_budget
        spent = self._clock.seconds.get("search", 0.0)
        with self._clock.time("search"):
            run_trials(
                self._study,
                pool,
                folder=self.run_folder.trials,
                data_root=self._data_root,
                splits=self.run_folder.splits,
                observers=self._observers,
                stop=self._stop,
                seconds=None if budget is None else max(0.0, budget - spent),
            )
        if self._stop.is_set():
            raise Interrupted
        if not self._study.best():
            failures = [attributes(trial).get("message") for trial in self._study.trials]
            reason = next(filter(None, failures), "the time budget ended before the first epoch")
            raise UserError(f"no trial succeeded; the first failure: {reason}")

    def _refit(self, pool: "SlotPool | None") -> "Refit":
        from cifartune.refit import Refit

        return Refit(
            self._study,
            pool,
            run=self.run_folder,
            splits=self._splits,
            labels=self._train.labels,
            data_root=self._data_root,
            observers=self._observers,
            stop=self._stop,
        )

    def _run_refit(self, pool: "SlotPool") -> list["Candidate"]:
        with self._clock.time("refit"):
            refit = self._refit(pool)
            candidates = refit.cross_validate()
            if self.space.refit.all_images:
                refit.train_on_all(candidates[0])
        return candidates

    def _look(self, winner: "Candidate", *, is_asked_for: bool = False) -> None:
        from cifartune.evaluate import look, why_no_look

        run = self.run_folder
        if not is_asked_for:
            reason = why_no_look(run, self.space, winner.number, self._data_root)
            if reason is not None:
                if reason:
                    self._note(f"is not looked at: {reason}", "test set")
                return
        with self._clock.time("evaluate"):
            look(run, self.space, winner, self._train, self._splits, self._data_root)

    def _conclude(self, candidates: list["Candidate"]) -> dict[str, Any]:
        """Writes the run's results."""
        from cifartune.final_models import FinalModel, export_program
        from cifartune.report.frames import trials_frame
        from cifartune.report.mistakes import write_mistakes
        from cifartune.report.model_card import write_model_card
        from cifartune.report.outcome import outcome, to_json
        from cifartune.report.report import write_last

        run, winner = self.run_folder, candidates[0]
        with self._clock.time("evaluate"):
            export_program(FinalModel.load(winner.weights), run.program)
            write_mistakes(winner.predictions, self._train, run.mistakes)
        result = outcome(
            self._study,
            candidates,
            self._train.labels,
            run=run,
            data_root=self._data_root,
            seconds=self._clock.totals(),
            mlflow={"uri": without_password(self._uri), "run_id": self._tracker.run_id},
        )
        write_atomically(run.trials_csv, trials_frame(self._study).to_csv(index=False))
        write_model_card(run, result, self._train.images[self._splits.train[0]])
        self._tracker.describe(outcome_note(result, run))
        write_atomically(run.result, to_json(result))
        self._report = write_last(run, self._study)
        self._tracker.search_ended(*outcome_of(run))
        for observer in self._observers:
            observer.concluded(result)
        return result

    def _summarize(self, result: dict[str, Any]) -> None:
        from cifartune.report.summary import print_links, print_summary

        print_summary(result, self._study, self.console)
        if self._tracker.failures:
            count, first = len(self._tracker.failures), self._tracker.failures[0]
            self._note(
                f"refused {count} writes ({first}); they are kept, to be tried again with: "
                f"{self.run_folder.sync_command}",
                "MLflow",
            )
        if self._tracker.unsent:
            self._note(
                f"has not got {self._tracker.unsent} events ({self._tracker.trouble}); send them "
                f"with: {self.run_folder.sync_command}",
                "MLflow",
            )
        print_links(self.run_folder, self.console, self._report)

    def _note(self, text: str, label: str = "note") -> None:
        """Something that the user should know, however the search is shown."""
        for observer in self._observers:
            observer.noted(text, label)

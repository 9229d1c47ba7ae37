"""A run's folder: everything that a search leaves behind, each thing in its place."""

import json
import re
import shlex
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from itertools import count, pairwise, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cifartune.config import SearchSpace
from cifartune.config.extension import Changes, changed_keys
from cifartune.config.load import dump_space, load_space
from cifartune.errors import UserError, first_line
from cifartune.files import PRIVATE, write_atomically
from cifartune.locks import file_lock, is_locked
from cifartune.outcomes import read_outcome
from cifartune.outputs import WEIGHTS
from cifartune.programs import program

TIDY_SECONDS = 120.0
"""How long a search may be held for its MLflow runs alone: a server that hangs takes a minute."""

GLANCE_SECONDS = 0.2
"""The same by those who only ask whether it is held: `RunFolder.is_at_work`."""


class RunFolder:
    """The files of one search below `path`; creates nothing by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.name = path.name
        self.runs = path.parent
        self.space_file = self.path / "space.yaml"
        self.identity = self.path / "run.json"
        self.study = self.path / "study.db"
        self.splits = self.path / "splits.npz"
        self.trials = self.path / "trials"
        self.refit = self.path / "refit"
        self.evaluation = self.path / "evaluation.json"
        self.mistakes = self.path / "mistakes"
        self.program = self.path / "model.pt2"
        self.model_card = self.path / "model_card.md"
        self.example = self.path / "example.png"
        self.trials_csv = self.path / "trials.csv"
        self.plan = self.path / "plan.json"
        self.result = self.path / "result.json"
        self.report = self.path / "report.html"
        self.lock = self.path / ".lock"
        self.tidying = self.path / ".tidying"
        self.clock = self.path / "clock.json"
        self.log = self.path / "ray.log"
        self.events = self.path / "events.jsonl"
        self.tracking = self.path / "tracking.jsonl"
        self.refused = self.path / "tracking.refused.jsonl"
        self.ray = self.path / "ray"

    @classmethod
    def create(
        cls,
        runs: Path,
        space: SearchSpace,
        name: str | None = None,
        *,
        tracking_uri: str = "",
        storage: str = "",
        sealed: bool = False,
        copy_uri: str = "",
    ) -> "RunFolder":
        """Makes the folder of a new run and writes the space and the run's identity into it.

        Args:
            runs: The folder of all runs.
            space: The search.
            name: The run's name. Default: the space's, with -2, -3, ... where that is taken.
            tracking_uri: Where the run is logged, and goes on to be when it is resumed.
            storage: The Optuna storage URL of the database with its study. Empty: a file in it.
            sealed: Whether the search ends without a look at the test set.
            copy_uri: The file system and folder where a copy is kept up to date. Empty: none is.

        Raises:
            UserError: `name` is taken, or the folder cannot be written.
        """
        try:
            runs.mkdir(parents=True, exist_ok=True)
            folder = cls._claim(runs, space.name, name)
        except OSError as error:
            raise UserError(
                f"{runs}: cannot write the run there: {error.strerror}; choose another folder with "
                "--runs"
            ) from None
        identity = {"id": uuid.uuid4().hex, "name": folder.name, "storage": storage}
        identity |= {"tracking_uri": tracking_uri}
        identity |= {"sealed": "yes"} if sealed else {}
        identity |= {"copy_uri": copy_uri} if copy_uri else {}
        text = dump_space(space)
        folder._identify({**identity, "spaces": [_digest(text.encode())]})
        write_atomically(folder.space_file, text)
        return folder

    @staticmethod
    def check_name(runs: Path, name: str) -> None:
        """Refuses a name that is taken, or is no name, before anything is done.

        Raises:
            UserError: Says which.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
            raise UserError(
                f"--name {name}: letters, digits, '-', '_' and '.' are allowed, up to 100 of "
                "them, and no '-', '_' or '.' in front"
            )
        if (runs / name).exists():
            raise UserError(
                f"--name {name}: {runs / name} exists; choose another name, or go on with it: "
                f"cifartune resume {name}"
            )

    @classmethod
    def _claim(cls, runs: Path, space_name: str, name: str | None) -> "RunFolder":
        number = 1
        while True:
            folder = cls(runs / (name or (space_name if number == 1 else f"{space_name}-{number}")))
            try:
                folder.path.mkdir()
            except FileExistsError:
                if name:
                    cls.check_name(runs, name)
                number += 1
            else:
                return folder

    @classmethod
    def open(cls, runs: Path, name: str) -> "RunFolder":
        """The folder of an existing run.

        Raises:
            UserError: There is no run of that name.
        """
        folder = cls(runs / name)
        try:
            is_there = folder.space_file.exists()
        except OSError:  # as of a name that is too long
            is_there = False
        if not is_there:
            known = sorted(p.parent.name for p in runs.glob("*/space.yaml"))
            raise UserError(
                f"{runs}: no run is called {name}; there "
                + (f"are {', '.join(known)}" if known else "are none yet")
            )
        return folder

    @property
    def id(self) -> str:
        """Names this run among all others, wherever its folder is moved."""
        return self._identity("id")

    @property
    def has_own_study(self) -> bool:
        """Whether the study is a file of the run's folder, and in no other database."""
        return not self._identity("storage")

    @property
    def study_url(self) -> str:
        """The Optuna storage URL of the database with the run's study."""
        return self._identity("storage") or f"sqlite:///{self.study}"

    @property
    def study_name(self) -> str:
        """The study's name there, which others may share; it stays when the folder is renamed."""
        if not self.has_own_study:
            return f"cifartune-{self.id}"
        return self._identity("name") or self.name

    def has_trials(self) -> bool:
        """Whether a trial is recorded, finished or not.

        Raises:
            UserError: The study is damaged.
        """
        if not self.has_own_study:
            from cifartune.tuning.study import count_trials

            return count_trials(self.study_url, self.study_name) > 0
        try:
            with closing(sqlite3.connect(f"file:{quote(str(self.study))}?mode=ro", uri=True)) as db:
                return bool(db.execute("SELECT 1 FROM trials LIMIT 1").fetchone())
        except sqlite3.OperationalError:  # no file, or no tables yet
            return False
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.study}: cannot be read: {first_line(error)}") from None

    @contextmanager
    def locked(self, tell: Callable[[str], Any] = lambda line: None) -> Iterator[None]:
        """Holds the search, so that no other process works on it; the end of the process lets go.

        Waits for a process that has it `held_to_tidy`.

        Args:
            tell: Called with a line for the user before it waits.

        Raises:
            UserError: Another process holds it, or the folder is another user's.
        """
        doing = "running this search"
        with file_lock(self.lock) as acquire:
            if not acquire(GLANCE_SECONDS):
                patience = 0.0
                with file_lock(self.tidying) as tidy:
                    if not tidy(0.0):
                        patience = TIDY_SECONDS
                        doing = "sending what is left of this search to MLflow"
                        tell(f"{self.name}: another process is {doing}; waiting for it")
                if not acquire(patience):
                    raise UserError(f"{self.path}: another process is {doing}")
            yield

    @contextmanager
    def held_to_tidy(self) -> Iterator[None]:
        """`locked`, but others wait: it is held only to send what is left of it to MLflow."""
        with file_lock(self.lock) as acquire, file_lock(self.tidying) as tidy:
            if not (acquire(0.0) and tidy(0.0)):
                raise UserError(f"{self.path}: another process is at it")
            yield

    def is_at_work(self) -> bool:
        """Whether a process works on the search, other than to send to MLflow what is left of it.

        Raises:
            UserError: The folder is another user's, who alone can tell.
        """
        return is_locked(self.lock) and not is_locked(self.tidying)

    def change(self, space: SearchSpace) -> None:
        """Makes the search go on as `space`; as what it went on until now is kept."""
        earlier = len(self._earlier())
        if self.result.exists():  # without it, the search is not finished
            self.result.rename(self.path / f"result-{earlier}.json")
        self.plan.unlink(missing_ok=True)
        before, after = self.space_file.read_bytes(), dump_space(space).encode()
        identity = self._read_identity()
        # Either of them, as long as this may be cut off.
        self._identify({**identity, "spaces": [_digest(before), _digest(after)]})
        write_atomically(self.path / f"space-{earlier}.yaml", before)
        write_atomically(self.space_file, after)
        self._identify({**identity, "spaces": [_digest(after)]})

    @property
    def space_was_edited(self) -> bool:
        """Whether the space's file is not as `create` or `change` wrote it."""
        known = self._read_identity().get("spaces", [])  # runs of earlier versions have none
        return bool(known) and _digest(self.space_file.read_bytes()) not in known

    @property
    def changes(self) -> list[Changes]:
        """What was changed since the search began: each key with its value before and after."""
        spaces = [load_space(path) for path in [*self._earlier(), self.space_file]]
        found = [changed_keys(*pair) for pair in pairwise(spaces)]
        return [changes for changes in found if changes]  # none where a change was cut off

    def _earlier(self) -> list[Path]:
        paths = (self.path / f"space-{number}.yaml" for number in count())
        return list(takewhile(Path.exists, paths))

    @property
    def resume_command(self) -> str:
        """What the user types to go on with this run, in the folder where it was started."""
        return self.command("resume")

    @property
    def sync_command(self) -> str:
        """What the user types to send to MLflow what is left."""
        return self.command("sync")

    @property
    def ui_command(self) -> str:
        """What the user types to see the search's trials in MLflow."""
        return self.command("ui")

    def command(self, verb: str, *arguments: str) -> str:
        """What the user types to do something with this run, in the folder where it was started."""
        runs = ["--runs", str(self.runs)] if self.runs != Path("runs") else []
        return shlex.join([program("cifartune"), verb, self.name, *arguments, *runs])

    @property
    def tracking_uri(self) -> str:
        """Where the run is logged."""
        return self._identity("tracking_uri")

    @property
    def copy_uri(self) -> str:
        """Where a copy of the folder is kept up to date, in a folder of its name; or empty."""
        return self._identity("copy_uri")

    @property
    def is_sealed(self) -> bool:
        """Whether the search ends without a look at the test set."""
        return bool(self._identity("sealed"))

    @property
    def looks(self) -> list[dict[str, Any]]:
        """The evaluations of the run's winners: trial, time, models, and how good they were.

        Raises:
            UserError: They cannot be read.
        """
        if not self.evaluation.exists():
            return []
        try:
            found: list[dict[str, Any]] = json.loads(self.evaluation.read_text())
            if not all("models" in look for look in found):
                raise ValueError("an earlier version of cifartune wrote it")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.evaluation}: cannot be read: {first_line(error)}") from None
        return found

    def looks_for(self, trial: int) -> list[dict[str, Any]]:
        """Those for the models of a trial as they are now."""
        digest = self.models_digest(trial)
        return [k for k in self.looks if k["trial"] == trial and k["models_sha256"] == digest]

    def models_digest(self, trial: int) -> str:
        """Tells apart what the refit of a trial leaves: other files, another digest."""
        root = self.refit / f"trial-{trial}"
        digest = sha256()
        for path in sorted(root.rglob(WEIGHTS)):
            digest.update(f"{path.relative_to(root)} {_digest(path.read_bytes())}\n".encode())
        return digest.hexdigest()

    def test_predictions(self, look: int) -> Path:
        """What the final models said of the test images in one of the looks, counted from 1."""
        return self.path / "test_predictions" / f"look-{look}.npz"

    def read_plan(self) -> dict[str, Any] | None:
        """The plan that was kept; None where there is none that can be read: it stands beside."""
        try:
            plan = json.loads(self.plan.read_text())
        except (OSError, ValueError):
            return None
        return plan if isinstance(plan, dict) else None

    @property
    def winner(self) -> int:
        """The trial that won; raises as `outcome` does."""
        return int(self.outcome["winner_trial"])

    @property
    def outcome(self) -> dict[str, Any]:
        """What result.json holds.

        Raises:
            UserError: The search is not finished, or its outcome cannot be read; also when a key
                is looked for that it lacks.
        """
        if not self.result.exists():
            raise UserError(f"{self.name} is not finished; go on with: {self.resume_command}")
        return read_outcome(self.result, self.resume_command)

    def _identity(self, key: str) -> str:
        return str(self._read_identity().get(key, ""))

    def _read_identity(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = dict(json.loads(self.identity.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.identity}: cannot be read: {first_line(error)}") from None
        return found

    def _identify(self, identity: dict[str, Any]) -> None:
        write_atomically(self.identity, json.dumps(identity), mode=PRIVATE)

    def fold(self, trial: int, fold: int) -> Path:
        """Where the refit of a trial's recipe keeps the weights and logits of one fold."""
        return self.part(trial, f"fold-{fold}")

    def part(self, trial: int, name: str) -> Path:
        """The same of any training run of that refit, by its name."""
        return self.refit / f"trial-{trial}" / name

    def all_images(self, trial: int) -> Path:
        """Where that refit keeps the model that was trained on all images."""
        return self.part(trial, "all-images")

    def out_of_fold(self, trial: int) -> Path:
        """The predictions of a trial's refit for images that its models had not seen."""
        return self.refit / f"trial-{trial}" / "oof.npz"


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()

"""A trial, as Ray Tune sees it: a class that asks the board for one epoch a step."""

from pathlib import Path
from typing import Any

import ray
from ray import tune

from cifartune.config import Recipe
from cifartune.tuning.messages import Finished, Job, Message, Progress


class Trial(tune.Trainable):
    """Puts its recipe on the board at the first step, and returns one epoch a step.

    The process is reused from trial to trial, and holds nothing: the slot trains. Tune may start
    two processes for one trial, and drop the one that comes late before its first step: until
    then a process leaves the board alone.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        board: Any = None,
        folder: Path = Path(),
        data_root: Path = Path(),
        splits: Path = Path(),
        keeps_weights: bool = False,
    ) -> None:
        """Takes the first trial; the keyword arguments are the same for all of them."""
        self._board = board
        self._last: dict[str, Any] = {}
        self._ahead: Message | None = None
        self._submitted = False
        self._folder, self._data_root, self._splits = folder, data_root, splits
        self._keeps_weights = keeps_weights
        self._prepare(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leaves the trial that was stopped and takes the next."""
        self.cleanup()
        self._prepare(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next epoch's metrics; `done` at the end, with `facts` or with a `failure`."""
        if not self._submitted:
            self._submit()
        message = self._ahead or self._next()
        self._ahead = None
        if isinstance(message, Progress):
            self._last = {"epoch": message.epoch, "metrics": message.metrics}
            if not message.is_last:
                return self._last
            # Finished comes next, unless the slot dies just then: another repeats epochs first,
            # and on a GPU, where no two runs are alike, it may go on to later ones.
            told = message.epoch
            while isinstance(message, Progress) and message.epoch <= told:
                message = self._next()
            if isinstance(message, Progress):
                self._ahead = message
                return self._last
        if isinstance(message, Finished):
            return {**self._last, "done": True, "facts": message.facts}
        return {**self._last, "done": True, "failure": message}

    def cleanup(self) -> None:
        """Takes the job off the board, if this process put it there."""
        if self._submitted:
            ray.get(self._board.stop.remote(self._job.id))

    def _prepare(self, config: dict[str, Any]) -> None:
        number = config["number"]
        self._last = {}
        self._ahead = None
        self._submitted = False
        self._job = Job(
            id=f"trial-{number}",
            recipe=Recipe.model_validate_json(config["recipe"]),
            folder=self._folder / str(number),
            data_root=self._data_root,
            splits=self._splits,
            keeps_weights=self._keeps_weights,
        )

    def _submit(self) -> None:
        self._submitted = True
        ray.get(self._board.submit.remote(self._job))

    def _next(self) -> Message:
        message: Message = ray.get(self._board.next.remote(self._job.id))
        return message

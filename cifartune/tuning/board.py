"""The board: where jobs wait for a free slot, and results for whoever asked for them."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from cifartune.tuning.messages import Failed, Message, Progress, Work

_STOPPED = Failed("stopped", "the job was stopped")


@dataclass(eq=False)
class _Entry:
    job: Work
    slot: int | None = None
    asked: bool = True
    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    verdict: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)


class Board:
    """Pairs jobs with slots and carries their messages; the body of an asynchronous Ray actor.

    Slots call `take`, `report` and `end`; whoever wants a job done calls `submit`, `next` and
    `stop`. A slot begins a job's next epoch only when `next` asks for it, so that stopping a job
    wastes no epoch.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._waiting: deque[_Entry] = deque()
        self._idle: dict[int, asyncio.Future[Work | None]] = {}
        self._closed = False
        self._abandoned: Failed | None = None
        self._worked: set[int] = set()

    async def submit(self, job: Work) -> None:
        """Puts a job on the board, in place of one with its id; the next free slot takes it."""
        await self.stop(job.id)
        entry = self._entries[job.id] = _Entry(job)
        if self._abandoned:
            entry.messages.put_nowait(self._abandoned)
        else:
            self._waiting.append(entry)
            self._match()

    async def next(self, job_id: str) -> Message:
        """Asks for the job's next epoch and waits for its message."""
        entry = self._entries.get(job_id)
        if entry is None:
            return _STOPPED
        if not entry.asked:
            entry.asked = True
            entry.verdict.put_nowait(True)
        message = await entry.messages.get()
        if isinstance(message, Progress):
            entry.asked = False
        elif self._entries.get(job_id) is entry:  # and not a later job of the same id
            del self._entries[job_id]
        return message

    async def stop(self, job_id: str) -> None:
        """Ends a job; its slot is free at once, or when the epoch under way is over."""
        entry = self._entries.pop(job_id, None)
        if entry is not None:
            entry.verdict.put_nowait(False)
            # Whoever still waits for the job hears of it at once, not when the epoch is over.
            entry.messages.put_nowait(_STOPPED)
            if entry in self._waiting:
                self._waiting.remove(entry)

    async def stop_all(self) -> None:
        """Ends every job."""
        for job_id in list(self._entries):
            await self.stop(job_id)

    async def take(self, slot: int) -> Work | None:
        """A slot is free: waits for its next job. None: the board is closed."""
        if self._closed:
            return None
        future: asyncio.Future[Work | None] = asyncio.get_running_loop().create_future()
        self._idle[slot] = future
        self._match()
        return await future

    async def report(self, slot: int, job_id: str, message: Progress) -> bool:
        """A slot finished an epoch: waits for the verdict, whether to begin the next."""
        self._worked.add(slot)
        entry = self._entry_of(slot, job_id)
        if entry is None:
            return False
        entry.messages.put_nowait(message)
        return await entry.verdict.get()

    async def end(self, slot: int, job_id: str, message: Message) -> None:
        """A slot's job ended by itself."""
        self._worked.add(slot)
        entry = self._entry_of(slot, job_id)
        if entry is not None:
            entry.slot = None
            entry.messages.put_nowait(message)

    async def lose(self, slot: int, reason: str) -> bool:
        """A slot died, and with it the job that it was at.

        Returns:
            Whether it had finished an epoch or a job since it was lost before.
        """
        self._idle.pop(slot, None)
        for entry in self._entries.values():
            if entry.slot == slot:
                entry.slot = None
                entry.messages.put_nowait(Failed("slot_lost", reason))
        worked = slot in self._worked
        self._worked.discard(slot)
        return worked

    async def abandon(self, reason: str) -> None:
        """No slot is left: every job on the board fails, and every later one."""
        self._closed = True
        self._abandoned = Failed("slot_lost", reason)
        for entry in self._entries.values():
            entry.messages.put_nowait(self._abandoned)

    async def close(self) -> None:
        """Lets every slot end: those at work after the epoch under way."""
        self._closed = True
        await self.stop_all()
        for future in self._idle.values():
            if not future.done():
                future.set_result(None)

    def _entry_of(self, slot: int, job_id: str) -> _Entry | None:
        """The job, if it is still this slot's: it may be stopped, and even be given out again."""
        entry = self._entries.get(job_id)
        return entry if entry is not None and entry.slot == slot else None

    def _match(self) -> None:
        for slot, future in list(self._idle.items()):
            if not self._waiting:
                return
            entry = self._waiting.popleft()
            entry.slot = slot
            del self._idle[slot]
            future.set_result(entry.job)

"""The board: where jobs wait for a free slot, and results for whoever asked for them."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from cifartune.tuning.messages import Failed, Message, Progress, Seat, Verdict, Work

RETRIES = 2
"""How often a job is tried again whose slot died."""

VACANCY_SECONDS = 0.05
"""How often the board looks whether all slots have left."""

_STOPPED = Failed("stopped", "the job was stopped")


@dataclass(eq=False)
class _Entry:
    """A job on the board.

    Attributes:
        job: What is to be done.
        slot: Which slot is at it.
        asked: Whether somebody waits for its next epoch.
        is_ending: Whether its last epoch is done.
        is_lost: Whether its slot died, and another will be asked when its next epoch is.
        retries: How often its slot died before.
        alone_on: The machine on which no other job may begin: where it ran out of memory beside
            others and waits to be alone, or is.
        messages: What the slot said, for whoever asks.
        verdict: The answers to the slot's reports.
    """

    job: Work
    slot: int | None = None
    asked: bool = True
    is_ending: bool = False
    is_lost: bool = False
    retries: int = 0
    alone_on: str = ""
    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    verdict: asyncio.Queue[Verdict] = field(default_factory=asyncio.Queue)


class Board:
    """Pairs jobs with slots and carries their messages; the body of an asynchronous Ray actor.

    Slots call `take`, `report` and `end`; whoever wants a job done calls `submit`, `next` and
    `stop`. A slot begins a job's next epoch only when `next` asks for it, so that stopping a job
    wastes no epoch. After `wind_down` no epoch begins, and those under way are kept.

    A job whose slot died goes on in the next that is free, from its checkpoint, twice at most. One
    that ran out of memory beside others is tried once more with none beside it on its machine.

    Args:
        name: Of the search, as Ray's dashboard shows it among its actors.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._entries: dict[str, _Entry] = {}
        self._waiting: deque[_Entry] = deque()
        self._idle: dict[int, asyncio.Future[Work | None]] = {}
        self._seats: dict[int, Seat] = {}
        self._busy: dict[int, tuple[str, float]] = {}  # each slot's job, and since when it is at it
        self._occupied: set[int] = set()  # the slots that hold a job, also between its epochs
        self._closed = False
        self._winding_down = False
        self._abandoned: Failed | None = None
        self._worked: set[int] = set()

    def __repr__(self) -> str:
        return f"Board({self._name})"

    async def submit(self, job: Work) -> None:
        """Puts a job on the board, in place of one with its id; the next free slot takes it."""
        await self.stop(job.id)
        entry = self._entries[job.id] = _Entry(job)
        if self._abandoned:
            entry.messages.put_nowait(self._abandoned)
        elif self._winding_down:
            await self.stop(job.id)
        else:
            self._waiting.append(entry)
            self._match()

    async def next(self, job_id: str) -> Message:
        """Asks for the job's next epoch and waits for its message."""
        entry = self._entries.get(job_id)
        if entry is None:
            return _STOPPED
        if not entry.asked:
            if entry.slot is not None:
                self._busy[entry.slot] = job_id, time.monotonic()
            if self._winding_down and not entry.is_ending:
                del self._entries[job_id]
                entry.verdict.put_nowait(Verdict.LEAVE)
                return _STOPPED
            entry.asked = True
            if entry.is_lost:
                self._retry(entry)
            else:
                entry.verdict.put_nowait(Verdict.GO_ON)
        message = await entry.messages.get()
        if isinstance(message, Progress):
            entry.asked, entry.is_ending = False, message.is_last
        elif self._entries.get(job_id) is entry:  # and not a later job of the same id
            del self._entries[job_id]
        return message

    async def stop(self, job_id: str) -> None:
        """Ends a job; its slot is free at once, or when the epoch under way is over."""
        entry = self._entries.pop(job_id, None)
        if entry is not None:
            entry.verdict.put_nowait(Verdict.STOP)
            # Whoever still waits for the job hears of it at once, not when the epoch is over.
            entry.messages.put_nowait(_STOPPED)
            if entry in self._waiting:
                self._waiting.remove(entry)

    async def stop_all(self) -> None:
        """Ends every job."""
        for job_id in list(self._entries):
            await self.stop(job_id)

    async def vacated(self) -> None:
        """Waits until no slot is at a job any more, nor at the files of one that was stopped."""
        while self._occupied:
            await asyncio.sleep(VACANCY_SECONDS)

    async def wind_down(self) -> None:
        """Ends what waits at once, and what runs after the epoch under way; that is kept."""
        self._winding_down = True
        for entry in list(self._waiting):
            await self.stop(entry.job.id)

    async def reopen(self) -> None:
        """Lets epochs begin again."""
        self._winding_down = False

    async def take(self, slot: int, seat: Seat) -> Work | None:
        """A slot is free: waits for its next job. None: the board is closed."""
        self._seats[slot] = seat
        self._busy.pop(slot, None)
        self._occupied.discard(slot)
        if self._closed:
            return None
        future: asyncio.Future[Work | None] = asyncio.get_running_loop().create_future()
        self._idle[slot] = future
        self._match()
        return await future

    async def report(self, slot: int, job_id: str, message: Progress) -> Verdict:
        """A slot finished an epoch: waits for the verdict."""
        self._worked.add(slot)
        self._busy.pop(slot, None)
        entry = self._entry_of(slot, job_id)
        if entry is None:
            return Verdict.STOP
        entry.messages.put_nowait(message)
        return await entry.verdict.get()

    async def end(self, slot: int, job_id: str, message: Message) -> None:
        """A slot's job ended by itself."""
        self._worked.add(slot)
        self._busy.pop(slot, None)
        entry = self._entry_of(slot, job_id)
        if entry is not None:
            self._end(entry, message)

    async def leave(self, slot: int) -> None:
        """A slot's process ends behind its job: what it had is free for others."""
        self._seats.pop(slot, None)
        self._occupied.discard(slot)
        self._match()

    async def overdue(self, seconds: float) -> list[tuple[int, Seat, str]]:
        """The slots that have been at one epoch, or at what comes after the last, for longer.

        Each with its process and the job's id, also of a job that was stopped meanwhile.
        """
        begun = time.monotonic() - seconds
        return [
            (slot, self._seats[slot], job_id)
            for slot, (job_id, since) in self._busy.items()
            if since < begun
        ]

    async def seat(self, slot: int) -> Seat | None:
        """Where a slot runs; None: it has not come yet, or not again."""
        return self._seats.get(slot)

    async def fail(self, slot: int, failure: Failed) -> None:
        """The job of a slot has failed, whatever the slot may say later."""
        self._idle.pop(slot, None)
        self._busy.pop(slot, None)
        self._occupied.discard(slot)
        for entry in list(self._entries.values()):
            if entry.slot == slot:
                self._end(entry, failure)
        self._match()

    async def lose(self, slot: int, failure: Failed) -> bool:
        """A slot died, and with it the job that it was at.

        Returns:
            Whether it had finished an epoch or a job since it was lost before.
        """
        if failure.kind == "node_lost" and slot in self._seats:
            # With it those that wait for work there, which nobody has missed yet. One that is alive
            # all the same, on a machine that was too busy to answer, ends and is started anew.
            for other in list(self._idle):
                if self._seats[other].node == self._seats[slot].node:
                    self._idle.pop(other).set_exception(RuntimeError("taken to be lost"))
        await self.fail(slot, failure)
        self._seats.pop(slot, None)
        worked = slot in self._worked
        self._worked.discard(slot)
        return worked

    async def abandon(self, reason: str) -> None:
        """No slot is left: every job on the board fails, and every later one."""
        self._closed = True
        self._abandoned = Failed("no_slots", reason)
        for entry in self._entries.values():
            entry.messages.put_nowait(self._abandoned)

    async def close(self) -> None:
        """Lets every slot end: those at work after the epoch under way."""
        self._closed = True
        await self.stop_all()
        for future in self._idle.values():
            if not future.done():
                future.set_result(None)

    def _end(self, entry: _Entry, message: Message) -> None:
        """A job's slot is done with it: that is its end, or it is tried again."""
        node = self._seats[entry.slot].node if entry.slot is not None else ""
        is_crowded = any(self._seats[o].node == node for o in self._occupied - {entry.slot})
        entry.slot = None
        if isinstance(message, Failed) and message.slot_lost and entry.retries < RETRIES:
            entry.retries += 1
        elif isinstance(message, Failed) and message.crowded and is_crowded:
            entry.alone_on = node
        else:
            entry.messages.put_nowait(message)
            return
        if entry.asked and entry.messages.empty():
            self._retry(entry)
        else:  # whoever asked has not yet heard of the epoch before
            entry.is_lost = True

    def _retry(self, entry: _Entry) -> None:
        entry.is_lost, entry.verdict = False, asyncio.Queue()
        if self._abandoned:
            entry.messages.put_nowait(self._abandoned)
        elif self._winding_down:
            del self._entries[entry.job.id]
            entry.messages.put_nowait(_STOPPED)
        else:
            self._waiting.appendleft(entry)
            self._match()

    def _entry_of(self, slot: int, job_id: str) -> _Entry | None:
        """The job, if it is still this slot's: it may be stopped, and even be given out again."""
        entry = self._entries.get(job_id)
        return entry if entry is not None and entry.slot == slot else None

    def _match(self) -> None:
        for slot, future in list(self._idle.items()):
            entry = next((entry for entry in self._waiting if self._has_room(entry, slot)), None)
            if entry is None:
                continue
            self._waiting.remove(entry)
            entry.slot = slot
            entry.alone_on = self._seats[slot].node if entry.alone_on else ""
            self._occupied.add(slot)
            self._busy[slot] = entry.job.id, time.monotonic()
            del self._idle[slot]
            future.set_result(entry.job)

    def _has_room(self, entry: _Entry, slot: int) -> bool:
        """Whether a job may begin in a slot, beside those under way on its machine.

        Who is to be alone keeps others from beginning where it failed, so that its turn comes.
        """
        node = self._seats[slot].node
        if entry.alone_on:
            beside = any(self._seats[other].node == node for other in self._occupied)
            return not beside
        return all(other.alone_on != node for other in self._entries.values())

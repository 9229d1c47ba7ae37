"""The board without Ray: every test is one asyncio program that ends by itself or fails."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from cifartune.config import Recipe
from cifartune.tuning.board import Board
from cifartune.tuning.messages import Failed, Finished, Job, Message, Progress, Seat, Verdict

SECONDS = 5.0

SEAT = Seat("node", 1)

KILLED = Failed("worker_killed", "killed")


def job(name: str) -> Job:
    return Job(name, Recipe(), Path(), Path(), Path())


def progress(epoch: int) -> Progress:
    return Progress(epoch, {"val_accuracy": epoch / 10})


def on_a_board(test: Callable[[Board], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs `test` on a new board; whatever hangs is a failure."""

    @wraps(test)
    def run() -> None:
        async def bounded() -> None:
            async with asyncio.timeout(SECONDS):
                await test(Board())

        asyncio.run(bounded())

    # pytest looks at the signature to find fixtures: this one takes none.
    del run.__wrapped__
    return run


async def settle() -> None:
    """Lets everything go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def waits(task: "asyncio.Task[Any]") -> bool:
    await settle()
    return not task.done()


def start(work: Awaitable[Any]) -> "asyncio.Task[Any]":
    return asyncio.ensure_future(work)


async def taken(board: Board, slot: int, name: str) -> None:
    """Puts a job on the board and lets `slot` take it."""
    await board.submit(job(name))
    assert await board.take(slot, SEAT) == job(name)


def is_stopped(message: Message) -> bool:
    return isinstance(message, Failed) and message.kind == "stopped"


@on_a_board
async def test_a_free_slot_gets_the_next_job(board: Board) -> None:
    slot = start(board.take(0, SEAT))
    assert await waits(slot)
    await board.submit(job("a"))
    assert await slot == job("a")


@on_a_board
async def test_a_waiting_job_goes_to_the_next_free_slot(board: Board) -> None:
    await board.submit(job("a"))
    await board.submit(job("b"))
    assert await board.take(0, SEAT) == job("a")
    assert await board.take(1, SEAT) == job("b")
    third = start(board.take(2, SEAT))
    assert await waits(third)
    third.cancel()


@on_a_board
async def test_each_job_goes_to_one_slot(board: Board) -> None:
    slots = [start(board.take(slot, SEAT)) for slot in range(3)]
    await settle()
    for name in "ab":
        await board.submit(job(name))
    await settle()
    assert [slot.done() for slot in slots] == [True, True, False]
    assert [slots[0].result(), slots[1].result()] == [job("a"), job("b")]
    slots[2].cancel()


@on_a_board
async def test_a_slot_begins_an_epoch_only_when_it_is_asked_for(board: Board) -> None:
    await taken(board, 0, "a")
    assert await waits(asked := start(board.next("a")))
    reported = start(board.report(0, "a", progress(1)))
    assert await asked == progress(1)
    assert await waits(reported)
    asked = start(board.next("a"))
    assert await reported is Verdict.GO_ON
    assert await waits(asked)
    await board.end(0, "a", Finished({"seconds": 1.0}))
    assert await asked == Finished({"seconds": 1.0})


@on_a_board
async def test_results_are_kept_until_they_are_asked_for(board: Board) -> None:
    await taken(board, 0, "a")
    reported = start(board.report(0, "a", progress(1)))
    assert await waits(reported)
    assert await board.next("a") == progress(1)
    # One verdict for one question: the answer to the first must not serve the second epoch.
    asked = start(board.next("a"))
    assert await reported is Verdict.GO_ON
    reported = start(board.report(0, "a", progress(2)))
    assert await asked == progress(2)
    assert await waits(reported)
    reported.cancel()


@on_a_board
async def test_asking_twice_begins_one_epoch(board: Board) -> None:
    await taken(board, 0, "a")
    reported = start(board.report(0, "a", progress(1)))
    assert await board.next("a") == progress(1)
    gone = start(board.next("a"))
    await settle()
    gone.cancel()  # whoever asked first has died
    asked = start(board.next("a"))
    assert await reported is Verdict.GO_ON
    reported = start(board.report(0, "a", progress(2)))
    assert await asked == progress(2)
    assert await waits(reported)
    reported.cancel()


@on_a_board
async def test_two_jobs_do_not_hear_of_each_other(board: Board) -> None:
    await taken(board, 0, "a")
    await taken(board, 1, "b")
    first, second = start(board.next("a")), start(board.next("b"))
    await board.end(1, "b", Finished())
    assert await second == Finished()
    assert await waits(first)
    await board.end(0, "a", Failed("error", "x"))
    assert await first == Failed("error", "x")


@on_a_board
async def test_stop_wakes_the_slot_and_whoever_waits(board: Board) -> None:
    await taken(board, 0, "a")
    reported = start(board.report(0, "a", progress(1)))
    assert await board.next("a") == progress(1)
    await board.stop("a")
    assert await reported is Verdict.STOP

    await taken(board, 0, "b")
    asked = start(board.next("b"))
    await settle()
    await board.stop("b")
    assert is_stopped(await asked)
    assert await board.report(0, "b", progress(1)) is Verdict.STOP  # the epoch that was under way
    await board.end(0, "b", Finished())
    await taken(board, 0, "c")  # the slot is free again


@on_a_board
async def test_a_stopped_job_is_never_taken(board: Board) -> None:
    await board.submit(job("a"))
    await board.submit(job("b"))
    asked = start(board.next("a"))
    await settle()
    await board.stop("a")
    assert is_stopped(await asked)
    assert await board.take(0, SEAT) == job("b")
    await board.stop("no such job")


@on_a_board
async def test_whoever_asks_for_a_stopped_job_hears_of_it(board: Board) -> None:
    await taken(board, 0, "a")
    await board.stop("a")
    assert is_stopped(await board.next("a"))


@on_a_board
async def test_a_job_can_be_stopped_and_submitted_again(board: Board) -> None:
    await board.submit(job("a"))
    asked = start(board.next("a"))
    await settle()
    await board.stop("a")
    await board.submit(job("a"))
    assert is_stopped(await asked)
    assert await board.take(0, SEAT) == job("a")
    again = start(board.next("a"))
    await board.end(0, "a", Finished())
    assert await again == Finished()


@on_a_board
async def test_stop_all_ends_waiting_and_running_jobs(board: Board) -> None:
    await taken(board, 0, "a")
    await board.submit(job("b"))
    reported = start(board.report(0, "a", progress(1)))
    assert await board.next("a") == progress(1)
    waiting = start(board.next("b"))
    await settle()
    await board.stop_all()
    assert await reported is Verdict.STOP
    assert is_stopped(await waiting)
    free = start(board.take(0, SEAT))
    assert await waits(free)
    free.cancel()


@on_a_board
async def test_a_board_is_vacated_when_slots_have_left_what_was_stopped(board: Board) -> None:
    """One is at an epoch, one was just told to go on and writes its checkpoint, and one dies."""
    for slot, name in enumerate("abc"):
        await board.submit(job(name))
        await board.take(slot, SEAT)
    report = start(board.report(1, "b", progress(1)))
    await board.next("b")
    asked = start(board.next("b"))
    assert await report is Verdict.GO_ON
    await board.stop_all()
    await asked
    vacated = start(board.vacated())
    for leaves in (board.take(0, SEAT), board.lose(2, KILLED), board.take(1, SEAT)):
        assert await waits(vacated)
        start(leaves)
    await vacated


@on_a_board
async def test_the_job_of_a_lost_slot_goes_on_in_another(board: Board) -> None:
    await taken(board, 0, "a")
    await taken(board, 1, "b")
    first, second = start(board.next("a")), start(board.next("b"))
    idle = start(board.take(2, SEAT))
    await settle()
    await board.lose(0, KILLED)
    assert await idle == job("a")
    assert await waits(first) and await waits(second)
    await board.end(0, "a", Finished())  # the one that was lost has no say any more
    assert await waits(first)
    reported = start(board.report(2, "a", progress(1)))
    assert await first == progress(1)
    assert await waits(reported)
    for task in (second, reported):
        task.cancel()


@on_a_board
async def test_a_job_is_tried_twice_again(board: Board) -> None:
    await taken(board, 0, "a")
    asked = start(board.next("a"))
    for _ in range(2):
        await settle()
        await board.lose(0, KILLED)
        assert await board.take(0, SEAT) == job("a")
    await board.lose(0, KILLED)
    assert await asked == KILLED


@on_a_board
async def test_a_lost_job_goes_on_only_when_its_next_epoch_is_asked_for(board: Board) -> None:
    await taken(board, 0, "a")
    reported = start(board.report(0, "a", progress(1)))  # of the slot that will be lost
    assert await board.next("a") == progress(1)
    await board.lose(0, KILLED)
    free = start(board.take(1, SEAT))
    assert await waits(free)
    asked = start(board.next("a"))
    assert await free == job("a")
    again = start(board.report(1, "a", progress(1)))
    assert await asked == progress(1)
    assert await waits(again)
    asked = start(board.next("a"))
    assert await again is Verdict.GO_ON
    await board.end(1, "a", Finished())
    assert await asked == Finished()
    reported.cancel()


@on_a_board
async def test_a_result_that_nobody_heard_comes_before_another_try(board: Board) -> None:
    await taken(board, 0, "a")
    reported = start(board.report(0, "a", progress(1)))
    await settle()
    await board.lose(0, KILLED)
    free = start(board.take(1, SEAT))
    assert await waits(free)
    assert await board.next("a") == progress(1)
    assert await waits(free)
    asked = start(board.next("a"))
    assert await free == job("a")
    again = start(board.report(1, "a", progress(1)))
    assert await asked == progress(1)
    assert await waits(again)  # one question, one epoch
    for task in (reported, again):
        task.cancel()


@on_a_board
async def test_a_lost_job_is_not_begun_again_when_the_board_winds_down(board: Board) -> None:
    await taken(board, 0, "a")
    await taken(board, 1, "b")
    asked = start(board.next("a"))
    reported = start(board.report(1, "b", progress(1)))
    assert await board.next("b") == progress(1)
    await board.wind_down()
    for slot in (0, 1):
        await board.lose(slot, KILLED)
    assert is_stopped(await asked)
    assert is_stopped(await board.next("b"))
    free = start(board.take(0, SEAT))
    assert await waits(free)
    for task in (free, reported):
        task.cancel()


TOO_LARGE = Failed("out_of_memory", "too large", crowded=True)


@on_a_board
async def test_what_runs_out_of_memory_beside_others_is_tried_alone(board: Board) -> None:
    await taken(board, 0, "a")
    await taken(board, 1, "b")
    await board.submit(job("c"))
    first, second = start(board.next("a")), start(board.next("b"))
    await settle()
    await board.end(0, "a", TOO_LARGE)
    free = start(board.take(0, SEAT))
    assert await waits(free)  # neither a, beside b, nor c, before it
    await board.end(1, "b", Finished())
    assert await second == Finished()
    also_free = start(board.take(1, SEAT))
    assert await free == job("a")
    assert await waits(also_free)  # c beside a
    await board.end(0, "a", TOO_LARGE)
    assert await first == TOO_LARGE
    last = start(board.take(0, SEAT))
    assert await also_free == job("c")
    last.cancel()


@on_a_board
async def test_what_runs_out_of_memory_alone_has_failed(board: Board) -> None:
    await taken(board, 0, "a")
    idle = start(board.take(1, SEAT))
    await settle()
    await board.end(0, "a", TOO_LARGE)
    assert await board.next("a") == TOO_LARGE
    idle.cancel()


@on_a_board
async def test_other_machines_go_on_beside_who_is_alone(board: Board) -> None:
    elsewhere = Seat("elsewhere", 1)
    await taken(board, 0, "a")
    await taken(board, 1, "b")
    await board.submit(job("c"))
    asked = start(board.next("a"))
    await settle()
    await board.end(0, "a", TOO_LARGE)
    assert await board.take(2, elsewhere) == job("a")  # nobody is there
    beside = start(board.take(3, elsewhere))
    assert await waits(beside)
    assert await board.take(0, SEAT) == job("c")
    for task in (asked, beside):
        task.cancel()


@on_a_board
async def test_with_a_machine_all_its_slots_are_lost(board: Board) -> None:
    await taken(board, 0, "a")
    idle = [start(board.take(1, SEAT)), start(board.take(2, Seat("elsewhere", 1)))]
    await settle()
    await board.lose(0, Failed("node_lost", "gone"))
    assert await idle[1] == job("a")
    # Were it alive, on a machine that was too busy to answer, it would end and come again.
    with pytest.raises(RuntimeError, match="taken to be lost"):
        await idle[0]


@on_a_board
async def test_a_slot_that_leaves_behind_its_job_holds_nothing(board: Board) -> None:
    """Of slots with a process a job, also while the next finds no room."""
    await taken(board, 0, "a")
    asked = start(board.next("a"))
    await settle()
    await board.end(0, "a", Finished())
    left = start(board.vacated())
    assert await waits(left)  # the process has not given back what it had
    await board.leave(0)
    await left
    assert await board.seat(0) is None
    assert isinstance(await asked, Finished)


@on_a_board
async def test_who_is_to_be_alone_waits_for_a_slot_that_dies_of_it(board: Board) -> None:
    """The guard of a slot tells what it saw, and ends its process."""
    await taken(board, 0, "a")
    await taken(board, 1, "b")
    asked = start(board.next("a"))
    await settle()
    await board.end(0, "a", TOO_LARGE)
    await board.end(1, "b", Finished())
    free = start(board.take(1, SEAT))
    assert await waits(free)  # slot 0 still holds what it had
    await board.lose(0, KILLED)
    assert await free == job("a")
    asked.cancel()


@on_a_board
async def test_a_slot_that_is_late_does_not_speak_for_the_next(board: Board) -> None:
    await taken(board, 0, "a")
    await board.stop("a")
    await board.submit(job("a"))  # again, while the first is in the middle of an epoch
    assert await board.report(0, "a", progress(7)) is Verdict.STOP
    assert await board.take(1, SEAT) == job("a")
    assert await board.report(0, "a", progress(7)) is Verdict.STOP
    await board.end(0, "a", Finished())
    asked = start(board.next("a"))
    reported = start(board.report(1, "a", progress(1)))
    assert await asked == progress(1)
    reported.cancel()


@on_a_board
async def test_a_job_that_nobody_asks_for_any_more_gives_its_slot_back(board: Board) -> None:
    await taken(board, 0, "a")
    reported = start(board.report(0, "a", progress(1)))
    await settle()
    await board.submit(job("a"))
    assert await reported is Verdict.STOP


@on_a_board
async def test_a_lost_idle_slot_gets_no_job(board: Board) -> None:
    lost = start(board.take(0, SEAT))
    await settle()
    await board.lose(0, KILLED)
    await board.submit(job("a"))
    assert await waits(lost)
    assert await board.take(1, SEAT) == job("a")
    lost.cancel()


@on_a_board
async def test_a_job_that_ended_does_not_fail_with_its_slot(board: Board) -> None:
    await taken(board, 0, "a")
    await board.end(0, "a", Finished())
    await board.lose(0, KILLED)
    assert await board.next("a") == Finished()


@on_a_board
async def test_without_slots_every_job_fails(board: Board) -> None:
    await taken(board, 0, "a")
    await board.submit(job("b"))
    jobs = [start(board.next("a")), start(board.next("b"))]
    await settle()
    await board.abandon("no slot is left")
    assert await asyncio.gather(*jobs) == [Failed("no_slots", "no slot is left")] * 2
    # Whoever tries again must not wait for ever.
    await board.submit(job("a"))
    assert await board.next("a") == Failed("no_slots", "no slot is left")
    assert await board.take(1, SEAT) is None


@on_a_board
async def test_close_lets_every_slot_end(board: Board) -> None:
    await taken(board, 1, "a")
    reported = start(board.report(1, "a", progress(1)))
    idle = start(board.take(0, SEAT))
    await settle()
    await board.close()
    assert await idle is None
    assert await reported is Verdict.STOP
    assert await board.take(1, SEAT) is None


@pytest.mark.parametrize(
    ("kind", "blamed", "lost"),
    [
        ("non_finite_loss", True, False),
        ("out_of_memory", True, False),
        ("unfit_network", True, False),
        ("error", True, False),
        ("worker_killed", False, True),
        ("node_lost", False, True),
        ("timeout", False, True),
        ("files", False, False),
        ("no_slots", False, False),
        ("stopped", False, False),
    ],
)
def test_failures_say_whose_they_are(kind: str, blamed: bool, lost: bool) -> None:
    failure = Failed(kind, "")
    assert (failure.blames_recipe, failure.slot_lost) == (blamed, lost)


@on_a_board
async def test_a_lost_slot_says_whether_it_had_worked(board: Board) -> None:
    await taken(board, 0, "a")
    assert await board.lose(0, KILLED) is False
    await board.stop("a")
    await taken(board, 0, "b")
    reported = start(board.report(0, "b", progress(1)))
    await settle()
    assert await board.lose(0, KILLED) is True
    assert await board.lose(0, KILLED) is False
    reported.cancel()


@on_a_board
async def test_winding_down_keeps_the_epoch_under_way(board: Board) -> None:
    await taken(board, 0, "a")
    await board.submit(job("waiting"))
    await board.submit(job("unasked"))
    waiting = start(board.next("waiting"))
    asked = start(board.next("a"))
    await settle()
    await board.wind_down()
    assert is_stopped(await waiting)
    assert is_stopped(await board.next("unasked"))
    reported = start(board.report(0, "a", progress(1)))
    assert await asked == progress(1)
    assert await waits(reported)  # whoever asked still may stop the job for good
    assert is_stopped(await board.next("a"))
    assert await reported is Verdict.LEAVE
    await board.submit(job("late"))
    assert is_stopped(await board.next("late"))
    free = start(board.take(0, SEAT))
    assert await waits(free)
    await board.reopen()
    await board.submit(job("next"))
    assert await free == job("next")


@on_a_board
async def test_winding_down_leaves_the_last_word_to_the_scheduler(board: Board) -> None:
    await taken(board, 0, "a")
    await board.wind_down()
    reported = start(board.report(0, "a", progress(1)))
    assert await board.next("a") == progress(1)
    await board.stop("a")
    assert await reported is Verdict.STOP


@on_a_board
async def test_winding_down_lets_a_job_end_whose_last_epoch_is_done(board: Board) -> None:
    await taken(board, 0, "a")
    await board.wind_down()
    last = Progress(2, {}, is_last=True)
    reported = start(board.report(0, "a", last))
    assert await board.next("a") == last
    asked = start(board.next("a"))
    assert await reported is Verdict.GO_ON
    await board.end(0, "a", Finished())
    assert await asked == Finished()


@on_a_board
async def test_a_slot_that_is_long_at_one_epoch_is_overdue(board: Board) -> None:
    await taken(board, 0, "a")
    await board.submit(job("waiting"))
    assert await board.overdue(60) == []
    assert await board.overdue(0) == [(0, SEAT, "a")]
    assert await board.seat(0) == SEAT and await board.seat(1) is None
    reported = start(board.report(0, "a", progress(1)))
    assert await board.next("a") == progress(1)
    assert await board.overdue(0) == []  # it waits for the verdict, however long that takes
    asked = start(board.next("a"))
    assert await reported is Verdict.GO_ON
    assert await board.overdue(0) == [(0, SEAT, "a")]
    await board.fail(0, Failed("timeout", "too long"))
    assert await waits(asked)
    assert await board.overdue(0) == []
    assert await board.lose(0, KILLED) is True  # it had worked before it hung
    assert await board.take(1, SEAT) == job("a")
    asked.cancel()


@on_a_board
async def test_a_slot_that_hangs_in_a_stopped_job_is_overdue(board: Board) -> None:
    await taken(board, 0, "a")
    await board.stop("a")
    assert await board.overdue(0) == [(0, SEAT, "a")]
    waiting = start(board.take(0, SEAT))
    await settle()
    assert await board.overdue(0) == []
    waiting.cancel()

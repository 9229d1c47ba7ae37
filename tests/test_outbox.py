"""What waits for MLflow survives the process, whenever it ends."""

import os
import threading
from pathlib import Path

import pytest

from cifartune.tracking.outbox import Event, Outbox, is_sent


def event(number: int) -> Event:
    return {"do": "log", "key": f"trial-{number}", "step": number}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tracking.jsonl"


def test_events_come_in_order_and_once(path: Path) -> None:
    outbox = Outbox(path)
    for number in range(3):
        outbox.put(event(number))
    assert outbox.first() == outbox.first() == event(0)
    outbox.sent()
    assert (outbox.first(), len(outbox)) == (event(1), 2)

    later = Outbox(path)
    assert list(later.history()) == [event(number) for number in range(3)]
    assert (later.first(), len(later)) == (event(1), 2)
    later.put(event(3))
    later.close()
    left = []
    while (one := later.first()) is not None:
        left.append(one)
        later.sent()
    assert left == [event(1), event(2), event(3)]
    assert len(Outbox(path)) == 0


@pytest.mark.parametrize(
    "torn", [b"{", b'{"do": "log", "key": "trial-1"}', b"\xf0\x9f", b"\0\0\0\n"]
)
def test_what_was_being_written_is_cut_off(path: Path, torn: bytes) -> None:
    Outbox(path).put(event(0))
    with path.open("ab") as file:
        file.write(torn)
    outbox = Outbox(path)
    outbox.put(event(1))
    assert list(Outbox(path).history()) == [event(0), event(1)]


def test_a_lost_mark_only_means_to_send_again(path: Path) -> None:
    outbox = Outbox(path)
    outbox.put(event(0))
    outbox.sent()
    path.with_suffix(".sent").write_text("")
    assert len(Outbox(path)) == 1


def test_an_event_is_on_the_disk_before_it_is_sent(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut would leave MLflow with what we do not know of, and tell anew."""
    synced = list[int]()
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    outbox = Outbox(path)
    for number in range(2):
        outbox.put(event(number))
    assert synced == []  # training does not wait for the disk
    outbox.first()
    assert synced == [path.stat().st_size]
    outbox.put(event(2))
    outbox.close()
    assert synced[1:] == [path.stat().st_size]


def test_a_disk_that_cannot_sync_ends_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "fsync", fail)
    outbox = Outbox(path)
    outbox.put(event(0))
    assert outbox.first() == event(0)


def test_a_mark_behind_the_end_hides_nothing_that_is_new(path: Path) -> None:
    outbox = Outbox(path)
    for number in range(3):
        outbox.put(event(number))
        outbox.sent()
    os.truncate(path, 50)  # in the middle of the second
    Outbox(path).put(event(3))
    assert not is_sent(path)
    assert Outbox(path).first() == event(3)


def test_whoever_sends_waits_for_events(path: Path) -> None:
    outbox, seen = Outbox(path), list[Event | None]()
    thread = threading.Thread(target=lambda: seen.append(outbox.first()))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    outbox.put(event(0))
    thread.join(5)
    assert seen == [event(0)]
    outbox.sent()
    outbox.close()
    assert outbox.first() is None

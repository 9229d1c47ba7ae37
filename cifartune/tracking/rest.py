"""What is left to tell MLflow of searches that no process is at."""

import logging
import os
import re
import time
from pathlib import Path

from cifartune.clock import KEEP_SECONDS
from cifartune.errors import UserError, first_line
from cifartune.passwords import without_password
from cifartune.runs import RunFolder
from cifartune.tracking.outbox import Event, Outbox, is_sent
from cifartune.tracking.outcome import untold_outcome
from cifartune.tracking.refused import Refused
from cifartune.tracking.store import MlflowStore
from cifartune.tracking.told import Told
from cifartune.tracking.tracker import TRIES

logger = logging.getLogger(__name__)

LINE_BYTES = 1000
"""More than the line of an event that ends a run."""


def end_abandoned(runs: Path, uri: str, own: str = "") -> list[str]:
    """Sets right what drivers that died left RUNNING in a store: no process is at those runs.

    Args:
        runs: The folder of all searches. Those that another process holds are left alone, and those
            that look alive: a disk that several machines share may have no locks between them.
        uri: The store.
        own: The name of the search that asks.

    Returns:
        The searches whose runs were ended, as KILLED. They can be resumed as before.
    """
    found = []
    for identity in sorted(runs.glob("*/run.json")):
        run = RunFolder(identity.parent)
        try:
            if run.name != own and _is_abandoned(run, uri):
                with run.held_to_tidy():
                    if send_rest(uri, run):
                        found.append(run.name)
        except Exception as error:  # it may be anybody's, and in any state
            told = first_line(error)
            logger.info("The MLflow runs of %s are left as they are: %s", run.name, told)
    return found


def _is_abandoned(run: RunFolder, uri: str) -> bool:
    """Whether a search may have left runs open in a store, by a glance at its files."""
    if run.tracking_uri != uri or not run.tracking.exists():
        return False
    beats = [path.stat().st_mtime for path in (run.tracking, run.clock) if path.exists()]
    if time.time() - max(beats) < 3 * KEEP_SECONDS:
        return False
    with run.tracking.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LINE_BYTES))
        last = file.read().splitlines()[-1:]
    is_over = bool(last) and re.search(rb'"do": "(end|delete)", "key": "search"', last[0])
    return not (is_over and is_sent(run.tracking))


def send_rest(uri: str, run: RunFolder) -> int:
    """Sends what is left of a search that nobody runs, and returns how many events that were.

    What a driver that died had not ended is ended as of its last sign of life: as FINISHED where it
    has its outcome, which is told if it was not, else as KILLED. What the store refused is tried
    again; what it refuses now is kept.

    Raises:
        UserError: The store is away.
    """
    outbox, store, refused = Outbox(run.tracking), MlflowStore(uri, run), Refused(run.refused)
    told = Told(outbox.history())
    late, status = untold_outcome(run, told), "FINISHED" if run.result.exists() else "KILLED"
    ended = told.states.get("search", {"status": status}).get("status")
    if late or (status == "FINISHED" and ended != status):
        told.open.add("search")  # which may have been ended without its outcome
    for event in [*late, *told.ends_of_open(status)]:
        outbox.put({"time": told.time, **event})
    outbox.close()

    def deliver(event: Event) -> bool:
        for _ in range(TRIES):
            if not (trouble := store.try_to_send(event)):
                return True
            if not store.is_open:
                left = f"{len(outbox) + len(refused)} events of {run.name} are left to send"
                raise UserError(f"{without_password(uri)}: {left}: {trouble}")
            if trouble.is_final:
                break
        logger.warning("MLflow refuses %s of %s: %s", event["do"], event["key"], trouble)
        return False

    def deliver_late(event: Event) -> bool:
        if event["do"] == "tag":  # without what was set anew since
            key, tags = event["key"], event["tags"]
            last = {name: tags[name] for name in tags if told.tags.get((key, name)) == event}
            return not last or deliver({**event, "tags": last})
        if event["do"] not in ("start", "end") or told.states.get(event["key"]) == event:
            return deliver(event)
        # The run has begun or ended again since.
        return event["do"] == "end" or deliver({**event, "is_past": True})

    count = refused.retry(deliver_late)
    while (left := outbox.first()) is not None:
        if deliver(left):
            count += 1
        else:
            refused.add(left)
        outbox.sent()
    return count

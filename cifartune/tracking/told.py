"""What MLflow was told of a search so far, or will be when all events have arrived."""

from collections.abc import Iterable

from cifartune.tracking.outbox import Event


class Told:
    """The state of a search's runs by their keys, after a series of events.

    Attributes:
        open: Runs that have begun, and not ended.
        steps: The last epoch that was logged of each run; 0 before the first.
        ends: The metrics that were logged at a run's end.
        outcome: The search's metrics, if its files and its model were told behind them.
        final: Trials that are over, and not only interrupted.
        states: The last event of each run by which it began or ended.
        tags: The last event that set each tag, by run and name.
        time: When the last event happened, in milliseconds since 1970.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.open: set[str] = set()
        self.steps: dict[str, int] = {}
        self.ends: dict[str, dict[str, float]] = {}
        self.outcome: dict[str, float] | None = None
        self.final: set[str] = set()
        self.states: dict[str, Event] = {}
        self.tags: dict[tuple[str, str], Event] = {}
        self.time = 0
        for event in events:
            self.note(event)

    def note(self, event: Event) -> None:
        """Takes in one more event."""
        do, key = event["do"], event["key"]
        self.time = event["time"]
        if do in ("start", "end", "delete"):
            self.states[key] = event
        if do == "start":
            self.open.add(key)
            self.steps.setdefault(key, 0)
        elif do == "log":
            self.steps[key] = max(self.steps.get(key, 0), event["step"])
            if not event["step"]:
                self.ends[key] = event["metrics"]
        elif do == "tag":
            self.tags |= {(key, name): event for name in event["tags"]}
        elif do == "model":
            self.outcome = self.ends.get(key)
        elif do in ("end", "delete"):
            self.open.discard(key)
            if event.get("is_final"):
                self.final.add(key)

    def knows(self, key: str, metrics: dict[str, float], step: int) -> bool:
        """Whether metrics were told before: what is done again brings the same.

        Args:
            key: The run.
            metrics: By name.
            step: The epoch; 0: the end of the run.
        """
        return 0 < step <= self.steps.get(key, 0) or metrics == self.ends.get(key)

    def ends_of_open(self, status: str) -> list[Event]:
        """The events, but for their time, that end what is open; the search's own comes last."""
        keys = sorted(self.open, key=lambda key: (key == "search", -len(key), key))
        return [{"do": "end", "key": key, "status": status} for key in keys]

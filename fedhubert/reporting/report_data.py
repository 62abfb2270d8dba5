"""What a report knows of a run; whatever a run (an older one, an interrupted one, a baseline) lacks
is left out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from fedhubert.reporting.summary import validation_by_round
from fedhubert.runs.metrics import Event

PHASES = ("train", "open", "validation", "server_step", "server_validation", "checkpoint")
"""Parts of a round's time that runs may tell; what is left of the round is shown as other."""


@dataclass(frozen=True)
class Score:
    """A client's validation figures."""

    loss: float
    masked_accuracy: float


@dataclass(frozen=True)
class RunData:
    """One run, under the name that tells it from the others."""

    name: str
    folder: Path
    events: list[Event]
    config: Mapping[str, object]
    results: Mapping[str, object]
    comparison: Mapping[str, object]
    starts: Sequence[Mapping[str, object]] = ()

    @cached_property
    def rounds(self) -> list[Event]:
        """The events of its rounds, each number once (the last one told)."""
        return list(
            {
                event["round"]: event
                for event in self.events
                if event.get("event") == "round" and "round" in event
            }.values()
        )

    @property
    def final(self) -> Event:
        return next((event for event in reversed(self.events) if event.get("event") == "final"), {})

    @property
    def targets(self) -> Event:
        return next(
            (event for event in reversed(self.events) if event.get("event") == "targets"), {}
        )

    @property
    def kind(self) -> str:
        """``federated``, ``central`` or ``local_only``."""
        return str(
            next(
                (
                    event.get("kind", "")
                    for event in self.events
                    if event.get("event") == "baseline"
                ),
                "federated",
            )
        )

    def training(self, figure: str) -> list[tuple[int, float]]:
        """Return (round, figure) of what clients measured while they trained."""
        return self._by_round("train", figure)

    def drift(self, figure: str) -> list[tuple[int, float]]:
        """Return (round, figure) of how far the clients' updates pointed apart."""
        return self._by_round("drift", figure)

    def cosines(self) -> list[tuple[int, list[float]]]:
        """Return (round, cosine of each client's update to the mean), for the rounds that tell."""
        found = [
            (
                event["round"],
                [
                    value
                    for client in _clients(event)
                    if (value := _number(client, "cosine_to_mean")) is not None
                ],
            )
            for event in self.rounds
        ]
        return [(number, values) for number, values in found if values]

    def updates(self, figure: str) -> dict[int, float]:
        """Return client -> mean over its rounds of a figure of its updates: ``update_norm``,
        ``cosine_to_mean``."""
        values: dict[int, list[float]] = {}
        for client in (client for event in self.rounds for client in _clients(event)):
            if (value := _number(client, figure)) is not None:
                values.setdefault(client["partition"], []).append(value)
        return {number: fmean(found) for number, found in values.items()}

    def _by_round(self, part: str, figure: str) -> list[tuple[int, float]]:
        return [
            (event["round"], value)
            for event in self.rounds
            if (value := _number(event.get(part), figure)) is not None
        ]

    def validation(self, figure: str) -> list[tuple[int, float]]:
        """Return (round of the model, figure) on the clients' validation splits."""
        scored = sorted(
            validation_by_round([event for event in self.events if _scored(event)]).items()
        )
        return [
            (number, value)
            for number, figures in scored
            if (value := _number(figures, figure)) is not None
        ]

    def client_scores(self) -> Iterator[tuple[int, dict[int, Score]]]:
        """Yield (round of the model, client -> score), in the order of events."""
        for event in self.events:
            if not _scored(event):
                continue
            scores = {
                client["partition"]: score
                for client in event.get("clients") or ()
                if (score := _score(client))
            }
            if scores:
                yield event["validation"]["model_round"], scores

    def last_scores(self) -> dict[int, Score]:
        """Return every client's score of the last model that it scored: of the final one, where the
        run came to its end."""
        last: dict[int, Score] = {}
        for _, scores in self.client_scores():
            last |= scores
        return last

    def participation(self) -> tuple[Counter[int], Counter[int], Counter[tuple[int, str]]]:
        """Return rounds asked per client, updates used per client, and failures per (client,
        code)."""
        asked: Counter[int] = Counter()
        used: Counter[int] = Counter()
        failures: Counter[tuple[int, str]] = Counter()
        for event in self.rounds:
            asked.update(event.get("asked") or ())
            used.update(
                client["partition"]
                for client in event.get("clients") or ()
                if "partition" in client
            )
            failures.update(
                (item.get("partition", -1), str(item.get("code", "unknown")))
                for item in event.get("failed") or ()
            )
        return asked, used, failures

    def bytes_sent(self) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """Return (round, bytes so far) down to the clients and up from them."""
        totals: dict[str, list[tuple[int, float]]] = {"bytes_down": [], "bytes_up": []}
        for name, series in totals.items():
            total = 0.0
            for event in self.rounds:
                total += _number(event, name) or 0.0
                series.append((event["round"], total))
        return totals["bytes_down"], totals["bytes_up"]

    def seconds(self) -> dict[str, float]:
        """Return the time of all rounds by phase; empty where the run does not tell."""
        spent = {
            phase: sum(_number(event.get("seconds"), phase) or 0.0 for event in self.rounds)
            for phase in PHASES
        }
        whole = sum(_number(event.get("seconds"), "round") or 0.0 for event in self.rounds)
        spent = {phase: seconds for phase, seconds in spent.items() if seconds}
        other = whole - sum(spent.values())
        return {**spent, **({"other": other} if other > 0 else {})}

    def total(self, figure: str) -> float:
        """Return a figure of training (``audio_s``, ``masked_frames``) added up over rounds."""
        return sum(_number(event.get("train"), figure) or 0.0 for event in self.rounds)


def _scored(event: Event) -> bool:
    validation = event.get("validation")
    return isinstance(validation, dict) and "model_round" in validation


def _score(client: Mapping[str, object]) -> Score | None:
    frames = _number(client, "validation_masked_frames")
    loss, correct = (
        _number(client, "validation_cross_entropy_sum"),
        _number(client, "validation_correct"),
    )
    if not frames or loss is None or correct is None or "partition" not in client:
        return None
    return Score(loss / frames, correct / frames)


def _clients(event: Event) -> list[Event]:
    return [
        client
        for client in event.get("clients") or ()
        if isinstance(client, dict) and "partition" in client
    ]


def _number(values: object, name: str) -> float | None:
    found = values.get(name) if isinstance(values, dict) else None
    return float(found) if isinstance(found, (int, float)) else None

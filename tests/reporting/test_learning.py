"""The verdict on a run: above chance, on the plateau, back at chance, or too early to say."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fedhubert.reporting.learning import Levels, verdict
from fedhubert.reporting.summary import rounds_table
from fedhubert.runs.metrics import append_event

LEVELS = Levels(3.85, 0.04)
UNTRAINED, PLATEAU, LEARNED = (5.2, 0.01), (3.845, 0.041), (3.6, 0.08)


def scored(*figures: tuple[float, float]) -> list[dict[str, float]]:
    """Return validation figures of rounds 0, 1, ..."""
    return [
        {"model_round": number, "loss": loss, "masked_accuracy": accuracy}
        for number, (loss, accuracy) in enumerate(figures)
    ]


@pytest.mark.parametrize(
    ("figures", "num_rounds", "said"),
    [
        ([UNTRAINED], 8, ""),
        ([UNTRAINED, PLATEAU, PLATEAU], 8, ""),
        ([UNTRAINED, PLATEAU, LEARNED, LEARNED], 8, "above chance since round 2"),
        ([UNTRAINED, LEARNED], 8, "above chance since round 1"),
        ([UNTRAINED, LEARNED, PLATEAU, LEARNED], 8, "above chance since round 3"),
        ([UNTRAINED, *[PLATEAU] * 4], 8, ""),
        ([UNTRAINED, *[PLATEAU] * 5], 8, "has not left the plateau after 5 rounds: see "),
        ([UNTRAINED, *[PLATEAU] * 5], 400, ""),
        ([UNTRAINED, *[PLATEAU] * 40], 400, "has not left the plateau after 40 rounds: see "),
        ([UNTRAINED, LEARNED, PLATEAU], 8, "back at chance, above it last in round 1: see "),
        ([UNTRAINED, (3.6, 0.04)], 8, ""),  # a lower loss without better guesses is not enough
        ([UNTRAINED, (3.85, 0.08)], 8, ""),
    ],
)
def test_the_verdict_follows_loss_and_accuracy(
    figures: Sequence[tuple[float, float]], num_rounds: int, said: str
) -> None:
    found = verdict(scored(*figures), LEVELS, num_rounds)
    assert found.startswith(said) and bool(found) == bool(said)


def test_without_labels_or_figures_there_is_none() -> None:
    assert verdict(scored(UNTRAINED, LEARNED), None, 8) == ""
    assert verdict([{}, {"model_round": 1, "loss": 0.5, "cosine_distance": 0.1}], LEVELS, 8) == ""
    assert Levels.of({}) is None and Levels.of({"validation_labels": {"entropy_nats": 0.0}}) is None


def test_the_place_that_it_points_to_is_there() -> None:
    said = verdict(scored(UNTRAINED, *[PLATEAU] * 5), LEVELS, 5)
    file, _, heading = said.rpartition("see ")[2].partition(", ")
    page = (Path(__file__).parents[2] / file).read_text()
    assert f"## {heading.strip(chr(34))}" in page


def test_the_final_table_has_the_verdict_and_the_levels(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    levels = {"entropy_nats": 3.85, "most_frequent_share": 0.04}
    append_event(log, {"event": "targets", "validation_labels": levels})
    figures = scored(UNTRAINED, LEARNED, LEARNED)
    for number, validation in enumerate(figures[:2], start=1):
        event = {"event": "round", "round": number, "train": {"audio_s": 1.0}, "failed": []}
        rest = {"seconds": {"round": 1.0}, "asked": [0], "clients": [{}], "validation": validation}
        append_event(log, {**event, **rest})
    assert "since round 1" in str(rounds_table(log).caption)
    append_event(log, {"event": "final", "round": 2, "num_rounds": 2, "validation": figures[2]})
    caption = str(rounds_table(log).caption)
    assert "chance 3.8500, 0.0400" in caption and caption.endswith("above chance since round 1")

"""Runs written by hand, and the pages that are made of them."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedhubert.cli import main


def client(number: int, loss: float, correct: int) -> dict[str, Any]:
    return {
        "partition": number,
        "validation_cross_entropy_sum": 100 * loss,
        "validation_masked_frames": 100,
        "validation_correct": correct,
    }


def round_event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "train": {
            "loss": 4.0 - number,
            "masked_accuracy": 0.1 * number,
            "audio_s": 1800.0,
            "masked_frames": 10,
            "steps": 4,
        },
        "validation": {
            "model_round": number - 1,
            "loss": 4.5 - number,
            "masked_accuracy": 0.1,
            "masked_frames": 200,
            "clients": 2,
        },
        "asked": [0, 1, 2],
        "clients": [client(0, 3.0, 20), client(1, 3.5, 5 * number)],
        "failed": [{"partition": 2, "code": "update_not_finite", "setting": "client.lr"}],
        "bytes_down": 2_000_000,
        "bytes_up": 1_000_000,
        "bytes_down_fp32": 4_000_000,
        "bytes_up_fp32": 4_000_000,
        "seconds": {"train": 60.0, "server_step": 1.0, "round": 65.0},
        **changes,
    }


TARGETS = {
    "event": "targets",
    "validation_labels": {"entropy_nats": 3.8, "most_frequent_share": 0.05},
}
FINAL = {
    "event": "final",
    "round": 2,
    "validation": {
        "model_round": 2,
        "loss": 2.25,
        "masked_accuracy": 0.31,
        "masked_frames": 200,
        "clients": 2,
    },
    "clients": [client(0, 2.0, 40), client(1, 2.5, 22)],
    "failed": [],
}


def write(folder: Path, events: list[dict[str, Any]], config: str = "seed: 0\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "config.yaml").write_text(config)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(
        tmp_path / "first",
        [TARGETS, round_event(1), round_event(2), FINAL],
        "seed: 0\nclient:\n  lr: 0.001\nout: a\n",
    )


class Page(HTMLParser):
    """Checks that tags close in order, and collects text, table rows and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [
            str(found[name]) for name in ("src", "href", "xlink:href") if name in found
        ]
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def report(tmp_path: Path, *runs: Path) -> tuple[str, Page]:
    out = tmp_path / "pages" / "report.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    text = out.read_text()
    return text, Page(text)

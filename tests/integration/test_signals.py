"""A run that is stopped at a terminal or by a scheduler: at once, without a stack dump, and with the command that goes on."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.terminal import Seen, on_terminal

from .conftest import events

Command = Callable[..., list[str]]
DUMPS = ("Traceback", "*** SIG", "core_worker", "raylet", "ActorPool", "empty!")
LONG = ["client.local_steps=3000"]
"""A client of such a run is at work for minutes: nobody may wait for it."""


def left_behind(out: Path) -> list[str]:
    """Processes of Ray that this run started: their environment names its state folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if str(out).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def past_round(number: int) -> str:
    """Return the pattern of a line about a later round: on a quiet machine a line may stand for several."""
    return f"round ({'|'.join(map(str, range(number + 1, number + 100)))})/4000"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "press"),
    [
        ("starting 2 workers", "^C"),
        ("waiting for the clients", "^C"),
        ("k-means: ", "^C"),
        (r"round 1/3 .* 0/3", "^C"),
        (r"round 1/3 .* 0/3", "TERM"),
    ],
)
def test_it_stops_at_once_and_says_how_it_goes_on(
    command: Command, environment: dict[str, str], tmp_path: Path, at: str, press: str
) -> None:
    out = tmp_path / "run"
    marked = {**environment, "FEDHUBERT_TEST_RUN": str(out)}
    seen = on_terminal(command(out, *LONG), marked, at=at, press=press, timeout_s=300)
    assert seen.code == 75, seen.text
    assert seen.stopped_s < (5 if (os.cpu_count() or 1) > 2 else 15)  # beside other tests
    assert not [dump for dump in DUMPS if dump in seen.text]
    words = shlex.split(seen.lines[-1].partition("go on with: ")[2])
    assert words[:2] == ["fedhubert", "train"] and words[-1] == "resume=auto"
    assert f"out={out}" in words
    assert left_behind(out) == []


@pytest.mark.slow
def test_the_command_that_is_said_goes_on(
    command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = command(out, "federated.num_rounds=4000")
    seen = on_terminal(asked, environment, at=past_round(1), press="^C", timeout_s=300)
    saved = [event["round"] for event in events(out) if event["event"] == "round"]
    assert seen.code == 75 and saved
    words = shlex.split(seen.lines[-1].partition("go on with: fedhubert ")[2])
    asked, further = [*asked[:3], *words], past_round(saved[-1] + 1)
    again = on_terminal(asked, environment, at=further, press="^C", timeout_s=300)
    assert again.code == 75 and f"resuming after round {saved[-1]}" in again.text
    more = [event["round"] for event in events(out) if event["event"] == "round"]
    assert more[: len(saved)] == saved and more[-1] > saved[-1]


@pytest.mark.slow
def test_a_sweep_that_is_stopped_starts_no_other_job(
    command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    asked = command(tmp_path / "sweep", *LONG, "-m", "seed=0,1")
    seen = on_terminal(asked, environment, at="round 1/3", press="^C", timeout_s=300)
    assert seen.code == 75 and "job 1 of 2: seed=0" in seen.text and "job 2 of 2" not in seen.text
    assert "go on with: fedhubert train" in seen.lines[-1] and " -m " in seen.lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "at", "more"),
    [
        ("central", "loading", []),
        ("central", r"1/3", ["client.local_steps=3000"]),
        ("compare", r"1/3", ["client.local_steps=3000", "seeds=1"]),
        ("plan", "loading", []),
        ("plan", "measur", ["measure=true", "model=hubert_base"]),
    ],
)
def test_other_commands_stop_at_once_too(
    command: Command,
    environment: dict[str, str],
    tmp_path: Path,
    verb: str,
    at: str,
    more: list[str],
) -> None:
    python, m, cli, _, *settings = command(tmp_path / "run", *more)
    seen = on_terminal(
        [python, m, cli, verb, *settings], environment, at=at, press="^C", timeout_s=300
    )
    assert_stopped(seen, verb)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["loading", "masked prediction"])
def test_evaluate_stops_at_once_too(
    finished: Path, manifest: Path, tone_folder: Path, environment: dict[str, str], at: str
) -> None:
    scored = ["--manifest", str(manifest), "--root", str(tone_folder), "--probe", "speaker"]
    asked = [sys.executable, "-m", "fedhubert.cli", "evaluate", "--checkpoint", str(finished)]
    seen = on_terminal([*asked, *scored], environment, at=at, press="^C", timeout_s=300)
    assert_stopped(seen, "evaluate")


def assert_stopped(seen: Seen, verb: str) -> None:
    assert seen.code in (75, 130), seen.text
    assert seen.stopped_s < (5 if (os.cpu_count() or 1) > 2 else 15)
    assert not [dump for dump in DUMPS if dump in seen.text], seen.text
    assert f"go on with: fedhubert {verb}" in seen.lines[-1], seen.text

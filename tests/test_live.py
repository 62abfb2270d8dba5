"""The live line, on a terminal of 80 columns and where there is none."""

import os
import subprocess
import sys
from pathlib import Path

from .terminal import Seen, on_terminal

ROUNDS = """
import os, sys, time
from fedhubert import live
with live.shown("loading what takes its time"):
    time.sleep(0.3)
    for number in (1, 2):
        live.doing(f"round {number}/2, " + "with words that are longer than a terminal is wide " * 2 * (number == 2), number, 2)
        live.counting(4, "clients")
        for done in range(4):
            time.sleep(0.3)
            live.done()
    live.hide()
    print("the result")
"""
NOISE = """
import os, sys
from pathlib import Path
from fedhubert import live
with live.shown("decoding"), live.libraries_write_to(Path(sys.argv[1])):
    os.write(2, b"[libmpg123] error: as a C library says it\\n")
    os.write(1, b"(raylet) a task has failed\\n")
    print("warning: from Python", file=sys.stderr)
    live.terminal().print("our own line")
print("the result")
"""


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", script, *arguments]


def test_a_line_has_rate_and_time_left_and_never_wraps() -> None:
    seen = on_terminal(python(ROUNDS), os.environ)
    assert seen.code == 0 and not seen.too_wide
    assert "loading what takes its time" in seen.lines[0]
    first = [line for line in seen.lines if line.startswith("round 1/2")]
    assert any("2/4 clients" in line and "/s" in line and "left of all 2" in line for line in first)
    assert any(line.endswith("…") for line in seen.lines)
    assert seen.lines[-1] == "the result"


def test_what_libraries_print_is_in_the_log_and_ours_on_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log" / "run.log"
    seen = on_terminal(python(NOISE, str(log)), os.environ)
    for noise in ("libmpg123", "raylet", "from Python"):
        assert noise in log.read_text() and noise not in seen.text
    assert "our own line" in seen.text and seen.lines[-1] == "the result"


def test_a_quiet_library_leaves_no_log(tmp_path: Path) -> None:
    quiet = "\n".join(
        line for line in NOISE.splitlines() if "os.write" not in line and "warning" not in line
    )
    assert on_terminal(python(quiet, str(tmp_path / "log")), os.environ).lines[-1] == "the result"
    assert not (tmp_path / "log").exists()


def test_without_a_terminal_only_what_is_asked_for_is_printed(tmp_path: Path) -> None:
    done = subprocess.run(python(ROUNDS), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("the result\n", "")
    piped = subprocess.run(python(NOISE, str(tmp_path / "log")), capture_output=True, text=True)
    assert (piped.stdout, piped.stderr) == ("the result\n", "our own line\n")


def interrupted(*arguments: str) -> Seen:
    command = [sys.executable, "-m", "fedhubert.cli", *arguments]
    return on_terminal(command, os.environ, at="loading", press="^C")


def test_ctrl_c_while_torch_is_loaded_ends_with_the_command_that_goes_on() -> None:
    seen = interrupted("train", "experiment=demo", "out=some where", "resume=never")
    assert seen.code == 130 and seen.stopped_s < 5 and "Traceback" not in seen.text
    said = "fedhubert: interrupted; go on with: fedhubert train experiment=demo 'out=some where' resume=auto"
    assert seen.lines[-1].removeprefix("^C") == said
    seen = interrupted("evaluate", "--checkpoint", "a", "--manifest", "b")
    assert seen.lines[-1].endswith("go on with: fedhubert evaluate --checkpoint a --manifest b")


def test_the_first_line_comes_before_what_is_slow_to_load() -> None:
    """Hydra and torch take seconds: the line is there before."""
    probe = (
        "import sys\nfrom fedhubert import cli, live\n"
        "def doing(words, *part):\n    print(words, sorted({'torch', 'hydra', 'numpy'} & set(sys.modules)))\n    raise SystemExit\n"
        "live.doing = doing\ncli.main(['train', 'experiment=demo'])"
    )
    done = subprocess.run(python(probe), capture_output=True, text=True)
    assert done.stdout == "fedhubert train: loading []\n", done.stderr


def test_nobody_is_told_of_a_run_unless_asked_to() -> None:
    """Flower would report each simulation to its makers, and wait for their answer at the end."""
    names = ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")
    script = (
        "import os\nfrom fedhubert import cli\n"
        f"cli.main(['config', 'seed'])\nprint([os.environ[name] for name in {names}])"
    )
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for given, seen in (({}, "['0', '0']"), ({names[0]: "1"}, "['1', '0']")):
        done = subprocess.run(python(script), env=bare | given, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == [seen], done.stderr


def test_an_interrupted_command_does_not_wait_for_its_threads() -> None:
    """A thread that nobody can stop (Flower's, Ray's) keeps an interpreter for as long as it runs."""
    script = (
        "import sys, threading, time\nfrom fedhubert import cli\n"
        "def interrupted(arguments):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n    raise KeyboardInterrupt\n"
        "cli._run = interrupted\nsys.argv[1:] = ['train', 'out=a']\ncli.command()"
    )
    done = subprocess.run(python(script), capture_output=True, text=True, timeout=50)
    assert done.returncode == 130
    assert done.stderr.endswith("go on with: fedhubert train out=a resume=auto\n")

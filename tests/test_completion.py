"""``fedhubert completion bash``, in bash: what Tab offers."""

import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhubert.cli import VERBS, main

Ask = Callable[[str], set[str]]

BASH = shutil.which("bash")
TAB = r"""
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
read -ra COMP_WORDS <<< "${2//=/ = }"
[[ $2 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { echo "compopt $*"; }
spec=$(complete -p fedhubert)
[[ $spec =~ -F\ ([^ ]+) ]] && "${BASH_REMATCH[1]}" fedhubert
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BASH is None:
        pytest.skip("no bash here")
    path = tmp_path_factory.mktemp("completion") / "fedhubert"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as out:
        patch.setattr("sys.stdout", out)
        assert main(["completion", "bash"]) == 0
    return path


@pytest.fixture(scope="module")
def offered(script: Path) -> Ask:
    def ask(line: str) -> set[str]:
        done = subprocess.run(
            [str(BASH), "--norc", "-euc", TAB, "bash", str(script), line],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return {word for word in done.stdout.splitlines() if word}

    return ask


def test_verbs_and_their_flags(offered: Ask) -> None:
    assert offered("fedhubert ") == set(VERBS)
    assert offered("fedhubert ev") == {"evaluate"}
    assert offered("fedhubert evaluate --check") == {"--checkpoint"}
    assert offered("fedhubert no-such-verb ex") == set()


def test_experiments_keys_and_recipes(offered: Ask) -> None:
    assert offered("fedhubert train experiment=speech_") >= {"speech_mini"}
    assert "experiment=speech_mini" in offered("fedhubert train exp")
    assert offered("fedhubert train federated.num_r") == {
        "federated.num_rounds=",
        "compopt -o nospace",
    }
    assert offered("fedhubert train experiment=demo data.manifest=/da") == set()  # files, then
    assert offered("fedhubert recipe de") == {"demo"}


def test_tab_is_pressed(script: Path, tmp_path: Path) -> None:
    """By readline, in which a word begins after the =."""
    (tmp_path / "calls.csv").touch()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe(str(BASH), [str(BASH), "--norc", "-i"], {**os.environ, "TERM": "dumb"})
    typed = f"fedhubert() {{ printf '<%s>' \"$@\"; }}; . {script}\nfedhubert tra\texperiment=acc\t data.manifest=ca\t\n"
    said, until = b"", time.monotonic() + 30
    os.write(terminal, typed.encode())
    while time.monotonic() < until and b"csv>" not in said:
        if select.select([terminal], [], [], 0.1)[0]:
            said += os.read(terminal, 4096)
    os.write(terminal, b"exit\n")
    os.waitpid(child, 0)
    os.close(terminal)
    assert b"<train><experiment=accelerator_small><data.manifest=calls.csv>" in said, said

"""Overrides as they are written: awkward values and their quotes, and sweeps."""

import importlib.util
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.compose.overrides import hydra_quoted, shell_override
from fedhubert.compose.saved import amend
from fedhubert.compose.sweeps import multirun
from fedhubert.errors import ConfigError

AWKWARD = [
    "runs/a=b",
    "~/runs",
    "runs/#1",
    "runs[1]",
    "runs(1)",
    "{x",
    "/tmp/über",
    "日本",
    "a,b",
    "a!b",
    "a;b",
    "a&b",
    "a'b",
    'a"b',
    'a\\"b',
    "a#\\",
    "#${oc.env:HOME}",
    "[x] y\\z",
]


@pytest.mark.parametrize("value", AWKWARD)
def test_what_hydra_takes_for_its_own_syntax_is_said_with_the_quotes_to_use(value: str) -> None:
    """And the override that the message gives is read, by a shell and Hydra, as what was meant."""
    with pytest.raises(ConfigError) as error:
        compose([f"out={value}"])
    said = str(error.value)
    assert f"`out={value}`" in said and error.value.setting == "out"
    told = (
        said.split("as one value ")[1].split(", as a list")[0]
        if "," in value
        else said.split("these into the shell's: ")[1]
    )
    shell = subprocess.run(["bash", "-c", f"printf %s {told}"], capture_output=True, text=True)
    assert compose([shell.stdout]).out == value


@pytest.mark.parametrize(
    "value", [*AWKWARD, "/plain/path-1", "my runs", "2024", "C:\\x\\", "a\\\\"]
)
def test_printed_overrides_mean_the_value(value: str) -> None:
    assert compose([f"out={hydra_quoted(value)}"]).out == value
    assert compose(shlex.split(shell_override("out", value))).out == value
    assert shell_override("out", "/plain/path-1") == "out=/plain/path-1"


@pytest.mark.parametrize("value", [*AWKWARD, "[x", "'a", "a #b", "&x", "!x", "`x"])
def test_overrides_of_a_saved_run_are_read_as_what_they_are_or_refused_with_the_quotes(
    value: str,
) -> None:
    saved = compose([]).model_dump(mode="json")
    try:
        assert amend(saved, [f"out={value}"]).out == value
    except ConfigError as error:
        told = str(error).split("the shell's: ")[1]
        assert amend(saved, shlex.split(told)).out == value


def test_what_looks_like_a_number_is_said_to_need_quotes() -> None:
    with pytest.raises(ConfigError, match=r"""out=2024: .*'out="\.\.\."'"""):
        compose(["out=2024"])


def test_several_values_without_a_sweep_are_named() -> None:
    with pytest.raises(ConfigError, match=r"`seed=1,2` names several values: .*train -m"):
        compose(["seed=1,2"])


def test_a_sweep_prints_its_jobs_and_runs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printing = ["train", "-m", "--cfg", "job", "seed=1,2"]
    assert main([*printing, "model=hubert_tiny", f"out={tmp_path}/x"]) == 0
    printed = capsys.readouterr().out
    jobs = list(yaml.safe_load_all(printed))
    assert [(job["seed"], job["out"]) for job in jobs] == [
        (1, f"{tmp_path}/x/0"),
        (2, f"{tmp_path}/x/1"),
    ]
    assert "# job 0: seed=1\n" in printed and "# job 1: seed=2\n" in printed
    assert list(tmp_path.iterdir()) == []
    assert main([*printing, "--explain"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("# job ") == 2 and "Every random choice derives from it" in printed


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["seed=1,2", "federated.num_round=3"], "federated.num_rounds"),
        (["seed=1,2", "out=a=b"], "'out=\"a=b\"'"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_its_last_line(
    overrides: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["-m"], ["-m", "--cfg", "job"]):
        assert main(["train", *flags, *overrides]) == 1
        assert named in capsys.readouterr().err.splitlines()[-1]


def test_a_search_without_optuna_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else found(name, *a)
    )
    for attempt in (
        compose,
        lambda overrides: multirun(overrides, lambda out, given, config: None),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'fedhubert\[sweep\]'"):
            attempt(["+sweep=optuna"])

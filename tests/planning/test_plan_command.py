"""The command that plans: its words, table, JSON and script."""

import json
from pathlib import Path

import pytest

from fedhubert.cli import main
from fedhubert.errors import ConfigError
from fedhubert.planning.words import read_words
from tests.federation.conftest import app_identity  # noqa: F401


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("hours=5", "audio_s_per_s=N"),
        ("hours=5 audio_s_per_s=fast", "audio_s_per_s='fast'"),
        ("hours=5 audio_s_per_s=0", "audio_s_per_s='0'"),
        ("hours=-5 audio_s_per_s=1", "hours='-5'"),
        ("hours=5 hours_per_client=1 audio_s_per_s=1", "Give one of"),
        ("data.manifest=null audio_s_per_s=1", "hours=N"),
        ("hours_per_client=[1,2] audio_s_per_s=1", "federated.num_clients is 5"),
        ("hours=5 audio_s_per_s=1 up_mbit_s=-1", "up_mbit_s='-1'"),
        ("hours=5 audio_s_per_s=1 measure=perhaps", "measure='perhaps'"),
        ("hours=5 audio_s_per_s=1 federated.num_round=3", "federated.num_rounds"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(words: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_words(["experiment=demo_fedavg", *words.split()])
    assert named in str(error.value)


def test_the_command_prints_a_table_or_json_and_what_it_assumes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["plan", "experiment=demo_fedavg", "hours=2", "audio_s_per_s=20", "up_mbit_s=10"]
    assert main(words) == 0
    table = capsys.readouterr().out
    for part in (
        "real sites",
        "the run",
        "audio_s_per_s: 20, given",
        "round_overhead_s: 2, the default on real sites",
    ):
        assert part in table
    assert main([*words, "json=true"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clients"] == 5 and report["steps"] == 5 * 8 * 75 == sum(
        client["steps"] for client in report["per_client"]
    )
    assert report["seconds"] == pytest.approx(
        report["labels_s"] + report["rounds_s"] + report["final_s"]
    )
    assert (
        report["bytes_up"] == 5 * 8 * report["update_bytes"]
        and report["assumptions"]["rates"]["up_mbit_s"] == 10
    )
    assert main(["plan", "--help"]) == 0 and "hours_per_client" in capsys.readouterr().out
    assert main(["plan", "--fast"]) == 2


def test_the_slurm_script_says_what_the_planner_says(capsys: pytest.CaptureFixture[str]) -> None:
    script = (Path(__file__).parents[2] / "docker/slurm/librispeech_2gpu.sbatch").read_text()
    command = script.partition("`fedhubert ")[2].partition("`")[0]
    assert main([*command.split(), "json=true"]) == 0
    report = json.loads(capsys.readouterr().out)
    hours, round_s = report["seconds"] / 3600, report["rounds_s"] / report["rounds"]
    memory, device, disk, state = (
        report["server_memory_bytes"],
        report["client_memory_bytes"],
        report["checkpoint_bytes"],
        sum(client["state_bytes"] for client in report["per_client"]),
    )
    for text in (
        f"{hours:.1f} h on two GPUs, {report['device_h']:.1f} GPU hours",
        f"{report['labels_s'] / 60:.1f} min on CPUs",
        f"{round_s / 60:.1f} min a round",
        f"{memory / 1e9:.3g} GB of memory for the server",
        f"{device / 1e9:.3g} GB for weights",
        f"{report['bytes_up'] / 1e12:.3g} TB of updates",
        f"{disk / 1e9:.3g} GB of checkpoints and {state / 1e9:.3g} GB of labels",
    ):
        assert text in script, text

"""The planner against what it plans: messages and steps of real rounds, files that are written, and times that can be worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.config import Config
from fedhubert.errors import ConfigError
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.updates.sketches import sketch_width
from fedhubert.models.hubert import build_hubert
from fedhubert.planning import sizes
from fedhubert.planning.inputs import ClientAudio, Inputs, Rates, audio_of, inputs_of, open_data
from fedhubert.planning.rounds import RunPlan, plan
from fedhubert.planning.words import read_words
from fedhubert.runs.store import RoundStore
from fedhubert.training.parameters import ParameterLayout
from tests.federation.conftest import app_identity  # noqa: F401
from tests.federation.in_process import InProcessGrid
from tests.integration.conftest import SMALL


@pytest.fixture(scope="module")
def settings(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three speakers, one client each, by overrides."""
    manifest = tmp_path_factory.mktemp("manifest") / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    return [
        "experiment=demo_fedavg",
        f"data.manifest={manifest}",
        f"data.root={tone_folder}",
        *SMALL,
    ]


@pytest.mark.parametrize(
    ("nodes", "overrides"),
    [
        (
            3,
            [
                "federated.update_codec=int8",
                "federated.client_fraction=0.67",
                "client.local_steps=null",
                "client.accumulate=2",
            ],
        ),
        (
            2,
            ["federated.broadcast_codec=bf16", "client.local_steps=3"],
        ),  # one of the nodes hosts two clients
        (2, ["federated.update_codec=ring24", "federated.ring_clip=0.1"]),
        pytest.param(3, ["secure=pairwise"], marks=pytest.mark.slow),
    ],
)
def test_every_figure_of_a_run_that_is_no_time_is_exact(
    settings: list[str], nodes: int, overrides: list[str], tmp_path: Path
) -> None:
    """Steps, audio, who takes part, and bytes, of a run through the real messages and handlers; with nodes that host several clients."""
    own = [
        f"out={tmp_path / 'run'}",
        f"client.state_dir={tmp_path / 'state'}",
        f"simulation.num_supernodes={nodes}",
    ]
    few = [
        "targets.max_iterations=1",
        "targets.max_frames_per_client=40",
        "targets.min_frames=1",
        "federated.num_rounds=2",
    ]
    config = compose([*settings, *few, *overrides, *own])
    inputs = inputs_of(config, audio_of(open_data(config)), Rates(audio_s_per_s=1.0))
    planned = plan(inputs)
    result = run_federation(
        InProcessGrid([{"partition-id": node, "num-partitions": nodes} for node in range(nodes)]),
        config,
    )
    events = [json.loads(line) for line in result.folder.metrics_file.read_text().splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    assert len(rounds) == len(planned.rounds)
    assert [(part.bytes_down, part.bytes_up) for part in planned.rounds] == [
        (event["bytes_down"], event["bytes_up"]) for event in rounds
    ]
    for number, share in enumerate(planned.shares):
        mine = [
            client
            for event in rounds
            for client in event["clients"]
            if client["partition"] == number
        ]
        assert (share.rounds, share.steps) == (
            len(mine),
            sum(client["train_steps"] for client in mine),
        )
        if not config.secure.enabled:  # then only the sum is known
            assert share.audio_s == pytest.approx(
                sum(client["train_audio_s"] for client in mine), rel=1e-12
            )
    total_s = sum(event["train"]["audio_s"] for event in rounds)
    assert sum(share.audio_s for share in planned.shares) == pytest.approx(total_s, rel=1e-6)
    for part, event in zip(planned.rounds, rounds, strict=True):
        assert part.steps == max(client["train_steps"] for client in event["clients"])
    labels = sum(file.stat().st_size for file in (tmp_path / "state/labels").glob("*.npy"))
    features = sum(file.stat().st_size for file in (tmp_path / "state/features").glob("*.npy"))
    kept = config.federated.update_codec == "int8"
    disk = sum(
        sizes.site_disk(inputs, client) - kept * 16 * inputs.numel for client in inputs.clients
    )
    assert disk == pytest.approx(labels + features, rel=0.05)


def audio(batch_s: float, scored_s: float = 0.0, num_batches: int = 10) -> ClientAudio:
    return ClientAudio(
        num_batches * batch_s,
        0.0,
        scored_s,
        2 * scored_s,
        num_batches,
        lambda positions: batch_s * len(positions),
    )


def planned(
    clients: list[ClientAudio], overrides: list[str], **rates: Any
) -> tuple[Inputs, RunPlan]:
    """RunPlan for a model of 1e6 parameters, whose labels are there already."""
    base = [
        "experiment=demo_fedavg",
        "targets=precomputed",
        "targets.labels=x.km",
        "checkpoint.keep_best=false",
        "client.local_steps=10",
        "federated.client_cosines=false",
    ]
    config = compose(
        [*base, f"federated.num_clients={len(clients)}", "federated.num_rounds=2", *overrides]
    )
    inputs = Inputs(
        config,
        ParameterLayout(("weight",), ((1000, 1000),)),
        1_000_000,
        tuple(clients),
        Rates(**rates),
    )
    return inputs, plan(inputs)


def test_rounds_that_are_not_scored_take_no_time_for_it() -> None:
    clients, rates = [audio(4.0, 8.0)], {"audio_s_per_s": 2.0, "score_audio_s_per_s": 8.0}
    _, found = planned(clients, ["client.validation_every=2"], **rates)
    assert [part.clients_s for part in found.rounds] == pytest.approx([21.0, 20.0])


def test_a_round_of_real_sites_lasts_as_long_as_its_slowest() -> None:
    """Two sites: 10 steps of 4 s at 2 s/s, 8 s scored at 8 s/s, 4 MB up at 1 MB/s and down at 2 MB/s; the other half of all but the line.

    The end scores twice as much.
    """
    times = {
        "audio_s_per_s": 2.0,
        "score_audio_s_per_s": 8.0,
        "up_mbit_s": 8.0,
        "down_mbit_s": 16.0,
    }
    server = {"round_overhead_s": 3.0, "fold_ns": 1000.0, "step_ns": 500.0, "disk_mb_s": 4.0}
    _, found = planned(
        [audio(4.0, 8.0), audio(2.0, 4.0)], ["checkpoint.every=2"], **times, **server
    )
    slowest = 20.0 + 1.0 + 4.0 + 2.0
    assert [part.clients_s for part in found.rounds] == pytest.approx([slowest, slowest])
    assert [part.seconds for part in found.rounds] == pytest.approx(
        [slowest + 2.5 + 3.0, slowest + 2.5 + 3.0 + 1.0]
    )
    assert found.server_s == pytest.approx(2 * 2.5 + 1.0)
    assert [share.device_s for share in found.shares] == pytest.approx(
        [2 * 21.0 + 2.0, 2 * 10.5 + 1.0]
    )  # and the final scores
    assert found.final_s == pytest.approx(2.0 + 2.0 + 3.0) and found.labels_s == 0.0
    assert found.seconds == pytest.approx(2 * (slowest + 5.5) + 1.0 + 7.0)
    assert [part.bytes_up for part in found.rounds] == [8_000_000, 8_000_000]


def test_a_simulation_shares_its_workers() -> None:
    """Five clients of 10 s on two workers: three turns, not two and a half. With a worker each, one."""
    for workers, seconds in ((2, 30.0), (5, 10.0)):
        _, found = planned(
            [audio(1.0)] * 5, [f"simulation.num_workers={workers}"], audio_s_per_s=1.0
        )
        assert [part.clients_s for part in found.rounds] == pytest.approx([seconds, seconds])
        assert sum(share.device_s for share in found.shares) == pytest.approx(100.0)


def test_who_is_asked_in_excess_is_not_waited_for_but_works_all_the_same() -> None:
    clients = [audio(1.0), audio(2.0), audio(50.0)]
    _, found = planned(
        clients,
        ["federated.client_fraction=0.5", "federated.over_commit=1.5"],
        audio_s_per_s=1.0,
        up_mbit_s=1e9,
    )
    assert [part.clients_s for part in found.rounds] == pytest.approx([20.0, 20.0], rel=1e-3)
    assert [share.rounds for share in found.shares] == [2, 2, 0] and found.shares[2].steps == 0
    assert found.shares[2].device_s == pytest.approx(1000.0) and found.shares[2].bytes_up == 0
    assert found.rounds[0].bytes_down == 3 * 4_000_000 and found.rounds[0].bytes_up == 2 * 4_000_000


def test_clients_stop_at_their_time_limit_and_late_ones_are_named() -> None:
    _, found = planned([audio(1.0), audio(4.0)], ["client.max_seconds=12"], audio_s_per_s=1.0)
    assert [share.steps for share in found.shares] == [20, 6] and not found.warnings
    _, found = planned(
        [audio(1.0), audio(4.0)], ["federated.round_timeout_s=15"], audio_s_per_s=1.0, up_mbit_s=1e9
    )
    (warning,) = found.warnings
    assert (
        "1 clients would be too late, first client 1 in round 1" in warning
        and "federated.round_timeout_s=15" in warning
    )


@pytest.mark.parametrize("sets", ["[]", "[mfcc,static:300,deltas_z:700]"])
def test_checkpoints_on_disk_are_what_the_store_writes(tmp_path: Path, sets: str) -> None:
    config = compose(
        [
            "experiment=demo_fedavg",
            f"targets.sets={sets}",
            "federated.strategy=FedAdam",
            "checkpoint.every=1",
            "federated.num_rounds=9",
        ]
    )
    model = build_hubert(config.model, 0)
    inputs = _inputs_like(config, model)
    resume = {"m": torch.zeros(inputs.numel), "v": torch.zeros(inputs.numel)}
    store, plain = RoundStore(tmp_path), config.model_dump(mode="json")
    for number in range(1, config.checkpoint.keep_last + 2):
        store.save(number, model.state_dict(), config=plain, federated_metrics={}, resume=resume)
    store.save_best(1, model.state_dict(), config=plain, federated_metrics={})
    there = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert sizes.checkpoint_disk(inputs) == pytest.approx(there, rel=0.02)
    twice = (
        4 * inputs.all_parameters
        if sets == "[]"
        else (tmp_path / "best_checkpoint.pt").stat().st_size
    )
    assert sizes.written(inputs, 2) - sizes.written(inputs, 1) == pytest.approx(twice, rel=0.02)


def _inputs_like(config: Config, model: torch.nn.Module) -> Inputs:
    layout = ParameterLayout.of(model)
    return Inputs(
        config,
        layout,
        layout.numel,
        (audio(1.0),),
        Rates(audio_s_per_s=1.0),
    )


def test_hours_given_by_number_are_cut_into_the_longest_batches() -> None:
    words = [
        "experiment=demo_fedavg",
        "data.manifest=null",
        "hours_per_client=[1,2,3,4,5]",
        "audio_s_per_s=10",
        "client.local_steps=null",
    ]
    inputs, said, as_json = read_words(words)
    hour = inputs.clients[0]
    assert (
        not as_json
        and said["audio_s_per_s"] == "10, given"
        and "three times" in said["score_audio_s_per_s"]
    )
    assert [client.train_s for client in inputs.clients] == pytest.approx(
        [2880.0 * hours for hours in (1, 2, 3, 4, 5)]
    )
    assert hour.num_batches == 2880 / 8 and hour.audio_s(range(7, 10)) == pytest.approx(24.0)
    assert hour.scored_s == pytest.approx(20 * 8.0) and hour.scored_at_end_s == pytest.approx(
        720
    )  # client.validation_batches
    assert [share.steps for share in plan(inputs).shares] == [
        8 * 360 * hours for hours in (1, 2, 3, 4, 5)
    ]
    even, _, _ = read_words(["experiment=demo_fedavg", "hours=10", "audio_s_per_s=10"])
    assert {client.train_s for client in even.clients} == {0.8 * 7200.0}


def test_a_student_without_its_convolutions_travels_with_its_heads(tmp_path: Path) -> None:
    """The trained parameters are what a real message of the distillation carries."""
    teacher = compose(["experiment=demo_fedavg"])
    file = RoundStore(tmp_path).save(
        1,
        build_hubert(teacher.model, 0).state_dict(),
        config=teacher.model_dump(mode="json"),
        federated_metrics={},
        resume=None,
    )
    words = [
        "experiment=demo_distill",
        f"task.teacher={file}",
        "task.freeze_conv=true",
        "hours=5",
        "audio_s_per_s=10",
    ]
    inputs, _, _ = read_words(words)
    assert inputs.numel < inputs.all_parameters and inputs.teacher_bytes > 0
    heads = 2 * (inputs.config.model.embed_dim + 1) * teacher.model.embed_dim  # two teacher layers
    frozen = inputs.all_parameters - inputs.numel
    student = sum(
        parameter.numel() for parameter in build_hubert(inputs.config.model, 0).parameters()
    )
    assert inputs.all_parameters == student + heads and frozen > sum(
        out * 3 for out, _, _ in teacher.model.conv_layers
    )
    assert (
        sizes.model_bytes(inputs)
        == 4 * inputs.numel
        == sizes.reply_bytes(inputs, 1) - 4 * sketch_width(inputs.numel)
    )
    assert sizes.site_disk(inputs, inputs.clients[0]) > inputs.teacher_bytes
    halved, _, _ = read_words([*words, "task.teacher_precision=bf16"])
    assert sizes.client_memory(inputs) - sizes.client_memory(halved) == inputs.teacher_bytes / 2
    alone = inputs.all_parameters * 4 + inputs.numel * (4 + 8)  # AdamW
    assert sizes.client_memory(inputs) == alone + inputs.teacher_bytes


def test_what_is_not_trained_is_planned_once_to_each_site() -> None:
    words = ["experiment=demo_fedavg", "hours=5", "audio_s_per_s=10"]
    whole, _, _ = read_words(words)
    top, _, _ = read_words([*words, "model.trainable=top:1"])
    assert whole.frozen_bytes == 0 and whole.numel == whole.all_parameters == top.all_parameters
    assert top.frozen_bytes == 4 * (whole.numel - top.numel) > 0
    assert sizes.model_bytes(top) == 4 * top.numel < 0.6 * sizes.model_bytes(whole)
    disks = [sizes.site_disk(inputs, inputs.clients[0]) for inputs in (whole, top)]
    assert disks[1] - disks[0] == top.frozen_bytes
    assert sizes.client_memory(top) < sizes.client_memory(whole)


def test_what_a_strategy_takes_is_planned() -> None:
    """A model of 1e6 parameters, five clients a round; beside plain averaging."""
    memory = {}
    for strategy in ("FedAvg", "FedAvgM", "FedAdam", "FedProx", "FedMedian"):
        settings = [
            f"federated.strategy={strategy}",
            "federated.client_fraction=1",
            "simulation.num_workers=1",
        ]
        inputs, _ = planned([audio(1.0)] * 5, settings, audio_s_per_s=1.0, up_mbit_s=8.0)
        memory[strategy] = (sizes.server_memory(inputs), sizes.client_memory(inputs))
    plain = memory.pop("FedAvg")
    more = {
        strategy: (server - plain[0], client - plain[1])
        for strategy, (server, client) in memory.items()
    }
    assert more == {
        "FedAvgM": (4e6, 0),
        "FedAdam": (8e6, 0),
        "FedProx": (0, 4e6),
        "FedMedian": (5 * 8e6, 0),
    }


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
        "round_overhead_s: 15, the default on real sites",
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


@pytest.mark.parametrize("data", ["audio", "noise"])
def test_speed_is_measured_by_training(
    settings: list[str], data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhubert.planning.words.MEASURE_S", 1.0)
    threads = torch.get_num_threads()
    inputs, said, _ = read_words(
        [*settings, "measure=true", "client.threads=1", *(["hours=1"] if data == "noise" else [])]
    )
    assert data in said["audio_s_per_s"] and "measured here" in said["score_audio_s_per_s"]
    assert inputs.rates.scoring > inputs.rates.audio_s_per_s > 0
    assert torch.get_num_threads() == threads


def test_muon_costs_the_server_time_and_memory_and_is_warned_of() -> None:
    """Newton-Schulz by hand: five iterations on a [1000, 1000] matrix are 5 * 6e9 operations."""
    name = ParameterLayout(("wav2vec2.encoder.weight", "bias"), ((1000, 1000), (1000,)))
    found = {}
    for strategy in ("FedAvg", "FedMuon"):
        inputs, _ = planned([audio(1.0)], [f"federated.strategy={strategy}"], audio_s_per_s=1.0)
        inputs = replace(inputs, layout=name)
        found[strategy] = (inputs, plan(inputs))
    (average, plain), (muon, stepped) = found["FedAvg"], found["FedMuon"]
    written = (sizes.written(muon, 2) - sizes.written(average, 2)) * 1e-6 / muon.rates.disk_mb_s
    assert stepped.server_s - plain.server_s == pytest.approx(2 * 30.0 / 50.0 + written)
    kept = 4 * (1_000_000 + 2 * 1000 + 1)
    assert sizes.server_memory(muon) - sizes.server_memory(average) == kept
    assert "client.local_steps=1" in stepped.warnings[0] and not plain.warnings
    client = muon.config.client.model_copy(update={"optimizer": "muon", "optimizer_policy": "keep"})
    local = replace(muon, config=muon.config.model_copy(update={"client": client}))
    adamw = client.model_copy(update={"optimizer": "adamw"})
    usual = replace(muon, config=muon.config.model_copy(update={"client": adamw}))
    assert sizes.client_memory(usual) - sizes.client_memory(local) == 4_000_000


def test_secure_sums_cost_masks_and_a_message_more() -> None:
    clients = [audio(4.0) for _ in range(5)]
    rates = {"audio_s_per_s": 1.0, "up_mbit_s": 80.0, "round_overhead_s": 3.0}
    _, plain = planned(clients, ["federated.client_fraction=1"], **rates)
    inputs, secure = planned(clients, ["federated.client_fraction=1", "secure=pairwise"], **rates)
    assert secure.rounds[0].bytes_up > 2 * plain.rounds[0].bytes_up
    assert secure.rounds[0].bytes_down == plain.rounds[0].bytes_down + 5 * 5 * 128
    # 4 bytes a parameter more on the line, five masks, the second message
    longer = 4 * inputs.numel * 8 / 80e6 + 3.0
    assert secure.rounds[0].seconds - plain.rounds[0].seconds == pytest.approx(longer, rel=0.1)

"""The planner against what it plans: messages and steps of real rounds, files that are written, and times that can be worked out by hand."""

import json
from pathlib import Path

import pytest
import torch

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.config import Config
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.updates.sketches import sketch_width
from fedhubert.models.hubert import build_hubert
from fedhubert.planning import sizes
from fedhubert.planning.inputs import ClientAudio, Inputs, Rates, audio_of, inputs_of, open_data
from fedhubert.planning.rounds import plan
from fedhubert.planning.words import read_words
from fedhubert.runs.store import RoundStore
from fedhubert.training.parameters import ParameterLayout
from tests.federation.conftest import app_identity  # noqa: F401
from tests.federation.in_process import InProcessGrid
from tests.integration.conftest import SMALL

from .plans import audio, planned


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


def test_what_the_server_takes_for_each_client_and_in_the_store_is_planned() -> None:
    """A model of 1e6 parameters; a node for each of 50 clients, or four for 1 000: two rounds of 0.1 of them, then as many as the store holds."""
    found = {}
    for count, rounds in ((50, 2), (1000, 2), (1000, 100)):
        settings = [
            f"federated.num_rounds={rounds}",
            "federated.client_fraction=0.1",
            "simulation.num_workers=2",
        ]
        inputs, _ = planned([audio(1.0)] * count, settings, audio_s_per_s=1.0)
        sites, _ = planned([audio(1.0)] * count, settings, audio_s_per_s=1.0, up_mbit_s=1.0)
        store = sizes.server_memory(inputs) - sizes.server_memory(sites)
        found[count, rounds] = (store, sizes.server_memory(sites))
    assert found[50, 2][0] == 2 * (4e6 + 5 * 4e6)
    assert found[1000, 2][0] == 2 * (4e6 + 4 * 8e6) and found[1000, 100][0] == 512 * 2**20
    assert found[1000, 2][1] - found[50, 2][1] == 950 * sizes._CLIENT_BYTES


def test_opening_the_manifest_is_timed_where_there_is_one(settings: list[str]) -> None:
    inputs, _, _ = read_words([*settings, "audio_s_per_s=1"])
    assert inputs.rows == 12 and inputs.opened_s > 0
    first, later = sizes.data_memory(inputs)
    assert first > later > 0
    stated, _, _ = read_words([*settings, "audio_s_per_s=1", "hours=1"])
    assert (stated.rows, stated.opened_s, sizes.data_memory(stated)) == (0, 0.0, (0.0, 0.0))


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


def test_devices_of_a_client_share_its_steps() -> None:
    """Six micro-batches on four devices take two turns; each device has the whole model, and a bucket of gradients."""

    def planned(*overrides: str, **rates: float) -> Inputs:
        base = ["experiment=demo_fedavg", "client.accumulate=6", *overrides]
        config = compose(base)
        audio = [ClientAudio(60.0, 6.0, 6.0, 6.0, 12, lambda positions: 5.0 * len(positions))]
        return inputs_of(
            config, audio * config.federated.num_clients, Rates(audio_s_per_s=10.0, **rates)
        )

    one, four = planned(), planned("simulation.gpus_per_client=4")
    assert (one.ranks, one.training, four.ranks, four.training) == (1, 10.0, 4, 30.0)
    assert (four.device, four.devices) == ("GPU", 4.0)
    site = planned('client.device="cuda:0,1"', rank_efficiency=0.9, up_mbit_s=50.0)
    assert (site.ranks, site.devices, site.training) == (2, 2.0, pytest.approx(18.0))
    assert plan(four).rounds[0].clients_s < plan(one).rounds[0].clients_s
    bucket = sizes.client_memory(four) - sizes.client_memory(one)
    assert bucket == 4 * one.numel  # less than a whole bucket

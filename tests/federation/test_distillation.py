"""Whole distillations through the server's phases and the clients' handlers, in this process: only Flower's transport is left out."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import HubertModel

from fedhubert.cli import main
from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError, ConfigError, FederationError
from fedhubert.federation.phases.teacher import with_teacher
from fedhubert.federation.server.dry_run import check_models, describe_federation
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.site import incoming
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.formats import FORMATS
from fedhubert.formats.export import export
from fedhubert.formats.round_file import find_checkpoint, load_checkpoint
from fedhubert.models.hubert import build_hubert
from fedhubert.models.student import HEADS
from fedhubert.runs.store import RoundStore
from fedhubert.training.teacher_runner import TeacherRunner
from tests.flower import identify
from tests.integration.conftest import SMALL

from .in_process import InProcessGrid

Run = Callable[..., tuple[RunResult, InProcessGrid]]
ALL = [
    "task.objectives.hints=0.5",
    "task.hints=[[1,1]]",
    "task.objectives.logits=0.5",
    "task.objectives.pseudo_labels=0.5",
]


@pytest.fixture(autouse=True)
def app_identity() -> None:
    """Flower sets this when it starts an app."""
    identify()


@pytest.fixture(scope="module")
def data(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    manifest = tmp_path_factory.mktemp("manifest") / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    return [f"data.manifest={manifest}", f"data.root={tone_folder}"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretraining run with one checkpoint: two layers, 48 wide, 12 classes."""
    config = compose(
        [
            "experiment=demo_fedavg",
            *SMALL,
            "model.embed_dim=48",
            "model.num_heads=4",
            "model.num_layers=2",
        ]
    )
    run = tmp_path_factory.mktemp("pretrained")
    model = build_hubert(config.model, seed=7)
    RoundStore(run / "checkpoints").save(
        4,
        model.state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={},
        resume=None,
    )
    return run


@pytest.fixture()
def run(data: list[str], teacher: Path, tmp_path: Path) -> Run:
    def go(
        name: str,
        *overrides: str,
        nodes: int = 3,
        state: str = "state",
        node: dict[str, str | int] | None = None,
    ) -> tuple[RunResult, InProcessGrid]:
        incoming._cached = None  # as in a new process
        configs: list[dict[str, str | int]] = [
            {"partition-id": number, "num-partitions": nodes} for number in range(nodes)
        ]
        configs[0] |= node or {}
        places = [
            f"out={tmp_path / name}",
            f"client.state_dir={tmp_path / state}",
            f"task.teacher={teacher}",
        ]
        task = ["experiment=demo_distill", "task.layers=[1,2]"]
        grid = InProcessGrid(configs)
        return run_federation(grid, compose([*task, *data, *SMALL, *places, *overrides])), grid

    return go


def events(result: RunResult, kind: str) -> list[dict[str, Any]]:
    lines = (result.folder.path / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = load_checkpoint(result.checkpoint)["model"]
    return model


def assert_same(left: RunResult, right: RunResult) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_a_distillation_leaves_a_student_its_figures_and_its_lineage(
    run: Run, teacher: Path
) -> None:
    result, grid = run("run")
    assert not any(
        kind in grid.kinds for kind in ("train.kmeans_seed", "train.label")
    )  # nothing here needs labels
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint["model"][f"{HEADS}layers.2.weight"].shape == (48, 32)
    assert checkpoint["config"]["task"]["teacher_sha256"] == events(result, "teacher")[0]["sha256"]
    assert checkpoint["federated_metrics"]["lineage"][0]["teacher"]["encoder_parameters"] > 0
    for event in events(result, "round"):
        assert event["train"]["frames"] == sum(
            client["train_frames"] for client in event["clients"]
        )
        assert all(client["weight"] == client["train_frames"] for client in event["clients"])
        sums = {
            name: sum(client[f"validation_{name}"] for client in event["clients"])
            for name in ("layers_sum", "frames")
        }
        assert event["validation"]["objectives"] == {
            "layers": pytest.approx(sums["layers_sum"] / sums["frames"])
        }
        assert (
            0 < event["validation"]["cosine_distance"] < 2
            and event["validation"]["relative_l2"] > 0
        )
        energy = [
            sum(client[f"validation_{name}_energy_sum"] for client in event["clients"])
            for name in ("error", "teacher")
        ]
        assert event["validation"]["relative_l2"] == pytest.approx(math.sqrt(energy[0] / energy[1]))
    assert result.validation["model_round"] == 3 and "cosine_distance" in result.validation
    log = (result.folder.path / "federated_training.log").read_text()
    assert "times smaller than its teacher's" in log and "distance" in log
    text = client_job(
        with_teacher(compose([*_saved(result), f"task.teacher={teacher}"]))[0]
    ).model_dump_json()
    assert str(teacher) not in text


def _saved(result: RunResult) -> list[str]:
    run = load_checkpoint(result.checkpoint)["config"]
    return [
        "experiment=demo_distill",
        *SMALL,
        "task.layers=[1,2]",
        f"data.manifest={run['data']['manifest']}",
    ]


def test_the_teacher_is_sent_to_a_state_folder_once(run: Run) -> None:
    first, grid = run("first", "federated.num_rounds=1")
    (event,) = events(first, "teacher")
    assert (event["nodes"], event["sent_to"]) == (3, 1) and event["bytes_down"] > 0
    assert (
        sum(count for (_, kind), count in grid.sent.items() if kind == "train.teacher")
        == event["bytes_down"]
    )
    second, grid = run("second", "federated.num_rounds=1")
    assert events(second, "teacher")[0]["sent_to"] == 0 and "train.teacher" not in grid.kinds
    other, _ = run("other", "federated.num_rounds=1", state="elsewhere")
    assert events(other, "teacher")[0]["sent_to"] == 1


def test_a_site_may_bring_the_teacher_itself_but_no_other(
    run: Run, teacher: Path, tmp_path: Path, data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = run("expected", nodes=1, state="one")
    own, grid = run("own", nodes=1, state="two", node={"teacher": str(teacher)})
    assert "train.teacher" not in grid.kinds and not (tmp_path / "two/teachers").exists()
    assert_same(expected, own)
    config = compose(
        [
            "experiment=demo_fedavg",
            *SMALL,
            "model.embed_dim=48",
            "model.num_heads=4",
            "model.num_layers=2",
        ]
    )
    model = build_hubert(config.model, seed=8)
    store = RoundStore(tmp_path / "another/checkpoints")
    store.save(
        1,
        model.state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={},
        resume=None,
    )
    with pytest.raises(FederationError, match="checkpoint") as error:
        run("refused", nodes=1, state="three", node={"teacher": str(tmp_path / "another")})
    assert error.value.setting == "teacher" and "another" not in str(error.value)
    assert "is not the server's" in (tmp_path / "three/site.log").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="layers", marks=pytest.mark.slow),
        pytest.param(["task.freeze_conv=true"], id="frozen"),
        pytest.param(ALL, id="all objectives"),
    ],
)
def test_cache_and_shards_change_no_bit(
    run: Run, settings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teachings: list[TeacherRunner] = []
    original = site.TeacherRunner

    def watched(*arguments: Any) -> TeacherRunner:
        teachings.append(original(*arguments))
        return teachings[-1]

    monkeypatch.setattr(site, "TeacherRunner", watched)
    plain, _ = run(
        "plain",
        *settings,
        "task.teacher_cache=false",
        "client.local_epochs=2",
        "client.local_steps=null",
    )
    assert not (tmp_path / "state/teacher_outputs").exists()
    cached, _ = run("cached", *settings, "client.local_epochs=2", "client.local_steps=null")
    sharded, _ = run(
        "sharded", *settings, "client.local_epochs=2", "client.local_steps=null", nodes=2
    )
    assert_same(plain, cached)
    assert_same(plain, sharded)
    without, filling, reading = (teaching.computed for teaching in teachings)
    assert without > 3 * filling > 0 and reading == 0
    assert events(plain, "round")[-1]["validation"] == events(cached, "round")[-1]["validation"]


def test_frozen_convolutions_stay_the_teachers_and_do_not_travel(run: Run, teacher: Path) -> None:
    frozen, _ = run("frozen", "task.freeze_conv=true", "federated.num_rounds=1")
    free, _ = run("free", "federated.num_rounds=1")
    theirs = load_checkpoint(teacher / "checkpoints/round_004_checkpoint.pt")["model"]
    names = [name for name in theirs if name.startswith("wav2vec2.feature_extractor.")]
    assert names and all(torch.equal(weights(frozen)[name], theirs[name]) for name in names)
    assert any(not torch.equal(weights(free)[name], theirs[name]) for name in names)
    count = sum(theirs[name].numel() for name in names)
    saved = events(free, "round")[0]["bytes_up"] - events(frozen, "round")[0]["bytes_up"]
    assert saved == 3 * 4 * count


def test_a_resumed_distillation_is_the_same(run: Run, tmp_path: Path) -> None:
    whole, _ = run("whole", "task.freeze_conv=true")
    last = torch.load(whole.checkpoint, weights_only=True)["model"]
    for file in whole.folder.checkpoints.glob("round_003_*"):
        file.unlink()
    resumed, _ = run("whole", "task.freeze_conv=true", "resume=auto", "task.teacher_cache=false")
    assert "resuming after round 2" in (whole.folder.path / "federated_training.log").read_text()
    assert all(torch.equal(last[name], tensor) for name, tensor in weights(resumed).items())


def test_pseudo_labels_of_the_teachers_own_layer(run: Run, teacher: Path) -> None:
    """DiceHuBERT's targets: k-means on a layer of the teacher itself; student, teacher and extractor are three models of a site."""
    only = ["task.objectives.layers=0", "task.objectives.pseudo_labels=1"]
    layer = ["targets.source=layer:2", f"targets.checkpoint={teacher}", "targets.max_iterations=2"]
    result, grid = run("run", *only, *layer, "federated.num_rounds=1")
    assert grid.kinds["train.extractor"] == grid.kinds["train.teacher"] == 1
    (targets,) = events(result, "targets")
    frames = targets["train_labels"]["frames"]
    assert frames > 0 and targets["train_labels"]["clusters_used"] > 1
    assert (
        result.validation["objectives"].keys() == {"pseudo_labels"}
        and 0 <= result.validation["masked_accuracy"] <= 1
    )
    teachers, labels = load_checkpoint(result.checkpoint)["federated_metrics"]["lineage"]
    assert teachers.keys() == {"teacher"} and len(labels["targets"]["extractor"]) == 32


def test_another_teacher_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="names another"):
        run("run", f"task.teacher_sha256={'0' * 64}")
    with pytest.raises(CheckpointError, match="nowhere"):
        run("run", f"task.teacher={tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match="layer 3"):
        run("run", "task.layers=[1,3]")
    with pytest.raises(ConfigError, match=r"model\.conv_layers"):
        run("run", "model.conv_layers=[[8,10,5],[8,3,2],[8,3,2],[8,3,2],[8,3,2],[8,2,2],[8,2,2]]")
    with pytest.raises(ConfigError, match="num_clusters"):
        run("run", "task.objectives.logits=1", "targets.num_clusters=5")


@pytest.mark.parametrize("format_name", FORMATS)
def test_exports_hold_the_student_without_its_heads(
    run: Run, tmp_path: Path, format_name: str
) -> None:
    result, _ = run("run", "federated.num_rounds=1")
    checkpoint = load_checkpoint(result.checkpoint)
    out = export(checkpoint, format_name, tmp_path / format_name)
    for file in out.glob("*.pt"):
        assert not any(HEADS in name for name in _names(torch.load(file, weights_only=True)))
    if format_name == "huggingface":
        student = build_hubert(ModelConfig(**checkpoint["config"]["model"]), seed=1)
        kept = {
            name: tensor
            for name, tensor in checkpoint["model"].items()
            if not name.startswith(HEADS)
        }
        student.load_state_dict(kept)
        waveform = torch.randn(1, 9_000, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = student.eval().extract_features(waveform)[-1]
            theirs = HubertModel.from_pretrained(out).eval()(waveform).last_hidden_state
        assert float((theirs - expected).abs().max()) < 1e-5


def _names(values: Any) -> list[str]:
    return (
        [name for key, item in values.items() for name in [str(key), *_names(item)]]
        if isinstance(values, dict)
        else []
    )


def test_a_dry_run_describes_a_distillation(data: list[str], teacher: Path, tmp_path: Path) -> None:
    places = [f"client.state_dir={tmp_path / 'state'}", f"task.teacher={teacher}"]
    config = compose(["experiment=demo_distill", *data, *SMALL, *places])
    configs: list[dict[str, str | int]] = [
        {"partition-id": number, "num-partitions": 3} for number in range(3)
    ]
    assert describe_federation(InProcessGrid(configs), check_models(config)).row_count == 4
    assert not (tmp_path / "state/teachers").exists()


def test_the_server_scores_the_student_on_a_manifest_of_its_own(
    run: Run, data: list[str], tone_folder: Path
) -> None:
    manifest = data[0].partition("=")[2]
    result, _ = run(
        "run",
        f"evaluation.manifest={manifest}",
        f"evaluation.root={tone_folder}",
        "federated.num_rounds=2",
    )
    assert [event["server_validation"]["model_round"] for event in events(result, "round")] == [
        1,
        2,
    ]
    assert all(
        event["server_validation"]["cosine_distance"] > 0 for event in events(result, "round")
    )


def test_no_audio_path_or_utterance_leaves_a_site(run: Run, tone_folder: Path) -> None:
    _, grid = run("run", "federated.num_rounds=1")
    frames = sum((soundfile.info(path).frames for path in tone_folder.rglob("*.wav")), 0)
    for answer in grid.answers:
        text = str(answer.content.config_records) + str(answer.content.metric_records)
        assert "utterance0" not in text and "speaker0" not in text and str(tone_folder) not in text
        for record in answer.content.array_records.values():
            assert all(array.numpy().size != frames for array in record.values())


def test_a_distillation_can_be_private(run: Run) -> None:
    result, _ = run(
        "run",
        "privacy=central",
        "privacy.clip_norm=1e-3",
        "federated.client_fraction=1",
        "federated.num_rounds=2",
    )
    for event in events(result, "round"):
        assert event["privacy"]["epsilon"] > 0 and len(event["clients"]) == 3
        assert all(
            0.9e-3 < client["update_norm"] <= 1e-3 and client["weight"] == 1
            for client in event["clients"]
        )
    assert (
        "k-means" not in (result.folder.path / "federated_training.log").read_text()
    )  # it has no labels to be made


@pytest.mark.parametrize(
    "objectives",
    [ALL, *(pytest.param(few, marks=pytest.mark.slow) for few in ([], ["task.freeze_conv=true"]))],
)
def test_with_one_client_central_distillation_is_the_federated_one(
    run: Run, data: list[str], teacher: Path, tmp_path: Path, objectives: list[str]
) -> None:
    one = [
        "federated.num_clients=1",
        "federated.client_fraction=1",
        "federated.strategy=FedAvg",
        "checkpoint.every=1",
        *objectives,
    ]
    federated, _ = run("federated", *one, nodes=1)
    central = tmp_path / "central"
    places = [f"out={central}", f"client.state_dir={tmp_path / 'state'}", f"task.teacher={teacher}"]
    assert (
        main(
            [
                "central",
                "experiment=demo_distill",
                "task.layers=[1,2]",
                *data,
                *SMALL,
                *places,
                *one,
                "reset_each_round=true",
            ]
        )
        == 0
    )
    first = load_checkpoint(federated.checkpoint.with_name("round_001_checkpoint.pt"))["model"]
    ours, theirs, earlier = (
        flat(model)
        for model in (weights(federated), load_checkpoint(find_checkpoint(central))["model"], first)
    )
    assert (ours - theirs).norm() < 1e-5 * (ours - earlier).norm()
    final = [json.loads(line) for line in (central / "metrics.jsonl").read_text().splitlines()][-1]
    assert final["validation"]["cosine_distance"] == pytest.approx(
        federated.validation["cosine_distance"], abs=1e-5
    )


def flat(model: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([model[name].flatten() for name in sorted(model)])


@pytest.mark.slow
def test_a_secure_distillation_trains_the_plain_student_and_names_its_sums(run: Run) -> None:
    settings = ["federated.num_rounds=2", "task.hints=[[1,2]]", "task.objectives.hints=0.5"]
    plain, _ = run("plain", "federated.client_cosines=false", *settings)
    secure, _ = run("secure", "secure=pairwise", *settings)
    assert_same(plain, secure)
    for one, other in zip(events(plain, "round"), events(secure, "round"), strict=True):
        assert other["train"]["objectives"] == pytest.approx(one["train"]["objectives"], rel=1e-5)
        assert other["validation"]["relative_l2"] == pytest.approx(
            one["validation"]["relative_l2"], rel=1e-5
        )

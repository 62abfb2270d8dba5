"""Whole distillations through the server's phases and the clients' handlers, in this process: only Flower's transport is left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.cli import main
from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.errors import CheckpointError, ConfigError, FederationError
from fedhubert.federation.phases.teacher import with_teacher
from fedhubert.federation.server.session import RunResult
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.formats.round_file import find_checkpoint, load_checkpoint
from fedhubert.models.hubert import build_hubert
from fedhubert.models.student import HEADS
from fedhubert.runs.store import RoundStore
from fedhubert.training.teacher_runner import TeacherRunner
from tests.integration.conftest import SMALL

from .distilling import ALL, Run, assert_same, events, run, teacher, weights

__all__ = ["run", "teacher"]  # fixtures


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
    theirs = load_checkpoint(find_checkpoint(teacher))["model"]
    encoder = sum(value.numel() for name, value in theirs.items() if name.startswith("wav2vec2."))
    lineage = checkpoint["federated_metrics"]["lineage"][0]
    assert lineage["teacher"]["encoder_parameters"] == encoder
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
        assert 0 < event["validation"]["cosine_distance"] < 2
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

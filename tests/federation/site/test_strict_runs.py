"""Runs of real sites under the strict defaults: shipped experiments are taken part in, and what is not ends before anything trains."""

from pathlib import Path

import pytest

from fedhubert.compose import compose
from fedhubert.errors import FederationError
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.site.policy import Policy
from fedhubert.federation.site.rules import job_refusals, model_refusals
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire.messages.nodes import Describe
from tests.federation.in_process import InProcessGrid, federation

from .server import JOB, Node, Server

MANIFEST = "data.manifest=m"
EXPERIMENTS = {
    "demo": [],
    "demo_fedavg": [],
    "demo_distill": [],
    "speech_mini": [MANIFEST],
    "speech_mini_distill": [MANIFEST],
    "speech_mini_long": [MANIFEST],
    "speech_mini_steps": [MANIFEST],
    "librispeech_2gpu": [MANIFEST],
    "research_standard_pretraining": [MANIFEST],
    "research_standard_iteration2": [MANIFEST, "targets.checkpoint=c"],
    "research_standard_distillation": [MANIFEST, "task.teacher=t"],
}


def nodes(manifest: Path, state: Path) -> list[Node]:
    return [
        {
            "partition-id": number,
            "num-partitions": 3,
            "manifest": str(manifest),
            "state-dir": str(state / str(number)),
        }
        for number in range(3)
    ]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_strict_sites_take_part_in_what_is_shipped(experiment: str) -> None:
    job = client_job(compose([f"experiment={experiment}", *EXPERIMENTS[experiment]]))
    assert list(job_refusals(Policy(), job, {"manifest": "/own.csv"})) == []


@pytest.mark.parametrize(
    "model",
    [
        "hubert_tiny",
        "hubert_base",
        "hubert_large",
        "student_384x10",
        "student_768x2",
        "student_tiny",
    ],
)
def test_shipped_shapes_are_allowed(model: str) -> None:
    assert (
        list(model_refusals(Policy().model, compose([f"model={model}", MANIFEST]).model, "model"))
        == []
    )


def test_strict_sites_train_a_whole_run(site_manifest: Path, tmp_path: Path) -> None:
    grid = InProcessGrid(nodes(site_manifest, tmp_path))
    rounds = [
        "federated.num_rounds=1",
        "federated.client_fraction=1",
        "targets.max_iterations=2",
        f"out={tmp_path / 'out'}",
    ]
    result = run_federation(grid, compose([*JOB, *rounds]))
    assert result.checkpoint and not any("failures" in answer.content for answer in grid.answers)
    assert {"train.kmeans_step", "train.label", "train.round", "evaluate.model"} <= set(grid.kinds)


def test_a_run_that_a_policy_refuses_ends_before_anything_trains_by_site_and_key(
    site_manifest: Path, tmp_path: Path
) -> None:
    sites = nodes(site_manifest, tmp_path)
    (tmp_path / "policy.yaml").write_text("model: {max_layers: 1}\n")
    sites[1]["policy"] = str(tmp_path / "policy.yaml")
    federated, grid = federation([*JOB, "model.num_layers=2"], sites)
    with pytest.raises(
        FederationError, match=r"site 1 is not ready: node: refused \(see model\.num_layers\)"
    ) as error:
        connect(federated)
    assert error.value.setting == "model.num_layers" and set(grid.kinds) == {"query.describe"}


def test_too_little_data_is_refused_before_anything_trains(
    site_manifest: Path, tmp_path: Path
) -> None:
    lines = site_manifest.read_text().splitlines()
    few = site_manifest.with_name("few.csv")
    few.write_text("\n".join(lines[:9]) + "\n")
    sites = nodes(site_manifest, tmp_path)
    sites[2]["manifest"] = str(few)
    federated, grid = federation(JOB, sites)
    with pytest.raises(FederationError, match=r"client 2: refused \(see data\.manifest\)"):
        connect(federated)
    assert set(grid.kinds) == {"query.describe"}
    assert "fewer than update.min_utterances=8" in (tmp_path / "2/site.log").read_text()


def test_one_step_on_eight_seconds_is_too_little_and_on_more_of_them_is_enough(
    server: Server,
) -> None:
    """What the chapter of policies says of ``experiment=speech_mini``."""
    one_step = ["client.local_steps=1", "client.optimizer=sgd"]
    assert server.refusal(Describe(), *one_step) == "client.local_steps"
    assert server.refusal(Describe(), *one_step, "client.accumulate=8") == ""


def test_a_shared_momentum_is_of_as_much_audio_as_an_update(server: Server) -> None:
    """Sixty steps of half a second are an update; the ten that most of the momentum is of are five seconds."""
    small = ["data.min_seconds=0.5", "data.max_seconds=0.5", "data.batch_seconds=1.0"]
    steps = [*small, "client.optimizer=muon", "client.local_steps=60"]
    shared = [*steps, "client.optimizer_policy=shared"]
    assert server.refusal(Describe(), *steps) == ""
    assert server.refusal(Describe(), *shared) == "client.muon.momentum"
    assert server.refusal(Describe(), *shared, "client.muon.momentum=0.99") == ""
    assert server.refusal(Describe(), *shared, "client.muon.momentum=0.5") == "client.muon.momentum"

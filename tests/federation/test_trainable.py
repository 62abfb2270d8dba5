"""``model.trainable``: whole runs from a given encoder through the server's phases and the clients' handlers, in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.compose import compose
from fedhubert.config import TaskConfig
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.site import incoming
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.adapters import is_adapters
from fedhubert.models.hubert import build_hubert
from fedhubert.models.trainable import FrozenPart, freeze
from fedhubert.objectives.spec import build_model
from fedhubert.runs.store import RoundStore
from fedhubert.training.parameters import ParameterLayout
from tests.integration.conftest import SMALL

from .in_process import InProcessGrid

Run = Callable[..., tuple[RunResult, InProcessGrid]]
TWO_LAYERS = [*SMALL, "model.num_layers=2", "federated.num_rounds=2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that the runs begin with, of another seed than theirs."""
    config = compose(["experiment=demo_fedavg", *TWO_LAYERS])
    return RoundStore(tmp_path_factory.mktemp("base") / "checkpoints").save(
        4,
        build_hubert(config.model, seed=7).state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={},
        resume=None,
    )


@pytest.fixture()
def run(data: list[str], base: Path, tmp_path: Path) -> Run:
    def go(name: str, *overrides: str, state: str = "state") -> tuple[RunResult, InProcessGrid]:
        incoming._cached = None  # as in a new process
        grid = InProcessGrid([{"partition-id": number, "num-partitions": 3} for number in range(3)])
        places = [f"out={tmp_path / name}", f"client.state_dir={tmp_path / state}"]
        config = compose(
            ["experiment=demo_fedavg", *data, *TWO_LAYERS, *places, f"init_from={base}", *overrides]
        )
        return run_federation(grid, config), grid

    return go


def events(result: RunResult, kind: str) -> list[dict[str, Any]]:
    lines = (result.folder.path / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def weights(path: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = load_checkpoint(path)["model"]
    return model


def layout_of(trainable: str, **changes: Any) -> ParameterLayout:
    config = compose(["experiment=demo_fedavg", *TWO_LAYERS]).model
    changed = config.model_copy(update={"trainable": trainable, **changes})
    return ParameterLayout.of(build_model(changed, TaskConfig(), 0))


def test_what_is_trained_is_what_is_named() -> None:
    everything = set(layout_of("all").names)
    heads = {name for name in everything if not name.startswith("wav2vec2.")}
    assert {name.split(".")[0] for name in heads} == {"mask_generator", "logit_generator"}
    assert set(layout_of("head").names) == heads
    top = set(layout_of("top:1").names) - heads
    assert top and all(name.startswith("wav2vec2.encoder.transformer.layers.1.") for name in top)
    first_norm = layout_of("top:1", layer_norm_first=True)
    assert "wav2vec2.encoder.transformer.layer_norm.weight" in first_norm.names
    both = set(layout_of("top:2").names) - heads
    assert both == {name for name in everything if ".transformer.layers." in name}
    biases = set(layout_of("bias").names) - heads
    assert biases == {name for name in everything - heads if name.endswith(".bias")}
    assert layout_of("bias").numel < 0.25 * layout_of("all").numel


@pytest.mark.parametrize("trainable", ["head", "bias", "adapters", "top:1"])
def test_only_what_is_named_is_trained_and_travels(run: Run, base: Path, trainable: str) -> None:
    result, grid = run("run", f"model.trainable={trainable}", "federated.client_cosines=false")
    before, after = weights(base), weights(result.checkpoint)
    layout = layout_of(trainable)
    # adapters are read as part of the matrices that they are of
    moved = {
        name.replace(".lora_A", ".weight").replace(".lora_B", ".weight") for name in layout.names
    }
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) is (name not in moved), name
    assert [event["bytes_up"] for event in events(result, "round")] == [3 * 4 * layout.numel] * 2
    sizes = zip(layout.names, layout.sizes, strict=True)
    own = sum(size for name, size in sizes if not is_adapters(name))
    frozen = sum(tensor.numel() for tensor in before.values()) - own
    (sent,) = events(result, "frozen_part")
    # sites of a simulation share their state
    assert (sent["nodes"], sent["sent_to"], sent["bytes_down"]) == (3, 1, 4 * frozen)
    assert grid.kinds["train.extractor"] == 1


def test_sites_train_behind_the_encoder_that_the_run_began_with(run: Run) -> None:
    """Scores of a step that changes nothing: those of the whole model, which travels in the other run."""
    still = ("client.lr=1e-12", "federated.eta=1e-12", "federated.num_rounds=1")
    whole, _ = run("whole", *still)
    frozen, grid = run("frozen", "model.trainable=head", *still)
    scores = [
        [event["validation"]["loss"] for event in events(result, "round")]
        for result in (whole, frozen)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert grid.kinds["query.extractor"] >= 3


@pytest.mark.parametrize("trainable", ["top:1", "adapters"])
def test_a_resumed_run_is_the_same_on_sites_that_lost_the_part(run: Run, trainable: str) -> None:
    whole, _ = run("whole", f"model.trainable={trainable}")
    last = torch.load(whole.checkpoint, weights_only=True)["model"]
    for file in whole.folder.checkpoints.glob("round_002_*"):
        file.unlink()
    resumed, grid = run("whole", f"model.trainable={trainable}", "resume=auto", state="emptied")
    assert grid.kinds["train.extractor"] == 1
    again = torch.load(resumed.checkpoint, weights_only=True)["model"]
    assert all(torch.equal(last[name], again[name]) for name in last)
    with pytest.raises(CheckpointError, match=r"model\.trainable"):
        run("whole", "model.trainable=head", "resume=auto")


def test_secure_sums_are_of_what_is_trained(run: Run, base: Path) -> None:
    secure = ("secure=pairwise", "federated.ring_clip=8")
    whole, _ = run("whole", *secure)
    top, _ = run("top", "model.trainable=top:1", *secure)
    layouts = layout_of("all"), layout_of("top:1")
    sent = [events(result, "round")[0]["bytes_up"] for result in (whole, top)]
    # 64 bits a parameter in so wide a ring
    saved = 3 * 8 * (layouts[0].numel - layouts[1].numel)
    assert sent[0] - sent[1] == pytest.approx(saved, rel=0.01)
    before, after = weights(base), weights(top.checkpoint)
    for name in before:
        assert torch.equal(before[name], after[name]) is (name not in layouts[1].names), name


def test_another_models_part_is_refused_by_name() -> None:
    config = compose(["experiment=demo_fedavg", *TWO_LAYERS, "model.trainable=head"]).model
    model = build_hubert(config, 0)
    freeze(model, "head")
    part = FrozenPart.of(model)
    assert (
        part is not None
        and FrozenPart.of(build_hubert(config.model_copy(update={"trainable": "all"}), 0)) is None
    )
    other = build_hubert(config.model_copy(update={"ffn_dim": 32}), 0)
    freeze(other, "head")
    with pytest.raises(
        CheckpointError, match=r"frozen part is another model's: wav2vec2\..*differs"
    ):
        part.load_into(other)
    fresh = build_hubert(config, 3)
    freeze(fresh, "head")
    head = fresh.logit_generator.label_embeddings.clone()
    part.load_into(fresh)
    assert torch.equal(fresh.logit_generator.label_embeddings, head)
    assert FrozenPart.of(fresh).key == part.key  # type: ignore[union-attr]


@pytest.mark.parametrize("trainable", ["top:0", "top:3", "some", "top:", "adapter"])
def test_what_cannot_be_trained_is_refused(trainable: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.?.*trainable"):
        compose(["experiment=demo_fedavg", *TWO_LAYERS, f"model.trainable={trainable}"])


def test_what_is_trained_is_no_part_of_a_frozen_models_key() -> None:
    config = compose(["experiment=demo_fedavg", *TWO_LAYERS]).model
    tensors = {"a": torch.ones(2)}
    keys = {
        FrozenPart(config.model_copy(update={"trainable": trainable}), tensors).key
        for trainable in ("all", "head")
    }
    assert len(keys) == 1

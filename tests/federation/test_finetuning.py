"""Whole runs of fine-tuning, over audio whose labels can be heard."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from fedhubert.baselines.central import BaselineOptions, train_baseline
from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.config import Config
from fedhubert.errors import ConfigError
from fedhubert.federation.server.dry_run import check_models, describe_federation
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.site import incoming
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.runs.metrics import read_events
from tests.federation.in_process import InProcessGrid, open_policy
from tests.finetuning import CLASSIFY, CTC, RUN

TASKS = {"classify": CLASSIFY, "ctc": CTC}


def run_of(words: Path, out: Path, *overrides: str) -> Config:
    places = [f"data.manifest={words}", f"client.state_dir={out}-state", f"out={out}"]
    return compose([*RUN, *places, *overrides])


def train(config: Config, nodes: int = 3, **more: str) -> tuple[RunResult, InProcessGrid]:
    incoming._cached = None  # as in a new process
    site._cached_site.cache_clear()
    configs = [{"partition-id": number, "num-partitions": nodes, **more} for number in range(nodes)]
    grid = InProcessGrid(configs)
    return run_federation(grid, config), grid


def events(result: RunResult, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(result.folder.metrics_file) if event["event"] == kind]


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in load_checkpoint(path)["model"].values()])


def test_labels_are_learned_and_only_counts_travel(words: Path, tmp_path: Path) -> None:
    config = run_of(
        words, tmp_path / "run", *CLASSIFY, "client.local_steps=12", "task.freeze_share=0.5",
        f"evaluation.manifest={words}", "federated.strategy=FedAvg",
    )  # fmt: skip
    result, grid = train(config)
    assert {kind for kind in grid.kinds} == {"query.describe", "train.round", "evaluate.model"}
    first, second = events(result, "round")
    (final,) = events(result, "final")
    table = final["validation"]["confusion"]
    assert sum(map(sum, table)) == final["validation"]["utterances"] == 9
    assert final["validation"]["loss"] < first["validation"]["loss"]
    assert final["validation"]["accuracy"] >= 0.6
    assert first["fairness"]["figure"] == "accuracy" and "macro_f1" in first["validation"]
    assert "macro_f1" not in first["train"]
    assert second["server_validation"]["utterances"] == 24  # every eighth row has no label
    saved = [
        load_checkpoint(result.folder.checkpoints / f"round_{number:03d}_checkpoint.pt")["model"]
        for number in (1, 2)
    ]
    for name, value in saved[0].items():
        if name.startswith("wav2vec2."):  # the head alone in the first half
            fresh = _fresh(config).state_dict()[name]
            assert torch.equal(value, fresh)
    assert not torch.equal(
        saved[1]["wav2vec2.encoder.transformer.layers.0.attention.q_proj.weight"],
        saved[0]["wav2vec2.encoder.transformer.layers.0.attention.q_proj.weight"],
    )


def _fresh(config: Config) -> torch.nn.Module:
    from fedhubert.objectives.spec import build_model

    return build_model(config.model, config.task, config.seed)


def test_texts_are_learned_and_stay_at_the_site(words: Path, tmp_path: Path) -> None:
    result, _ = train(
        run_of(words, tmp_path / "run", *CTC, "client.local_steps=30", "federated.strategy=FedAvg")
    )
    first, final = events(result, "round")[0], events(result, "final")[0]
    assert set(final["validation"]) >= {"loss", "wer", "cer", "characters"}
    assert final["validation"]["loss"] < 0.5 * first["validation"]["loss"]
    assert first["fairness"]["figure"] == "wer" and "wer" not in first["train"]
    said = json.dumps(load_checkpoint(result.checkpoint)["config"]["task"])
    assert "lowmidhg" in said and "Low" not in said


@pytest.mark.parametrize("secure", [False, True])
def test_a_vocabulary_is_agreed_on_from_counts_that_pass_suppression(
    words: Path, tmp_path: Path, secure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each speaker says low and high three times, and mid twice."""
    caplog.set_level("INFO", "fedhubert")
    config = run_of(
        words, tmp_path / "run", "task=ctc", "task.text_column=text", "task.vocabulary=null",
        "targets.min_frames=3", "dry_run=true", *(["secure=pairwise"] if secure else []),
    )  # fmt: skip
    site._cached_site.cache_clear()
    incoming._cached = None
    grid = InProcessGrid([{"partition-id": n, "num-partitions": 3} for n in range(3)])
    describe_federation(grid, check_models(config))
    assert grid.kinds["query.characters"] == 3 and "train.round" not in grid.kinds
    assert "task.vocabulary=ghilow" in caplog.text
    with pytest.raises(ConfigError, match=r"task\.vocabulary=null"):
        compose([*RUN, "task=ctc", "task.text_column=text", "task.vocabulary=null"])


@pytest.mark.parametrize("task", TASKS)
def test_a_secure_run_gives_the_same_model_and_figures(
    words: Path, tmp_path: Path, task: str
) -> None:
    plain, _ = train(run_of(words, tmp_path / "plain", *TASKS[task]))
    masked, _ = train(run_of(words, tmp_path / "masked", *TASKS[task], "secure=pairwise"))
    assert torch.equal(weights(plain.checkpoint), weights(masked.checkpoint))
    for kind in ("round", "final"):
        for one, other in zip(events(plain, kind), events(masked, kind), strict=True):
            for part in ("train", "validation") if kind == "round" else ("validation",):
                ours = {name: value for name, value in one[part].items() if name != "median"}
                theirs = dict(other[part])
                assert ours.pop("confusion", None) == theirs.pop("confusion", None)
                assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_is_the_undisturbed_one(words: Path, tmp_path: Path, task: str) -> None:
    more = [*TASKS[task], "federated.update_codec=int8", "client.optimizer_policy=keep"]
    whole, _ = train(run_of(words, tmp_path / "whole", *more, "task.freeze_share=0.5"))
    parts = run_of(words, tmp_path / "parts", *more, "task.freeze_share=0.5", "resume=auto")

    class Stopped(InProcessGrid):
        asked = 0

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            self.asked += sum(
                message.metadata.message_type == "train.round" for message in messages
            )
            if self.asked == 5:  # in the middle of the second round
                raise KeyboardInterrupt
            return super().push_messages(messages)

    incoming._cached = None
    site._cached_site.cache_clear()
    grid = Stopped([{"partition-id": n, "num-partitions": 3} for n in range(3)])
    with pytest.raises(KeyboardInterrupt):
        run_federation(grid, parts)
    again, _ = train(parts)
    assert torch.equal(weights(whole.checkpoint), weights(again.checkpoint))


def test_shards_and_another_order_of_arrival_give_the_same_bits(
    words: Path, tmp_path: Path
) -> None:
    flat, _ = train(run_of(words, tmp_path / "flat", *CLASSIFY))
    shards, _ = train(
        run_of(words, tmp_path / "shards", *CLASSIFY, "simulation.num_supernodes=2"), nodes=2
    )
    assert torch.equal(weights(flat.checkpoint), weights(shards.checkpoint))


@pytest.mark.parametrize("task", TASKS)
def test_central_training_and_one_client_are_the_same_run(
    words: Path, tmp_path: Path, task: str
) -> None:
    one = [
        *TASKS[task], "federated.num_clients=1", "data.partition.kind=random", "federated.strategy=FedAvg",
        "federated.server_learning_rate=1", "client.optimizer_policy=keep", "task.freeze_share=0.5",
        "task.encoder_lr_factor=0.3",
    ]  # fmt: skip
    federated, _ = train(run_of(words, tmp_path / "run", *one), nodes=1)
    folder = train_baseline(run_of(words, tmp_path / "central", *one), BaselineOptions())
    central = folder.checkpoints / federated.checkpoint.name
    torch.testing.assert_close(weights(federated.checkpoint), weights(central), rtol=0, atol=2e-6)


def test_a_site_with_its_own_manifest_names_the_column_itself(words: Path, tmp_path: Path) -> None:
    config = run_of(words, tmp_path / "run", *CLASSIFY, "federated.num_clients=1")
    own = {"manifest": str(words), "state-dir": str(tmp_path), "policy": open_policy(tmp_path)}
    with pytest.raises(Exception, match=r"task\.label_column"):
        train(config, nodes=1, **own)
    renamed = words.read_text().replace(",pitch,", ",ours,")
    (words.parent / "own.csv").write_text(renamed)
    own["manifest"] = str(words.parent / "own.csv")
    result, _ = train(config, nodes=1, **own, **{"class-column": "ours"})
    assert events(result, "final")[0]["validation"]["utterances"] > 0

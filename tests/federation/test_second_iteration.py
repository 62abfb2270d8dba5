"""Targets from a layer of a trained model, over real handlers: the model travels once, clustering is pooled Lloyd, who differs is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhubert.clients import data as site
from fedhubert.clients.samples import release_extractor
from fedhubert.compose import compose
from fedhubert.data.audio import read_audio
from fedhubert.errors import FedhubertError
from fedhubert.federation.server.dry_run import check_models, describe_federation
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire.messages.nodes import Describe, SendExtractor
from fedhubert.federation.wire.messages.targets import Label, SeedKMeans
from fedhubert.models.hubert import build_hubert
from fedhubert.runs.store import RoundStore
from fedhubert.targets import kmeans

from .in_process import federation
from .second_iteration import NODES, Settings, data, nodes, run_targets

__all__ = ["data"]  # fixtures


@pytest.fixture(scope="module")
def checkpoint(data: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint of another shape than the model to be trained."""
    config = compose([*data, "model.embed_dim=48", "model.num_heads=4"])
    model = build_hubert(config.model, seed=7)
    run = tmp_path_factory.mktemp("first")
    store = RoundStore(run / "checkpoints")
    store.save(
        4,
        model.state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={},
        resume=None,
    )
    return run


@pytest.fixture()
def overrides(data: Settings, checkpoint: Path, tmp_path: Path) -> Settings:
    layer = [
        "targets.source=layer:2",
        f"targets.checkpoint={checkpoint}",
        "targets.max_iterations=4",
        "targets.tolerance=0",
        "targets.min_frames=1",
    ]
    return [*data, *layer, f"client.state_dir={tmp_path / 'state'}"]


def test_clusters_are_those_of_pooled_lloyd_on_the_models_own_features(
    overrides: Settings, checkpoint: Path, tone_folder: Path
) -> None:
    targets, events, _ = run_targets([*overrides, "data.max_seconds=3"])
    config = compose([*overrides, "data.max_seconds=3"])
    theirs = site.open_site(client_job(config), nodes()[0])
    trained = torch.load(checkpoint / "checkpoints/round_004_checkpoint.pt", weights_only=True)
    model = build_hubert(
        compose([*overrides, "model.embed_dim=48", "model.num_heads=4"]).model, seed=0
    )
    model.load_state_dict(trained["model"])
    model.eval()

    def features(row: int) -> np.ndarray:
        waveform = torch.from_numpy(read_audio(theirs.manifest.audio_path(row)))
        with torch.no_grad():
            return model.extract_features(waveform[None])[1][0].numpy()

    pooled, seeds = [], []
    for number in range(3):
        partition = theirs.partition(number)
        pooled += [features(row) for row in partition.train_rows.tolist()]
        # Local seeds depend on the order of the frames: that order is the site's.
        sample = theirs.fitting_features(partition, events[0]["hash"])
        seeds.append(
            kmeans.local_seeds(
                np.array(sample), config.targets.num_clusters, config.seed, number, 1
            )[:2]
        )
    solver = kmeans.FederatedKMeans(config.targets.num_clusters, config.seed)
    solver.seed(seeds)
    centroids, history = kmeans.pooled_lloyd(np.concatenate(pooled), solver.centroids, 4, 0.0)
    assert np.array_equal(centroids, targets.centroids[0])
    assert history == [event["inertia_per_frame"] for event in events if event["event"] == "kmeans"]
    assert targets.centroids[0].shape == (config.targets.num_clusters, 48)
    for number in range(3):
        partition = theirs.partition(number)
        labels = theirs.labels(partition, targets.key)
        for row in partition.rows.tolist():
            assert np.array_equal(labels.labels(row), kmeans.assign(features(row), centroids)[0])
    assert int(targets.train_counts.sum() + targets.validation_counts.sum()) == sum(
        (int(length) - 400) // 320 + 1 for length in theirs.manifest.lengths()
    )


def test_the_model_travels_once_and_only_up_to_its_layer(
    overrides: Settings, tmp_path: Path
) -> None:
    """Node 1 has a state folder of its own; nodes 0 and 2 share one."""
    configs = nodes(state_dir=str(tmp_path / "own"))
    _, events, grid = run_targets(overrides, configs)
    event = events[0]
    assert (event["event"], event["layer"], event["nodes"], event["sent_to"]) == (
        "extractor",
        2,
        3,
        2,
    )
    sent = {node: grid.sent[node, SendExtractor.KIND] for node in (100, 101, 102)}
    two_layers = {100: event["bytes_down"] // 2, 101: event["bytes_down"] // 2, 102: 0}
    assert sent == two_layers
    whole = sum(
        tensor.numel() * 4
        for tensor in build_hubert(compose(overrides).model, 0).state_dict().values()
    )
    assert 0 < sent[100] < 2.5 * whole  # 48 wide, 2 of 3 layers, no head
    _, events, grid = run_targets(overrides, configs)
    assert events[0]["bytes_down"] == 0 and grid.kinds[SendExtractor.KIND] == 0
    for kind in (SeedKMeans.KIND, Label.KIND):
        assert max(grid.sent[node, kind] for node in (100, 101, 102)) <= 4 * 48 * 6
    assert not list(tmp_path.rglob("features/*"))  # the sample is gone once labels are made


def test_a_damaged_extractor_is_sent_again_and_damaged_labels_are_made_again(
    overrides: Settings, tmp_path: Path
) -> None:
    first, _, _ = run_targets(overrides)
    (kept,) = (tmp_path / "state/extractors").iterdir()
    whole = kept.read_bytes()
    for damaged in (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], whole[:100], b""):
        kept.write_bytes(damaged)
        for file in (tmp_path / "state/labels").glob("*.npy"):
            file.write_bytes(file.read_bytes()[:-1])
        site._cached_site.cache_clear()
        release_extractor()
        again, events, _ = run_targets(overrides)
        assert events[0]["sent_to"] == 1 and kept.read_bytes() == whole
        assert again.key == first.key and np.array_equal(again.train_counts, first.train_counts)


def test_agreement_is_counted_where_the_labels_are_and_their_names_stay(
    overrides: Settings,
) -> None:
    column = ["targets.label_column=speaker", "targets.label_values=[speaker2,speaker0]"]
    targets, _, grid = run_targets([*overrides, *column])
    found = targets.event()["agreement"]
    assert 0.5 <= found["chance_purity"] <= found["label_purity"] <= 1 and 0 <= found["pnmi"] <= 1
    assert found["frames"] == pytest.approx(
        (targets.train_counts.sum() + targets.validation_counts.sum()) * 2 / 3, rel=0.01
    )
    for reply in grid.answers:
        for record in (
            *reply.content.config_records.values(),
            *reply.content.metric_records.values(),
        ):
            assert "speaker" not in json.dumps(dict(record), default=str)
    targets, _, _ = run_targets(
        [*overrides, "targets.label_column=nothing", "targets.label_values=[a]"]
    )
    assert targets.event()["agreement"] is None


@pytest.mark.parametrize(
    ("source", "text"),
    [("layer:4", "has 3 layers"), ("layer:2", "no file or folder")],
)
def test_a_model_that_cannot_serve_is_refused_before_anyone_is_asked(
    overrides: Settings, tmp_path: Path, source: str, text: str
) -> None:
    other = [] if source == "layer:4" else [f"targets.checkpoint={tmp_path / 'nowhere'}"]
    run, grid = federation([*overrides, f"targets.source={source}", *other], nodes())
    with pytest.raises(FedhubertError, match=text):
        describe_federation(run.grid, check_models(run.config))
    assert not grid.kinds


def test_a_dry_run_describes_every_client_and_leaves_nothing(
    overrides: Settings, tmp_path: Path
) -> None:
    run, grid = federation([*overrides, f"out={tmp_path / 'out'}"], nodes())
    table = describe_federation(run.grid, check_models(run.config))
    assert table.row_count == NODES + 1 and set(grid.kinds) == {Describe.KIND}
    (utterances,) = [
        list(column.cells) for column in table.columns if column.header == "train utterances"
    ]
    assert sum(map(int, utterances[:-1])) == int(utterances[-1]) == 9
    assert not (tmp_path / "out").exists()

"""Several sets of pseudo-labels over real handlers: each is pooled Lloyd of its own features, sums are secure, runs go on."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.data.manifest import Manifest
from fedhubert.errors import CheckpointError
from fedhubert.evaluation.masked import masked_score
from fedhubert.federation.server.space import labels_disk, sample_disk
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.targets import kmeans
from fedhubert.targets.features import parts_of

from .second_iteration import data as small
from .second_iteration import nodes, run_targets
from .test_runs import Run, events, model, run
from .test_secure_runs import PLAIN, Go, go

__all__ = ["go", "run", "small"]  # fixtures
SETS = ["mfcc_z", "static:5", "mfcc_speaker"]
DATA = ["data.manifest=not-read.csv"]
THREE = f"targets.sets=[{','.join(SETS)}]"


@pytest.mark.parametrize("seeding", ["local", "moments"])
def test_clusters_of_each_set_are_those_of_pooled_lloyd_on_its_own_features(
    small: list[str], tmp_path: Path, seeding: str
) -> None:
    """One exchange a step serves all sets; one that has converged is not asked for any more."""
    state = f"client.state_dir={tmp_path}"
    exact = ["targets.min_frames=1", "targets.max_iterations=4", "targets.tolerance=1e-2"]
    overrides = [*small, THREE, *exact, state, f"targets.seeding={seeding}"]
    targets, told, grid = run_targets(overrides)
    config = compose(overrides)
    theirs = site.open_site(client_job(config), nodes()[0])
    samples = [theirs.fitting_features(theirs.partition(number)) for number in range(3)]
    widths = theirs.source("").widths
    assert widths == (39, 13, 39)
    longest = 0
    for place, each in enumerate(config.targets.label_sets):
        pooled = np.concatenate([parts_of(sample, widths)[place] for sample in samples])
        solver = kmeans.FederatedKMeans(each.num_clusters, config.seed, 4, 1e-2)
        if seeding == "local":
            seeds = [
                kmeans.local_seeds(
                    parts_of(sample, widths)[place], each.num_clusters, config.seed, number, 1
                )[:2]
                for number, sample in enumerate(samples)
            ]
            solver.seed(seeds)
        else:
            from fedhubert.targets.moments import moments_of

            points = moments_of(pooled).points(each.num_clusters, config.seed)
            solver.seed([(points, np.ones(len(points), np.int64))])
        assert solver.centroids is not None
        expected, history = kmeans.pooled_lloyd(pooled, solver.centroids, 4, 1e-2)
        assert np.array_equal(targets.centroids[place], expected)
        mine = [event for event in told if event.get("set", 0) == place]
        assert [event["inertia_per_frame"] for event in mine] == history
        assert [event["iteration"] for event in mine] == list(range(1, len(history) + 1))
        longest = max(longest, len(history))
    assert grid.kinds["train.kmeans_step"] == 3 * longest
    steps = [message for message in grid.requests if "kmeans_step" in message.metadata.message_type]
    asked = Counter(len(message.content.array_records["arrays"]) for message in steps)
    assert sum(asked.values()) == 3 * longest and max(asked) == 3
    assert targets.key.count("-") == 2  # hash of all centroids, and the kinds' key
    labels = [theirs.labels(theirs.partition(number), targets.key) for number in range(3)]
    assert all(store.ids.shape == (store.num_frames, 3) for store in labels)
    counted = sum(
        np.bincount(store.ids[:, 0], minlength=config.targets.num_clusters) for store in labels
    )
    assert np.array_equal(counted, targets.train_counts + targets.validation_counts)


def test_a_site_keeps_labels_and_features_of_each_set() -> None:
    one, three = (
        compose(["experiment=demo_fedavg", *DATA, sets]) for sets in ("targets.sets=[]", THREE)
    )
    assert labels_disk(three, 10.0) == 3 * labels_disk(one, 10.0)
    assert sample_disk(three, 10.0) == (39 + 13 + 39 + 39) / 39 * sample_disk(one, 10.0)


def test_secure_sums_train_the_plain_model_on_several_sets(go: Go) -> None:
    settings = [THREE, "federated.num_rounds=2"]
    plain, secure = go("plain", *PLAIN, *settings), go("secure", "secure=pairwise", *settings)
    assert torch.equal(model(plain), model(secure))
    clusterings = [
        [event for event in events(one) if event["event"] in ("kmeans", "targets")]
        for one in (plain, secure)
    ]
    assert clusterings[0] == clusterings[1]
    assert {event.get("set") for event in clusterings[0]} == {None, 1, 2}


def test_a_run_of_several_sets_goes_on_where_it_was(
    run: Run, data: list[str], tmp_path: Path
) -> None:
    """After two of three rounds; its checkpoints are scored on audio that has other speakers."""
    through = run("through", THREE)
    folder = through.folder.path
    kept = torch.load(
        folder / "checkpoints/round_003_resume.pt", weights_only=True, map_location="cpu"
    )
    assert [len(kept["centroids"]), *map(len, kept["other_centroids"])] == [8, 5, 8]
    (manifest,) = (text.partition("=")[2] for text in data if text.startswith("data.manifest"))
    (root,) = (text.partition("=")[2] for text in data if text.startswith("data.root"))
    score = masked_score(through.checkpoint, Manifest.read(manifest, root), torch.device("cpu"))
    assert 0.0 < score.loss < 20.0 and score.masked_frames > 0
    names = load_checkpoint(through.checkpoint)["model"].keys()
    assert {name.split(".")[1] for name in names if name.startswith("label_heads.")} == {"0", "1"}
    shutil.copytree(folder, tmp_path / "cut")
    for file in (tmp_path / "cut/checkpoints").glob("round_003*"):
        file.unlink()
    again = run("cut", THREE, "resume=auto")
    assert torch.equal(model(again), model(through))
    with pytest.raises(CheckpointError, match=r"targets\.sets"):
        run("cut", "targets.sets=[mfcc_z,static:5,static_speaker]", "resume=auto")


def test_a_clustering_of_several_sets_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    expected = run("through", THREE, "federated.num_rounds=1", "targets.tolerance=0")
    told = [event for event in events(expected) if event["event"] == "kmeans"]
    states: list[dict[str, Any]] = []

    from fedhubert.federation.server.record import KMeansFile

    class Killed(Exception):
        pass

    save = KMeansFile.save

    def once(self: KMeansFile, state: dict[str, Any]) -> None:
        save(self, state)
        states.append(state)
        if len(states) == 4:  # begun, seeded, two steps
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KMeansFile, "save", once)
        with pytest.raises(Killed):
            run("killed", THREE, "federated.num_rounds=1", "targets.tolerance=0")
    again = run("killed", THREE, "federated.num_rounds=1", "targets.tolerance=0", "resume=auto")
    assert [event for event in events(again) if event["event"] == "kmeans"] == told
    assert torch.equal(model(again), model(expected))
    assert json.loads((again.folder.path / "metrics.jsonl").read_text().splitlines()[0]) == told[0]

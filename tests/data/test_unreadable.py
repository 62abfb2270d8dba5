"""What goes bad after the manifest was written: left out by name, up to a share; and whole runs over damaged audio and over parts of files."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.config import DataConfig, TaskConfig
from fedhubert.data.batching import BatchPlan
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import split_rows
from fedhubert.data.unreadable import LeftOut
from fedhubert.errors import DataError
from fedhubert.federation.server.dry_run import check_models, describe_federation
from fedhubert.federation.server.session import run_federation
from fedhubert.targets import kmeans
from fedhubert.targets.features import fitting_features, kept_features
from fedhubert.targets.labels import assigned_labels
from tests.data.liars import speech
from tests.federation.in_process import InProcessGrid
from tests.flower import identify
from tests.integration.conftest import SMALL

BAD = 4


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Eight utterances of 2 to 2.7 s, of which one is cut short after the manifest was written."""
    for number in range(8):
        path = tmp_path / f"{number}.flac"
        soundfile.write(path, speech(2.0 + 0.1 * number, seed=number), 16000)
    assert (
        main(["prepare", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 0
    )
    bad = tmp_path / f"{BAD}.flac"
    bad.write_bytes(bad.read_bytes()[:9000])
    return Manifest.read(tmp_path / "m.csv")


def test_another_utterance_stands_in_for_one_that_cannot_be_read(
    manifest: Manifest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fedhubert.site"), "propagate", True)
    data = DataConfig(batch_seconds=20.0)
    plan = BatchPlan(manifest.lengths(), range(8), data, 0, 0)
    left_out = LeftOut(manifest, range(8), 0.01)
    spec = plan.batch(0)
    arguments = (manifest, plan, range(3 * plan.num_batches), None, mask_spec(TaskConfig()), data)
    with caplog.at_level(logging.WARNING):
        batches = list(load_batches(*arguments, left_out))
    assert len(batches) == 3 * plan.num_batches and len(left_out) == 1 and BAD in left_out
    # A logger that earlier tests have set up may hand a record on twice; it is one record.
    said = {id(record) for record in caplog.records if "left out: 4.flac" in record.getMessage()}
    assert len(said) == 1
    for index, row in enumerate(spec.rows.tolist()):
        start = int(spec.starts[index])
        heard = batches[0].waveforms_BN[index].numpy()
        if row != BAD:
            expected = manifest.waveform(row, 16000, start, spec.num_samples)
            np.testing.assert_array_equal(heard, expected)
        else:
            other = manifest.waveform(BAD + 1, 16000, start, spec.num_samples)
            np.testing.assert_array_equal(heard, other)
    with pytest.raises(DataError, match=r"4\.flac"):
        list(load_batches(*arguments))


def test_more_than_the_share_is_an_error_that_says_how_many(manifest: Manifest) -> None:
    none, one = (LeftOut(manifest, range(8), share) for share in (0.0, 0.2))
    with pytest.raises(DataError, match=r"max_unreadable=0\).*3.flac gone"):
        none.note(3, DataError("3.flac gone"))
    one.note(3, DataError("3.flac gone"))
    one.note(3, DataError("3.flac gone"))
    with pytest.raises(DataError, match="more than 1 of 8 utterances") as error:
        one.note(5, DataError("5.flac gone"))
    assert (error.value.code, error.value.setting) == (
        "unreadable_2_utterances",
        "data.max_unreadable",
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_features_and_labels_leave_it_out(manifest: Manifest, tmp_path: Path, workers: int) -> None:
    rows, good = np.arange(8), np.array([row for row in range(8) if row != BAD])
    left_out = LeftOut(manifest, rows, 0.01)
    features = fitting_features(manifest, rows, 10**6, 0, 0, workers, left_out=left_out)
    expected = sorted(fitting_features(manifest, good, 10**6, 0, 0).tolist())
    assert sorted(features.tolist()) == expected
    kept = kept_features(
        tmp_path / "kept/f.npy",
        lambda allocate: fitting_features(
            manifest, rows, 10**6, 0, 0, workers, allocate=allocate, left_out=left_out
        ),
    )
    np.testing.assert_array_equal(kept, features)
    centroids = kmeans.local_seeds(features, 6, 0, 0, 1)[0]
    labels = assigned_labels(manifest, rows, (centroids,), workers, left_out=left_out)
    whole = assigned_labels(manifest, good, (centroids,))
    assert len(labels.labels(BAD)) == 0 and labels.num_frames == whole.num_frames
    for row in good.tolist():
        np.testing.assert_array_equal(labels.labels(row), whole.labels(row))
    source = LabelSource(labels.labels, labels.rate_hz)
    data = DataConfig(batch_seconds=20.0)
    plan = BatchPlan(manifest.lengths(), rows, data, 0, 0)
    again = LeftOut(manifest, rows, 0.01)  # another process, for which the file is whole again
    soundfile.write(tmp_path / f"{BAD}.flac", speech(2.0 + 0.1 * BAD, seed=BAD), 16000)
    list(load_batches(manifest, plan, range(2), source, mask_spec(TaskConfig()), data, again))
    assert BAD in again


def run(root: Path, *overrides: str) -> Path:
    """Run two clients for a round over ``root/m.csv``, and return the run's folder."""
    identify()
    out = root / "run"
    configs: list[dict[str, str | int]] = [
        {"partition-id": number, "num-partitions": 2} for number in range(2)
    ]
    config = compose(
        [
            "experiment=demo_fedavg",
            *SMALL,
            "data.partition.kind=random",
            *(f"data.manifest={root / 'm.csv'}", f"data.root={root}", f"out={out}"),
            *(
                "federated.num_clients=2",
                "federated.num_rounds=1",
                f"client.state_dir={root / 's'}",
            ),
            "client.local_steps=null",
            *overrides,
        ]
    )
    run_federation(InProcessGrid(configs), config)
    return out


def test_a_run_goes_on_without_it_and_counts_it(manifest: Manifest) -> None:
    out = run(manifest.root, "data.min_seconds=0.5", "client.local_epochs=1")
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = next(event for event in events if event["event"] == "round")
    counts = [client.get("train_unreadable", 0) for client in last["clients"]]
    assert len(counts) == 2 and sum(counts) == 1
    assert "left out: 4.flac" in (manifest.root / "s/site.log").read_text()
    assert "4.flac" not in (out / "metrics.jsonl").read_text()


def test_a_run_over_parts_of_two_long_files_hears_all_of_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.flac", speech(60.0, 8000, seed=ord(name)), 8000)
    flags = ["--out", str(tmp_path / "m.csv"), "--cut", "3"]
    assert main(["prepare", "folder", "--root", str(tmp_path), *flags]) == 0
    manifest = Manifest.read(tmp_path / "m.csv")
    assert len(manifest) >= 40 and abs(manifest.lengths().sum() - 120 * 16000) < 16000
    out = run(tmp_path, "data.max_seconds=3", "client.local_epochs=1")
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    heard = next(event for event in events if event["event"] == "round")["train"]["audio_s"]
    assert heard > 0.85 * 0.75 * 120


def test_no_file_is_in_both_splits() -> None:
    rows = np.arange(100)
    for seed in range(20):
        files = [str(row // 5) for row in rows]
        train, validation = split_rows(rows, 0.2, seed, 0, files)
        assert len(train) == 80 and len(validation) == 20
        assert not {files[row] for row in train} & {files[row] for row in validation}
        assert sorted([*train, *validation]) == rows.tolist()
    train, validation = split_rows(rows, 0.2, 0, 0, ["one"] * 100)
    assert train.tolist() == list(range(80)) and validation.tolist() == list(range(80, 100))
    train, validation = split_rows(rows, 0.2, 0, 0, ["a"] * 50 + ["b"] * 50)
    assert train.tolist() == [*range(30), *range(50, 100)]
    train, validation = split_rows(rows, 0.2, 0, 0, ["a"] * 90 + ["b"] * 10)
    assert validation.tolist() == list(range(90, 100))
    plain = split_rows(rows, 0.2, 3, 0)
    assert all(map(np.array_equal, plain, split_rows(rows, 0.2, 3, 0, [str(row) for row in rows])))


def test_a_dry_run_says_how_much_an_epoch_hears(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        soundfile.write(tmp_path / f"{name}.flac", speech(60.0, 8000, seed=ord(name)), 8000)
    root = ["prepare", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "m.csv")]
    places = [f"data.manifest={tmp_path / 'm.csv'}", f"client.state_dir={tmp_path / 's'}"]
    config = compose(["experiment=demo_fedavg", *SMALL, *places, "federated.num_clients=1"])
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"max_seconds": 15.625, "batch_seconds": 32.0})
        }
    )
    node: dict[str, str | int] = {"partition-id": 0, "num-partitions": 1}
    identify()
    heard = {}
    for flags in ([], ["--cut", "15"]):
        assert main([*root, *flags]) == 0
        table = describe_federation(InProcessGrid([node]), check_models(config))
        heard[bool(flags)] = (list(table.columns[-1].cells)[-1], table.caption)
    assert heard[False][0] == "26 %" and "an epoch hears 26 % of the audio" in str(heard[False][1])
    assert int(heard[True][0].split()[0]) >= 90 and heard[True][1] is None  # type: ignore[union-attr]

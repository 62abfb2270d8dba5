"""SIGKILL at every kind of moment, again and again in one run, and the result is that of the run that was left alone."""

import hashlib
import multiprocessing
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fedhubert.federation.rounds.journal import Journal
from fedhubert.formats.content import load_plain

from . import killable
from .conftest import SMALL
from .test_resume import comparable

ROUNDS = 8
SETTINGS = [
    "experiment=demo_fedavg",
    *SMALL,
    "model.dropout=0.1",
    f"federated.num_rounds={ROUNDS}",
    "federated.client_fraction=0.67",
    "federated.strategy=FedAdam",
    "federated.update_codec=int8",
    "federated.broadcast_codec=bf16",
    "client.optimizer_policy=keep",
    "client.local_steps=1",
    "checkpoint.every=3",
    "checkpoint.keep_last=2",
    "faults.nan=0.2",
    "resume=auto",
]
KILLS = [
    *(
        "kmeans 1",
        "kmeans 3",
        "broadcast 2",
        "kmeans 2",
        "broadcast 13",
        "site state 1",
        "folding 2",
    ),
    *(
        "journal 1",
        "journal 2",
        "optimiser step 3",
        "round booked 2",
        "event 4",
        "checkpoint begun 1",
        "checkpoint renamed 9",
    ),
    *(
        "checkpoint renamed 12",
        "checkpoint durable 1",
        "site state 4",
        "site state pruned 3",
        "best 1",
        "best 2",
        "optimiser step 2",
    ),
    *("folding 5", "retention 1", "event 2", "checkpoint begun 2", "event 3"),
]


PRIVATE = [
    "privacy=central",
    "privacy.clip_norm=0.1",
    "privacy.target_quantile=0.5",
    "federated.num_rounds=4",
]
PRIVATE_KILLS = [
    "journal 1",
    "journal 2",
    "optimiser step 3",
    "round booked 2",
    "checkpoint begun 1",
    "folding 4",
]


def run(
    out: Path,
    manifest: Path,
    root: Path,
    point: str = "kmeans",
    call: int = 0,
    also: Sequence[str] = (),
) -> int:
    """Run in a process of its own and return its exit code; what it logs is in the run's folder."""
    context = multiprocessing.get_context(
        "forkserver"
    )  # each process starts with everything imported
    context.set_forkserver_preload(["tests.integration.killable"])
    data = [
        f"data.manifest={manifest}",
        f"data.root={root}",
        f"out={out}",
        f"client.state_dir={out / 'state'}",
    ]
    process = context.Process(
        target=killable.main, args=(point, str(call), *SETTINGS, *also, *data)
    )
    process.start()
    process.join(timeout=120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def state_of(out: Path) -> dict[str, object]:
    """All that a run leaves, in a form that can be compared."""
    files: dict[str, object] = {}
    for path in sorted((out / "state/runs").rglob("*.pt")):
        files["/".join(path.parts[-2:])] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted((out / "checkpoints").glob("*.pt")):
        values = load_plain(path)
        values.pop("config", None)  # the folders differ,
        values.pop("fingerprints", None)  # and these are salted with the run's key
        files[path.name] = flat(values)
    return files


def flat(values: object) -> object:
    if isinstance(values, torch.Tensor):
        return (str(values.dtype), values.numpy().tobytes())
    if isinstance(values, dict):
        return {key: flat(value) for key, value in values.items()}
    return [flat(value) for value in values] if isinstance(values, list) else values


def test_killed_again_and_again_it_comes_to_the_same_bits(
    manifest: Path, tone_folder: Path, tmp_path: Path
) -> None:
    """FedAdam, dropout, int8 with error feedback, kept optimisers, k-means and failing clients; 26 kills."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert run(alone, manifest, tone_folder) == 0
    hit = 0
    for kill in KILLS:
        point, _, call = kill.rpartition(" ")
        died = run(killed, manifest, tone_folder, point, int(call))
        assert died in (0, -signal.SIGKILL), kill
        hit += died == -signal.SIGKILL
    assert hit >= 20, f"only {hit} of {len(KILLS)} kills happened"
    assert run(killed, manifest, tone_folder) == 0
    expected, found = state_of(alone), state_of(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert comparable(killed) == comparable(alone)
    assert any(event["failed"] for event in comparable(alone) if event["event"] == "round")


@pytest.mark.slow
def test_a_private_run_killed_again_and_again_releases_the_same_models_once(
    manifest: Path, tone_folder: Path, tmp_path: Path
) -> None:
    """Before and after a round's release is written down, and between it and the model's step; the cohorts are drawn from the secret."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert run(alone, manifest, tone_folder, also=PRIVATE) == 0
    hit = 0
    for kill in PRIVATE_KILLS:
        point, _, call = kill.rpartition(" ")
        hit += run(killed, manifest, tone_folder, point, int(call), PRIVATE) == -signal.SIGKILL
    assert hit >= 5, f"only {hit} of {len(PRIVATE_KILLS)} kills happened"
    assert run(killed, manifest, tone_folder, also=PRIVATE) == 0
    assert state_of(killed) == state_of(alone)
    assert comparable(killed) == comparable(alone)
    assert set(Journal(killed / "checkpoints").releases().values()) == {1}
    assert (
        len({len(event["asked"]) for event in comparable(alone) if event["event"] == "round"}) > 1
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage", ["cut short", pytest.param("bit flipped", marks=pytest.mark.slow)]
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    manifest: Path, tone_folder: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "run"
    assert (
        run(out, manifest, tone_folder, "event", 11) == -signal.SIGKILL
    )  # after round 6 of 8: checkpoints of rounds 3 and 6
    newest = sorted((out / "checkpoints").glob("round_*_checkpoint.pt"))[-1]
    content = bytearray(newest.read_bytes())
    if damage == "cut short":
        del content[-1000:]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert run(out, manifest, tone_folder) == 0
    assert f"{newest.name} is not usable" in (out / "federated_training.log").read_text()
    assert (
        f"resuming after round {int(newest.name[6:9]) - 3}"
        in (out / "federated_training.log").read_text()
    )

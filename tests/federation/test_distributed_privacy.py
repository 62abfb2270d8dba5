"""Noise that clients add themselves: how much there is of it in a sum, what it derives from, and what epsilon rests on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.compose import compose
from fedhubert.config.secure import least_in_cohort
from fedhubert.errors import ConfigError
from fedhubert.federation.privacy.accounting import epsilon_of
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.noise import (
    FILE_NAME,
    check_covered,
    noise_in,
    share_of_noise,
    site_secret,
)
from fedhubert.federation.secure.terms import SumTerms
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.updates.exact_sum import GRID, ExactSum
from fedhubert.federation.updates.ring import Ring, wrapped
from fedhubert.formats.round_file import load_checkpoint
from tests.federation.in_process import InProcessGrid
from tests.integration.conftest import SMALL

NUMEL = 60_000
DISTRIBUTED = ["privacy=distributed", "secure=pairwise", "federated.client_fraction=1"]


def terms(cohort: int = 5, *, round_number: int = 1, run: str = "run") -> SumTerms:
    return SumTerms(
        kind="train.round",
        run=run,
        roster="",
        round=round_number,
        attempt=0,
        cohort=tuple(range(cohort)),
        threshold=1,
        neighbours=cohort - 1,
        keys=tuple(bytes([n]) for n in range(cohort)),
        said={},
    )


def noised(
    folder: Path,
    number: int,
    std: float,
    of: SumTerms,
    values: np.ndarray[Any, Any] | None = None,
    unit: float = GRID,
) -> torch.Tensor:
    """Return the integers of an update of zeros (or ``values``), with its client's noise."""
    fold = ExactSum(NUMEL)
    fold.clear(unit)
    if values is not None:
        fold.partial().total.copy_(torch.from_numpy(values))
    fold.add_noise(std, noise_in(of, number, fold.partial().total.numpy(), folder=folder, std=std))
    return fold.partial().total.clone()


@pytest.mark.parametrize(("clients", "colluding"), [(3, 0), (5, 1), (10, 3)])
def test_the_honest_clients_noise_has_the_variance_that_epsilon_counts_on(
    tmp_path: Path, clients: int, colluding: int
) -> None:
    """Of the smallest sum that sites open, without what the colluding know: z C, to a part in a hundred; and shaped like a normal variable."""
    z, clip_norm, least = 1.5, 0.7, least_in_cohort(clients)
    std, of = share_of_noise(z, clip_norm, least, colluding), terms(clients)
    honest = range(least - colluding)
    total = sum(
        (noised(tmp_path / str(n), n, std, of) for n in honest),
        torch.zeros(NUMEL, dtype=torch.int64),
    )
    found = total.double().numpy() * GRID
    assert found.std() == pytest.approx(z * clip_norm, rel=0.01)
    assert abs(found.mean()) < 4.0 * z * clip_norm / np.sqrt(NUMEL)
    standard = found / (z * clip_norm)
    assert np.mean(standard**4) == pytest.approx(3.0, rel=0.05)
    assert np.mean(np.abs(standard) < 1.0) == pytest.approx(0.6827, abs=0.008)
    # one alone has less: no single client is protected by its own share
    assert std < z * clip_norm


def test_clients_noises_are_independent_and_nobody_can_draw_anothers(tmp_path: Path) -> None:
    std, of = 1.0, terms()
    one, other = (noised(tmp_path / str(n), n, std, of).double().numpy() for n in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    stolen = noised(tmp_path / "elsewhere", 0, std, of).double().numpy()
    assert abs(np.corrcoef(one, stolen)[0, 1]) < 0.02


def test_noise_is_the_same_for_the_same_release_and_for_nothing_else(tmp_path: Path) -> None:
    """A round that is repeated after an interruption gives the same sum; one noise on two sums would give away their difference."""
    values = np.arange(NUMEL)
    first = noised(tmp_path, 0, 1.0, terms(), values) - torch.from_numpy(values)
    again = noised(tmp_path, 0, 1.0, terms(), values) - torch.from_numpy(values)
    assert torch.equal(first, again)
    changed = values.copy()
    changed[7] += 1
    others = {
        "update": noised(tmp_path, 0, 1.0, terms(), changed) - torch.from_numpy(changed),
        "round": noised(tmp_path, 0, 1.0, terms(round_number=2), values) - torch.from_numpy(values),
        "run": noised(tmp_path, 0, 1.0, terms(run="x"), values) - torch.from_numpy(values),
        "cohort": noised(tmp_path, 0, 1.0, terms(4), values) - torch.from_numpy(values),
        "client": noised(tmp_path, 1, 1.0, terms(), values) - torch.from_numpy(values),
        "std": noised(tmp_path, 0, 1.0 + 1e-9, terms(), values) - torch.from_numpy(values),
    }
    for what, noise in others.items():
        found = np.corrcoef(first.double().numpy(), noise.double().numpy())[0, 1]
        assert abs(found) < 0.02, what


def test_the_sites_secret_is_its_own_and_damage_is_said(tmp_path: Path) -> None:
    site_secret(tmp_path / "a")
    file = tmp_path / "a" / FILE_NAME
    assert file.stat().st_mode & 0o777 == 0o600 and len(file.read_bytes()) == 32
    assert file.read_bytes() != (
        site_secret(tmp_path / "b") and (tmp_path / "b" / FILE_NAME).read_bytes()
    )
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"noise.key is damaged"):
        site_secret(tmp_path / "a")


@pytest.mark.parametrize("bits", [32, 24, 16])
def test_on_a_ring_updates_and_all_their_noise_fit(tmp_path: Path, bits: int) -> None:
    """Everybody is honest, every entry at its limit: the sum does not wrap around, and its noise is what it should be."""
    clients, z, clip_norm = 5, 1.0, 1.0
    std = share_of_noise(z, clip_norm, least_in_cohort(clients), 0)
    ring = Ring(bits, 0.1, clients, 1, headroom=9.0 * std * np.sqrt(clients))
    of, full = terms(clients), np.full(NUMEL, ring.largest)
    parts = [noised(tmp_path / str(n), n, std, of, full, ring.unit) for n in range(clients)]
    total = torch.stack(parts).sum(0)
    assert torch.equal(wrapped(total, bits), total)
    noise = (total - clients * ring.largest).double().numpy() * ring.unit
    assert noise.std() == pytest.approx(std * np.sqrt(clients), rel=0.01)


def test_all_colluding_leaves_no_noise() -> None:
    with pytest.raises(SecureError, match="nobody's noise would be left"):
        share_of_noise(1.0, 1.0, 3, 3)


@pytest.mark.parametrize(
    ("std", "unit", "weight", "setting"),
    [
        (1.0, GRID, 1, ""),
        (1.0, GRID, 2, "federated.weight_by"),
        (1.0, 0.2, 1, "federated.update_codec"),
        (1.0, 0.125, 1, ""),
    ],
)
def test_a_site_adds_no_noise_that_would_not_cover_its_update(
    std: float, unit: float, weight: int, setting: str
) -> None:
    """Weights and rings are the server's to choose: one that counts twice, or rounds the noise away, is refused."""
    if not setting:
        check_covered(std, unit, weight)
        return
    with pytest.raises(SecureError) as refused:
        check_covered(std, unit, weight)
    assert refused.value.setting == setting


# ---------------------------------------------------------------- what goes with it, and what it costs


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["secure=none"], "choose secure=pairwise"),
        (["privacy.target_quantile=0.5"], "leave out privacy.target_quantile"),
        (["privacy.colluding=4"], "privacy.colluding=4, and as few as 4 of 5"),
        (["federated.weight_by=frames"], "federated.weight_by"),
        (["federated.update_codec=ring32", "checkpoint.keep_best=true"], "checkpoint.keep_best"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_key(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        compose(["experiment=demo_fedavg", *DISTRIBUTED, *overrides])
    assert "privacy.mechanism=distributed" in str(refused.value)


def test_clients_are_told_the_noise_and_others_are_not() -> None:
    job = client_job(
        compose(["experiment=demo_fedavg", *DISTRIBUTED, "privacy.noise_multiplier=4"])
    )
    assert (job.noise_multiplier, job.colluding) == (4.0, 0)
    private = ["privacy=central", "privacy.noise_multiplier=4"]
    assert client_job(compose(["experiment=demo_fedavg", *private])).noise_multiplier == 0.0


@pytest.mark.parametrize(
    ("multiplier", "expected"),
    [pytest.param(1.0, 91.8, marks=pytest.mark.slow), (4.0, 13.2), (8.0, 5.7)],
)
def test_epsilon_after_a_hundred_rounds_is_that_of_the_chapter(
    multiplier: float, expected: float
) -> None:
    pytest.importorskip("dp_accounting")
    found = epsilon_of(((1.0, multiplier, 100),), 1e-5)
    print(f"z = {multiplier:g}: epsilon {found:.2f}")
    assert found == pytest.approx(expected, rel=0.01)


def play(data: list[str], out: Path, *overrides: str) -> RunResult:
    places = [f"out={out}", f"client.state_dir={out.parent / 'state'}", "resume=auto"]
    config = compose(["experiment=demo_fedavg", *data, *SMALL, *places, *overrides])
    nodes = [{"partition-id": number, "num-partitions": 3} for number in range(3)]
    return run_federation(InProcessGrid(nodes), config)


def vector(result: RunResult) -> torch.Tensor:
    return torch.cat(
        [part.flatten().double() for part in load_checkpoint(result.checkpoint)["model"].values()]
    )


@pytest.mark.parametrize("codec", ["fp32", pytest.param("ring24", marks=pytest.mark.slow)])
def test_a_runs_model_has_the_noise_and_says_its_epsilon(
    data: list[str], tmp_path: Path, codec: str
) -> None:
    """Beside the same run of hardly any noise: the sum of three shares, over three clients; the same again when its round is repeated."""
    pytest.importorskip("dp_accounting")
    settings = [
        *DISTRIBUTED,
        "federated.num_rounds=1",
        "federated.strategy=FedAvg",
        f"federated.update_codec={codec}",
        "privacy.clip_norm=0.5",
        "checkpoint.every=1",
    ]
    quiet = vector(play(data, tmp_path / "quiet/run", *settings, "privacy.noise_multiplier=0.01"))
    result = play(data, tmp_path / "loud/run", *settings, "privacy.noise_multiplier=2")
    noise = (vector(result) - quiet).numpy()
    # of all three clients, each with z C / sqrt(3): z C on the sum, a third of it on the mean
    assert noise.std() == pytest.approx(2.0 * 0.5 / 3.0, rel=0.03)
    lines = (tmp_path / "loud/run/metrics.jsonl").read_text().splitlines()
    (event,) = [e for e in map(json.loads, lines) if e["event"] == "round"]
    assert event["privacy"]["epsilon"] == pytest.approx(epsilon_of(((1.0, 2.0, 1),), 1e-5))
    assert event["privacy"]["honest_clients"] == 3
    assert event["privacy"]["noise_std"] == pytest.approx(2.0 * 0.5 / 3.0)
    said = (tmp_path / "loud/run/federated_training.log").read_text()
    assert "if 3 of each sum are honest (privacy.colluding=0)" in said
    assert "outside epsilon: the sums of figures beside the updates" in said
    result.checkpoint.unlink()
    again = play(data, tmp_path / "loud/run", *settings, "privacy.noise_multiplier=2")
    assert torch.equal(vector(again), torch.from_numpy(noise) + quiet)

"""Several processes take the steps of one: the same losses and weights, whatever a step is made of, and no hanging where one dies."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhubert.config import ClientConfig, ModelConfig
from fedhubert.errors import RankError, TrainingError
from fedhubert.objectives import masked_prediction as objectives
from fedhubert.training.local import LocalResult
from fedhubert.training.rank_pool import RankPool
from fedhubert.training.ranks import ALONE, Ranks

from .steps import BATCHES, CPU, model_of, train, vector

LIMIT_S = 1800.0
"""Of a machine with much else to do, on which torch alone takes a minute to load."""
DROPPING = {"dropout": 0.1, "layer_drop": 0.5}
"""Of two layers one is often dropped, here in one rank and there in another."""


@dataclass(frozen=True)
class Trained:
    result: LocalResult
    vector: np.ndarray
    moments: str
    """A digest of the kept optimiser."""


def steps_of(
    ranks: Ranks,
    config: ModelConfig,
    client: ClientConfig,
    batches: int = len(BATCHES),
    most_utterances: int = 10,
) -> Trained:
    """What one rank does; a batch of more than ``most_utterances`` does not fit into its memory."""
    torch.set_num_threads(1)
    original = objectives.masked_prediction

    def masked_prediction(model, batch, task):  # type: ignore[no-untyped-def]
        if len(batch.waveforms_BN) > most_utterances:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch, task)

    objectives.masked_prediction = masked_prediction
    try:
        model = model_of(config, **DROPPING)
        own = ranks.deal(range(batches), client.accumulate)
        result = train(
            model,
            [BATCHES[number] for number in own],
            batches // client.accumulate,
            client=client,
            ranks=ranks,
        )
    finally:
        objectives.masked_prediction = original
    kept = result.optimizer_state
    moments = (
        hashlib.sha256(
            b"".join(
                value.numpy().tobytes()
                for entry in kept["state"].values()
                for value in entry.values()
            )
        ).hexdigest()
        if kept
        else ""
    )
    return Trained(replace(result, optimizer_state=None), vector(model).numpy(), moments)


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    pool = RankPool([CPU, CPU], LIMIT_S)
    yield pool
    pool.close()


def same_steps(pool: RankPool, config: ModelConfig, client: ClientConfig, **given: int) -> float:
    """Hold the ranks' steps against one process's; return how far the weights are apart."""
    alone = steps_of(ALONE, config, client, **given)
    ranks = pool.run(steps_of, config, client, **given)
    for each in ranks:
        assert np.array_equal(each.vector, ranks[0].vector)
        assert each.result.steps == alone.result.steps
        assert each.result.grad_norm == pytest.approx(alone.result.grad_norm, rel=1e-5)
    for name, value in alone.result.metrics.items():
        assert sum(each.result.metrics.get(name, 0) for each in ranks) == pytest.approx(
            value, rel=1e-6
        ), name
    assert sum(each.result.frames for each in ranks) == alone.result.frames
    assert sum(each.result.micro_batches for each in ranks) == alone.result.micro_batches
    assert [bool(each.moments) for each in ranks] == [True] + [False] * (len(ranks) - 1)
    return float(np.linalg.norm(ranks[0].vector - alone.vector) / np.linalg.norm(alone.vector))


KEPT = {"optimizer_policy": "keep", "lr": 1e-3, "warmup_fraction": 0.0}


@pytest.mark.parametrize(
    ("optimizer", "accumulate"), [("adamw", 2), ("adamw", 3), ("muon", 2), ("sgd", 6)]
)
def test_two_ranks_take_the_steps_of_one(
    two: RankPool, tiny_model_config: ModelConfig, optimizer: str, accumulate: int
) -> None:
    """With dropout, and layers that are dropped in one rank and not in the other."""
    client = ClientConfig(optimizer=optimizer, accumulate=accumulate, **KEPT)
    assert same_steps(two, tiny_model_config, client) < 1e-6


def test_a_micro_batch_each_comes_to_the_same_bits(
    two: RankPool, tiny_model_config: ModelConfig
) -> None:
    """a + b is b + a; and the kept optimiser is the same."""
    client = ClientConfig(accumulate=2, **KEPT)
    alone = steps_of(ALONE, tiny_model_config, client)
    first, _ = two.run(steps_of, tiny_model_config, client)
    assert np.array_equal(first.vector, alone.vector)
    assert alone.moments == first.moments != ""


def test_what_does_not_fit_in_one_rank_is_split_in_all(
    two: RankPool, tiny_model_config: ModelConfig
) -> None:
    """A batch of five does not fit, so that dropout draws for pieces everywhere from then on, as with one rank."""
    client = ClientConfig(accumulate=2, **KEPT)
    assert same_steps(two, tiny_model_config, client, most_utterances=3) < 1e-6


def test_a_layer_that_no_rank_has_used_takes_no_step() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    alone = Ranks(0, 1)
    alone.add_gradients([parameter], [0])
    assert parameter.grad is None and alone.add([3, True]) == [3, 1]


def test_micro_batches_are_dealt_out_by_their_place_in_the_step() -> None:
    dealt = [Ranks(number, 2).deal(range(10, 16), 3) for number in range(2)]
    assert dealt == [[10, 12, 13, 15], [11, 14]]
    assert [Ranks(number, 2).dealt(3) for number in range(2)] == [2, 1]
    assert ALONE.deal(range(3), 1) == range(3)


def fails(ranks: Ranks, how: str) -> None:
    """Rank 1 comes to grief, and rank 0 waits for it."""
    if ranks.number:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "hangs":
            time.sleep(3600)
        elif how == "named":
            raise TrainingError("the loss is nan", setting="client.lr")
        raise ZeroDivisionError
    ranks.add([1])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("killed", "rank 1 of 2 .cpu. was killed by SIGKILL; .* fewer devices in client.device"),
        pytest.param(
            "unknown", "rank 1 of 2 .cpu. failed: ZeroDivisionError", marks=pytest.mark.slow
        ),
        pytest.param("named", "the loss is nan", marks=pytest.mark.slow),
        pytest.param("hangs", "failed: RuntimeError|said nothing", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_comes_to_grief_ends_all_and_new_ones_begin(how: str, said: str) -> None:
    pool = RankPool([CPU, CPU], 60.0 if how == "hangs" else LIMIT_S)
    pool.run(Ranks.add, [1])
    pids = pool.pids
    with pytest.raises(TrainingError, match=said) as error:
        pool.run(fails, how)
    named = how == "named"
    assert (error.value.code, error.value.setting) == (
        ("training", "client.lr") if named else ("ranks", "client.device")
    )
    assert isinstance(error.value, RankError) != named
    assert not pool.ready and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_ranks_stay_from_job_to_job_hear_nobody_else_and_end_with_their_parent(
    tmp_path: Path,
) -> None:
    """A process begins ranks and is killed."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, torch\n"
        "from fedhubert.training.rank_pool import pool_of\n"
        "from fedhubert.training.ranks import Ranks\n"
        "if __name__ == '__main__':\n"
        "    devices = [torch.device('cpu')] * 2\n"
        "    pool = pool_of(devices)\n"
        "    assert pool.run(Ranks.add, [1, 2]) == [[2, 4]] * 2\n"
        "    assert pool_of(devices) is pool\n"
        "    print(*pool.pids, flush=True)\n"
        "    input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    heard = {address for pid in pids for address in listening(pid)}
    assert heard and heard <= {"0100007F"}, "only the loopback, 127.0.0.1"
    process.kill()
    process.wait()
    deadline = time.monotonic() + LIMIT_S
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"{alive} are left"
        time.sleep(0.1)


def listening(pid: int) -> list[str]:
    """Return the addresses, as Linux writes them, at which a process listens."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(entry))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.append(fields[1].partition(":")[0])
    return found

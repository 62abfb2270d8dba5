"""What a client of a large cohort costs: a linear model of 0.9 M parameters, one SGD step on one batch per client, many clients per round.

Ours plays all clients on a few nodes, which hand in exact partial sums, on two workers and on one; beside it stock Flower's simulation on two, and
pfl-research's simulator, which is one process (extra ``bench``). Model, batch and step are the same; sketches of updates, which pfl has none of, are
sent in one case by itself. Wall time, and CPU seconds of the driver and its workers: wall time counts whatever else the machine does.
``case profile 200`` prints where one worker's time goes. A last case is of the server alone: 100 000 clients that only reply, all of them in each of
three rounds. ``python -m tests.benchmarks.cohorts`` prints one JSON line per case, and the ratios.
"""

import argparse
import cProfile
import importlib.util
import json
import pstats
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.benchmarks.cohort_model import BATCH, Linear, kept, step
from tests.benchmarks.cohort_peers import pfl, stock
from tests.benchmarks.engine import (
    DESCRIBED,
    NUM_ROUNDS,
    NUM_WORKERS,
    TRAINED,
    PeakMemory,
    private_mb,
    simulate,
)
from tests.benchmarks.figures import case_alone, figure, run

SMALL = 10
"""Features and classes of the server's case, whose clients cost next to nothing."""


def answered(task: Any, layout: Any, sketches: bool) -> tuple[dict[int, Any], dict[str, Any]]:
    """Do what a site does with a request (``fedhubert/federation/site/train.py``): train each partition from the model in it on; return the
    clients' figures, and one update or the sum of several."""
    from fedhubert.federation.updates.exact_sum import ExactSum, magnitude_of
    from fedhubert.federation.updates.sketches import sketch_of
    from fedhubert.training.parameters import tensor_of

    incoming, several = tensor_of(task.arrays["model"]), len(task.partitions) > 1
    total, metrics, arrays, drawn = ExactSum(layout.numel), {}, {}, []
    for partition in task.partitions:
        layout.load_vector(kept("model", Linear), incoming)
        model, _ = step(partition)
        update = layout.update_of(model, incoming, total.room() if several else None)
        magnitude = magnitude_of(update)
        metrics[partition] = {**TRAINED, "weight": BATCH, "update_norm": magnitude.norm}
        if several:
            total.add(update, BATCH, magnitude)
        else:
            arrays["update"] = update.numpy()
        if sketches:
            drawn.append(sketch_of(update, 0, task.round))
    if several:
        arrays["sum"] = total.partial().total.numpy()
    return metrics, arrays | ({"sketches": np.stack(drawn)} if sketches else {})


def only_replied(task: Any, layout: Any, sketches: bool) -> tuple[dict[int, Any], dict[str, Any]]:
    """Answer for clients that take no step and have no update to speak of: what is left is the server's work."""
    figures = {**TRAINED, "weight": BATCH, "update_norm": 1e-3}
    total = np.zeros(layout.numel, np.int64)
    return {partition: dict(figures) for partition in task.partitions}, {"sum": total}


def described(
    clients: int, workers: int, registered: int, sketches: bool, answer: Any
) -> tuple[Any, Any]:
    """Return the configuration of a run in which ``clients`` of those ``registered`` are drawn for each round, and its model's layout."""
    from fedhubert.compose import compose
    from fedhubert.training.parameters import ParameterLayout

    config = compose(
        [
            f"federated.num_clients={registered}",
            f"federated.client_fraction={clients / registered}",
            f"federated.num_rounds={NUM_ROUNDS}",
            "client.local_steps=1",
            f"federated.client_cosines={'true' if sketches else 'false'}",
            "federated.strategy=FedAvg",
            f"simulation.num_workers={workers}",
        ]
    )
    return config, ParameterLayout.of(Linear() if answer is answered else Linear(SMALL, SMALL))


def planned(config: Any, layout: Any, answer: Any) -> dict[str, float]:
    """Return what ``fedhubert plan measure=true`` would say of a round, by the speed of a few clients in this process: seconds by the clock and of
    the processors, bytes, and the server's memory, MB."""
    from types import SimpleNamespace

    from fedhubert.planning import sizes
    from fedhubert.planning.inputs import ClientAudio, Inputs, Rates
    from fedhubert.planning.rounds import plan

    few, model = tuple(range(20)), {"model": np.zeros(layout.numel, np.float32)}
    task, taken = SimpleNamespace(arrays=model, partitions=few, round=1), []
    for _ in range(3):
        started = time.process_time()
        answer(task, layout, config.sends_sketches)
        taken.append(time.process_time() - started)
    about = ClientAudio(DESCRIBED["train_audio_s"], 50.0, 0.0, 0.0, 4, lambda at: float(len(at)))
    rates = Rates(audio_s_per_s=len(few) / min(taken))  # a step hears a second, as is described
    clients = (about,) * config.federated.num_clients
    inputs = Inputs(config, layout, layout.numel, clients, rates)
    found = plan(inputs)
    last, server_s = found.rounds[-1], found.server_s / len(found.rounds)
    cpu_s = config.federated.clients_per_round / rates.audio_s_per_s + server_s
    memory_mb = sizes.server_memory(inputs) / 2**20
    return {
        "s": last.seconds,
        "cpu_s": cpu_s,
        "bytes": last.bytes_down + last.bytes_up,
        "mb": memory_mb,
    }


@dataclass
class Round:
    """What a round took: wall time, CPU seconds of the driver and of its workers, bytes of arrays, and the driver's private memory at its end."""

    wall_s: float
    driver_s: float
    workers_s: float = 0.0
    driver_mb: float = 0.0
    num_bytes: int = 0


def ours(
    clients: int, workers: int, registered: int, sketches: bool, answer: Any = answered
) -> list[Round]:
    """Play rounds for which ``clients`` of those ``registered`` are drawn, as a run plays them."""
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

    from fedhubert.config import FederatedConfig
    from fedhubert.federation.engine.simulation import num_supernodes, object_store_bytes
    from fedhubert.federation.roster.nodes import Federation
    from fedhubert.federation.rounds.loop import run_rounds
    from fedhubert.federation.rounds.shared import RoundResult, Rounds
    from fedhubert.federation.strategies.fedavg import FedAvg
    from fedhubert.federation.wire import protocol, reading
    from fedhubert.federation.wire.grid import StreamingGrid, messages_in_flight

    config, layout = described(clients, workers, registered, sketches, answer)
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train("round")
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        request = reading.read_request(message)
        metrics, arrays = answer(request.task, layout, request.job.sends_sketches)
        # with what Ray and Flower took since the last message
        clock = kept("clock", lambda: [0.0])
        spent, clock[0] = time.process_time() - clock[0], time.process_time()
        for figures in metrics.values():
            figures["train_cpu_s"] = spent / len(metrics)
        info = {"round": request.task.round, "layout": request.task.layout}
        return protocol.reply_of(message, metrics=metrics, arrays=arrays, info=info)

    played: list[Round] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < num_supernodes(config):
            time.sleep(0.1)
        federation = Federation(
            StreamingGrid(grid, window=messages_in_flight(workers)), config, "bench", layout
        )
        partitions = list(range(registered))
        few = num_supernodes(config) < registered
        federation.hosts = {
            node: partitions if few else [number] for number, node in enumerate(nodes)
        }
        federation.partitions = {number: dict(DESCRIBED) for number in partitions}
        spent = time.process_time()

        def after(result: RoundResult, started: float) -> None:
            nonlocal spent
            assert len(result.outcome.clients) == clients, result.outcome.failures[:3]
            theirs = sum(each["train_cpu_s"] for each in result.outcome.clients.values())
            wall, driver = time.monotonic() - started, time.process_time() - spent
            sent = result.outcome.bytes_up + result.outcome.bytes_down
            played.append(Round(wall, driver, theirs, private_mb(), sent))
            spent = time.process_time()

        rounds = Rounds(federation, FedAvg(FederatedConfig()))
        run_rounds(rounds, torch.zeros(layout.numel), 1, NUM_ROUNDS, after)

    store = object_store_bytes(layout.numel, workers, sharded=True)
    simulate(
        server_app,
        client_app,
        num_supernodes(config),
        num_workers=workers,
        object_store_memory=store,
    )
    return played


def profiled(clients: int) -> None:
    """Print where a worker's time goes, by a request of one node in this process."""
    from types import SimpleNamespace

    from fedhubert.training.parameters import ParameterLayout

    layout, numbers = ParameterLayout.of(Linear()), tuple(range(clients))
    model = {"model": np.zeros(layout.numel, np.float32)}
    task = SimpleNamespace(arrays=model, partitions=numbers, round=1)
    answered(task, layout, sketches=True)
    profile = cProfile.Profile(time.process_time)
    profile.runcall(answered, task, layout, sketches=True)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(16)


def case(way: str, clients: str, workers: str = "1", registered: str = "") -> dict[str, Any]:
    """Run one case in this process."""
    count, about = int(clients), {"way": way, "clients": int(clients), "workers": int(workers)}
    if way == "profile":
        profiled(count)
        return about
    kind, asked = way.removeprefix("plan-"), int(registered or clients)
    answer = only_replied if kind == "server" else answered
    if way != kind:
        return about | planned(
            *described(count, int(workers), asked, kind == "sketches", answer), answer
        )
    with PeakMemory() as peak:
        if way in ("ours", "sketches", "server"):
            played = ours(count, int(workers), asked, way == "sketches", answer)
        else:
            times = {"stock": stock, "pfl": pfl}[way](count, int(workers))
            played = [Round(wall, cpu) for wall, cpu in times]
    best = {
        "ms_per_client": min(each.wall_s for each in played) / count * 1e3,
        "cpu_ms_per_client": min(each.driver_s + each.workers_s for each in played) / count * 1e3,
        "workers_cpu_ms_per_client": min(each.workers_s for each in played) / count * 1e3,
    }
    memory = {"driver_mb": peak.driver_mb, "store_mb": peak.store_mb}
    memory["after_rounds_mb"] = [each.driver_mb for each in played]
    last = played[-1]
    took = {
        "s": min(each.wall_s for each in played),
        "cpu_s": min(each.driver_s + each.workers_s for each in played),
        "bytes": last.num_bytes,
        "mb": peak.driver_mb + peak.store_mb,
    }
    return {**about, **best, **memory, **took}


def as_planned(name: str, found: dict[str, Any], *registered: int) -> None:
    """Print what a round took beside what is planned, in a process of its own: 0.8 to 1.25 times as much is within a quarter."""
    plan = alone(f"plan-{found['way']}", found["clients"], found["workers"], *registered)
    for what in ("s", "cpu_s", "bytes", "mb"):
        figure(f"{name}: {what} beside the plan", found[what], plan[what], what)


def alone(*what: object) -> dict[str, Any]:
    """Run a case in a process of its own, and print what came of it."""
    result = case_alone(__spec__.name, *what)
    print(json.dumps(result), flush=True)
    return result


def compare(
    our_clients: list[int], stock_clients: int, pfl_clients: int, registered: int, many: int
) -> None:
    """Print the figures of all cases, one JSON line each; pfl's only where it is installed."""
    mine = [alone("ours", clients, NUM_WORKERS) for clients in our_clients]
    stocks = alone("stock", stock_clients, NUM_WORKERS)
    wall, name = "ms_per_client", f"cohort: ms per client beside stock, {NUM_WORKERS} workers"
    figure(name, mine[-1][wall], stocks[wall], "ms")
    if importlib.util.find_spec("pfl"):
        theirs = alone("pfl", pfl_clients)
        for way in ("ours", "sketches"):
            one, about = alone(way, our_clients[-1], 1, registered), f"{way}, one worker"
            figure(f"cohort: ms per client beside pfl, {about}", one[wall], theirs[wall], "ms")
            cpu = "cpu_ms_per_client"
            figure(f"cohort: CPU per client beside pfl, {about}", one[cpu], theirs[cpu], "ms")
            as_planned(f"cohort: a round, {about}", one, registered)
    few = alone("ours", min(100, registered), NUM_WORKERS, registered)
    drawn = f"{few['clients']} drawn of {registered} registered"
    figure(f"cohort: ms per client, {drawn}", few[wall], None, "ms")
    memory = few["driver_mb"] + few["store_mb"]
    figure(f"cohort: server memory, {drawn}", memory, None, "MB")
    peaks = [round(result["driver_mb"] + result["store_mb"]) for result in mine]
    name = f"cohort: server memory, {our_clients} clients"
    print(json.dumps({"name": name, "ours": peaks, "unit": "MB"}))
    served = alone("server", many, NUM_WORKERS)
    name, after = f"cohort: server alone, {many} clients a round", served["after_rounds_mb"]
    as_planned(name, served)
    figure(f"{name}: CPU", served["cpu_ms_per_client"], None, "ms")
    figure(f"{name}: driver's private memory after the last round", after[-1], None, "MB", of=after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--stock-clients", type=int, default=200)
    parser.add_argument("--pfl-clients", type=int, default=1000)
    parser.add_argument("--registered", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=100_000)
    run(
        parser,
        case,
        lambda given: compare(
            given.clients, given.stock_clients, given.pfl_clients, given.registered, given.many
        ),
    )


if __name__ == "__main__":
    main()

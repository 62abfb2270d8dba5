"""What a round costs besides training: seconds and memory per client update, ours and stock Flower's, in the simulation engine.

Clients do nothing but send an update as large as the model. Every case runs in a process of its own. ``python -m tests.benchmarks.rounds`` prints one
JSON line per case, and the figures side by side.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from tests.benchmarks.engine import DESCRIBED, NUM_WORKERS, TRAINED, PeakMemory, simulate, timed
from tests.benchmarks.figures import case_alone, figure, run


def ours(numel: int, clients: int) -> list[tuple[float, float]]:
    """Return the wall and CPU seconds of each round under our strategy."""
    from flwr.app import ArrayRecord, Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

    from fedhubert.compose import compose
    from fedhubert.config import FederatedConfig
    from fedhubert.federation.engine.simulation import object_store_bytes
    from fedhubert.federation.roster.nodes import Federation
    from fedhubert.federation.rounds.shared import Rounds
    from fedhubert.federation.rounds.strategy import FederatedStrategy
    from fedhubert.federation.strategies.fedavg import FedAvg
    from fedhubert.federation.updates.sketches import sketch_of
    from fedhubert.federation.wire import protocol, reading
    from fedhubert.federation.wire.arrays import HeldArray
    from fedhubert.federation.wire.grid import StreamingGrid, messages_in_flight
    from fedhubert.training.parameters import ParameterLayout

    config = compose(
        [
            f"federated.num_clients={clients}",
            "federated.client_fraction=1",
            "federated.strategy=FedAvg",
        ]
    )
    layout = ParameterLayout(("weights",), ((numel,),))
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train("round")
    def train(message: Message, context: Context) -> Message:
        request = reading.read_request(message)
        assert request.arrays["model"].shape == (numel,)
        metrics = {**TRAINED, "weight": 1, "update_norm": 1.0}
        info = {"round": request.task.round, "layout": request.task.layout}
        (partition,) = request.task.partitions
        update = _update(numel)
        arrays = {
            "update": update,
            "sketches": sketch_of(torch.from_numpy(update), 0, request.task.round)[None],
        }
        return protocol.reply_of(message, metrics={partition: metrics}, arrays=arrays, info=info)

    times: list[tuple[float, float]] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < clients:
            time.sleep(0.1)
        federation = Federation(
            StreamingGrid(grid, window=messages_in_flight(NUM_WORKERS)), config, "bench", layout
        )
        federation.hosts = {node: [number] for number, node in enumerate(nodes)}
        federation.partitions = {number: dict(DESCRIBED) for number in range(clients)}
        strategy = FederatedStrategy(Rounds(federation, FedAvg(FederatedConfig())))
        initial = ArrayRecord()
        initial["model"] = HeldArray(np.zeros(numel, np.float32))
        timed(strategy, federation.grid, initial, times)
        assert all(len(result.outcome.clients) == clients for result in strategy.results)

    simulate(
        server_app,
        client_app,
        clients,
        object_store_memory=object_store_bytes(numel, NUM_WORKERS, sharded=False),
    )
    return times


def stock(numel: int, clients: int) -> list[tuple[float, float]]:
    """Return the wall and CPU seconds of each round under Flower's FedAvg."""
    from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        model = message.content["arrays"]["weights"].numpy()
        arrays = ArrayRecord({"weights": Array(model + _update(numel))})
        return Message(
            RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}),
            reply_to=message,
        )

    times: list[tuple[float, float]] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
        )
        timed(strategy, grid, ArrayRecord({"weights": Array(np.zeros(numel, np.float32))}), times)

    simulate(server_app, client_app, clients)
    return times


_kept: dict[int, Any] = {}


def _update(numel: int) -> Any:
    """An update that each worker makes once."""
    if numel not in _kept:
        _kept[numel] = np.random.default_rng(0).standard_normal(
            numel, dtype=np.float32
        ) * np.float32(1e-3)
    return _kept[numel]


def case(way: str, millions: str, clients: str) -> dict[str, Any]:
    """Run one case in this process."""
    count = int(clients)
    with PeakMemory() as peak:
        times = {"ours": ours, "stock": stock}[way](int(float(millions) * 1e6), count)
    seconds, cpu = min(wall for wall, _ in times) / count, min(cpu for _, cpu in times) / count
    memory = {"driver_mb": peak.driver_mb, "store_mb": peak.store_mb}
    return {
        "way": way,
        "clients": count,
        "s_per_update": seconds,
        "driver_cpu_s_per_update": cpu,
        **memory,
    }


def compare(millions: float, our_clients: list[int], stock_clients: list[int]) -> None:
    """Print the figures of all cases, one JSON line each."""
    mine = [case_alone(__spec__.name, "ours", millions, clients) for clients in our_clients]
    theirs = [case_alone(__spec__.name, "stock", millions, clients) for clients in stock_clients]
    for result in [*mine, *theirs]:
        print(json.dumps(result), flush=True)
    peaks = [result["driver_mb"] + result["store_mb"] for result in mine]
    last = theirs[-1]
    for name, our, peer, unit in (
        ("round: seconds per client update", mine[-1]["s_per_update"], last["s_per_update"], "s"),
        ("round: server memory", max(peaks), last["driver_mb"] + last["store_mb"], "MB"),
    ):
        figure(name, our, peer, unit)
    spread = {
        "name": f"round: server memory, {our_clients} clients",
        "ours": [round(peak) for peak in peaks],
        "unit": "MB",
    }
    print(json.dumps({**spread, "spread": round(max(peaks) / min(peaks) - 1, 3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=95.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--stock-clients", type=int, nargs="+", default=[2, 4, 6])
    run(
        parser,
        case,
        lambda arguments: compare(arguments.millions, arguments.clients, arguments.stock_clients),
    )


if __name__ == "__main__":
    main()

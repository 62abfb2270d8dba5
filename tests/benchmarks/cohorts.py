"""What a client of a large cohort costs: a linear model of 0.9 M parameters, one SGD step on one batch per client, many clients per round.

Ours plays all clients on a few nodes, which hand in exact partial sums, on two workers and on one; beside it stock Flower's simulation on two, and
pfl-research's simulator, which is one process (extra ``bench``). Model, batch and step are the same.
``python -m tests.benchmarks.cohorts`` prints one JSON line per case, and the ratios.
"""

import argparse
import importlib.util
import json
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.benchmarks.engine import (
    DESCRIBED,
    NUM_ROUNDS,
    NUM_WORKERS,
    TRAINED,
    PeakMemory,
    simulate,
    timed,
)
from tests.benchmarks.figures import case_alone, figure, run

NUM_FEATURES, NUM_CLASSES, BATCH, LEARNING_RATE = 900, 1000, 16, 0.1


class Linear(nn.Module):
    """The model, in the form that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_CLASSES, NUM_FEATURES))

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional.linear(x, self.weight), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {}


def batch_of(client: int) -> list[torch.Tensor]:
    """Return a client's data: features [BATCH, NUM_FEATURES] and classes [BATCH]."""
    generator = torch.Generator().manual_seed(client)
    return [
        torch.randn(BATCH, NUM_FEATURES, generator=generator),
        torch.randint(NUM_CLASSES, (BATCH,), generator=generator),
    ]


_kept: dict[Any, Any] = {}


def kept(key: Any, make: Any) -> Any:
    """Return what this process made for ``key`` the first time: data and models that stay in memory."""
    if key not in _kept:
        _kept[key] = make()
    return _kept[key]


def step(client: int) -> tuple[Linear, torch.optim.Optimizer]:
    """Take a client's step on this process's model, which has to be at the global one."""
    model = kept("model", Linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    optimizer.zero_grad()
    model.loss(*kept(client, lambda: batch_of(client))).backward()
    optimizer.step()
    return model, optimizer


def ours(clients: int, workers: int, registered: int | None = None) -> list[tuple[float, float]]:
    """Return the wall and the driver's CPU seconds of each round, for which ``clients`` of those registered (None: all) are drawn."""
    from flwr.app import ArrayRecord, Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

    from fedhubert.compose import compose
    from fedhubert.config import FederatedConfig
    from fedhubert.federation.engine.simulation import num_supernodes, object_store_bytes
    from fedhubert.federation.roster.nodes import Federation
    from fedhubert.federation.rounds.shared import Rounds
    from fedhubert.federation.rounds.strategy import FederatedStrategy
    from fedhubert.federation.strategies.fedavg import FedAvg
    from fedhubert.federation.updates.exact_sum import ExactSum, magnitude_of
    from fedhubert.federation.updates.sketches import sketch_of
    from fedhubert.federation.wire import protocol, reading
    from fedhubert.federation.wire.arrays import HeldArray
    from fedhubert.federation.wire.grid import StreamingGrid, messages_in_flight
    from fedhubert.training.parameters import ParameterLayout, tensor_of

    registered = registered or clients
    overrides = [
        f"federated.client_fraction={clients / registered}",
        "federated.strategy=FedAvg",
        f"simulation.num_workers={workers}",
    ]
    config = compose([f"federated.num_clients={registered}", *overrides])
    layout = ParameterLayout.of(Linear())
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train("round")
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        request = reading.read_request(message)
        incoming = tensor_of(request.arrays["model"])
        fold, metrics, sketches = ExactSum(layout.numel), {}, []
        for partition in request.task.partitions:
            layout.load_vector(kept("model", Linear), incoming)
            model, _ = step(partition)
            update = layout.update_of(model, incoming)
            magnitude = magnitude_of(update)
            metrics[partition] = {**TRAINED, "weight": BATCH, "update_norm": magnitude.norm}
            fold.add(update, BATCH, magnitude)
            sketches.append(sketch_of(update, 0, request.task.round))
        part = fold.partial()
        info = {"round": request.task.round, "layout": request.task.layout}
        arrays = {"sum": part.total.numpy(), "sketches": np.stack(sketches)}
        return protocol.reply_of(message, metrics=metrics, arrays=arrays, info=info)

    times: list[tuple[float, float]] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < num_supernodes(config):
            time.sleep(0.1)
        federation = Federation(
            StreamingGrid(grid, window=messages_in_flight(workers)), config, "bench", layout
        )
        federation.hosts = {node: list(range(registered)) for node in nodes}
        federation.partitions = {number: dict(DESCRIBED) for number in range(registered)}
        strategy = FederatedStrategy(Rounds(federation, FedAvg(FederatedConfig())))
        initial = ArrayRecord()
        initial["model"] = HeldArray(np.zeros(layout.numel, np.float32))
        timed(strategy, federation.grid, initial, times)
        assert len(strategy.results[-1].outcome.clients) == clients

    store = object_store_bytes(layout.numel, workers, sharded=True)
    simulate(
        server_app,
        client_app,
        num_supernodes(config),
        num_workers=workers,
        object_store_memory=store,
    )
    return times


def stock(clients: int, workers: int) -> list[tuple[float, float]]:
    """The same clients as Flower's quickstarts write them: state dict in, step, state dict out."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        kept("model", Linear).load_state_dict(message.content["arrays"].to_torch_state_dict())
        model, _ = step(int(context.node_config["partition-id"]))
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": BATCH}),
        }
        return Message(RecordDict(content), reply_to=message)

    times: list[tuple[float, float]] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
        )
        timed(strategy, grid, ArrayRecord(Linear().state_dict()), times)

    simulate(server_app, client_app, clients, num_workers=workers)
    return times


def pfl(clients: int, workers: int) -> list[tuple[float, float]]:
    """The same under pfl-research's simulator, which is this process alone, whatever ``workers``."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data import FederatedDataset
    from pfl.data.dataset import Dataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    times: list[tuple[float, float]] = []

    class Clock(TrainingProcessCallback):  # type: ignore[misc]
        def on_train_begin(self, *, model: Any) -> Any:
            self.started = time.monotonic(), time.process_time()
            return Metrics()

        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            times.append(
                (time.monotonic() - self.started[0], time.process_time() - self.started[1])
            )
            self.started = time.monotonic(), time.process_time()
            return False, Metrics()

    module = Linear()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    data = {client: batch_of(client) for client in range(clients)}
    sampler = MinimizeReuseUserSampler(list(data))
    dataset = FederatedDataset(lambda client: Dataset(data[client], user_id=str(client)), sampler)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=NUM_ROUNDS,
            evaluation_frequency=10**6,
            train_cohort_size=clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=dataset, val_data=dataset),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=None
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Clock()],
    )
    return times


def case(way: str, clients: str, workers: str, *registered: str) -> dict[str, Any]:
    """Run one case in this process."""
    count = int(clients)
    with PeakMemory() as peak:
        times = {"ours": ours, "stock": stock, "pfl": pfl}[way](
            count, int(workers), *map(int, registered)
        )
    memory = {"driver_mb": peak.driver_mb, "store_mb": peak.store_mb}
    about = {"way": way, "clients": count, "workers": int(workers)}
    return {**about, "ms_per_client": min(wall for wall, _ in times) / count * 1e3, **memory}


def compare(our_clients: list[int], stock_clients: int, pfl_clients: int, registered: int) -> None:
    """Print the figures of all cases, one JSON line each; pfl's only where it is installed."""
    mine = [case_alone(__spec__.name, "ours", clients, NUM_WORKERS) for clients in our_clients]
    peers = [("stock", stock_clients, NUM_WORKERS)]
    if importlib.util.find_spec("pfl"):
        mine.append(case_alone(__spec__.name, "ours", our_clients[-1], 1))
        peers.append(("pfl", pfl_clients, 1))
    theirs = [case_alone(__spec__.name, *peer) for peer in peers]
    for result in [*mine, *theirs]:
        print(json.dumps(result), flush=True)
    for peer in theirs:
        our = next(
            result["ms_per_client"]
            for result in reversed(mine)
            if result["workers"] == peer["workers"]
        )
        figure(
            f"cohort: ms per client beside {peer['way']}, {peer['workers']} workers",
            our,
            peer["ms_per_client"],
            "ms",
        )
    few = case_alone(__spec__.name, "ours", 100, NUM_WORKERS, registered)
    figure(
        f"cohort: ms per client, 100 drawn of {registered} registered",
        few["ms_per_client"],
        None,
        "ms",
    )
    figure(
        f"cohort: server memory, 100 drawn of {registered} registered",
        few["driver_mb"] + few["store_mb"],
        None,
        "MB",
    )
    peaks = [
        round(result["driver_mb"] + result["store_mb"])
        for result in mine
        if result["workers"] == NUM_WORKERS
    ]
    print(
        json.dumps(
            {"name": f"cohort: server memory, {our_clients} clients", "ours": peaks, "unit": "MB"}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--stock-clients", type=int, default=200)
    parser.add_argument("--pfl-clients", type=int, default=1000)
    parser.add_argument("--registered", type=int, default=10_000)
    run(
        parser,
        case,
        lambda arguments: compare(
            arguments.clients, arguments.stock_clients, arguments.pfl_clients, arguments.registered
        ),
    )


if __name__ == "__main__":
    main()

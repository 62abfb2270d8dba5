"""What the benchmark of large cohorts is compared with: stock Flower's simulation, and pfl-research's (extra ``bench``)."""

import time
from typing import Any

import torch

from tests.benchmarks.cohort_model import BATCH, LEARNING_RATE, Linear, batch_of, kept, step
from tests.benchmarks.engine import NUM_ROUNDS, simulate, timed


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

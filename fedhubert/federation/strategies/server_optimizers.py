"""Server optimisers: one step on the mean update, in float32 tensors of the flattened model.

FedAvg: McMahan et al. 2017. FedAvgM: Hsu et al. 2019; with Nesterov's momentum it is DiLoCo's outer step (Douillard et al. 2023).
FedAdam, FedYogi and FedAdagrad: Reddi et al. 2021, Algorithm 2: no bias correction, and ``v`` starts at ``tau ** 2``. FedNova: Wang et al. 2020;
the clients normalise their updates and the server's step is FedAvg's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from fedhubert.config import FederatedConfig
from fedhubert.errors import CheckpointError
from fedhubert.training.schedule import share_of_rate


class ServerOptimizer(ABC):
    """Turns the mean client update [P] into the next global model [P]; its state is a dict of float32 tensors [P]."""

    def __init__(self) -> None:
        self.state: dict[str, torch.Tensor] = {}

    @abstractmethod
    def step(self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        """Return the new model, after a step at ``share`` of the rate, in the memory of ``mean_update``; ``model`` is left as it is."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take the state of a checkpoint; raises :class:`CheckpointError` when it is another optimiser's."""
        if set(state) != set(self.state) or any(state[key].shape != self.state[key].shape for key in state):
            raise CheckpointError(
                f"the checkpoint's server optimiser state {sorted(state)} does not fit the strategy's {sorted(self.state)}; "
                "resume with the strategy and model that the run began with",
                setting="federated.strategy",
            )
        self.state = {key: value.to(torch.float32).clone() for key, value in state.items()}


class FedAvg(ServerOptimizer):
    """model + learning_rate * mean update."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate

    def step(self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        return torch.add(model, mean_update, alpha=share * self.learning_rate, out=mean_update)


class FedAvgM(ServerOptimizer):
    """Momentum on the mean update: b = momentum b + d; model + learning_rate * b, or * (d + momentum b) with Nesterov's look-ahead."""

    def __init__(self, numel: int, *, learning_rate: float, momentum: float, nesterov: bool) -> None:
        super().__init__()
        self.learning_rate, self.momentum, self.nesterov = learning_rate, momentum, nesterov
        self.state = {"momentum": torch.zeros(numel)}

    def step(self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        buffer = self.state["momentum"].mul_(self.momentum).add_(mean_update)
        direction = mean_update.add_(buffer, alpha=self.momentum) if self.nesterov else buffer
        return torch.add(model, direction, alpha=share * self.learning_rate, out=mean_update)


class Adaptive(ServerOptimizer):
    """m = beta1 m + (1 - beta1) d; v by the rule of the subclass; model + eta m / (sqrt(v) + tau)."""

    def __init__(self, numel: int, *, eta: float, beta1: float, beta2: float, tau: float) -> None:
        super().__init__()
        self.eta, self.beta1, self.beta2, self.tau = eta, beta1, beta2, tau
        self.state = {"m": torch.zeros(numel), "v": torch.full((numel,), tau**2)}

    def step(self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        m, v = self.state["m"], self.state["v"]
        m.mul_(self.beta1).add_(mean_update, alpha=1.0 - self.beta1)
        self._second_moment(v, mean_update)
        scale = torch.sqrt(v, out=mean_update).add_(self.tau)
        return torch.addcdiv(model, m, scale, value=share * self._rate(), out=mean_update)

    def _rate(self) -> float:
        return self.eta

    @abstractmethod
    def _second_moment(self, v: torch.Tensor, d: torch.Tensor) -> None:
        """Update ``v`` in place."""


class FedAdam(Adaptive):
    """v = beta2 v + (1 - beta2) d^2."""

    def _second_moment(self, v: torch.Tensor, d: torch.Tensor) -> None:
        v.mul_(self.beta2).addcmul_(d, d, value=1.0 - self.beta2)


class FlowerFedAdam(FedAdam):
    """FedAdam as Flower 1.41 has it: ``v`` starts at 0, and eta is corrected by Adam's factors of step t + 1 in step t."""

    def __init__(self, numel: int, *, eta: float, beta1: float, beta2: float, tau: float) -> None:
        super().__init__(numel, eta=eta, beta1=beta1, beta2=beta2, tau=tau)
        self.state["v"].zero_()
        self.state["steps"] = torch.zeros(1)

    def _rate(self) -> float:
        self.state["steps"] += 1
        power = float(self.state["steps"]) + 1.0
        return float(self.eta * (1.0 - self.beta2**power) ** 0.5 / (1.0 - self.beta1**power))


class FedYogi(Adaptive):
    """v = v - (1 - beta2) d^2 sign(v - d^2)."""

    def _second_moment(self, v: torch.Tensor, d: torch.Tensor) -> None:
        square = d * d
        v.sub_(square * torch.sign(v - square), alpha=1.0 - self.beta2)


class FedAdagrad(Adaptive):
    """v = v + d^2."""

    def _second_moment(self, v: torch.Tensor, d: torch.Tensor) -> None:
        v.addcmul_(d, d)


_ADAPTIVE: dict[str, Callable[..., Adaptive]] = {"FedAdam": FedAdam, "FedYogi": FedYogi, "FedAdagrad": FedAdagrad}


def build_server_optimizer(config: FederatedConfig, numel: int) -> ServerOptimizer:
    """Return the optimiser that ``config.strategy`` names, for a model of ``numel`` parameters.

    FedProx and FedNova differ from FedAvg on the clients, the robust strategies in how the mean is taken; their step is FedAvg's.
    """
    if config.strategy == "FedAvgM":
        rate, momentum = config.server_learning_rate, config.server_momentum
        return FedAvgM(numel, learning_rate=rate, momentum=momentum, nesterov=config.nesterov)
    adaptive = FlowerFedAdam if config.bias_correction == "flower" else _ADAPTIVE.get(config.strategy)
    if adaptive is None:
        return FedAvg(config.server_learning_rate)
    return adaptive(numel, eta=config.eta, beta1=config.beta1, beta2=config.beta2, tau=config.tau)


def server_share(config: FederatedConfig, round_number: int) -> float:
    """Return what of its rate the server takes in a round, counted from 1: ``server_schedule`` at the round's middle."""
    progress = (round_number - 0.5) / config.num_rounds
    return share_of_rate(progress, config.server_warmup_fraction, config.server_schedule)


def nova_coefficient(steps: int, momentum: float) -> float:
    """Return FedNova's normaliser of ``steps`` local steps: the sum of the weights with which their gradients enter the update.

    Exact for SGD with ``momentum`` rho (Wang et al. 2020, section 4.2): (steps - rho (1 - rho^steps) / (1 - rho)) / (1 - rho), which is ``steps``
    without momentum. For AdamW, whose steps have no such weights, the number of steps is a heuristic.
    """
    return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)

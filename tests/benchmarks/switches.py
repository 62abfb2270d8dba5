"""What switches do to a step of pretraining on the CPU: each beside the step as it is, with everything else the same.

``python -m tests.benchmarks.switches`` prints one JSON line per switch; ``ratio`` is how many times less the step as it is takes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fedhubert.config import Config
from fedhubert.data.batching import Batch
from fedhubert.models.hubert import HubertModel
from fedhubert.training.stepping import Trainer
from tests.benchmarks.figures import figure, in_turn, run
from tests.benchmarks.step import build_ours, configuration, noise

Step = Callable[[], object]
Change = Callable[[Trainer, Batch], None]


def adamw(trainer: Trainer, batch: Batch, **how: bool) -> None:
    """Let AdamW take its step in another of torch's ways."""
    group = trainer.optimizer.param_groups[0]
    settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
    trainer.optimizer = torch.optim.AdamW(trainer.parameters, **settings, **how)
    trainer.optimizer.param_groups[0]["factor"] = group["factor"]


def attention_mask(trainer: Trainer, batch: Batch) -> None:
    """Give attention a mask that hides nothing, as lengths would."""
    rows, frames = batch.mask_BT.shape
    for layer in _layers(trainer.model):
        layer.forward = partial(layer.forward, attention_mask=torch.zeros(rows, 1, frames, frames))


def torchaudio_convolutions(trainer: Trainer, batch: Batch) -> None:
    """Convolve as torchaudio does, by conv1d with everything kept."""
    extractor = trainer.model.wav2vec2.feature_extractor
    trainer.model.convolve = lambda waveforms_BN: extractor(waveforms_BN, None)[0]


def compiled(trainer: Trainer, batch: Batch) -> None:
    for layer in _layers(trainer.model):
        layer.compile()


def _layers(model: HubertModel) -> Any:
    return model.wav2vec2.encoder.transformer.layers


SWITCHES: dict[str, Change] = {
    "AdamW parameter by parameter": partial(adamw, foreach=False, fused=False),
    "AdamW over lists (foreach)": partial(adamw, foreach=True),
    "an attention mask": attention_mask,
    "torchaudio's convolutions": torchaudio_convolutions,
    "torch.compile of the transformer's layers": compiled,
}


def trainer_of(config: Config) -> Trainer:
    return Trainer(build_ours(config), config.client, config.task, 0, 0, torch.device("cpu"), 0.0)


def compare(
    model: str, rows: int, seconds: float, repeats: int, left_out: tuple[str, ...] = ()
) -> None:
    """Print a step under each switch that is not ``left_out``."""
    config = configuration(model)
    batch = noise(config, rows, seconds)
    bf16 = config.model_copy(
        update={"client": config.client.model_copy(update={"precision": "bf16"})}
    )
    no_dropout = config.model_copy(
        update={"model": config.model.model_copy(update={"attention_dropout": 0.0})}
    )
    for name in ("bf16 autocast", "no attention dropout: torch's fused attention", *SWITCHES):
        if name in left_out:
            continue
        settings = {
            "bf16 autocast": bf16,
            "no attention dropout: torch's fused attention": no_dropout,
        }.get(name, config)
        as_it_is, changed = trainer_of(config), trainer_of(settings)
        if name in SWITCHES:
            SWITCHES[name](changed, batch)
        sides = {"ours": as_it_is, "switched": changed}
        try:
            took = in_turn(
                {side: partial(trainer.step, [batch], 1e-4) for side, trainer in sides.items()},
                repeats,
            )
        except Exception as error:  # a compiler that is not there
            print(f"skipped: {name}: {str(error).splitlines()[0]}", flush=True)
            continue
        figure(
            f"step: CPU, {model}, {rows} x {seconds:g} s, beside {name}",
            took["ours"],
            took["switched"],
            "s",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hubert_base")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    run(
        parser,
        lambda: None,
        lambda given: compare(given.model, given.rows, given.seconds, given.repeats),
    )


if __name__ == "__main__":
    main()

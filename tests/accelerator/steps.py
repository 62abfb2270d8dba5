"""The steps, most important first: what each is for, and how long it may take at most."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A module of this package with a function ``run(context)``; ``limit_s`` is for a card, ``quick_s`` for toy sizes."""

    name: str
    about: str
    limit_s: float
    quick_s: float = 600.0


LEARNING_S = 180.0
"""What the steps before it leave to `learning`, the last."""

STEPS = (
    Step(
        "environment",
        "card, memory, driver; product rate and copy bandwidth, the limits of all that follows",
        40,
    ),
    Step(
        "numerics",
        "loss and gradients on the card beside the CPU, torchaudio, lower precision, checkpointing, compile",
        90,
    ),
    Step(
        "step",
        "seconds of audio a second, memory, share of the product rate; beside torchaudio and minimal-hubert",
        150,
    ),
    Step(
        "distillation", "HuBERT base into 384x6 and 768x2, teacher run and cached; beside s3prl", 55
    ),
    Step(
        "memory",
        "a batch that does not fit is halved with the same gradient; two processes share the card",
        45,
    ),
    Step(
        "simulation",
        "the demo on Ray, one worker and two: seconds a round, busy share, the same bits",
        80,
    ),
    Step("loader", "seconds of audio a second that loader threads bring to the card", 25),
    Step(
        "learning",
        "experiment=accelerator_small on the corpus for what is left, then probes beside MFCC",
        3600,
    ),
)

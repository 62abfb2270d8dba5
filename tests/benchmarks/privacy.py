"""What differential privacy costs in learning: noise by the server and by the clients beside none, on the speech that FEDHUBERT_CORPUS names.

``python -m tests.benchmarks.privacy --rounds 20 --noise 0.01 0.1 1 --seeds 0 1 2`` trains each for each seed and prints a JSON line: held-out loss
beside that of a run that is clipped alike and has no noise, and epsilon. Small multipliers have no useful epsilon: they show where learning ends. ``--way`` as in
``tests.benchmarks.codecs``; updates of ``muon`` are a thousand times their gradient (``--clip 1000``).
"""

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks.codecs import WAYS, figures, train
from tests.benchmarks.figures import figure

ALIKE = [
    *("federated.client_fraction=1", "federated.sampling=random"),
    *("federated.weight_by=uniform", "targets.seeding=moments"),
]
SIDES = {
    "central": ["privacy=central"],
    "distributed": ["privacy=distributed", "secure=pairwise"],
}


def compare(
    rounds: int, noise: list[float], seeds: list[int], clip: float, way: str, out: Path
) -> None:
    """Print the held-out loss of each mechanism, multiplier and seed."""
    for seed in seeds:
        same = [*ALIKE, f"seed={seed}", f"federated.num_rounds={rounds}"]
        clipped = ["privacy=central", "privacy.noise_multiplier=0", f"privacy.clip_norm={clip:g}"]
        exact = figures(train(out / f"none-{seed}", *same, *clipped, way=way))
        for multiplier in noise:
            for name, settings in SIDES.items():
                noised = [f"privacy.noise_multiplier={multiplier:g}", f"privacy.clip_norm={clip:g}"]
                folder = out / f"{name}-{multiplier:g}-{seed}"
                events = train(folder, *same, *settings, *noised, way=way)
                spent = [event["privacy"] for event in events if event["event"] == "round"][-1]
                figure(
                    f"privacy={name}, {way}, z={multiplier:g}, clip {clip:g}, {rounds} rounds, seed {seed}: held-out loss",
                    figures(events)["loss"],
                    exact["loss"],
                    "nats",
                    before=round(exact["first_loss"], 3),
                    epsilon=spent["epsilon"],
                    noise_std=spent["noise_std"],
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--way", choices=sorted(WAYS), default="local")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="privacy-"))
    compare(given.rounds, given.noise, given.seeds, given.clip, given.way, out)


if __name__ == "__main__":
    main()

"""Digests of what a handful of runs train: a change that should not change numerics has the same ones before and after.

    python -m tests.digests --out before.json              # in a checkout of the commit before
    python -m tests.digests --against before.json          # after the change, on the same machine

A digest covers the bits of the last model and of all that resuming needs (server optimiser, centroids). Bits depend on the processor and on
torch's version, so digests are compared within one machine and never kept in the repository. The runs train on the speech of FEDHUBERT_CORPUS.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[1]
SMALL = [
    "experiment=demo_fedavg",
    "model.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    *("model.embed_dim=32", "model.ffn_dim=64", "model.num_layers=2", "model.num_heads=2"),
    *(
        "model.dropout=0.1",
        "model.layer_drop=0.1",
        "model.pos_conv_kernel=16",
        "model.pos_conv_groups=4",
    ),
    *("targets.num_clusters=16", "targets.max_iterations=3", "targets.max_frames_per_client=5000"),
    *(
        "federated.num_rounds=3",
        "client.local_steps=3",
        "client.validation_batches=2",
        "checkpoint.every=1",
    ),
]
SPEAKERS = ["data.partition.kind=speaker", "federated.num_clients=4"]
FIXED_SECRET = """
import secrets, sys
drawn = secrets.token_bytes
secrets.token_bytes = lambda n=32: bytes(range(n)) if sys._getframe(1).f_globals["__name__"].startswith("fedhubert") else drawn(n)
"""
"""Privacy noise comes from a secret that is drawn when a run begins; a ``sitecustomize`` of these lines draws the same one each time."""


class Runs:
    """Trains the runs, each in a folder of its own below ``folder``."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        self.folder = folder
        self._data = [f"data.manifest={corpus / 'manifest.csv'}", f"data.root={corpus}"]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
            ),
            "FEDHUBERT_CACHE": str(folder / "cache"),
        }

    def demo(self) -> Path:
        """The demo itself, two rounds of it."""
        return self._train(
            "demo",
            "experiment=demo_fedavg",
            "federated.num_clients=6",
            "federated.num_rounds=2",
            "client.local_steps=12",
            "client.validation_batches=4",
        )

    def speakers_fedadam(self) -> Path:
        """Clients by speaker, half of them a round, an adaptive server optimiser."""
        adam = [
            "federated.strategy=FedAdam",
            "federated.client_fraction=0.5",
            "federated.weight_by=utterances",
        ]
        return self._train("speakers_fedadam", *SMALL, *SPEAKERS, *adam)

    def distillation(self) -> Path:
        """A student of the demo's model, every objective but pseudo-labels."""
        teacher = [
            "federated.num_clients=6",
            f"task.teacher={self.folder / 'demo'}",
            "client.local_steps=6",
            "client.validation_batches=4",
        ]
        return self._train(
            "distillation", "experiment=demo_distill", "federated.num_rounds=2", *teacher
        )

    def layer_targets(self) -> Path:
        """A second iteration: k-means over a layer of the demo's model."""
        layer = [
            "targets=layer",
            "targets.source=layer:1",
            f"targets.checkpoint={self.folder / 'demo'}",
        ]
        return self._train("layer_targets", *SMALL, *SPEAKERS, *layer)

    def int8_kept(self) -> Path:
        """Updates in int8 with error feedback, optimisers kept at the sites, broadcast in bfloat16."""
        kept = [
            "federated.update_codec=int8",
            "federated.broadcast_codec=bf16",
            "client.optimizer_policy=keep",
        ]
        return self._train("int8_kept", *SMALL, *SPEAKERS, *kept)

    def central_privacy(self) -> Path:
        """Clipping and noise from a secret that is the same each time."""
        (self.folder / "fixed").mkdir()
        (self.folder / "fixed/sitecustomize.py").write_text(FIXED_SECRET)
        noise = [
            "privacy=central",
            "privacy.clip_norm=0.1",
            "privacy.noise_multiplier=0.5",
            "federated.client_fraction=0.75",
        ]
        return self._train(
            "central_privacy", *SMALL, *SPEAKERS, *noise, modules=self.folder / "fixed"
        )

    def many_clients_a_node(self) -> Path:
        """Nodes that host several clients reply with exact partial sums; FedNova."""
        many = [
            "data.partition.kind=speaker",
            "federated.num_clients=8",
            "simulation.num_supernodes=2",
        ]
        return self._train("many_clients_a_node", *SMALL, *many, "federated.strategy=FedNova")

    def three_sites(self) -> Path:
        """A SuperLink and three SuperNodes."""
        from tests.conftest import write_tones
        from tests.deployment.conftest import NODES, Deployment, write_site

        write_tones(self.folder / "tones")
        deployed = Deployment(self.folder / "deployment")
        try:
            deployed.start_superlink()
            for number in range(NODES):
                write_site(
                    self.folder / "tones", deployed.folder / f"site-{number}", [f"speaker{number}"]
                )
                deployed.register(number)
                deployed.start_node(number).wait_for("SuperNode ID:")
            run = deployed.run(self.folder / "three_sites")
            if deployed.finish(run) != "finished:completed":
                raise RuntimeError(deployed.logs())
        finally:
            deployed.end()
        return self.folder / "three_sites"

    def _train(self, name: str, *overrides: str, modules: Path | None = None) -> Path:
        out = self.folder / name
        command = [
            sys.executable,
            "-m",
            "fedhubert.cli",
            "train",
            *overrides,
            *self._data,
            f"out={out}",
        ]
        environment = dict(self._environment)
        if modules is not None:
            environment["PYTHONPATH"] = os.pathsep.join([str(modules), environment["PYTHONPATH"]])
        done = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-3000:]}")
        return out


NAMES = (
    *("demo", "speakers_fedadam", "distillation", "layer_targets", "int8_kept", "central_privacy"),
    *("many_clients_a_node", "three_sites"),
)


def digest_of(out: Path) -> str:
    """Return a digest of the last model of the run in ``out`` and of the tensors that resuming needs."""
    last = max((out / "checkpoints").glob("round_*_checkpoint.pt"))
    resume = last.with_name(last.name.replace("_checkpoint", "_resume"))
    digest = hashlib.sha256()
    for file, values in ((last, _load(last)["model"]), (resume, _load(resume))):
        for name, tensor in _tensors("", values):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        assert file.is_file()
    return digest.hexdigest()[:32]


def _load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _tensors(name: str, values: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(values, torch.Tensor):
        yield name, values
    elif isinstance(values, dict):
        for key in sorted(values, key=str):
            yield from _tensors(f"{name}.{key}", values[key])


def main() -> int:
    """Train the runs and print, write or compare their digests; 1 where one differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.digests", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, help="write the digests to this file")
    parser.add_argument("--against", type=Path, help="compare with the digests in this file")
    parser.add_argument(
        "--only", help=f"some of {', '.join(NAMES)} (what they start from runs, too)"
    )
    parsed = parser.parse_args()
    names = parsed.only.split(",") if parsed.only else list(NAMES)
    if {"distillation", "layer_targets"} & set(names) and "demo" not in names:
        names.insert(0, "demo")
    if "FEDHUBERT_CORPUS" not in os.environ:
        parser.error(
            "FEDHUBERT_CORPUS is not set: the runs train on a folder of speech with a manifest.csv"
        )
    before = json.loads(parsed.against.read_text()) if parsed.against else {}
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="digests-") as folder:
        runs = Runs(Path(folder), Path(os.environ["FEDHUBERT_CORPUS"]).resolve())
        for name in names:
            started = time.monotonic()
            train: Callable[[], Path] = getattr(runs, name)
            found[name] = digest_of(train())
            same = (
                ""
                if not before
                else "same"
                if before.get(name) == found[name]
                else f"DIFFERS: {before.get(name)}"
            )
            print(f"{name:20} {found[name]} {time.monotonic() - started:6.1f} s {same}", flush=True)
    if parsed.out:
        parsed.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(before) and any(before.get(name) != digest for name, digest in found.items()))


if __name__ == "__main__":
    sys.exit(main())

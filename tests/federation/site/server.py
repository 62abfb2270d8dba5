"""A server that asks one site whatever it likes, behind the site's real door: reading, policy, handlers, audit log."""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import torch

from fedhubert.compose import compose
from fedhubert.config import ClientJob
from fedhubert.data.manifest import Manifest
from fedhubert.federation.site.answering import respond
from fedhubert.federation.site.policy import default_policy, explain
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.messages import ANSWERS
from fedhubert.federation.wire.messages.message import Answer, Failure, Instruction
from fedhubert.federation.wire.messages.rounds import Train
from fedhubert.federation.wire.messages.targets import Label
from fedhubert.objectives.spec import build_model
from fedhubert.targets.kmeans import centroids_hash
from fedhubert.training.parameters import ParameterLayout

Node = dict[str, str | int]
AnswerT = TypeVar("AnswerT", bound=Answer)

UTTERANCES = 60
JOB = [
    "experiment=demo_fedavg",
    "model.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    *(
        "model.embed_dim=32",
        "model.ffn_dim=64",
        "model.num_layers=1",
        "model.num_heads=2",
        "model.pos_conv_kernel=16",
    ),
    *(
        "model.pos_conv_groups=4",
        "data.max_seconds=2",
        "data.batch_seconds=8",
        "targets.num_clusters=6",
    ),
    *(
        "federated.num_clients=3",
        "client.local_steps=10",
        "client.validation_batches=4",
        "data.num_workers=0",
    ),
]
"""A run that a strict site takes part in."""


def write_site(folder: Path) -> Path:
    """Write the audio of a site, a minute and a half of noise of changing loudness, and return its manifest."""
    rng = np.random.default_rng(5)
    lines = ["path,speaker,num_samples,sample_rate"]
    for number in range(UTTERANCES):
        count = 9600 + 331 * number
        loudness = 0.05 + 0.1 * np.abs(np.sin(np.arange(count) / 2000 + number))
        samples = (loudness * rng.standard_normal(count)).astype(np.float32)
        soundfile.write(folder / f"{number}.wav", samples, 16000, subtype="FLOAT")
        lines.append(f"{number}.wav,anyone,{count},16000")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def no_refusals(folder: Path) -> str:
    """Return the path of a policy that refuses nothing."""
    (folder / "open.yaml").write_text(explain(default_policy(own_data=False)))
    return str(folder / "open.yaml")


@functools.cache
def _job(overrides: tuple[str, ...]) -> ClientJob:
    return client_job(compose(overrides))


@dataclass
class Server:
    """One that plays by the protocol, and asks what it likes.

    Attributes:
        node: The site's configuration.
        overrides: Of every job.
    """

    node: Node
    overrides: list[str] = field(default_factory=lambda: list(JOB))
    _runs: "itertools.count[int]" = field(default_factory=itertools.count)

    def job(self, *overrides: str) -> ClientJob:
        return _job((*self.overrides, *overrides))

    def new_run(self) -> str:
        return f"run{next(self._runs)}"

    def ask(
        self,
        instruction: Instruction,
        *overrides: str,
        run: str = "run",
        job: ClientJob | None = None,
    ) -> protocol.Reply[Answer]:
        message = protocol.request(
            1,
            instruction.model_copy(update={"partitions": (0,)}),
            job_json=(job or self.job(*overrides)).model_dump_json(),
            run_key=run,
            group="",
            ttl_s=60.0,
        )
        reply = respond(message, self.node)
        return reading.read_reply(reply, ANSWERS[type(instruction)])

    def refusal(
        self,
        instruction: Instruction,
        *overrides: str,
        run: str = "run",
        job: ClientJob | None = None,
    ) -> str:
        """Return the key that an instruction is refused by; an empty string when it is not."""
        reply = self.ask(instruction, *overrides, run=run, job=job)
        refused = [failure for failure in reply.failures if failure.code == "refused"]
        assert not refused or reply.answer is None
        return refused[0].setting if refused else ""

    def without_policy(self, folder: Path) -> "Server":
        """Return the same server before a site with the same audio, whose policy refuses nothing."""
        changes: Node = {"policy": no_refusals(folder), "state-dir": str(folder / "open")}
        return replace(self, node={**self.node, **changes}, _runs=itertools.count(1000))

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(Path(str(self.node["manifest"])), None)


def answered(reply: protocol.Reply[Answer], kind: type[AnswerT]) -> AnswerT:
    """Return the answer, which has to be there."""
    assert isinstance(reply.answer, kind) and not reply.failures, reply.failures
    return reply.answer


def only(failures: tuple[Failure, ...]) -> Mapping[str, str]:
    return {failure.code: failure.setting for failure in failures}


CENTROIDS = np.random.default_rng(0).standard_normal((6, 39)).astype(np.float32)


def label(server: Server, *overrides: str, run: str = "run") -> str:
    """Have the audio labelled, which training needs; returns the labels' name."""
    key = centroids_hash(CENTROIDS)
    server.ask(Label(targets=key, arrays={"centroids": CENTROIDS}), *overrides, run=run)
    return key


def train(
    server: Server,
    *overrides: str,
    position: int = 0,
    run: str = "run",
    vector: torch.Tensor | None = None,
) -> Train:
    job = server.job(*overrides)
    model = build_model(job.model, job.task, job.seed)
    layout = ParameterLayout.of(model)
    values = layout.to_vector(model) if vector is None else vector
    return Train(
        round=1,
        positions={0: position},
        layout=layout.fingerprint,
        targets=label(server, *overrides, run=run),
        arrays={"model": values.numpy()},
    )

"""What a round on real sites costs besides training: a SuperLink and two sites as processes on the loopback, TLS and node keys, HuBERT base.

Ours is the product (`fedhubert site`): a run whose clients take one step on a second of audio, which is taken off its rounds. Beside it, on a
`flower-superlink` with `flower-supernode`s, a process for each message: the same run, and a stock Flower app that trains nothing: load the
weights, send them back, and evaluate, as quickstarts do. ``python -m tests.benchmarks.deployment`` prints wall time, the CPU seconds of each
kind of process, and for how many seconds of a round all of them slept.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.figures import figure, run
from tests.benchmarks.processes import Watch, flower_app, lines_with
from tests.deployment.conftest import Deployment, write_site

NUM_SITES = 2
SIDES = {
    "ours": "fedhubert site, float32",
    "codecs": "fedhubert site, int8 up, bf16 down",
    "processes": "a process per message, float32",
    "stock": "stock Flower",
}
CODECS = ["federated.update_codec=int8", "federated.broadcast_codec=bf16"]
STOCK = {
    "pyproject.toml": flower_app("stock", 'out = ""\nrounds = 3\nlayers = 12'),
    "stock/__init__.py": "",
    "stock/model.py": """from torchaudio.models import hubert_pretrain_base


def build(layers):
    model = hubert_pretrain_base(num_classes=504)
    del model.wav2vec2.encoder.transformer.layers[layers:]
    return model
""",
    "stock/server.py": """import json
import time

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from stock.model import build

app = ServerApp()


@app.main()
def main(grid, context):
    started = time.monotonic()

    def after(server_round, arrays):
        nonlocal started
        if server_round:
            with open(config["out"], "a") as file:
                print(json.dumps({"event": "round", "seconds": time.monotonic() - started}), file=file)
        started = time.monotonic()

    config = context.run_config
    sent = ConfigRecord({"layers": config["layers"]})
    strategy = FedAvg(min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=2)
    initial = ArrayRecord(build(config["layers"]).state_dict())
    strategy.start(grid, initial, num_rounds=config["rounds"], timeout=900, train_config=sent, evaluate_config=sent, evaluate_fn=after)
""",
    "stock/client.py": """from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from stock.model import build

app = ClientApp()


def loaded(message):
    model = build(message.content["config"]["layers"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@app.train()
def train(message, context):
    content = {"arrays": ArrayRecord(loaded(message).state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    loaded(message)
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.0})}), reply_to=message)
""",
}


@dataclass(frozen=True)
class Measured:
    """Seconds of each round besides training, and what :meth:`Watch.per_round` says."""

    seconds: list[float]
    more: dict[str, object]


def ours(deployed: Deployment, rounds: int, layers: int, more: Sequence[str] = ()) -> Measured:
    """Play a run; its rounds are counted without their slowest client's training."""
    out = Path(tempfile.mkdtemp(prefix="ours-", dir=deployed.folder)) / "run"
    base = [
        "model=hubert_base",
        f"model.num_layers={layers}",
        "targets.num_clusters=500",
        "data.partition.column=speaker",
    ]
    quiet = [
        "checkpoint.every=100",
        "checkpoint.keep_best=false",
        "client.validation_batches=1",
        "data.batch_seconds=1.5",
    ]
    settings = [
        "experiment=research_standard_pretraining",
        *base,
        *quiet,
        "federated.num_clients=2",
        "federated.client_fraction=1",
    ]
    labels = [
        "targets=precomputed",
        "targets.labels=column:ids",
        "targets.label_rate_hz=50",
        "data.min_seconds=0.5",
        "data.max_seconds=1.5",
    ]
    asked = ["client.local_steps=1", f"federated.num_rounds={rounds}", f"out={out}", *more]
    text = " ".join([*settings, *labels, *asked])
    metrics = out / "metrics.jsonl"
    with Watch(deployed.mark, lambda: lines_with(metrics, "event", "round")) as watch:
        run = deployed.submit(Path(__file__).parents[2], f'overrides="{text}"')
        ended = deployed.finish(run, 1800)
    assert ended == "finished:completed", deployed.logs()
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    return Measured(
        [
            event["seconds"]["round"] - max(client["train_seconds"] for client in event["clients"])
            for event in events
            if event["event"] == "round"
        ],
        watch.per_round(),
    )


def stock(deployed: Deployment, rounds: int, layers: int) -> Measured:
    """Play the rounds of a stock app."""
    app, out = deployed.folder / "app", deployed.folder / "stock.jsonl"
    for name, text in STOCK.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    with Watch(deployed.mark, lambda: lines_with(out, "event", "round")) as watch:
        run = deployed.submit(app, f'out="{out}" rounds={rounds} layers={layers}')
        deployed.finish(run, 1800)
    assert out.is_file(), deployed.logs()
    seconds = [json.loads(line)["seconds"] for line in out.read_text().splitlines()]
    return Measured(seconds, watch.per_round())


@contextlib.contextmanager
def deployment(resident: bool) -> Iterator[Deployment]:
    """Start a SuperLink and two sites with a speaker's audio each."""
    with tempfile.TemporaryDirectory(prefix="fedhubert-deployment-") as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for number in range(NUM_SITES):
            speaker = folder / "tones" / f"speaker{number}"
            speaker.mkdir(parents=True)
            for place in range(4):
                with wave.open(str(speaker / f"{place}.wav"), "wb") as file:
                    file.setparams((1, 2, 16000, 0, "NONE", ""))
                    file.writeframes((3000 * rng.standard_normal(20000)).astype("<i2").tobytes())
        with contextlib.redirect_stdout(io.StringIO()):  # what to do with the keys
            deployed = Deployment(folder / "deployment", NUM_SITES)
        for number in range(NUM_SITES):
            write_site(folder / "tones", deployed.folder / f"site-{number}", [f"speaker{number}"])
        try:
            deployed.start_superlink(*(["fedhubert", "superlink"] if resident else []))
            for number in range(NUM_SITES):
                deployed.register(number)
            start, words = (
                (deployed.start_site, "ready:")
                if resident
                else (deployed.start_node, "SuperNode ID:")
            )
            for site in [start(number) for number in range(NUM_SITES)]:
                site.wait_for(words)
            yield deployed
        finally:
            deployed.end()


def compare(sides: Sequence[str], rounds: int, layers: int) -> None:
    found: dict[str, Measured] = {}
    if {"ours", "codecs"} & set(sides):
        with deployment(resident=True) as deployed:
            if "ours" in sides:
                found["ours"] = ours(deployed, rounds, layers)
            if "codecs" in sides:
                found["codecs"] = ours(deployed, rounds, layers, CODECS)
    if {"processes", "stock"} & set(sides):
        with deployment(resident=False) as deployed:
            if "processes" in sides:
                found["processes"] = ours(deployed, rounds, layers)
            if "stock" in sides:
                found["stock"] = stock(deployed, rounds, layers)
    theirs = found.get("stock")
    for name, side in found.items():
        figure(
            f"deployment: overhead of a round, 2 sites: {SIDES[name]}",
            statistics.median(side.seconds),
            None if theirs is None or side is theirs else statistics.median(theirs.seconds),
            "s",
            rounds=[round(seconds, 1) for seconds in side.seconds],
            **side.more,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    run(
        parser,
        None,
        lambda arguments: compare(arguments.sides, arguments.rounds, arguments.layers),
    )


if __name__ == "__main__":
    main()

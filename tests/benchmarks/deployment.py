"""What a round on real sites costs besides training: SuperLink and two SuperNodes as processes on the loopback, TLS and node keys, HuBERT base.

Ours is the product: a run whose clients take one step on a second of audio, which is taken off its rounds. Beside it, on the same SuperLink, a
stock Flower app that trains nothing: load the weights, send them back, and evaluate, as quickstarts do. ``python -m tests.benchmarks.deployment``
prints wall time.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import wave
from pathlib import Path

import numpy as np

from tests.benchmarks.figures import figure, run
from tests.deployment.conftest import Deployment, write_site

NUM_SITES = 2
STOCK = {
    "pyproject.toml": """[project]
name = "stock"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"

[tool.flwr.app.config]
out = ""
rounds = 3
layers = 12
""",
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
    seconds, started = [], time.monotonic()

    def after(server_round, arrays):
        nonlocal started
        if server_round:
            seconds.append(time.monotonic() - started)
        started = time.monotonic()

    config = context.run_config
    sent = ConfigRecord({"layers": config["layers"]})
    strategy = FedAvg(min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=2)
    initial = ArrayRecord(build(config["layers"]).state_dict())
    strategy.start(grid, initial, num_rounds=config["rounds"], timeout=900, train_config=sent, evaluate_config=sent, evaluate_fn=after)
    with open(config["out"], "w") as file:
        json.dump(seconds, file)
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


def ours(deployed: Deployment, rounds: int, layers: int) -> list[float]:
    """Return the seconds of each round, without its slowest client's training."""
    out = deployed.folder / "ours"
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
    text = " ".join(
        [*settings, *labels, "client.local_steps=1", f"federated.num_rounds={rounds}", f"out={out}"]
    )
    ended = deployed.finish(deployed.submit(Path(__file__).parents[2], f'overrides="{text}"'), 1800)
    assert ended == "finished:completed", deployed.logs()
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    played = [event for event in events if event["event"] == "round"]
    return [
        event["seconds"]["round"] - max(client["train_seconds"] for client in event["clients"])
        for event in played
    ]


def stock(deployed: Deployment, rounds: int, layers: int) -> list[float]:
    """Return the seconds of each round of a stock app."""
    app, out = deployed.folder / "app", deployed.folder / "stock.json"
    for name, text in STOCK.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    deployed.finish(deployed.submit(app, f'out="{out}" rounds={rounds} layers={layers}'), 1800)
    assert out.is_file(), deployed.logs()
    seconds: list[float] = json.loads(out.read_text())
    return seconds


def deploy(folder: Path) -> Deployment:
    """Start a SuperLink and two SuperNodes with a speaker's audio each."""
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
    deployed.start_superlink()
    for number in range(NUM_SITES):
        deployed.register(number)
    for node in [deployed.start_node(number) for number in range(NUM_SITES)]:
        node.wait_for("SuperNode ID:")
    return deployed


def compare(rounds: int, layers: int) -> None:
    with tempfile.TemporaryDirectory(prefix="fedhubert-deployment-") as folder:
        deployed = deploy(Path(folder))
        try:
            mine, theirs = ours(deployed, rounds, layers), stock(deployed, rounds, layers)
        finally:
            deployed.end()
    all_rounds = {
        "rounds": [round(seconds, 1) for seconds in mine],
        "peer_rounds": [round(seconds, 1) for seconds in theirs],
    }
    figure(
        "deployment: overhead of a round, 2 SuperNodes",
        statistics.median(mine),
        statistics.median(theirs),
        "s",
        **all_rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--layers", type=int, default=12)
    run(parser, None, lambda arguments: compare(arguments.rounds, arguments.layers))


if __name__ == "__main__":
    main()

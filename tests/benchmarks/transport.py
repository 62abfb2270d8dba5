"""What it takes to bring a model to two sites and two models back, without training or torch: a SuperLink and two SuperNodes as processes on
the loopback, TLS, node keys. Ours is what `fedhubert superlink` and `fedhubert site` do; beside it Flower's own SuperLink, SuperNode, arrays
and waits, with the same loops around them. ``python -m tests.benchmarks.transport`` prints CPU seconds of a round, of all processes, and the
seconds in which all of them slept; a minute.
"""

import argparse
import contextlib
import io
import secrets
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedhubert.federation.site.supernode import DistantNode, Node, OwnNode
from fedhubert.federation.wire.arrays import HeldArray, put_together_once
from fedhubert.federation.wire.flower import Array, ArrayRecord, Message, RecordDict
from fedhubert.federation.wire.flower.supernode import SuperNodeApi, Unreachable
from fedhubert.federation.wire.flower.waits import shorten_waits
from tests.benchmarks.figures import figure, run
from tests.benchmarks.processes import Watch, lines_with
from tests.deployment.conftest import Deployment, free_port

NUM_SITES = 2
APP = {
    "pyproject.toml": """[project]
name = "transport"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "transport.server:app"
clientapp = "transport.client:app"

[tool.flwr.app.config]
out = ""
way = ""
rounds = 3
numel = 1
""",
    "transport/__init__.py": "",
    "transport/server.py": """from flwr.serverapp import ServerApp

from tests.benchmarks.transport import play

app = ServerApp()
app.main()(play)
""",
    "transport/client.py": """from flwr.clientapp import ClientApp

app = ClientApp()
""",
}


def content_of(values: np.ndarray, way: str) -> RecordDict:  # type: ignore[type-arg]
    record = ArrayRecord()
    record["model"] = HeldArray(values) if way == "ours" else Array(values)
    return RecordDict({"arrays": record})


def play(grid: object, context: object) -> None:
    """Be the ServerApp: send a model to all, and read what comes back."""
    from fedhubert.federation.wire.grid import StreamingGrid

    config = context.run_config  # type: ignore[attr-defined]
    way, streaming = config["way"], StreamingGrid(grid)  # type: ignore[arg-type]
    if way == "ours":
        shorten_waits("grid")
        put_together_once()
    while len(nodes := list(streaming.get_node_ids())) < NUM_SITES:
        time.sleep(0.2)
    values = np.random.default_rng(0).standard_normal(config["numel"], dtype=np.float32)
    for number in range(config["rounds"]):
        values[0] = number
        content = content_of(values.copy(), way)
        messages = [Message(content, node, "train", group_id=str(number)) for node in nodes]
        for reply in streaming.send_and_receive(messages, timeout=600):
            came = reply.content.array_records["arrays"]["model"].numpy()
            assert np.array_equal(came, values)
        with open(config["out"], "a") as file:
            print('{"event": "round"}', file=file)


def serve(way: str, node: Node) -> None:
    """Be a site whose training takes no time: send back what comes."""
    if way == "ours":
        shorten_waits("site")
        put_together_once()
    while True:
        try:
            token = node.api.claim() if node.tend() else None
            if token is None:
                time.sleep(0.25)
                continue
            task = node.api.pull(token)
            values = task.message.content.array_records["arrays"]["model"].numpy()
            node.api.push(token, Message(content_of(values, way), reply_to=task.message), task)
            node.api.finish(token)
        except Unreachable:
            time.sleep(0.25)


def site(way: str, superlink: str, certs: str, number: str, port: str, secret: str) -> None:
    """Be a site's process. Flower's SuperNode is started by who starts this."""
    folder = Path(certs)
    key = folder / f"node-{number}.key"
    if way == "ours":
        log = folder / f"supernode-{number}.log"
        return serve(way, OwnNode(superlink, folder / "ca.crt", key, log, print))
    return serve(way, DistantNode(SuperNodeApi(f"127.0.0.1:{port}", secret.encode()), print))


def measure(way: str, rounds: int, numel: int) -> tuple[float, float, dict[str, object]]:
    """Return CPU seconds and seconds asleep of a round, and :meth:`Watch.per_round`."""
    with tempfile.TemporaryDirectory(prefix="fedhubert-transport-") as name:
        folder = Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            deployed = Deployment(folder / "deployment", NUM_SITES)
        deployed.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        try:
            deployed.start_superlink(*(["fedhubert", "superlink"] if way == "ours" else []))
            superlink = f"127.0.0.1:{deployed.port}"
            for number in range(NUM_SITES):
                deployed.register(number)
                port, secret = str(free_port()), secrets.token_hex(32)
                if way != "ours":
                    file = folder / f"secret-{number}"
                    file.write_text(secret)
                    deployed.start(
                        f"supernode-{number}",
                        "flower-supernode",
                        f"--superlink={superlink}",
                        "--isolation=process",
                        f"--port={port}",
                        f"--superexec-auth-secret-file={file}",
                        f"--root-certificates={deployed.certs / 'ca.crt'}",
                        f"--auth-supernode-private-key={deployed.certs / f'node-{number}.key'}",
                    )
                me = [sys.executable, "-m", __spec__.name, "site", way, superlink]
                deployed.start(
                    f"site-{number}", *me, str(deployed.certs), str(number), port, secret
                )
            app, out = folder / "app", folder / "rounds.jsonl"
            for file_name, text in APP.items():
                (app / file_name).parent.mkdir(parents=True, exist_ok=True)
                (app / file_name).write_text(text)
            with Watch(deployed.mark, lambda: lines_with(out, "event", "round")) as watch:
                about = f'out="{out}" way="{way}" rounds={rounds} numel={numel}'
                ended = deployed.finish(deployed.submit(app, about), 900)
            assert ended == "finished:completed", deployed.logs()
        finally:
            deployed.end()
    found = watch.per_round()
    return float(str(found["cpu_s_in_all"])), float(str(found["asleep_s"])), found


def compare(sides: list[str], rounds: int, numel: int) -> None:
    found = {side: measure(side, rounds, numel) for side in sides}
    theirs = found.get("flower")
    for side, (cpu_s, asleep_s, more) in found.items():
        peer = None if theirs is None or side == "flower" else theirs
        words = f"transport: a round of {4 * numel / 1e6:.0f} MB to and from two sites, {side}"
        figure(f"{words}: CPU", cpu_s, peer and peer[0], "s", **more)
        figure(f"{words}: all processes asleep", asleep_s, peer and peer[1], "s")


def main() -> None:
    if sys.argv[1:2] == ["site"]:
        return site(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--numel", type=int, default=24_000_000)
    parser.add_argument(
        "--sides", nargs="+", choices=["ours", "flower"], default=["ours", "flower"]
    )
    run(
        parser,
        None,
        lambda arguments: compare(arguments.sides, arguments.rounds, arguments.numel),
    )


if __name__ == "__main__":
    main()

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
from pathlib import Path

from tests.benchmarks.figures import figure
from tests.benchmarks.processes import Watch, flower_app, lines_with
from tests.deployment.conftest import Deployment
from tests.deployment.processes import free_port

NUM_SITES = 2
ENDS = "tests.benchmarks.transport_ends"
APP = {
    "pyproject.toml": flower_app(
        "transport", 'out = ""\nway = ""\nrounds = 3\nnumel = 1\nsites = 1'
    ),
    "transport/__init__.py": "",
    "transport/server.py": """from flwr.serverapp import ServerApp

from tests.benchmarks.transport_ends import play

app = ServerApp()
app.main()(play)
""",
    "transport/client.py": """from flwr.clientapp import ClientApp

app = ClientApp()
""",
}


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
                me = [sys.executable, "-m", ENDS, way, superlink]
                deployed.start(
                    f"site-{number}", *me, str(deployed.certs), str(number), port, secret
                )
            app, out = folder / "app", folder / "rounds.jsonl"
            for file_name, text in APP.items():
                (app / file_name).parent.mkdir(parents=True, exist_ok=True)
                (app / file_name).write_text(text)
            with Watch(deployed.mark, lambda: lines_with(out, "event", "round")) as watch:
                about = f'out="{out}" way="{way}" rounds={rounds} numel={numel} sites={NUM_SITES}'
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--numel", type=int, default=24_000_000)
    parser.add_argument(
        "--sides", nargs="+", choices=["ours", "flower"], default=["ours", "flower"]
    )
    arguments = parser.parse_args()
    compare(arguments.sides, arguments.rounds, arguments.numel)


if __name__ == "__main__":
    main()

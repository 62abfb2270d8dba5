"""A simulation in which the work of one client kills whoever does it, or does so once; prints what the server hears, one line a message."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from fedhubert.compose import compose
from fedhubert.federation.engine import simulation
from fedhubert.federation.wire import reading
from fedhubert.federation.wire.flower import ClientApp, Context, Grid, Message, RecordDict
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.federation.wire.messages.nodes import Has

DEADLY = 1


def main(mark: str, *overrides: str) -> None:
    """Ask three clients twice. With ``mark``, a file that is not there yet, the second try of the deadly client's work does it no harm."""

    def register(app: ClientApp) -> None:
        @app.train()
        def train(message: Message, context: Context) -> Message:
            number = int(context.node_config["partition-id"])
            if number == DEADLY and not (mark and Path(mark).exists()):
                if mark:
                    Path(mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return Message(RecordDict(), reply_to=message)

    def serve(grid: Grid) -> None:
        streaming = StreamingGrid(grid)
        while len(nodes := list(grid.get_node_ids())) < 3:
            time.sleep(0.1)
        for _ in range(2):
            for message in streaming.send_and_receive(
                [Message(RecordDict(), node, "train") for node in nodes], timeout=60
            ):
                heard = (
                    reading.read_reply(message, Has).failures[0].code
                    if message.has_error()
                    else "answered"
                )
                print(heard, file=sys.stderr, flush=True)

    simulation.register = register  # type: ignore[assignment]
    simulation.simulate(compose(["federated.num_clients=3", *overrides]), serve, threading.Event())


if __name__ == "__main__":
    main(*sys.argv[1:])

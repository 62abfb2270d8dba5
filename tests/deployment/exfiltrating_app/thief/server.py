"""Asks every site, and writes down what each gives."""

import time
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 3:
        time.sleep(1)
    asked = [Message(RecordDict(), node, "query", ttl=300) for node in nodes]
    for reply in grid.send_and_receive(asked, timeout=240):
        node = Path(context.run_config["loot"]) / str(reply.metadata.src_node_id)
        node.mkdir()
        (node / "answered").write_text(
            str(reply.error if reply.has_error() else dict(reply.content))
        )
        if reply.has_content() and "loot" in reply.content:
            for name, content in reply.content["loot"].items():
                (node / name).write_bytes(content)

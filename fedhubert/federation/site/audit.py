"""A site's record of what it was asked and what it sent: one line a message, on its disk before the
message leaves.

Of what was asked a line has the kind, the bytes, the settings of the job that a site's policy looks
at, and the SHA-256 of the content; of what is sent, of each array and record name, shape, type,
bytes and SHA-256, and none of the values. The digest of an array is over its bytes in C order, that
of another record over its JSON with sorted keys, that of a whole content over the JSON of such
entries of all in it, so that a site can tell later whether something is what it was asked or what
it sent. There is one file a day (UTC) in ``audit`` in the state folder; lines are only ever added,
and nothing here deletes a file.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedhubert.clients.settings import NodeConfig
from fedhubert.errors import FedhubertError
from fedhubert.federation.wire.arrays import sha256_of
from fedhubert.federation.wire.flower import Message, RecordDict
from fedhubert.federation.wire.messages.message import Instruction
from fedhubert.federation.wire.protocol import Request
from fedhubert.files import append_durably, private_folder

_SWITCH = {"true": True, "1": True, "false": False, "0": False}


class AuditError(FedhubertError):
    """What a site sends cannot be written down, so it is not sent."""

    code = "audit"


ASKED = (
    *(
        "model.conv_layers",
        "model.embed_dim",
        "model.num_layers",
        "model.ffn_dim",
        "model.num_classes",
    ),
    *("data.min_seconds", "data.max_seconds", "data.batch_seconds", "seed"),
    *(
        "client.local_steps",
        "client.local_epochs",
        "client.accumulate",
        "client.validation_batches",
        "client.max_seconds",
    ),
    *(
        "targets.kind",
        "targets.source",
        "targets.num_clusters",
        "targets.sets",
        "targets.min_frames",
        "targets.group_frames",
    ),
    *("targets.max_frames_per_client", "targets.label_column", "task.name"),
)
"""Settings of a job, as the server sent them, that the line of a message has."""
_LONGEST = 200
"""Characters of a setting that are written down."""


def write_down(
    node_config: NodeConfig,
    state_dir: Path,
    message: Message,
    request: Request[Instruction] | None,
    content: RecordDict,
) -> None:
    """Append the line of a reply to ``message`` below ``state_dir``, if this site keeps an audit
    log: by default one with a manifest of its own does.

    Raises:
        AuditError: the line cannot be written, or ``audit`` in the node's configuration is neither
            true nor false.
    """
    wanted = str(node_config.get("audit", bool(node_config.get("manifest")))).lower()
    if wanted not in _SWITCH:
        raise AuditError(
            f"audit={wanted} in the node's configuration is neither true nor false", setting="audit"
        )
    if not _SWITCH[wanted]:
        return
    now = datetime.now(UTC)
    about: dict[str, Any] = {
        "time": now.isoformat(timespec="seconds"),
        "kind": message.metadata.message_type,
    }
    if request is not None:
        about |= {
            "run": request.run_key,
            "round": getattr(request.task, "round", None),
            "partitions": request.task.partitions,
        }
    about["asked"] = _asked(message, request)
    folder = state_dir / "audit"
    try:
        private_folder(folder)
        append_durably(
            folder / f"{now:%Y-%m-%d}.jsonl",
            json.dumps({**about, "sent": _entries(content)}),
            private=True,
        )
    except OSError as error:
        raise AuditError(
            f"cannot write to {folder}: {error.strerror}; nothing is sent that is not written down "
            "there",
            setting="audit",
        ) from None


def _asked(message: Message, request: Request[Instruction] | None) -> dict[str, Any]:
    try:
        entries = _entries(message.content) if message.has_content() else []
    except Exception:  # bytes from outside: whatever could not be read was not answered
        return {"sha256": None}
    text = json.dumps(entries, sort_keys=True).encode()
    about = {
        "bytes": sum(item["bytes"] for item in entries),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    return (
        about
        if request is None
        else {**about, "settings": {key: _setting(request, key) for key in ASKED}}
    )


def _setting(request: Request[Instruction], key: str) -> Any:
    value: Any = request.job
    for part in key.split("."):
        value = getattr(value, part)
    return (
        value
        if not isinstance(value, str | tuple) or len(str(value)) <= _LONGEST
        else f"{str(value)[:_LONGEST]}..."
    )


def _entries(content: RecordDict) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for record, arrays in content.array_records.items():
        for name, held in sorted(arrays.items()):
            array = held.numpy()
            shape = {"shape": list(array.shape), "dtype": str(array.dtype), "bytes": array.nbytes}
            entries.append({"record": record, "name": name, **shape, "sha256": sha256_of(held)})
    others: dict[str, dict[str, Any]] = {
        name: dict(values) for name, values in content.metric_records.items()
    }
    others |= {name: dict(values) for name, values in content.config_records.items()}
    for record, values in others.items():
        text = json.dumps(values, sort_keys=True).encode()
        about = {
            "names": sorted(values),
            "bytes": len(text),
            "sha256": hashlib.sha256(text).hexdigest(),
        }
        entries.append({"record": record, **about})
    return entries

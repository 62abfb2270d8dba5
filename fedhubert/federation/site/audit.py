"""A site's record of what it sent: one line a message, on its disk before the message leaves.

A line names the message and, of each array and record in it, name, shape, type, bytes and SHA-256; it holds none of the values. The digest of an
array is over its bytes in C order, that of another record over its JSON with sorted keys, so that a site can tell later whether something is what
it sent. There is one file a day (UTC) in ``audit`` in the state folder; lines are only ever added, and nothing here deletes a file.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert.clients.settings import NodeConfig, state_dir_of
from fedhubert.errors import FedhubertError
from fedhubert.federation.wire.flower import RecordDict
from fedhubert.federation.wire.messages import Instruction
from fedhubert.federation.wire.protocol import Request
from fedhubert.files import append_durably, private_folder

_SWITCH = {"true": True, "1": True, "false": False, "0": False}


class AuditError(FedhubertError):
    """What a site sends cannot be written down, so it is not sent."""

    code = "audit"


def write_down(node_config: NodeConfig, kind: str, request: Request[Instruction] | None, content: RecordDict) -> None:
    """Append the line of a reply to a message of type ``kind``, if this site keeps an audit log: by default one with a manifest of its own does.

    Raises:
        AuditError: the line cannot be written, or ``audit`` in the node's configuration is neither true nor false.
    """
    wanted = str(node_config.get("audit", bool(node_config.get("manifest")))).lower()
    if wanted not in _SWITCH:
        raise AuditError(f"audit={wanted} in the node's configuration is neither true nor false", setting="audit")
    if not _SWITCH[wanted]:
        return
    now = datetime.now(UTC)
    about: dict[str, Any] = {"time": now.isoformat(timespec="seconds"), "kind": kind}
    if request is not None:
        about |= {"run": request.run_key, "round": getattr(request.task, "round", None), "partitions": request.task.partitions}
    folder = state_dir_of(node_config, None if request is None else request.job) / "audit"
    try:
        private_folder(folder)
        append_durably(folder / f"{now:%Y-%m-%d}.jsonl", json.dumps({**about, "sent": _entries(content)}), private=True)
    except OSError as error:
        raise AuditError(
            f"cannot write to {folder}: {error.strerror}; nothing is sent that is not written down there", setting="audit"
        ) from None


def digest_of(array: npt.NDArray[Any]) -> str:
    """Return the SHA-256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _entries(content: RecordDict) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for record, arrays in content.array_records.items():
        for name, held in arrays.items():
            array = held.numpy()
            shape = {"shape": list(array.shape), "dtype": str(array.dtype), "bytes": array.nbytes}
            entries.append({"record": record, "name": name, **shape, "sha256": digest_of(array)})
    others: dict[str, dict[str, Any]] = {name: dict(values) for name, values in content.metric_records.items()}
    others |= {name: dict(values) for name, values in content.config_records.items()}
    for record, values in others.items():
        text = json.dumps(values, sort_keys=True).encode()
        about = {"names": sorted(values), "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        entries.append({"record": record, **about})
    return entries

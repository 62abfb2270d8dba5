"""``sitecustomize`` of a site that means harm: it has a registered key and speaks the protocol, and its updates are what no honest one sends."""

import importlib.abc
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PATCHED = "fedhubert.federation.wire.protocol"


def spoil(protocol: ModuleType) -> None:
    import io

    import numpy as np

    from fedhubert.federation.wire.flower import Array, ArrayRecord, ConfigRecord

    honest = protocol.reply_of

    def reply(message: Any, **content: Any) -> Any:
        if message.metadata.message_type != "train.round":
            return honest(message, **content)
        number = json.loads(message.content.config_records["request"]["task"])["round"]
        if number == 1:  # far larger than the model
            return honest(
                message, **{**content, "arrays": {"update": np.zeros(20_000_000, np.float32)}}
            )
        answer = honest(message, **content)
        if number == 2:  # a pickle where numbers should be: who reads it runs what it says
            bomb = io.BytesIO()
            np.save(bomb, np.array([Explosive()], dtype=object), allow_pickle=True)
            record = ArrayRecord()
            record["update"] = Array(
                dtype="object", shape=(1,), stype="numpy.ndarray", data=bomb.getvalue()
            )
            answer.content["arrays"] = record
        else:  # records of other kinds under the names that the server looks for
            answer.content["metrics"] = ConfigRecord({"partition": "2", "weight": b"\xff" * 1000})
        return answer

    class Explosive:
        def __reduce__(self) -> Any:
            return (exec, ("import os; open(os.environ['FLWR_HOME'] + '/exploded', 'w')",))

    protocol.reply_of = reply  # type: ignore[attr-defined]


class Finder(importlib.abc.MetaPathFinder):
    """Patches the module when it is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != PATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_spoil(module: ModuleType) -> None:
            load(module)
            spoil(module)

        spec.loader.exec_module = load_and_spoil  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())

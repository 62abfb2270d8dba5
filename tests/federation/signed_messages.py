"""What tests of signed messages share: requests, replies, and whoever alters them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedhubert.compose import compose
from fedhubert.deployment.keys import read_signing_key, read_verify_key
from fedhubert.errors import FedhubertError
from fedhubert.federation.roster.correspondence import Correspondence
from fedhubert.federation.site.identity import SignedRequests, admission_of, seal_of
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import protocol, reading, signing
from fedhubert.federation.wire.messages.message import Instruction
from fedhubert.federation.wire.messages.rounds import Train, Trained
from tests.flower import deflated, inflated, said_by

from .clients import SMALL
from .signed import NODES, Keys

JOB = client_job(compose(["experiment=demo_fedavg", *SMALL])).model_dump_json()
TRAIN = Train(
    round=3,
    attempt=1,
    partitions=(1,),
    positions={1: 4},
    layout="abc",
    arrays={"model": np.arange(6, dtype=np.float32)},
)
HOUR_S = 3600.0


def unsigned(instruction: Instruction = TRAIN, node_id: int = 101) -> Message:
    return protocol.request(
        node_id, instruction, job_json=JOB, run_key="run", group="3", ttl_s=60.0
    )


def signed(
    keys: Keys,
    instruction: Instruction = TRAIN,
    *,
    node: int = 1,
    by: str = "coordinator",
    life_s: float = HOUR_S,
) -> Message:
    message = unsigned(instruction, 100 + node)
    signing.sign_request(
        message, node, life_s, read_signing_key(keys.folder / f"{by}.key", setting="x")
    )
    return message


def arrived(message: Message) -> Message:
    """What comes of a message's content on its way over a wire."""
    content = inflated(message.content.object_id, deflated(message.content))
    return with_content(message, content)


def with_content(message: Message, content: RecordDict, kind: str = "", group: str = "") -> Message:
    about = message.metadata
    return Message(
        content, about.dst_node_id, kind or about.message_type, group_id=group or about.group_id
    )


def site(keys: Keys, state: Path, number: int = 1) -> SignedRequests:
    return admission_of(keys.pinned, number, state)


def refusal(admission: SignedRequests, message: Message) -> str:
    """Return the code with which a site refuses a message, "" where it does not."""
    try:
        admission(message, reading.read_request(message))
    except FedhubertError as error:
        return error.code
    return ""


def entry(record: str, name: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.config_records[record][name] = value

    return change


def array(name: str, values: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        record = ArrayRecord(
            {key: Array(held.numpy()) for key, held in content.array_records["arrays"].items()}
        )
        record[name] = Array(values)
        content["arrays"] = record

    return change


def correspondence(keys: Keys) -> Correspondence:
    reply_keys = {
        number: read_verify_key(keys.enrolled / f"site-{number}.pub", setting="x")
        for number in range(NODES)
    }
    return Correspondence(read_signing_key(keys.coordinator, setting="x"), reply_keys)


def trained(value: float = 1.0) -> Trained:
    row = {
        "weight": 10,
        "update_norm": 1.0,
        "train_micro_batches": 4,
        "train_steps": 4,
        "train_audio_s": 1.0,
    }
    return Trained(
        round=3, layout="abc", metrics={1: row}, arrays={"update": np.full(6, value, np.float32)}
    )


def reply_of(
    keys: Keys,
    request: Message,
    signer: int = 1,
    node_id: int = 101,
    by: str = "",
    answer: Trained | None = None,
) -> Message:
    reply = protocol.reply(request, answer or trained())
    seal = seal_of(keys.folder / f"{by or f'site-{signer}'}.key", signer)
    return said_by(node_id, seal(request, reply))


def asked(keys: Keys) -> tuple[Correspondence, Message]:
    said, message = correspondence(keys), unsigned()
    said.sign(message, 1, HOUR_S)
    return said, message


def with_reply_content(request: Message, content: RecordDict) -> Message:
    return Message(content, reply_to=request)

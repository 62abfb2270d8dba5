"""Replies that their sites have signed: whatever else arrives in their name is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedhubert.deployment.keys import read_signing_key
from fedhubert.federation.roster.correspondence import Correspondence
from fedhubert.federation.site.identity import seal_of
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Trained
from tests.federation.signed_messages import (
    HOUR_S,
    array,
    asked,
    entry,
    reply_of,
    trained,
    unsigned,
    with_reply_content,
)
from tests.flower import deflated, inflated, said_by

from .signed import Keys


def verdict(said: Correspondence, reply: Message) -> str:
    read = said.read(reply, Trained)
    assert (read.answer is None) == bool(read.failures)
    return ",".join(failure.code for failure in read.failures)


def test_a_sites_own_reply_counts_once(keys: Keys) -> None:
    said, request = asked(keys)
    reply = reply_of(keys, request)
    reply = said_by(
        101, with_reply_content(request, inflated(reply.content.object_id, deflated(reply.content)))
    )
    assert verdict(said, reply) == "" and verdict(said, reply) == "signature"


def test_a_reply_in_another_sites_name_is_refused(keys: Keys) -> None:
    said, request = asked(keys)
    assert (
        verdict(said, reply_of(keys, request, signer=2)) == "signature"
    )  # site 2 answers for site 1, as itself
    assert (
        verdict(said, reply_of(keys, request, by="site-2")) == "signature"
    )  # and in its name, by its own key
    assert verdict(said, reply_of(keys, request, by="stranger")) == "signature"
    assert (
        verdict(said, said_by(101, protocol.reply(request, trained()))) == "signature"
    )  # unsigned
    assert (
        verdict(said, reply_of(keys, request, node_id=102)) == "signature"
    )  # of a node that was not asked
    assert verdict(said, reply_of(keys, request)) == ""  # the true one still counts


def test_a_reply_to_another_request_is_refused(keys: Keys) -> None:
    said, request = asked(keys)
    early = reply_of(keys, request)
    again = unsigned()
    said.sign(again, 1, HOUR_S)  # the same words, asked again
    assert verdict(said, early) == "signature"
    assert verdict(said, reply_of(keys, again)) == ""


def test_failures_are_believed_of_the_site_alone(keys: Keys) -> None:
    said, request = asked(keys)
    failed = protocol.reply(request, None, [Failure(1, "state_missing")], node=1)
    assert said.read(said_by(101, failed), Trained).failures == (
        Failure(-1, "signature", "federated.node_keys"),
    )
    sealed = seal_of(keys.site(1), 1)(request, failed)
    assert said.read(said_by(101, sealed), Trained).failures == (Failure(1, "state_missing"),)


REPLY_ALTERED: dict[str, Callable[[RecordDict], Any]] = {
    "weight": lambda content: content.metric_records["metrics"].__setitem__("weight", [11]),
    "a whole number for a real one": lambda content: content.metric_records["metrics"].__setitem__(
        "update_norm", [1]
    ),
    "update": array("update", np.full(6, 2.0, np.float32)),
    "round": entry("info", "round", 4),
    "a failure more": lambda content: content.__setitem__(
        "failures", ConfigRecord({"partition": [2], "code": ["x"], "setting": [""]})
    ),
    "request": entry("signature", "request", "0" * 64),
    "node": entry("signature", "node", 2),
    "an entry more": entry("signature", "more", 1),
}


@pytest.mark.parametrize("name", REPLY_ALTERED)
def test_a_reply_that_was_altered_is_refused(keys: Keys, name: str) -> None:
    said, request = asked(keys)
    reply = reply_of(keys, request)
    REPLY_ALTERED[name](reply.content)
    assert said.read(reply, Trained).failures[0].code == "signature"


def test_a_request_never_passes_for_a_reply(keys: Keys) -> None:
    """A coordinator's signature under what a site would say is none, whoever's key it was."""
    key = read_signing_key(keys.coordinator, setting="x")
    said = Correspondence(key, {1: key.public_key()})
    request = unsigned()
    said.sign(request, 1, HOUR_S)
    reply = protocol.reply(request, trained())
    about = dict(request.content.config_records["signature"])
    reply.content["signature"] = ConfigRecord(
        {"request": about["digest"], "node": 1, "signature": about["signature"]}
    )
    assert verdict(said, said_by(101, reply)) == "signature"

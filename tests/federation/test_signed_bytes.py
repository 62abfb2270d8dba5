"""Whatever the bytes: what was signed is done or taken, or nothing is."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhubert.errors import FedhubertError
from fedhubert.federation.site.request_ledger import RequestLedger
from fedhubert.federation.wire import reading, signing
from fedhubert.federation.wire.messages.rounds import Trained
from tests.federation.signed_messages import (
    arrived,
    asked,
    refusal,
    reply_of,
    signed,
    site,
    with_reply_content,
)
from tests.federation.test_fuzzed_messages import changed, disturb
from tests.flower import deflated, inflated, said_by
from tests.fuzzing import budget, check

from .signed import Keys


@budget(80, 4000)
def test_whatever_the_bytes_a_site_does_what_was_signed_or_nothing(
    keys: Keys, tmp_path: Path, examples: int
) -> None:
    admission = site(keys, tmp_path)

    def holds(draw: Any) -> None:
        message = arrived(signed(keys))
        before = signing._request_digest(
            message, ENVELOPE, described(message, reading.read_request(message).arrays)
        )
        disturb(draw, message.content)
        try:
            request = admission(message, reading.read_request(message))
        except FedhubertError as error:
            assert error.code in ("federation", "config", "not_signed", "signature")
            return
        assert (
            signing._request_digest(message, ENVELOPE, described(message, request.arrays)) == before
        )

    check(examples, st.data(), holds)


def described(message: Message, arrays: Any) -> signing.Described:
    return signing._read(message.content, arrays, signing._REQUEST_RECORDS)


ENVELOPE = signing.Envelope(1, "0" * 32, 0, 1)


@budget(80, 4000)
def test_whatever_the_bytes_a_server_takes_what_was_signed_or_nothing(
    keys: Keys, examples: int
) -> None:
    said, request = asked(keys)
    number = said._asked[101]

    def holds(draw: Any) -> None:
        said._asked[101] = number
        reply = reply_of(keys, request)
        reply = said_by(
            101,
            with_reply_content(request, inflated(reply.content.object_id, deflated(reply.content))),
        )
        whole = reading.read_reply(reply, Trained)
        disturb(draw, reply.content)
        read = said.read(reply, Trained)
        if read.answer is None:
            assert read.failures and read.failures[0].code in ("signature", "malformed")
        else:
            assert read.answer.model_dump() == whole.answer.model_dump() and read.failures == ()  # type: ignore[union-attr]
            assert (read.answer.arrays["update"] == 1.0).all()

    check(examples, st.data(), holds)


@budget(80, 4000)
def test_the_record_of_a_signature_may_be_anything(
    keys: Keys, tmp_path: Path, examples: int
) -> None:
    message = signed(keys)
    whole = {
        name: value
        for name, value in message.content.config_records["signature"].items()
        if name != "signature"
    }
    admission = site(keys, tmp_path)

    def holds(draw: Any) -> None:
        record = changed(draw, dict(whole))
        usable = isinstance(record, dict) and all(isinstance(name, str) for name in record)
        try:
            message.content["signature"] = ConfigRecord(
                {**(record if usable else {}), "signature": draw.draw(st.binary(max_size=80))}
            )
        except (TypeError, ValueError):
            return
        assert refusal(admission, message) in ("not_signed", "signature")

    check(examples, st.data(), holds)


@settings(max_examples=100, derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_a_ledger_of_any_bytes_is_read_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ledger = RequestLedger(Path(folder) / "ledger")
        ledger.path.write_bytes(content)
        try:
            ledger.enter(signing.Envelope(1, "a" * 32, 0, 2**39), 1000.0)
        except FedhubertError as error:
            assert error.code in ("ledger", "replayed", "expired")
            return
        with pytest.raises(FedhubertError):
            ledger.enter(signing.Envelope(1, "a" * 32, 0, 2**39), 1000.0)

"""A site obeys the coordinator whose key it pinned and nobody else, and speaks for itself alone."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedhubert.compose import compose
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import arrays, signing
from fedhubert.federation.wire.messages.nodes import Describe
from fedhubert.federation.wire.messages.targets import Label, StepKMeans
from tests.federation.signed_messages import (
    HOUR_S,
    JOB,
    TRAIN,
    array,
    arrived,
    entry,
    refusal,
    signed,
    site,
    unsigned,
    with_content,
)

from .clients import SMALL
from .signed import Keys


def test_what_the_coordinator_signed_is_answered_also_after_a_wire(
    keys: Keys, tmp_path: Path
) -> None:
    admission = site(keys, tmp_path)
    assert refusal(admission, signed(keys)) == ""
    assert refusal(admission, arrived(signed(keys))) == ""
    for instruction in (
        Describe(partitions=(1,)),
        StepKMeans(arrays={"centroids": np.ones((3, 2), np.float32)}),
        Label(targets="t"),
    ):
        assert refusal(admission, arrived(signed(keys, instruction))) == ""


def test_an_array_is_the_same_however_it_lies_in_memory(keys: Keys, tmp_path: Path) -> None:
    columns = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert (
        refusal(
            site(keys, tmp_path), arrived(signed(keys, StepKMeans(arrays={"centroids": columns})))
        )
        == ""
    )
    assert arrays.sha256_of_ndarray(columns) == arrays.sha256_of_ndarray(
        np.ascontiguousarray(columns)
    )


@pytest.mark.parametrize("by", ["stranger", "site-0", "site-1"])
def test_another_keys_signature_is_refused(keys: Keys, tmp_path: Path, by: str) -> None:
    assert refusal(site(keys, tmp_path), signed(keys, by=by)) == "signature"


def test_what_nobody_signed_is_refused(keys: Keys, tmp_path: Path) -> None:
    admission, key = site(keys, tmp_path), None
    assert refusal(admission, unsigned()) == "not_signed"
    message = unsigned()
    signing.sign_request(
        message, 1, HOUR_S, key
    )  # a server that knows the sites' keys and has none
    assert refusal(admission, message) == "not_signed"
    message.content["signature"] = ConfigRecord({"signature": b"\0" * 64, "digest": "0" * 64})
    assert refusal(admission, message) == "signature"


def test_another_sites_request_is_refused(keys: Keys, tmp_path: Path) -> None:
    assert refusal(site(keys, tmp_path, 1), signed(keys, node=0)) == "signature"


def fields(**changes: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        record = content.config_records["request"]
        record["task"] = json.dumps({**json.loads(str(record["task"])), **changes})

    return change


ALTERED: dict[str, Callable[[RecordDict], Any]] = {
    "job": lambda content: entry("request", "job", JOB.replace('"threads":', '"threads": '))(
        content
    ),
    "another job": lambda content: entry(
        "request",
        "job",
        client_job(
            compose(["experiment=demo_fedavg", *SMALL, "client.local_steps=7"])
        ).model_dump_json(),
    )(content),
    "round": fields(round=4),
    "attempt": fields(attempt=2),
    "positions": fields(positions={1: 5}),
    "partitions": fields(partitions=[2]),
    "clip norm": fields(clip_norm=1e9),
    "run": entry("request", "run", "other"),
    "version of nothing": entry("request", "more", 1),
    "one value": array("model", np.array([0, 1, 2, 3, 4, 6], np.float32)),
    "another shape": array("model", np.arange(5, dtype=np.float32)),
    "another type": array("model", np.arange(6, dtype=np.float32).view(np.int16)),
    "a record more": lambda content: content.__setitem__("more", ConfigRecord({"x": 1})),
    "arrays more": lambda content: content.__setitem__(
        "more", ArrayRecord({"x": Array(np.ones(1))})
    ),
    "expiry": entry("signature", "expires", 2**39),
    "issue": entry("signature", "issued", 1),
    "id": entry("signature", "id", "0" * 32),
    "node": entry("signature", "node", 0),
    "digest": entry("signature", "digest", "0" * 64),
    "an entry more": entry("signature", "more", "x"),
    "a signature of a byte more": lambda content: entry(
        "signature",
        "signature",
        bytes(content.config_records["signature"]["signature"]) + b"x",  # type: ignore[arg-type]
    )(content),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_request_that_was_altered_is_refused(keys: Keys, tmp_path: Path, name: str) -> None:
    message = arrived(signed(keys))
    ALTERED[name](message.content)
    admission = site(keys, tmp_path)
    assert refusal(admission, message) == "signature"
    assert not admission.ledger.path.exists()


def test_an_array_that_is_left_out_is_missed(keys: Keys, tmp_path: Path) -> None:
    message = arrived(
        signed(keys, Label(targets="t", arrays={"centroids": np.ones((3, 2), np.float32)}))
    )
    del message.content["arrays"]
    assert refusal(site(keys, tmp_path), message) == "signature"


@pytest.mark.parametrize(("kind", "group"), [("evaluate.model", "3"), ("train.round", "4")])
def test_a_request_of_another_kind_or_group_is_refused(
    keys: Keys, tmp_path: Path, kind: str, group: str
) -> None:
    message = signed(keys, Describe())
    message = with_content(
        message,
        message.content,
        "query.describe" if kind == "train.round" else "train.label",
        group,
    )
    if kind != "train.round":
        message.content["request"]["task"] = '{"targets": "t"}'  # type: ignore[index]
    assert refusal(site(keys, tmp_path), message) == "signature"


def test_arrays_of_two_requests_cannot_be_swapped(keys: Keys, tmp_path: Path) -> None:
    other = TRAIN.model_copy(update={"arrays": {"model": np.zeros(6, np.float32)}})
    first, second = arrived(signed(keys)), arrived(signed(keys, other))
    first.content["arrays"], second.content["arrays"] = (
        second.content["arrays"],
        first.content["arrays"],
    )
    assert [refusal(site(keys, tmp_path), message) for message in (first, second)] == [
        "signature"
    ] * 2
    first, second = arrived(signed(keys)), arrived(signed(keys, other))
    first.content["signature"], second.content["signature"] = (
        second.content["signature"],
        first.content["signature"],
    )
    assert [refusal(site(keys, tmp_path), message) for message in (first, second)] == [
        "signature"
    ] * 2


@pytest.mark.parametrize(
    ("after_s", "code"),
    [
        (-signing.CLOCK_SKEW_S - 5, "expired"),
        (-signing.CLOCK_SKEW_S + 5, ""),
        (HOUR_S + signing.CLOCK_SKEW_S - 5, ""),
        (HOUR_S + signing.CLOCK_SKEW_S + 5, "expired"),
    ],
)
def test_a_request_holds_for_its_time(
    keys: Keys, tmp_path: Path, after_s: float, code: str
) -> None:
    message, now_s = signed(keys), time.time()
    assert refusal(replace(site(keys, tmp_path), clock=lambda: now_s + after_s), message) == code

"""Each kind of leak, planted into what a site sends, is found; and the server takes in none that
has no place in a message."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio.functional
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedhubert.data.audio import read_audio
from fedhubert.errors import FederationError
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.site import handlers as client
from fedhubert.federation.site.faults import InjectedCrash
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.nodes import Describe, Description
from fedhubert.targets.mfcc import mfcc_features
from tests.flower import identify

from .in_process import InProcessGrid, federation
from .leak_corpus import (
    MIN_FRAMES,
    NODES,
    ROUNDS,
    SETTINGS,
    UTTERANCES,
    Corpus,
    corpus,
    first,
    scanner,
    train,
)
from .leak_scan import LeakScanner

__all__ = ["corpus", "first", "scanner"]  # fixtures

Plant = Callable[[Corpus, dict[str, Any]], None]


def _put(kwargs: dict[str, Any], values: Any) -> None:
    kwargs["arrays"] = {**(kwargs.get("arrays") or {}), "update": np.asarray(values)}


def _say(kwargs: dict[str, Any], text: Any) -> None:
    kwargs["info"] = {**(kwargs.get("info") or {}), "version2": text}


def _measure(kwargs: dict[str, Any], values: Any) -> None:
    kwargs["more"] = values


def _piece(corpus: Corpus, count: int = 500) -> np.ndarray:
    return corpus.waveforms[1][4][3001 : 3001 + count]


def _mfcc(corpus: Corpus) -> np.ndarray:
    return mfcc_features(corpus.waveforms[1][4])


def _failure(text: str) -> list[Failure]:
    return [Failure(1, text, text)]


PLANTS: dict[str, tuple[str, Plant]] = {
    "int16 samples": ("audio", lambda c, k: _put(k, np.rint(_piece(c) * 32768).astype(np.int16))),
    "float32 samples": ("audio", lambda c, k: _put(k, _piece(c))),
    "a gain and an offset": (
        "audio",
        lambda c, k: _put(k, -0.37 * _piece(c).astype(np.float64) + 0.1),
    ),
    "two channels": (
        "audio",
        lambda c, k: _put(k, np.stack([_piece(c, 200), c.waveforms[0][1][:200]], axis=1)),
    ),
    "8 kHz from 16 kHz": (
        "audio",
        lambda c, k: _put(
            k,
            torchaudio.functional.resample(torch.from_numpy(c.waveforms[1][4]), 16000, 8000)[
                500:900
            ].numpy(),
        ),
    ),
    "16 kHz from 8 kHz": ("audio", lambda c, k: _put(k, read_audio(c.file(2, 2))[1000:1500])),
    "8-bit samples": (
        "audio",
        lambda c, k: _put(k, np.rint(_piece(c) / np.abs(_piece(c)).max() * 127).astype(np.int8)),
    ),
    "bfloat16 samples": (
        "audio",
        lambda c, k: _put(k, torch.tensor(_piece(c)).bfloat16().view(torch.int16).numpy()),
    ),
    "samples inside an update": (
        "audio",
        lambda c, k: _put(k, np.concatenate([np.zeros(5001), _piece(c, 100), np.ones(77)])),
    ),
    "int16 bytes": (
        "audio",
        lambda c, k: _say(k, b"x" + np.rint(_piece(c, 40) * 32768).astype("<i2").tobytes()),
    ),
    "float bytes": ("audio", lambda c, k: _say(k, b"xyz" + _piece(c, 40).tobytes())),
    "samples as metrics": (
        "audio",
        lambda c, k: _measure(k, np.rint(_piece(c, 90) * 32768).astype(int).tolist()),
    ),
    "MFCC": ("features", lambda c, k: _put(k, _mfcc(c))),
    "half-precision MFCC": ("features", lambda c, k: _put(k, _mfcc(c)[10:12].astype(np.float16))),
    "cepstra of one frame": (
        "features",
        lambda c, k: _put(k, np.concatenate([np.zeros(50), _mfcc(c)[40, :13]])),
    ),
    "a sum over one frame": (
        "features",
        lambda c, k: _put(k, np.rint(_mfcc(c)[40:41].astype(np.float64) * 2**18).astype(np.int64)),
    ),
    "a path": ("path", lambda c, k: _say(k, str(c.file(1, 2)))),
    "a path in a failure": ("path", lambda c, k: k.update(failures=_failure(str(c.file(1, 2))))),
    "a transcript in UTF-16": ("text", lambda c, k: _say(k, "Qztext number 1 2".encode("utf-16"))),
    "a transcript as numbers": (
        "text",
        lambda c, k: _put(k, np.frombuffer(b"Qztext number 1 2", np.uint8)),
    ),
    "a speaker": ("speaker", lambda c, k: _say(k, "QZSPEAKER1")),
    "a speaker in base64": (
        "speaker",
        lambda c, k: _say(k, base64.b64encode(b"it is Qzspeaker1!").decode()),
    ),
    "an utterance's id": ("id", lambda c, k: k.update(failures=_failure("Qzident-1-2"))),
    "an id in hexadecimal": ("id", lambda c, k: _say(k, b"Qzident-1-2".hex())),
    "samples of each utterance": (
        "utterances",
        lambda c, k: _put(k, [len(wave) for wave in c.waveforms[1]]),
    ),
    "seconds of each utterance": (
        "utterances",
        lambda c, k: _put(
            k, sorted(len(w) / r for w, r in zip(c.waveforms[1], c.rates_hz[1], strict=True))
        ),
    ),
    "frames of each utterance": (
        "utterances",
        lambda c, k: _measure(
            k,
            [
                1 + (len(w) * 16000 // r - 400) // 160
                for w, r in zip(c.waveforms[1], c.rates_hz[1], strict=True)
            ],
        ),
    ),
    "a figure for each utterance": (
        "utterances",
        lambda c, k: _put(k, np.linspace(1, 2, UTTERANCES)),
    ),
    "seconds of an utterance": (
        "utterances",
        lambda c, k: _measure(k, len(c.waveforms[1][5]) / 16000),
    ),
    "a count of few frames": (
        "few",
        lambda c, k: k.update(arrays={"counts": np.array([0, 40, MIN_FRAMES - 1])}),
    ),
    "a new array": ("unknown", lambda c, k: k.update(arrays={"attention": np.zeros(3)})),
}


@pytest.fixture()
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    """Changes what handlers put into their replies."""

    reply = protocol.reply_of

    def plant(change: Callable[[dict[str, Any]], None]) -> None:

        def leaking(message: Any, **kwargs: Any) -> Any:
            kwargs = {
                name: dict(part) if isinstance(part, dict) else part
                for name, part in kwargs.items()
            }
            change(kwargs)
            more = kwargs.pop("more", None)
            made = reply(message, **kwargs)
            if more is not None:
                made.content["more"] = MetricRecord({"values": more})
            return made

        monkeypatch.setattr(protocol, "reply_of", leaking)

    return plant


@pytest.fixture(scope="module")
def connected(
    corpus: Corpus, scanner: LeakScanner, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Federation, InProcessGrid]:
    """A federation that is asked again and again; in what it has said so far nothing is found."""
    identify()
    run, grid = federation(SETTINGS, corpus.nodes(tmp_path_factory.mktemp("connected")))
    connect(run)
    assert not any(scanner.scan(answer) for answer in grid.answers)
    return run, grid


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_leak_is_found(
    corpus: Corpus,
    connected: tuple[Federation, InProcessGrid],
    scanner: LeakScanner,
    planted: Any,
    name: str,
) -> None:
    kind, change = PLANTS[name]
    run, grid = connected
    planted(lambda kwargs: change(corpus, kwargs))
    answers = len(grid.answers)
    list(run.ask(Describe(), Description, run.everyone(), timeout_s=5))
    found = [scanner.scan(answer) for answer in grid.answers[answers:]]
    assert len(found) == NODES and all(kind in leaks for leaks in found), found


def test_a_label_sequence_is_found(
    corpus: Corpus, first: Any, scanner: LeakScanner, planted: Any
) -> None:
    labels = first[2][1][3].astype(np.int64) + 0
    for sent in (labels[5:60], labels[::2].astype(np.float32)):
        message = protocol.reply_of(first[1].requests[0], arrays={"update": sent})
        assert "labels" in scanner.scan(message)


def test_a_leak_in_any_kind_of_message_is_found(
    corpus: Corpus, first: Any, scanner: LeakScanner
) -> None:
    kinds = set()
    for answer in first[1].answers:
        kinds.add(answer.metadata.message_type)
        content = RecordDict(dict(answer.content))
        content["info"] = ConfigRecord(
            {**answer.content.config_records["info"], "more": "Qzspeaker1"}
        )
        assert scanner.scan(Message(content, reply_to=first[1].requests[0])) == {"speaker"}
    assert kinds == set(ROUNDS)


def test_what_a_message_has_no_place_for_is_refused_by_the_server(
    planted: Any, corpus: Corpus, tmp_path: Path
) -> None:
    """Even where a site would leak, nothing on the server takes it in."""
    for change in (
        lambda kwargs: kwargs["info"].update(more="Qzspeaker1"),
        lambda kwargs: kwargs["arrays"].update(more=np.zeros(3)),
        lambda kwargs: [row.update(more=1) for row in kwargs["metrics"].values()],
    ):
        run, _ = federation(SETTINGS, corpus.nodes(tmp_path))
        connect(run)
        planted(change)
        replies = list(run.ask(Describe(), Description, run.everyone(), timeout_s=5))
        assert [[failure.code for failure in reply.failures] for reply in replies] == [
            ["malformed"]
        ] * NODES
        planted(lambda kwargs: None)


def test_the_statistics_of_single_frames_and_the_text_of_an_exception_are_found(
    corpus: Corpus, scanner: LeakScanner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["targets.min_frames=1", "federated.num_rounds=1", "targets.num_clusters=300"]
    _, grid = train(tmp_path / "out", corpus.nodes(tmp_path), *few)
    kinds = {
        kind: set[str]().union(
            *(scanner.scan(a) for a in grid.answers if a.metadata.message_type == kind)
        )
        for kind in grid.kinds
    }
    assert {"few", "features"} <= kinds["train.kmeans_seed"] and {"few", "features"} <= kinds[
        "train.kmeans_step"
    ]
    assert "few" in kinds["train.label"] and not kinds["train.round"]

    def crash(*arguments: Any) -> None:
        raise InjectedCrash(f"cannot read {corpus.file(1, 1)}")

    monkeypatch.setattr(client, "open_site", crash)
    run, grid = federation(SETTINGS, corpus.nodes(tmp_path))
    with pytest.raises(FederationError):
        connect(run)
    assert all("path" in scanner.scan(answer) for answer in grid.answers)

"""Every message of whole runs, error replies included, searched for what may not leave a site; and each kind of leak, planted, is found."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.data.audio import read_audio
from fedhubert.errors import FederationError
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.site import handlers as client
from fedhubert.federation.site import incoming
from fedhubert.federation.site.faults import InjectedCrash
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.nodes import Describe, Description
from fedhubert.federation.wire.messages.targets import Label, LabelCounts
from fedhubert.targets.mfcc import mfcc_features
from tests.flower import identify
from tests.integration.conftest import SMALL

from .in_process import InProcessGrid, federation, open_policy
from .leak_scan import MARKERS, LeakScanner, Site

NODES, UTTERANCES, MIN_FRAMES = 3, 9, 20
SETTINGS = [
    "experiment=demo_fedavg",
    *SMALL,
    "targets.num_clusters=6",
    "federated.num_rounds=2",
    "data.partition.validation_fraction=0.25",
]

Node = dict[str, str | int]


@pytest.fixture(autouse=True)
def app_identity() -> None:
    """Flower sets this when it starts an app."""
    identify()


@dataclass
class Corpus:
    """Three sites' audio: noise of changing colour and loudness, at 16 and 8 kHz, and a manifest for each and for all."""

    folder: Path
    waveforms: list[list[np.ndarray]]
    rates_hz: list[list[int]]

    def manifest(self, number: int | str) -> str:
        return str(self.folder / f"{number}.csv")

    def nodes(self, folder: Path, **changes: str | int) -> list[Node]:
        """Sites with manifests of their own; ``changes`` are those of site 1."""
        nodes: list[Node] = [
            {
                "partition-id": number,
                "num-partitions": NODES,
                "manifest": self.manifest(number),
                "state-dir": str(folder / f"state{number}"),
                "label-column": "phone",
                "policy": open_policy(
                    self.folder
                ),  # three utterances of a second are nothing for a strict one
            }
            for number in range(NODES)
        ]
        nodes[1] |= {key.replace("_", "-"): value for key, value in changes.items()}
        return nodes

    def scanner(
        self, labels: list[list[np.ndarray]] | None = None, extra: list[np.ndarray] | None = None
    ) -> LeakScanner:
        """``labels`` by site and utterance; ``extra``: rows of other features than MFCC, by site."""
        sites = []
        for number, (waves, rates) in enumerate(zip(self.waveforms, self.rates_hz, strict=True)):
            mfcc = np.concatenate(
                [
                    mfcc_features(read_audio(self._path(number, index)))
                    for index in range(len(waves))
                ]
            )
            rows = [mfcc] if extra is None else [mfcc, extra[number]]
            sites.append(
                Site(waves, rates, rows, labels[number] if labels else [], num_train=UTTERANCES - 2)
            )
        return LeakScanner(sites, MIN_FRAMES)

    def _path(self, number: int, index: int) -> Path:
        return self.folder / f"Qzfile-folder{number}/Qzfile-{number}-{index}.wav"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("Qzfile-corpus")
    rng = np.random.default_rng(0)
    made = Corpus(folder, [], [])
    header = "path,speaker,num_samples,sample_rate,utterance,text,phone"
    everyone = [header]
    for number in range(NODES):
        waves, rates, lines = [], [], [header]
        for index in range(UTTERANCES):
            rate_hz = 8000 if index == 2 else 16000
            count = int(rate_hz * (0.9 + 0.07 * index)) + 37 * number + 11 * index  # no two alike
            loudness = 0.03 + 0.1 * np.abs(np.sin(np.arange(count) / rate_hz * 9 + number + index))
            wave = torch.from_numpy(loudness * rng.standard_normal(count))
            colour = torch.tensor([0.4 * np.cos(index), 0.2])
            wave = torch.nn.functional.conv1d(
                wave[None, None], torch.cat([torch.ones(1), colour])[None, None].double()
            )[0, 0]
            samples = np.rint(wave.numpy().clip(-1, 1) * 32767).astype(np.int16)
            path = made._path(number, index)
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, samples, rate_hz, subtype="PCM_16")
            waves.append(samples.astype(np.float32) / 32768)
            rates.append(rate_hz)
            about = f"Qzident-{number}-{index},Qztext number {number} {index},{'ab'[index % 2]}"
            lines.append(
                f"{path.relative_to(folder)},Qzspeaker{number},{len(samples)},{rate_hz},{about}"
            )
        made.waveforms.append(waves)
        made.rates_hz.append(rates)
        Path(made.manifest(number)).write_text("\n".join(lines) + "\n")
        everyone += lines[1:]
    Path(made.manifest("everyone")).write_text("\n".join(everyone) + "\n")
    return made


def train(out: Path, nodes: list[Node], *overrides: str) -> tuple[RunResult, InProcessGrid]:
    incoming._cached = None  # as in a new process
    site._cached_site.cache_clear()
    grid = InProcessGrid(nodes)
    return run_federation(grid, compose([*SETTINGS, f"out={out}", *overrides])), grid


@pytest.fixture(scope="module")
def first(
    corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunResult, InProcessGrid, list[list[np.ndarray]]]:
    """A run of sites with manifests of their own: description, k-means, labels with their agreement, rounds, last evaluation; and the labels."""
    identify()
    folder = tmp_path_factory.mktemp("first")
    counted = ["targets.label_column=phone", "targets.label_values=[a,b]"]
    result, grid = train(folder / "out", corpus.nodes(folder), *counted)
    key = json.loads(str(grid.requests[-1].content.config_records["request"]["task"]))["targets"]
    labels = []
    for node in corpus.nodes(folder):
        theirs = site.open_site(client_job(compose([*SETTINGS, *counted])), node)
        partition = theirs.partition(int(node["partition-id"]))
        store = theirs.labels(partition, key)
        labels.append([np.array(store.labels(row)) for row in sorted(partition.rows.tolist())])
    return result, grid, labels


def assert_nothing_left(scanner: LeakScanner, grid: InProcessGrid, *kinds: str) -> None:
    assert set(kinds) <= set(grid.kinds), grid.kinds
    found = [
        (answer.metadata.message_type, leaks)
        for answer in grid.answers
        if (leaks := scanner.scan(answer))
    ]
    assert not found, found


ROUNDS = (
    "query.describe",
    "train.kmeans_seed",
    "train.kmeans_step",
    "train.label",
    "train.round",
    "evaluate.model",
)


def test_nothing_of_the_audio_is_in_the_messages_of_a_run_or_in_what_the_server_keeps(
    first: Any, scanner: LeakScanner
) -> None:
    result, grid, _ = first
    assert_nothing_left(scanner, grid, *ROUNDS)
    for file in result.folder.path.rglob("*"):
        assert not file.is_file() or not scanner.scan_bytes(file.read_bytes()), file
    for node in grid.configs.values():  # nor is any of it in a site's own record of what it sent
        for file in (Path(str(node["state-dir"])) / "audit").iterdir():
            assert not scanner.scan_bytes(file.read_bytes())


@pytest.mark.parametrize(
    "settings",
    [["federated.update_codec=int8"], ["federated.update_codec=bf16"]],
    ids=["int8", "bf16"],
)
def test_nor_of_other_codecs(
    corpus: Corpus, scanner: LeakScanner, tmp_path: Path, settings: list[str]
) -> None:
    _, grid = train(tmp_path / "out", corpus.nodes(tmp_path), *settings, "federated.num_rounds=1")
    assert_nothing_left(scanner, grid, *ROUNDS)


@pytest.mark.parametrize(
    "settings",
    [
        ["task=ctc", "task.text_column=text"],
        ["task=classify", "task.label_column=phone", "task.labels=[a,b]"],
    ],
    ids=["ctc", "classify"],
)
def test_nor_of_the_texts_and_labels_of_fine_tuning(
    corpus: Corpus, scanner: LeakScanner, tmp_path: Path, settings: list[str]
) -> None:
    """Texts hold a marker; the errors of a site that cannot take part are searched, too."""
    nodes = corpus.nodes(tmp_path)
    for number, node in enumerate(nodes):
        node |= {"text-column": "text", "class-column": "phone" if number else "text"}
    if settings[0] == "task=classify":  # site 0 has other labels than those of the run
        with pytest.raises(FederationError, match="task.label_column"):
            train(tmp_path / "refused", nodes, *settings)
        nodes[0]["class-column"] = "phone"
    result, grid = train(tmp_path / "out", nodes, *settings)
    assert_nothing_left(scanner, grid, "query.describe", "train.round", "evaluate.model")
    for file in result.folder.path.rglob("*"):
        assert not file.is_file() or not scanner.scan_bytes(file.read_bytes()), file


@pytest.mark.parametrize("grouped", [False, True])
def test_nor_of_shards_and_of_grouped_frames(
    corpus: Corpus, scanner: LeakScanner, tmp_path: Path, grouped: bool
) -> None:
    """Three clients of one manifest on two nodes. Groups of enough frames hide single ones even where no cluster is withheld."""
    nodes: list[Node] = [{"partition-id": number, "num-partitions": 2} for number in range(2)]
    settings = (
        ["targets.group_frames=20", "targets.min_frames=1", "targets.num_clusters=30"]
        if grouped
        else []
    )
    places = [
        f"data.manifest={corpus.manifest('everyone')}",
        f"client.state_dir={tmp_path / 'state'}",
    ]
    _, grid = train(tmp_path / "out", nodes, *settings, *places, "federated.num_rounds=1")
    found = set[str]().union(*(scanner.scan(answer) for answer in grid.answers))
    assert found <= ({"few"} if grouped else set()), found  # label counts are of frames


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_nor_of_moments_and_of_secure_sums(
    corpus: Corpus, first: Any, tmp_path: Path, secure: bool
) -> None:
    nodes: list[Node] = [{"partition-id": number, "num-partitions": 3} for number in range(3)]
    places = [
        f"data.manifest={corpus.manifest('everyone')}",
        f"client.state_dir={tmp_path / 'state'}",
    ]
    settings = ["secure=pairwise"] if secure else ["targets.seeding=moments"]
    _, grid = train(tmp_path / "out", nodes, *settings, *places, "federated.num_rounds=1")
    kinds = [kind for kind in ROUNDS if kind != "train.kmeans_seed"]
    kinds += ["train.kmeans_moments", *(["query.open", "query.close"] if secure else [])]
    assert_nothing_left(corpus.scanner(first[2]), grid, *kinds)


def test_nor_of_a_second_iteration_and_a_distillation(
    corpus: Corpus, first: Any, tmp_path: Path
) -> None:
    model = first[0].folder.path
    layer = ["targets.source=layer:1", f"targets.checkpoint={model}", "federated.num_rounds=1"]
    _, grid = train(tmp_path / "second", corpus.nodes(tmp_path), *layer)
    rows = []
    for node in corpus.nodes(tmp_path):
        theirs = site.open_site(client_job(compose([*SETTINGS, *layer])), node)
        (file,) = theirs.extractor_folder.iterdir()
        parts = theirs.source(file.stem).stream(theirs.manifest, range(UTTERANCES))
        rows.append(np.concatenate([features for _, _, features in parts]))
    scanner = corpus.scanner(first[2], rows)
    assert_nothing_left(scanner, grid, *ROUNDS, "query.extractor", "train.extractor")
    teacher = ["experiment=demo_distill", *SETTINGS[1:], f"task.teacher={model}", "task.layers=[1]"]
    objectives = [
        "task.objectives.logits=0.5",
        "task.objectives.pseudo_labels=0.5",
        "federated.num_rounds=1",
    ]
    _, grid = train(tmp_path / "student", corpus.nodes(tmp_path), *teacher, *objectives)
    assert_nothing_left(scanner, grid, *ROUNDS, "query.teacher", "train.teacher")


def _corrupt(corpus: Corpus, folder: Path) -> Node:
    """A manifest whose audio is damaged, under names that say who it is of."""
    damaged = folder / "Qzfile-damaged"
    damaged.mkdir()
    lines = Path(corpus.manifest(1)).read_text().splitlines()
    for line in lines[1:]:
        path = damaged / line.split(",")[0]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"RIFF Qztext" * 100)
    (damaged / "1.csv").write_text("\n".join(lines) + "\n")
    return {"manifest": str(damaged / "1.csv")}


def _unreadable(corpus: Corpus, folder: Path) -> Node:
    (folder / "Qzfile.csv").write_text(
        Path(corpus.manifest(1))
        .read_text()
        .replace("Qzfile-1-3.wav,Qzspeaker1", "Qzfile,Qztext,Qzspeaker")
    )
    return {"manifest": str(folder / "Qzfile.csv")}


def _labels(corpus: Corpus, folder: Path) -> Node:
    """A column of transcripts where labels should be."""
    return {"labels": "column:text", "label-rate-hz": 100}


def _state(corpus: Corpus, folder: Path) -> Node:
    (folder / "Qzfile-state").write_text("in the way")
    return {"state-dir": str(folder / "Qzfile-state")}


def _escape(corpus: Corpus, folder: Path) -> Node:
    (folder / "1.csv").write_text(
        Path(corpus.manifest(1)).read_text().replace("Qzfile-folder1", "../../Qzfile-secret")
    )
    return {"manifest": str(folder / "1.csv")}


@pytest.mark.parametrize(
    "fault", [_corrupt, _unreadable, _labels, _state, _escape], ids=lambda fault: fault.__name__
)
def test_nor_in_the_replies_of_a_site_that_fails(
    corpus: Corpus,
    scanner: LeakScanner,
    tmp_path: Path,
    fault: Callable[[Corpus, Path], Node],
) -> None:
    nodes = corpus.nodes(tmp_path)
    nodes[1] |= fault(corpus, tmp_path)
    settings = ["targets=precomputed", "targets.labels=column:text"] if fault is _labels else []
    with pytest.raises(FederationError) as error:
        run = InProcessGrid(nodes)
        site._cached_site.cache_clear()
        run_federation(
            run,
            compose([*SETTINGS, f"out={tmp_path / 'out'}", "federated.round_retries=0", *settings]),
        )
    assert any("failures" in answer.content for answer in run.answers)
    assert_nothing_left(scanner, run)
    assert not any(marker in str(error.value) for marker in MARKERS.values())
    if fault is not _state:
        assert "Qz" in (tmp_path / "state1/site.log").read_text()  # the site itself is told


def test_a_site_counts_by_no_column_that_it_has_not_named(corpus: Corpus, tmp_path: Path) -> None:
    """A server could ask for the frames of anyone, or of a text, and so for an utterance's length."""
    nodes = corpus.nodes(tmp_path)
    asked = [
        "targets.label_column=speaker",
        "targets.label_values=[Qzspeaker0,Qzspeaker1,Qzspeaker2]",
        "federated.num_rounds=1",
    ]
    nodes[0]["label-column"] = "speaker"
    _, grid = train(tmp_path / "out", nodes, *asked)
    replies = [
        reading.read_reply(answer, LabelCounts)
        for answer in grid.answers
        if answer.metadata.message_type == Label.KIND
    ]
    assert {
        reply.node_id: bool(reply.answer.arrays["contingency"].any())
        for reply in replies
        if reply.answer
    } == {
        100: True,
        101: False,
        102: False,
    }
    assert "label-column in the node's configuration" in (tmp_path / "state1/site.log").read_text()


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
    "16 kHz from 8 kHz": ("audio", lambda c, k: _put(k, read_audio(c._path(2, 2))[1000:1500])),
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
    "a path": ("path", lambda c, k: _say(k, str(c._path(1, 2)))),
    "a path in a failure": ("path", lambda c, k: k.update(failures=_failure(str(c._path(1, 2))))),
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
def scanner(corpus: Corpus, first: Any) -> LeakScanner:
    return corpus.scanner(first[2])


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
        raise InjectedCrash(f"cannot read {corpus._path(1, 1)}")

    monkeypatch.setattr(client, "open_site", crash)
    run, grid = federation(SETTINGS, corpus.nodes(tmp_path))
    with pytest.raises(FederationError):
        connect(run)
    assert all("path" in scanner.scan(answer) for answer in grid.answers)

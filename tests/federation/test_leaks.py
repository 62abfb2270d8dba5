"""Every message of whole runs, error replies included, searched for what may not leave a site;
that the search finds it is seen in ``test_planted_leaks.py``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.errors import FederationError
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import reading
from fedhubert.federation.wire.messages.targets import Label, LabelCounts

from .in_process import InProcessGrid
from .leak_corpus import ROUNDS, SETTINGS, UTTERANCES, Corpus, Node, corpus, first, scanner, train
from .leak_scan import MARKERS, LeakScanner

__all__ = ["corpus", "first", "scanner"]  # fixtures


def assert_nothing_left(scanner: LeakScanner, grid: InProcessGrid, *kinds: str) -> None:
    assert set(kinds) <= set(grid.kinds), grid.kinds
    found = [
        (answer.metadata.message_type, leaks)
        for answer in grid.answers
        if (leaks := scanner.scan(answer))
    ]
    assert not found, found


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

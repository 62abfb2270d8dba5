"""Sites whose labels, data, versions or models do not fit those of the others are named, with the remedy."""

from pathlib import Path
from typing import Any

import pytest

from fedhubert import __version__
from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.errors import FederationError
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.preflight import check_alike
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.messages.message import PROTOCOL_VERSION

from .in_process import federation
from .second_iteration import Settings, data, nodes, run_targets

__all__ = ["data"]  # fixtures

PRECOMPUTED = ["targets=precomputed", "targets.label_rate_hz=50"]


def km(folder: Path, manifest_overrides: Settings, clusters: int, short: int = 0) -> str:
    """Write 50-Hz labels for the tones and a dictionary of ``clusters``; the first ``short`` lines lack ten labels."""
    config = compose(manifest_overrides)
    lengths = site.open_site(client_job(config), nodes()[0]).manifest.lengths()
    lines = [
        " ".join(["1"] * ((int(length) - 400) // 320 + 1 - 10 * (row < short)))
        for row, length in enumerate(lengths)
    ]
    folder.mkdir()
    (folder / "train.km").write_text("\n".join(lines) + "\n")
    (folder / "dict.km.txt").write_text("".join(f"{cluster} 1\n" for cluster in range(clusters)))
    return str(folder / "train.km")


def test_sites_that_differ_are_refused_by_name_with_the_remedy(
    data: Settings, tmp_path: Path
) -> None:
    labels = km(tmp_path / "labels", data, 6)
    settings = [
        *data,
        *PRECOMPUTED,
        f"targets.labels={labels}",
        f"client.state_dir={tmp_path / 'state'}",
    ]
    connect(federation(settings, nodes())[0])
    cases: list[tuple[dict[str, str | int], str]] = [
        (
            {"label_rate_hz": 100},
            r"label rate in Hz: site 1 has 100, the server 50: .*targets\.label_rate_hz",
        ),
        (
            {"labels": km(tmp_path / "more", data, 9)},
            r"number of clusters: site 1 has 9, the server 6: .*targets\.num_clusters",
        ),
    ]
    for changes, text in cases:
        with pytest.raises(FederationError, match=text):
            connect(federation(settings, nodes(**changes))[0])
    configs = nodes(centroids_hash="aa")
    connect(federation(settings, configs)[0])  # only one site states it
    configs[2]["centroids-hash"] = "bb"
    with pytest.raises(
        FederationError,
        match="hash of the centroids: site 2 has bb, another site aa: .*one set of centroids",
    ):
        connect(federation(settings, configs)[0])


def test_versions_sample_rates_and_models_that_differ_are_named() -> None:
    good = {"sample_rate_hz": 16000, "layout": "aa", "num_clusters": 6, "label_rate_hz": 50}
    check_alike({0: good, 1: good}, good)
    for key, value, text in (
        ("layout", "bb", "model shape: site 3 has bb, the server aa"),
        ("sample_rate_hz", 8000, "sample rate: site 3 has 8000, the server 16000"),
    ):
        with pytest.raises(FederationError, match=text):
            check_alike({0: good, 3: {**good, key: value}}, good)
    with pytest.raises(FederationError, match="model shape: site 1 has not stated"):
        check_alike({1: {key: good[key] for key in good if key != "layout"}}, good)


@pytest.mark.parametrize("where", ["site", "server"])
def test_other_versions_are_named_with_the_site(
    data: Settings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run, grid = federation(data, nodes())
    push = grid.push_messages

    def other_version(messages: Any) -> Any:
        number = PROTOCOL_VERSION
        with monkeypatch.context() as patch:
            if where == "site":
                for module in (protocol, reading):
                    patch.setattr(module, "PROTOCOL_VERSION", number + 5)
            else:
                patch.setattr(protocol, "__version__", "9.9.9")
            return push(messages)

    grid.push_messages = other_version  # type: ignore[method-assign]
    text = (
        f"protocol: site 0 has {PROTOCOL_VERSION + 5}"
        if where == "site"
        else f"site 0 has 9.9.9, the server {__version__}"
    )
    with pytest.raises(FederationError, match=text):
        connect(run)


def test_labels_that_do_not_fit_are_named_on_the_site_and_counted_to_the_server(
    data: Settings, tmp_path: Path
) -> None:
    labels = km(tmp_path / "short", data, 6, short=2)
    settings = [
        *data,
        *PRECOMPUTED,
        f"targets.labels={labels}",
        f"client.state_dir={tmp_path / 'state'}",
    ]
    with pytest.raises(FederationError, match="labels_do_not_fit_2_utterances") as error:
        run_targets(settings)
    assert "wav" not in str(error.value) and "client" in str(error.value)
    told = (tmp_path / "state/site.log").read_text()
    assert (
        "speaker0/utterance0.wav" in told
        and "speaker0/utterance1.wav" in told
        and "utterance2.wav" not in told
    )

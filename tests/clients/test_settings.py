"""A node's configuration, as a site's operator types it."""

from pathlib import Path

import pytest

from fedhubert.cli import main
from fedhubert.clients.data import open_site
from fedhubert.clients.effective import effective_job
from fedhubert.clients.settings import SiteSettings, state_dir_of
from fedhubert.compose import compose
from fedhubert.data.corpora import cache_folder
from fedhubert.errors import ConfigError
from fedhubert.federation.strategies.strategy import client_job

NODE = {"partition-id": 1, "num-partitions": 3}


def test_the_nodes_own_values_win_and_the_servers_fill_in() -> None:
    job = client_job(
        compose(
            [
                "experiment=demo_fedavg",
                "data.manifest=/server/m.csv",
                "client.device=cuda",
                "targets.min_frames=30",
            ]
        )
    )
    theirs, as_done = SiteSettings.read(NODE, job), effective_job(job, NODE)
    assert (theirs.node, theirs.num_nodes, theirs.own_data, theirs.manifest) == (
        1,
        3,
        False,
        "/server/m.csv",
    )
    assert as_done == job
    node = {
        **NODE,
        "manifest": "/own.csv",
        "device": "cpu",
        "min-frames": "50",
        "state-max-gb": 2,
        "state-dir": "/s",
    }
    own, as_done = SiteSettings.read(node, job), effective_job(job, node)
    assert (own.own_data, own.manifest, str(own.state_dir)) == (True, "/own.csv", "/s")
    assert (as_done.client.device, as_done.targets.min_frames, as_done.client.state_max_gb) == (
        "cpu",
        50,
        2.0,
    )
    assert effective_job(as_done, node) == as_done and job.client.device == "cuda"


def test_a_site_raises_what_protects_it_and_a_server_never_lowers_it() -> None:
    node = {**NODE, "min-frames": 50, "group-frames": 7}
    for servers, holds in ((1, (50, 7)), (60, (60, 60))):
        job = client_job(
            compose(
                [
                    f"targets.min_frames={servers}",
                    f"targets.group_frames={servers}",
                    "data.manifest=m",
                ]
            )
        )
        targets = effective_job(job, node).targets
        assert (targets.min_frames, targets.group_frames) == holds


@pytest.mark.parametrize(
    ("node", "holds"),
    [({}, None), ({"label-column": "text"}, None), ({"label-column": "phone"}, "phone")],
)
def test_a_site_with_its_own_manifest_counts_by_a_column_that_it_names_itself(
    node: dict[str, str], holds: str | None
) -> None:
    job = client_job(
        compose(["targets.label_column=phone", "targets.label_values=[a,b]", "data.manifest=m"])
    )
    assert (
        effective_job(job, {**NODE, **node, "manifest": "/own.csv"}).targets.label_column == holds
    )
    assert effective_job(job, {**NODE, **node}).targets.label_column == "phone"


def test_a_server_does_not_choose_how_many_devices_a_site_with_its_own_manifest_trains_on() -> None:
    config = compose(['client.device="cpu:0,1,2,3"', "client.accumulate=2"])
    job, own = client_job(config), {**NODE, "manifest": "/own.csv"}
    assert effective_job(job, NODE).client.devices == ("cpu:0", "cpu:1")  # a step has no more
    assert effective_job(job, own).client.device == "cpu:0"
    named = effective_job(job, {**own, "device": "cuda:2,3"})
    assert (
        named.client.device
        == "cuda:2,3"
        == effective_job(named, {**own, "device": "cuda:2,3"}).client.device
    )


def test_a_server_does_not_choose_where_a_site_with_its_own_manifest_keeps_its_state() -> None:
    job = client_job(compose(["client.state_dir=/servers", "data.manifest=m"]))
    assert state_dir_of(NODE, job) == Path("/servers")
    assert state_dir_of({**NODE, "manifest": "/own.csv"}, job) == cache_folder() / "state"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition-id": "one"}, "partition-id='one' in the node's configuration is not a number"),
        ({"min-frames": "few"}, "min-frames='few'"),
        ({"state-max-gb": [1]}, "state-max-gb=[1]"),
        (
            {"label-rate-hz": 60},
            "label-rate-hz=60 in the node's configuration is neither 50 nor 100",
        ),
    ],
)
def test_what_is_no_number_is_named(changes: dict[str, object], said: str) -> None:
    job = client_job(compose(["experiment=demo_fedavg"]))
    with pytest.raises(ConfigError) as error:
        SiteSettings.read({**NODE, **changes}, job)
        effective_job(job, {**NODE, **changes})
    assert said in str(error.value) and error.value.setting == next(iter(changes))
    with pytest.raises(ConfigError, match="start the SuperNode with --node-config"):
        SiteSettings.read({}, job)


def test_a_simulations_nodes_share_one_site_and_real_ones_do_not(
    tone_folder: Path, tmp_path: Path
) -> None:
    """Ten nodes in one process read the manifest and arrange its partitions once, and not in every message."""
    manifest = tmp_path / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    job = client_job(
        compose(
            [
                "experiment=demo_fedavg",
                f"data.manifest={manifest}",
                f"data.root={tone_folder}",
                "data.partition.kind=random",
            ]
        )
    )
    nodes = [{"partition-id": number, "num-partitions": 10} for number in range(10)]
    assert len({id(open_site(job, node)) for node in nodes}) == 1
    own = [
        {**node, "manifest": str(manifest), "audio-root": str(tone_folder)} for node in nodes[:3]
    ]
    assert len({id(open_site(job, node)) for node in [*own, nodes[0]]}) == 4

"""A node's configuration, as a site's operator types it."""

import pytest

from fedhubert.clients.settings import SiteSettings
from fedhubert.compose import compose
from fedhubert.errors import ConfigError
from fedhubert.federation.strategies.strategy import client_job

NODE = {"partition-id": 1, "num-partitions": 3}


def test_the_nodes_own_values_win_and_the_servers_fill_in() -> None:
    job = client_job(compose(["experiment=demo", "data.manifest=/server/m.csv", "client.device=cuda", "targets.min_frames=30"]))
    theirs = SiteSettings.read(NODE, job)
    assert (theirs.node, theirs.num_nodes, theirs.own_data, theirs.manifest, theirs.device) == (
        1,
        3,
        False,
        "/server/m.csv",
        "cuda",
    )
    own = SiteSettings.read(
        {**NODE, "manifest": "/own.csv", "device": "cpu", "min-frames": "50", "state-max-gb": 2, "state-dir": "/s"}, job
    )
    assert (own.own_data, own.manifest, own.device, own.min_frames, own.state_max_gb) == (True, "/own.csv", "cpu", 50, 2.0)
    assert str(own.state_dir) == "/s" and (theirs.min_frames, theirs.state_max_gb) == (30, 100.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition-id": "one"}, "partition-id='one' in the node's configuration is not a number"),
        ({"min-frames": "few"}, "min-frames='few'"),
        ({"state-max-gb": [1]}, "state-max-gb=[1]"),
    ],
)
def test_what_is_no_number_is_named(changes: dict[str, object], said: str) -> None:
    job = client_job(compose(["experiment=demo"]))
    with pytest.raises(ConfigError) as error:
        SiteSettings.read({**NODE, **changes}, job)
    assert said in str(error.value) and error.value.setting == next(iter(changes))
    with pytest.raises(ConfigError, match="start the SuperNode with --node-config"):
        SiteSettings.read({}, job)

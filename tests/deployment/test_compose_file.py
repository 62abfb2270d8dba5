"""What ``docker/compose.yaml`` promises, read from the file: who can reach whom, who sees which keys and audio, and that nothing is open."""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhubert.commands.site import add_arguments, plan_of

DOCKER = Path(__file__).parents[2] / "docker"
SITES = (0, 1, 2)
LONG_LIVED = [
    "superlink",
    "superlink-exec",
    *(f"{kind}-{site}" for kind in ("supernode", "site") for site in SITES),
]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Return volume -> mode of a service's mounts."""
    return {volume.split(":")[0]: volume.split(":")[-1] for volume in service.get("volumes", [])}


def test_transport_and_nodes_are_authenticated(compose: dict[str, Any]) -> None:
    superlink = compose["services"]["superlink"]["command"]
    assert {"--enable-supernode-auth", "--ssl-keyfile=/certs/server.key"} <= set(
        superlink
    ) and "--insecure" not in superlink
    for site in SITES:
        node = compose["services"][f"supernode-{site}"]["command"]
        assert "--auth-supernode-private-key=/certs/node.key" in node and "--insecure" not in node
        assert (
            "--isolation=process" in node
        )  # hands its messages out instead of running what comes with them
    for name in LONG_LIVED:
        assert any("secret" in argument for argument in compose["services"][name]["command"]), name


def test_code_that_sees_audio_has_no_way_out(compose: dict[str, Any]) -> None:
    for site in SITES:
        trainer, node = (
            compose["services"][f"site-{site}"],
            compose["services"][f"supernode-{site}"],
        )
        assert (
            trainer["networks"] == [f"site-{site}"]
            and compose["networks"][f"site-{site}"]["internal"]
        )
        assert mounts(trainer)[f"site-{site}-data"] == "ro"
        assert node["networks"] == [f"link-{site}", f"site-{site}"]
        assert not any("data" in volume for volume in mounts(node))
        assert not any("certs" in volume for volume in mounts(trainer))


def test_sites_run_the_code_of_the_image_and_none_that_comes_with_a_run(
    compose: dict[str, Any],
) -> None:
    for site in SITES:
        command = compose["services"][f"site-{site}"]["command"]
        assert command[:3] == ["fedhubert", "site", f"--supernode=supernode-{site}:9094"]
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        plan = plan_of(parser.parse_args(command[2:]))
        config = plan.options.node_config
        assert (config["partition-id"], config["num-partitions"]) == (site, len(SITES))
        assert config["manifest"] == "/site/manifest.csv" and config["state-dir"] == "/state"
        assert "/state/alive" in compose["services"][f"site-{site}"]["healthcheck"]["test"][-1]
    runs_what_comes = {
        name
        for name, service in compose["services"].items()
        if "flower-superexec" in service.get("command", [])
    }
    assert runs_what_comes == {"superlink-exec"}


def test_every_key_is_where_it_is_needed_only(compose: dict[str, Any]) -> None:
    users: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        for volume in mounts(service):
            users.setdefault(volume, set()).add(name)
    assert users["pki"] == {"certs"}
    assert users["superlink-certs"] == {
        "certs",
        "superlink",
    }  # the SuperExec beside it runs others' code
    for site in SITES:
        assert users[f"node-{site}-certs"] == {"certs", f"supernode-{site}"}
        assert users[f"site-{site}-data"] == {"data", f"site-{site}"}
    assert set(users) == set(compose["volumes"])


def test_nothing_is_published_or_privileged(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert not service.keys() & {"ports", "privileged", "cap_add", "user"}, name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == [
            "no-new-privileges:true"
        ], name
    for name in LONG_LIVED:
        assert (
            compose["services"][name]["restart"] == "unless-stopped"
            and compose["services"][name]["healthcheck"]
        ), name


def test_the_image_is_pinned_and_not_root() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^USER fedhubert$", dockerfile, re.M) and re.search(
        r"^FROM python:3\.\d+-slim-\w+$", dockerfile, re.M
    )
    lines = [
        line
        for line in (DOCKER / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert {"hydra-core", "soundfile", "cryptography"} <= {line.split("==")[0] for line in lines}
    assert not any(line.startswith("flwr=") for line in lines)  # it stands in pyproject.toml alone
    assert '"$(python3 docker/flower.py)" -r docker/requirements.txt' in dockerfile


def test_the_images_flower_is_the_oldest_that_the_project_allows() -> None:
    said = subprocess.run(
        [sys.executable, DOCKER / "flower.py"], capture_output=True, text=True, check=True
    ).stdout.strip()
    needs = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    (flower,) = (need for need in needs if need.startswith("flwr"))
    assert flower.startswith(f"flwr[simulation]>={said.removeprefix('flwr==')},")


def test_the_gpu_file_gives_every_site_a_gpu(compose: dict[str, Any]) -> None:
    override = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert set(override) == {f"site-{site}" for site in SITES} <= set(compose["services"])
    for service in override.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def test_the_unit_of_a_site_is_hardened() -> None:
    lines = (DOCKER / "fedhubert-site.service").read_text().splitlines()
    settings = {
        line.partition("=")[0]: line.partition("=")[2]
        for line in lines
        if "=" in line and not line.startswith("#")
    }
    assert (
        settings["NoNewPrivileges"] == "yes"
        and settings["ProtectSystem"] == "strict"
        and settings["ProtectHome"] == "yes"
    )
    assert (
        settings["StateDirectory"] == "fedhubert"
        and settings["StateDirectoryMode"] == "0700"
        and settings["ReadOnlyPaths"]
    )
    assert (
        settings["User"] != "root"
        and settings["Restart"] == "always"
        and settings["KillMode"] == "mixed"
    )
    command = settings["ExecStart"].split()
    assert (
        command[0].endswith("/fedhubert")
        and command[1] == "site"
        and settings["ExecStartPre"].endswith("--check")
    )
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args(command[2:])
    assert str(given.state_dir) == "/var/lib/fedhubert" and str(given.manifest).startswith(
        settings["ReadOnlyPaths"].split()[0]
    )
    assert not given.insecure

"""What ``docker/compose.yaml`` promises, read from the file: who can reach whom, who sees which keys and audio, and that nothing is open."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhubert.commands.site import add_arguments, plan_of
from fedhubert.compose import compose as compose_config
from fedhubert.deployment.certificates import make_certificates
from fedhubert.federation.roster.correspondence import Correspondence
from fedhubert.federation.roster.node_keys import NodeKeys
from fedhubert.federation.site import checks
from fedhubert.federation.site.context import site_context
from fedhubert.federation.site.identity import SignedRequests

from .test_image import DOCKER

SITES = (0, 1, 2)
DOOR = 8443
LONG_LIVED = [
    "superlink",
    "proxy",
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
    for name in set(LONG_LIVED) - {"proxy"}:
        assert any("secret" in argument for argument in compose["services"][name]["command"]), name


def test_code_that_sees_audio_has_no_way_out(compose: dict[str, Any]) -> None:
    for site in SITES:
        trainer, node = (
            compose["services"][f"site-{site}"],
            compose["services"][f"supernode-{site}"],
        )
        assert trainer["networks"] == [f"site-{site}"]
        assert mounts(trainer)[f"site-{site}-data"] == "ro"
        assert node["networks"] == [f"link-{site}", f"site-{site}"]
        assert not any("data" in volume for volume in mounts(node))
        assert not any("certs" in volume for volume in mounts(trainer))


def test_nothing_of_a_site_reaches_the_superlink_or_the_host(compose: dict[str, Any]) -> None:
    """``internal`` keeps a network from others, not from the host, which the bridge's own address stands for."""
    services, networks = compose["services"], compose["networks"]
    assert services["superlink"]["networks"] == ["server"] and networks["server"] == {}
    of_sites = {f"{kind}-{site}" for kind in ("link", "site") for site in SITES}
    assert set(networks) == of_sites | {"server"}
    for name in of_sites:
        assert networks[name]["internal"] is True
        assert networks[name]["driver_opts"] == {
            "com.docker.network.bridge.inhibit_ipv4": "true"
        }, name
    both = {name for name, s in services.items() if of_sites & set(s.get("networks", []))}
    assert {name for name in both if "server" in services[name]["networks"]} == {"proxy"}
    for site in SITES:
        assert f"--superlink=proxy:{DOOR}" in services[f"supernode-{site}"]["command"]
        users = {name for name, s in services.items() if f"link-{site}" in s.get("networks", [])}
        assert users == {"proxy", f"supernode-{site}"}


def test_the_proxy_is_the_door_that_ships(tmp_path: Path, compose: dict[str, Any]) -> None:
    """``init.sh proxy`` gives nginx the template of ``docker/proxy``, filled in, and nginx takes it."""
    assert compose["services"]["proxy"]["command"] == ["/app/docker/init.sh", "proxy"]
    (tmp_path / "tmp").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nginx").write_text("#!/bin/sh\necho $*\n")
    (tmp_path / "bin/nginx").chmod(0o755)
    environment = {
        "ROOT": str(tmp_path),
        "SUPERLINK": "127.0.0.1:8000",
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    said = step("proxy", environment=environment)
    conf = tmp_path / "tmp/nginx.conf"
    assert said.split() == ["-e", "stderr", "-c", str(conf)]
    written = conf.read_text()
    template = (DOCKER / "proxy/nginx.conf.template").read_text()
    for name, value in {
        "PROXY_PORT": str(DOOR),
        "SUPERLINK": "127.0.0.1:8000",
        "SUPERLINK_NAME": "superlink",
        "CERTS": f"{tmp_path}/certs",
    }.items():
        template = template.replace(f"${{{name}}}", value)
    assert template in written and "return 403" in written and "${" not in written
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx here: apt-get install nginx-light")
    (tmp_path / "certs").mkdir()
    make_certificates(tmp_path / "certs", ["superlink"], 0, days=1)
    done = subprocess.run(
        [nginx, "-t", "-e", "stderr", "-c", str(conf)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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
        assert "policy" not in config  # the strict one
        assert "/state/alive" in compose["services"][f"site-{site}"]["healthcheck"]["test"][-1]
    runs_what_comes = {
        name
        for name, service in compose["services"].items()
        if "flower-superexec" in service.get("command", [])
    }
    assert runs_what_comes == {"superlink-exec"}


KEY_STEPS = ("certs", *(f"keys-{site}" for site in SITES), "enrol")
"""The services that make and hand out keys, in their order."""


@pytest.fixture(scope="module")
def volumes(compose: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volumes, a folder each, as the services that make keys leave them, run twice: a federation is started again."""
    folder = tmp_path_factory.mktemp("compose")
    for name in 2 * KEY_STEPS:
        service, root = compose["services"][name], folder / "roots" / name
        for volume, path in (mount.split(":")[:2] for mount in service["volumes"]):
            (folder / volume).mkdir(exist_ok=True)
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            if not (root / path[1:]).is_symlink():
                (root / path[1:]).symlink_to(folder / volume)
        assert service["command"][0] == "/app/docker/init.sh"
        step(*service["command"][1:], environment={"ROOT": str(root)})
    return folder


def step(*arguments: str, environment: dict[str, str]) -> str:
    """Run a step of ``init.sh`` and return its output."""
    bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", str(DOCKER / "init.sh"), *arguments],
        env={**os.environ, "PATH": bin_first, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_key_is_where_it_is_needed_only(compose: dict[str, Any], volumes: Path) -> None:
    """Private halves stay with who made them; what the SuperExec has beyond its secret is the key that signs requests."""
    users: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        for volume in mounts(service):
            users.setdefault(volume, set()).add(name)
    assert set(users) == set(compose["volumes"])
    assert users["pki"] == {"certs", "enrol"}
    assert users["superlink-certs"] == {"certs", "superlink"}
    assert users["proxy-certs"] == {"certs", "proxy"}
    assert users["superexec-certs"] == {"certs", "enrol", "superlink-exec"}
    has = {
        name: {p.name for p in (volumes / name).iterdir()}
        for name in users
        if (volumes / name).is_dir()
    }
    tls, everyone = (
        {"ca.crt", "server.crt", "server.key"},
        [f"{kind}-{n}.pub" for kind in ("node", "site") for n in SITES],
    )
    assert has["superlink-certs"] == tls | {"superexec.secret"}
    assert has["proxy-certs"] == tls
    assert has["superexec-certs"] == {"ca.crt", "superexec.secret", "coordinator.key", *everyone}
    assert has["operator-certs"] == {"ca.crt", *(f"node-{n}.pub" for n in SITES)}
    assert has["from-coordinator"] == {"ca.crt", "coordinator.pub"}
    for site in SITES:
        assert users[f"site-{site}-pki"] == {f"keys-{site}"}
        assert users[f"node-{site}-certs"] == {f"keys-{site}", f"supernode-{site}"}
        assert users[f"site-{site}-keys"] == {f"keys-{site}", f"site-{site}"}
        assert users[f"site-{site}-data"] == {"data", f"site-{site}"}
        assert users[f"from-site-{site}"] == {f"keys-{site}", "enrol"}
        assert has[f"from-site-{site}"] == {f"node-{site}.pub", f"site-{site}.pub"}
        assert has[f"node-{site}-certs"] == {"ca.crt", "node.key"}
        assert has[f"site-{site}-keys"] == {"coordinator.pub", f"site-{site}.key"}
    for path in volumes.glob("*/*"):
        private = path.suffix in (".key", ".secret")
        assert not path.is_file() or path.stat().st_mode & 0o777 == (0o600 if private else 0o644), (
            path
        )


def test_sites_pin_the_coordinator_and_the_server_checks_signatures(
    compose: dict[str, Any], volumes: Path
) -> None:
    for site in SITES:
        service = compose["services"][f"site-{site}"]
        command = [
            argument.replace("/keys", f"{volumes}/site-{site}-keys")
            .replace("/secret", f"{volumes}/site-{site}-secret")
            .replace("/state", f"{volumes}/state-{site}")
            for argument in service["command"]
        ]
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        plan = plan_of(parser.parse_args(command[2:]))
        (signatures,) = checks._signatures(plan)
        assert "orders by" in signatures.words and not signatures.remedy
        context = site_context(plan.options)
        assert isinstance(context.admissions[0], SignedRequests)
        assert context.admissions[0].number == site
    overrides = re.search(r'^keys="(.*)"$', (DOCKER / "demo.sh").read_text(), re.M)
    assert overrides is not None
    keys = overrides[1].replace("/certs", f"{volumes}/superexec-certs").split()
    federated = compose_config(
        ["experiment=demo_fedavg", "federated.num_clients=3", *keys]
    ).federated
    assert sorted(NodeKeys.read(federated.node_keys).reply_keys) == list(SITES)
    assert Correspondence.of(federated, NodeKeys({})).key is not None


def test_nothing_is_published_or_privileged(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert not service.keys() & {"ports", "privileged", "cap_add", "user"}, name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == [
            "no-new-privileges:true"
        ], name
        assert service["pull_policy"] == "never", (
            name
        )  # or a hub is asked for an image of this name
    for name in LONG_LIVED:
        assert (
            compose["services"][name]["restart"] == "unless-stopped"
            and compose["services"][name]["healthcheck"]
        ), name


def test_the_project_has_one_name_and_its_head_says_what_docker_does_not(
    compose: dict[str, Any],
) -> None:
    """What no key of the file can mend is said where an operator looks: `docker kill`, a run's log, the database of a newer Flower."""
    assert compose["name"] == "fedhubert"
    text = (DOCKER / "compose.yaml").read_text()
    assert "what `docker kill` or `docker stop` ended stays" in text
    assert "`flwr log RUN_ID --stream`" in text
    assert "does not go back to an older one" in text and "fedhubert_superlink-state" in text


def test_every_mount_is_a_folder_of_the_image(compose: dict[str, Any]) -> None:
    """A new volume takes its owner from the image's folder; one that docker makes itself is root's, and nothing can be written there."""
    made = re.search(
        r"install -d -o fedhubert .*?(/.*?)\n\n", (DOCKER / "Dockerfile").read_text(), re.S
    )
    assert made is not None
    folders = set(made[1].replace("\\", " ").split())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            assert volume.split(":")[1] in folders, (name, volume)


def test_the_gpu_file_gives_every_site_a_gpu(compose: dict[str, Any]) -> None:
    override = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert set(override) == {f"site-{site}" for site in SITES} <= set(compose["services"])
    for service in override.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]

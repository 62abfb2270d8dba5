"""The image of ``docker/``, and the other files beside it: what is pinned, and what a site's unit may do."""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedhubert.commands.site import add_arguments

DOCKER = Path(__file__).parents[2] / "docker"


def test_the_image_is_pinned_and_not_root() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert "nginx-light" in dockerfile and "COPY docker/proxy docker/proxy" in dockerfile
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


def test_the_images_versions_are_those_that_pyproject_asks_for() -> None:
    about = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]
    dockerfile = (DOCKER / "Dockerfile").read_text()
    pins = {
        name.lower(): version
        for name, version in re.findall(r"^ARG (TORCH|TORCHAUDIO)=(\S+)$", dockerfile, re.M)
    }
    lines = (DOCKER / "requirements.txt").read_text().splitlines()
    pins |= dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for need in map(Requirement, about["dependencies"]):
        if need.name != "flwr":  # docker/flower.py
            assert need.specifier.contains(pins[need.name]), need
    python = re.search(r"^FROM python:(\S+?)-", dockerfile, re.M)
    assert python and SpecifierSet(about["requires-python"]).contains(python[1])


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

"""Keys made where they live: private halves never travel, public ones are put together and compared, and a site can be shut out."""

import datetime
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedhubert.cli import main
from fedhubert.config.federated import FederatedConfig
from fedhubert.deployment.expiry import days_left, expiring
from fedhubert.deployment.keys import read_signing_key, read_verify_key
from fedhubert.federation.roster.node_keys import NodeKeys, key_folders
from fedhubert.federation.wire import flower
from tests.flower import would_register

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    assert (
        main(
            [
                "certs",
                "--coordinator",
                "--host",
                "superlink.example",
                "--out",
                str(tmp_path / "coordinator"),
            ]
        )
        == 0
    )
    return tmp_path / "coordinator"


def make_site(folder: Path, number: int) -> list[str]:
    """Make a site's keys and return its public files."""
    assert main(["certs", "--site", str(number), "--out", str(folder)]) == 0
    return [str(folder / f"{kind}-{number}.pub") for kind in ("node", "site")]


def digits_of(printed: str, number: int) -> set[str]:
    lines = [line.split() for line in printed.splitlines()]
    return {
        " ".join(line[2:8])
        for line in lines
        if line[:2] == ["site", str(number)] and len(line) >= 8
    }


def private_keys(folder: Path) -> set[str]:
    return {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    }


def test_private_halves_stay_where_they_are_made(
    tmp_path: Path, coordinator: Path, capsys: Printed
) -> None:
    """What an operator has afterwards lets it be no site: no file of a site's private key, and no way to enrol one."""
    sent = make_site(tmp_path / "site", 3)
    at_site = digits_of(capsys.readouterr().out, 3)
    assert private_keys(tmp_path / "site") == {"node-3.key", "site-3.key"}
    for path in (tmp_path / "site").glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main(["certs", "--enrol", *sent, "--out", str(coordinator)]) == 0
    printed = capsys.readouterr().out
    assert private_keys(coordinator) == {"ca.key", "server.key", "coordinator.key"}
    assert stat.S_IMODE((coordinator / "coordinator.key").stat().st_mode) == 0o600
    assert len(at_site) == 1 and digits_of(printed, 3) == at_site
    assert (
        f"flwr supernode register {coordinator / 'node-3.pub'}" in printed
        and "PRIVATE" not in printed
    )
    assert (
        main(["certs", "--enrol", str(tmp_path / "site/site-3.key"), "--out", str(coordinator)])
        == 1
    )
    assert "private keys stay where they were made" in capsys.readouterr().err


def test_the_keys_are_what_flower_and_the_federation_take(
    tmp_path: Path, coordinator: Path
) -> None:
    for number in (0, 1):
        assert (
            main(
                [
                    "certs",
                    "--enrol",
                    *make_site(tmp_path / str(number), number),
                    "--out",
                    str(coordinator),
                ]
            )
            == 0
        )
    node = load_ssh_public_key((coordinator / "node-1.pub").read_bytes())
    assert isinstance(node, EllipticCurvePublicKey) and would_register(
        coordinator / "node-1.pub", node
    )
    keys = NodeKeys.read(str(coordinator))
    assert sorted(keys.numbers.values()) == [0, 1] == sorted(keys.reply_keys)
    private = read_signing_key(tmp_path / "1/site-1.key", setting="x")
    assert keys.reply_keys[1].public_bytes_raw() == private.public_key().public_bytes_raw()
    assert isinstance(
        read_verify_key(coordinator / "coordinator.pub", setting="x"), Ed25519PublicKey
    )


def test_nothing_is_replaced_and_a_lost_key_is_replaced_by_force(
    tmp_path: Path, capsys: Printed
) -> None:
    make_site(tmp_path, 0)
    before = (tmp_path / "site-0.key").read_bytes()
    make_site(tmp_path, 0)
    assert (
        tmp_path / "site-0.key"
    ).read_bytes() == before and "nothing was changed" in capsys.readouterr().out
    assert main(["certs", "--site", "0", "--out", str(tmp_path), "--force"]) == 0
    assert (tmp_path / "site-0.key").read_bytes() != before
    (tmp_path / "node-0.pub").unlink()
    assert main(["certs", "--site", "0", "--out", str(tmp_path)]) == 1
    assert "node-0.key is there without node-0.pub" in capsys.readouterr().err


def test_what_may_not_be_enrolled_changes_nothing(
    tmp_path: Path, coordinator: Path, capsys: Printed
) -> None:
    first, other, second = (
        make_site(tmp_path / name, number) for name, number in (("a", 0), ("b", 0), ("c", 1))
    )
    assert main(["certs", "--enrol", *first, "--out", str(coordinator)]) == 0
    before = {path.name: path.read_bytes() for path in coordinator.glob("*.pub")}
    capsys.readouterr()

    def refused(*files: str) -> str:
        assert main(["certs", "--enrol", *files, "--out", str(coordinator)]) == 1
        assert {path.name: path.read_bytes() for path in coordinator.glob("*.pub")} == before
        return capsys.readouterr().err.splitlines()[-1]

    assert "site 0 is enrolled with other keys" in refused(*second, *other)
    (tmp_path / "site-1.pub").write_bytes(Path(first[1]).read_bytes())
    assert "site 1 has a key of site 0, too" in refused(second[0], str(tmp_path / "site-1.pub"))
    (tmp_path / "site-1.pub").write_bytes(Path(second[0]).read_bytes())
    assert "not the kind of key that its name says" in refused(str(tmp_path / "site-1.pub"))
    (tmp_path / "site-1.pub").write_bytes(b"nonsense")
    assert "is not a public key" in refused(str(tmp_path / "site-1.pub"))
    assert "not a node-N.pub or site-N.pub" in refused(str(coordinator / "coordinator.pub"))
    assert main(["certs", "--enrol", *other, "--out", str(coordinator), "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--site", "-1", "--out", "x"], "--site -1"),
        (["--site", "0"], "--out DIR"),
        (["--coordinator", "--out", "x"], "--host NAME"),
        (["--coordinator", "--renew", "--out", "x"], "--host NAME"),
        (["--revoke", "7", "--out", "x"], "no node-7.pub"),
        (["--show", "x"], "no such folder"),
    ],
)
def test_wrong_calls_write_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    named: str,
    capsys: Printed,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["certs", *arguments]) == 1
    assert named in capsys.readouterr().err.splitlines()[-1] and not list(tmp_path.iterdir())


def test_a_revoked_site_is_unregistered_and_its_keys_are_put_away(
    tmp_path: Path, coordinator: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    for number in (0, 1):
        assert (
            main(
                [
                    "certs",
                    "--enrol",
                    *make_site(tmp_path / str(number), number),
                    "--out",
                    str(coordinator),
                ]
            )
            == 0
        )
    keys = [
        load_ssh_public_key((coordinator / f"node-{number}.pub").read_bytes()) for number in (0, 1)
    ]
    pem = [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in keys]
    monkeypatch.setattr(flower, "registered_nodes", lambda: {11: pem[0], 22: pem[1]})
    ran: list[list[str]] = []
    code = 1

    def flwr(command: list[str], **more: Any) -> Any:
        ran.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", flwr)
    capsys.readouterr()
    assert main(["certs", "--revoke", "1", "--out", str(coordinator)]) == 0
    printed = capsys.readouterr().out
    assert (
        "flwr supernode unregister 22" in printed
        and "flwr stop RUN_ID" in printed
        and "certs --site 1 --force" in printed
    )
    assert ran == [] and (coordinator / "site-1.pub").exists()
    assert main(["certs", "--revoke", "1", "--out", str(coordinator), "--run"]) == 1
    assert (
        "the keys are where they were" in capsys.readouterr().err
        and (coordinator / "site-1.pub").exists()
    )
    code = 0
    assert main(["certs", "--revoke", "1", "--out", str(coordinator), "--run"]) == 0
    assert ran[-1] == ["flwr", "supernode", "unregister", "22"]
    assert sorted(NodeKeys.read(str(coordinator)).reply_keys) == [0]
    assert {path.name for path in (coordinator / "revoked").iterdir()} == {
        "node-1.pub",
        "site-1.pub",
    }
    again = make_site(tmp_path / "new", 1)
    assert main(["certs", "--enrol", *again, "--out", str(coordinator)]) == 0  # its new keys
    assert main(["certs", "--revoke", "1", "--out", str(coordinator), "--run"]) == 0
    assert len(list((coordinator / "revoked").iterdir())) == 4


def test_a_certificate_is_renewed_and_warned_of_before_it_ends(
    coordinator: Path, capsys: Printed
) -> None:
    kept = {
        name: (coordinator / name).read_bytes() for name in ("ca.crt", "ca.key", "coordinator.key")
    }
    before = (coordinator / "server.crt").read_bytes()
    assert expiring([coordinator]) == []
    assert (
        main(["certs", "--coordinator", "--renew", "--days", "20", "--out", str(coordinator)]) == 0
    )
    assert (coordinator / "server.crt").read_bytes() != before and 19 < days_left(
        coordinator / "server.crt"
    ) < 20.01
    assert {name: (coordinator / name).read_bytes() for name in kept} == kept
    (line,) = expiring([coordinator, coordinator])
    assert "server.crt runs out in 20 days" in line and "--renew" in line
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=22)
    assert "ran out 2 days ago" in expiring([coordinator], later)[0]
    capsys.readouterr()
    assert main(["certs", "--show", str(coordinator)]) == 0
    printed = capsys.readouterr().out
    assert "warning: " in printed and "server.crt: valid for 20 more days" in printed
    assert (
        main(["certs", "--coordinator", "--host", "superlink.example", "--out", str(coordinator)])
        == 0
    )  # still covers its host


def test_a_run_with_keys_knows_where_its_certificates_are(coordinator: Path) -> None:
    federated = FederatedConfig(
        node_keys=str(coordinator), signing_key=str(coordinator / "coordinator.key")
    )
    assert (
        key_folders(federated) == [coordinator, coordinator]
        and key_folders(FederatedConfig()) == []
    )
    (coordinator / "server.crt").write_bytes(b"nonsense")
    (line,) = expiring(key_folders(federated))  # which stops no run
    assert "cannot say when it runs out" in line


def test_show_says_what_to_compare_and_what_is_open(
    tmp_path: Path, coordinator: Path, capsys: Printed
) -> None:
    make_site(tmp_path / "site", 2)
    for name in ("ca.crt", "coordinator.pub"):
        (tmp_path / "site" / name).write_bytes((coordinator / name).read_bytes())
    (tmp_path / "site/site-2.key").chmod(0o644)
    capsys.readouterr()
    assert main(["certs", "--show", str(coordinator)]) == 0
    there = capsys.readouterr().out.splitlines()
    assert main(["certs", "--show", str(tmp_path / "site")]) == 0
    here = capsys.readouterr().out.splitlines()
    for word in ("authority", "coordinator"):
        (ours,), (theirs,) = (
            [line for line in lines if line.startswith(word)] for lines in (here, there)
        )
        assert ours == theirs and len(ours.split()) == 7
    assert any("chmod 600" in line and "site-2.key" in line for line in here)


def test_the_old_way_says_that_it_is_for_trying_out(tmp_path: Path, capsys: Printed) -> None:
    assert (
        main(["certs", "--host", "localhost", "--nodes", "1", "--out", str(tmp_path / "certs")])
        == 0
    )
    assert "--nodes N is for trying out on one machine" in capsys.readouterr().out


def test_the_old_way_is_not_for_a_coordinators_folder(coordinator: Path, capsys: Printed) -> None:
    """Private keys of sites beside the key that signs: whoever has that folder would be everybody."""
    assert main(["certs", "--nodes", "3", "--out", str(coordinator)]) != 0
    assert "whose sites make their own keys" in capsys.readouterr().err
    assert not list(coordinator.glob("node-*"))

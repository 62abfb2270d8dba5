"""``fedhubert certs``: checked with a real TLS handshake, with Flower's own key loader, and by what it refuses."""

import shlex
import socket
import ssl
import threading
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedhubert.cli import main
from fedhubert.compose import compose
from tests.flower import would_register

PRIVATE = {"ca.key", "server.key", "superexec.secret", "node-0.key", "node-1.key"}
PUBLIC = {"ca.crt", "server.crt", "node-0.pub", "node-1.pub"}


def certs(out: Path, *arguments: str) -> int:
    return main(["certs", "--out", str(out), *arguments])


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    assert certs(tmp_path / "certs", "--host", "superlink.example", "10.1.2.3", "--nodes", "2") == 0
    return tmp_path / "certs"


def handshake(server: Path, authority: Path, name: str) -> str:
    """Connect as ``name`` would be reached; return the TLS version or raise what the client raises."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(server / "server.crt", server / "server.key")
    client_side = ssl.create_default_context(cafile=str(authority / "ca.crt"))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    left, right = socket.socketpair()

    def serve() -> None:
        try:
            server_side.wrap_socket(left, server_side=True).close()
        except (ssl.SSLError, OSError):
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client_side.wrap_socket(right, server_hostname=name) as wrapped:
            return str(wrapped.version())
    finally:
        right.close()
        thread.join()


def test_private_files_are_private_and_all_are_there(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == PRIVATE | PUBLIC
    assert made.stat().st_mode & 0o777 == 0o700
    for name in PRIVATE:
        assert (made / name).stat().st_mode & 0o777 == 0o600, name
    for name in PUBLIC:
        assert b"PRIVATE" not in (made / name).read_bytes()


@pytest.mark.parametrize("name", ["superlink.example", "10.1.2.3", "localhost", "127.0.0.1", "::1"])
def test_a_client_that_trusts_the_authority_accepts_the_names(made: Path, name: str) -> None:
    assert handshake(made, made, name) == "TLSv1.3"


def test_another_name_and_another_authority_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(made, made, "elsewhere.example")
    assert certs(tmp_path / "other", "--host", "superlink.example") == 0
    with pytest.raises(
        ssl.SSLCertVerificationError, match="unable to get local issuer|signature failure"
    ):
        handshake(made, tmp_path / "other", "superlink.example")


def test_node_keys_are_what_flower_takes(made: Path) -> None:
    key = load_ssh_private_key((made / "node-1.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"
    assert would_register(made / "node-1.pub", key.public_key())
    assert (made / "node-0.pub").read_bytes() != (made / "node-1.pub").read_bytes()


def test_nothing_is_replaced_unless_forced(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(made)
    assert certs(made, "--host", "superlink.example", "--nodes", "2") == 0
    assert contents(made) == before and "nothing was changed" in capsys.readouterr().out
    (made / "ca.key").rename(
        made.parent / "ca.key"
    )  # kept elsewhere: not needed for another node's key
    assert certs(made, "--nodes", "3") == 0
    after = contents(made)
    assert after.keys() - before.keys() == {"node-2.key", "node-2.pub"}
    (made.parent / "ca.key").rename(made / "ca.key")
    assert {**after, **before} == contents(made)
    assert certs(made, "--host", "superlink.example", "--nodes", "2", "--force") == 0
    assert all(contents(made)[name] != before[name] for name in PRIVATE | PUBLIC)
    assert (made / "node-0.key").stat().st_mode & 0o777 == 0o600


def test_the_output_names_the_next_commands(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs(made, "--nodes", "2") == 0
    printed = capsys.readouterr().out
    for part in (
        f"flwr supernode register {made / 'node-1.pub'} --name site-1",
        "--enable-supernode-auth",
        "--root-certificates",
    ):
        assert part in printed
    assert "PRIVATE KEY" not in printed


def test_the_commands_that_are_printed_hold_whatever_the_folder_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read by a shell, and the overrides by Hydra, they name the files that were made."""
    out = tmp_path / 'it\'s; "the" $HOME = key#s'
    assert certs(out, "--coordinator", "--host", "localhost") == 0
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("Runs are started")
    ]
    config = compose(shlex.split(line.split(" with ")[1]))
    assert config.federated.signing_key == str(out / "coordinator.key")
    assert config.federated.node_keys == str(out)
    assert certs(out, "--site", "3") == 0
    command = capsys.readouterr().out.split("prints what to compare.\n")[1]
    arguments = shlex.split(command.replace("\\\n", " "))
    assert str(out / "node-3.key") in arguments
    told = tomllib.loads(
        arguments[-1]
        .removesuffix(" ...")
        .replace(" site-key", "\nsite-key")
        .replace(" coord", "\ncoord")
    )
    assert told["coordinator-key"] == str(out / "coordinator.pub")
    assert told["site-key"] == str(out / "site-3.key")
    assert certs(tmp_path / "new one", "--host", "localhost", "--nodes", "1") == 0
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if "supernode register" in line
    ]
    assert Path(shlex.split(line)[3]).is_file()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--nodes", "2"], "--host NAME"),
        (
            ["--host", "https://superlink"],
            "--host https://superlink: neither a host name nor an IP address",
        ),
        (["--host", "superlink:8000"], "--host superlink:8000"),
        (["--host", "10.1.2.300"], "--host 10.1.2.300"),
        (["--host", ""], "--host "),
        (["--host", "a", "--nodes", "-1"], "--nodes -1"),
        (["--host", "a", "--days", "0"], "--days 0"),
        (["--host", "a", "--days", "9999999"], "--days 9999999"),
    ],
)
def test_wrong_calls_write_nothing(
    tmp_path: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certs(tmp_path / "certs", *arguments) == 1
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "certs").exists()


def test_files_that_do_not_fit_together_are_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        before = contents(made)
        assert certs(made, *arguments) == 1
        assert contents(made) == before
        return capsys.readouterr().err.splitlines()[-1]

    assert "server.crt does not cover new.example" in refused("--host", "new.example")
    (made / "server.key").rename(tmp_path / "server.key")
    assert "server.crt is there without server.key" in refused("--host", "superlink.example")
    (tmp_path / "server.key").rename(made / "server.key")
    (made / "node-1.pub").rename(tmp_path / "node-1.pub")
    assert "node-1.key is there without node-1.pub" in refused("--nodes", "2")
    for name in ("server.key", "server.crt"):
        (made / name).unlink()
    (made / "ca.key").rename(tmp_path / "ca.key")
    assert "ca.key is not here" in refused("--host", "superlink.example")
    (made / "ca.key").write_bytes(b"not a key")
    assert "ca.key is not a private key" in refused("--host", "superlink.example")
    assert certs(tmp_path / "other", "--host", "superlink.example") == 0
    (tmp_path / "other/ca.key").rename(made / "ca.key")
    assert "ca.key is not the key of ca.crt" in refused("--host", "superlink.example")


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert certs(tmp_path / "file/certs", "--host", "superlink") == 1
    assert "cannot write to" in capsys.readouterr().err.splitlines()[-1]

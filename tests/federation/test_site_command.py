"""`fedhubert site`: what its flags mean, what it refuses, and what `--check` says of each thing that a site needs."""

import argparse
import contextlib
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.request import proxy_bypass

import pytest

from fedhubert.cli import main
from fedhubert.commands import site
from fedhubert.deployment.certificates import make_certificates
from fedhubert.deployment.enrolment import make_site, site_keys
from fedhubert.errors import ConfigError
from fedhubert.federation.secure.roster import Roster, write_roster
from fedhubert.federation.site import checks
from fedhubert.federation.site.plan import SitePlan


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of three sites, and a certificate of the coordinator that runs out in 20 days."""
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder, ["localhost"], 3, days=20)
    return folder


@pytest.fixture
def own(certs: Path, tmp_path: Path) -> Path:
    """What site 1 has of them."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("ca.crt", "node-1.key"):
        shutil.copy(certs / name, folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(path)]) == 0
    return path


def plan(*arguments: str) -> SitePlan:
    parser = argparse.ArgumentParser()
    site.add_arguments(parser)
    return site.plan_of(parser.parse_args(list(arguments)))


COORDINATOR = ("--superlink", "h:1")
AUDIO = ("--manifest", "calls.csv")


def test_a_folder_of_keys_says_who_the_site_is(
    own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = plan(
        *COORDINATOR,
        *AUDIO,
        "--keys",
        str(own),
        "--of",
        "3",
        "--set",
        "min-frames=50",
        "audit=false",
    )
    assert (made.key, made.certificates) == (own / "node-1.key", own / "ca.crt")
    config = dict(made.options.node_config)
    assert config.pop("state-dir").endswith("state")
    assert config == {
        "partition-id": 1,
        "num-partitions": 3,
        "manifest": str(tmp_path / "calls.csv"),
        "device": "auto",
        "min-frames": "50",
        "audit": "false",
    }


def test_a_site_on_a_shared_disk_has_no_audio_of_its_own(own: Path) -> None:
    """On a cluster the run's manifest is everybody's; the node then is one without a policy, as in simulation."""
    arguments = (*COORDINATOR, "--keys", str(own), "--of", "3")
    made = plan(*arguments, "--shared-manifest")
    assert "manifest" not in made.options.node_config
    found = {
        finding.name: finding.words for finding in (*checks._manifest(made), *checks._policy(made))
    }
    assert "the run's own" in found["manifest"] and found["policy"].startswith("none")
    with pytest.raises(ConfigError, match="give --manifest"):
        plan(*arguments)
    with pytest.raises(SystemExit):
        plan(*arguments, *AUDIO, "--shared-manifest")


def test_a_roster_is_checked_with_the_sites_key(own: Path, tmp_path: Path) -> None:
    """`--check` prints the digits to compare; a roster without this site's key is a problem, not a warning."""
    for number in range(3):
        make_site(tmp_path / "all", number)
    sites = site_keys((tmp_path / "all").glob("*.pub"))
    write_roster(tmp_path / "roster.json", Roster("x", 3, sites))
    for name in ("site-1.key", "site-1.pub"):
        shutil.copy(tmp_path / "all" / name, own)
    arguments = (*COORDINATOR, *AUDIO, "--keys", str(own), "--of", "3", f"--state-dir={tmp_path}")
    made = plan(*arguments, "--roster", str(tmp_path / "roster.json"))
    assert made.options.node_config["roster"] == str(tmp_path / "roster.json")
    (found,) = checks._roster(made)
    assert found.ok and Roster("x", 3, sites).digits in found.words
    assert list(checks._roster(plan(*arguments))) == []
    write_roster(tmp_path / "roster.json", Roster("x", 3, {**sites, 1: bytes(32)}))
    with pytest.raises(ConfigError, match="another key for site 1: do not take part"):
        list(checks._roster(made))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --superlink"),
        ((*COORDINATOR, "--supernode", "h:2"), "give --superlink"),
        (("--supernode", "h:2"), "needs --supernode-secret"),
        (COORDINATOR, "give --root-certificates"),
        ((*COORDINATOR, "--root-certificates", "ca.crt"), "give --keys DIR or --key FILE"),
        ((*COORDINATOR, "--insecure", "--key", "k"), "sends no key"),
        ((*COORDINATOR, "--insecure"), "give --number N --of M"),
        ((*COORDINATOR, "--insecure", "--number", "3", "--of", "3"), "from 0 to M - 1"),
        (
            (*COORDINATOR, "--insecure", "--number", "0", "--of", "3", "--set", "manifest=x"),
            "KEY is one of audit, centroids-hash",
        ),
        (
            (*COORDINATOR, "--insecure", "--number", "0", "--of", "3", "--set", "min-frames"),
            "KEY=VALUE",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(*AUDIO, *arguments)


def test_the_keys_of_other_sites_do_not_belong_at_a_site(certs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has the keys of 3 sites, and only one is this site's"):
        plan(*COORDINATOR, *AUDIO, "--keys", str(certs), "--of", "3")
    with pytest.raises(ConfigError, match="has no node.key"):
        plan(*COORDINATOR, *AUDIO, "--keys", str(tmp_path), "--of", "3")


def test_a_sites_own_supernode_is_reached_past_the_networks_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("http_proxy", "http://proxy:1"),
        ("no_proxy", "intranet"),
        ("NO_PROXY", ""),
    ):
        monkeypatch.setenv(name, value)
    made = plan(
        *COORDINATOR, *AUDIO, "--insecure", "--number=0", "--of=1", f"--state-dir={tmp_path}"
    )
    made.node(print).stop()
    assert (
        proxy_bypass("127.0.0.1:9094")
        and proxy_bypass("intranet")
        and not proxy_bypass("superlink.example.org")
    )


# -- --check


@contextlib.contextmanager
def coordinator(folder: Path | None) -> Iterator[int]:
    """A port that answers in TLS with the certificate in ``folder``, or (None) takes the connection and says nothing of use."""
    context = None
    if folder is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with contextlib.suppress(OSError):
                        if context is None:
                            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        else:
                            connection = context.wrap_socket(connection, server_side=True)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def look(
    own: Path, manifest: Path, tone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> object:
    """Check a site against a port; returns exit code and what is said, by what was looked at."""

    def go(port: int, *more: str) -> tuple[int, dict[str, list[str]]]:
        where = [
            "--superlink",
            f"localhost:{port}",
            "--keys",
            str(own),
            "--of",
            "3",
            "--state-dir",
            str(tmp_path / "state"),
        ]
        audio = ["--manifest", str(manifest), "--audio-root", str(tone_folder), "--device", "cpu"]
        code = main(["site", *where, *audio, *more, "--check"])
        said: dict[str, list[str]] = {}
        for line in capsys.readouterr().out.splitlines():
            said.setdefault(line[8:].split(":")[0], []).append(line)
        return code, said

    return go


def test_a_site_that_would_work(look, certs: Path) -> None:
    with coordinator(certs) as port:
        code, said = look(port)
    assert code == 0, said
    assert said["key"][0].startswith("ok") and "mode 0600" in said["key"][0]
    assert said["certificate"][0].startswith("ok") and "days" in said["certificate"][0]
    assert "12 utterances, 0.0 h of audio in" in said["manifest"][0]
    assert "GB free" in said["state folder"][0] and said["device"][0].startswith(
        "ok      device: cpu"
    )
    answers, expiry = said["coordinator"]
    assert "answers in TLSv1" in answers
    assert (
        expiry.startswith("warning") and "19 days; tell the coordinator to renew it" in expiry
    )  # 30 days ahead


def test_what_is_wrong_is_said_with_its_remedy(
    look, own: Path, certs: Path, tmp_path: Path, manifest: Path
) -> None:
    other = tmp_path / "other"
    make_certificates(other, ["localhost"], 0, days=20)
    (own / "node-1.key").chmod(0o644)
    broken = tmp_path / "broken.csv"
    broken.write_text("path,speaker,num_samples,sample_rate\ngone.wav,a,16000,16000\n")
    with coordinator(other) as port:
        code, said = look(
            port, "--manifest", str(broken), "--device", "cuda:7", "--audio-root", str(tmp_path)
        )
    assert code == 1
    assert f"chmod 600 {own / 'node-1.key'}" in said["key"][0] and "mode 0644" in said["key"][0]
    assert "gone.wav No such file" in said["manifest"][0]
    assert said["device"][0].startswith("problem") and "use auto or cpu" in said["device"][0]
    assert (
        "is not to be believed" in said["coordinator"][0]
        and "wrong ca.crt" in said["coordinator"][0]
    )


def test_a_coordinator_that_is_not_there_or_speaks_no_tls(
    look, monkeypatch: pytest.MonkeyPatch
) -> None:
    with coordinator(None) as port:
        assert "does not speak TLS" in look(port)[1]["coordinator"][0]
    assert "does not answer" in look(port)[1]["coordinator"][0]


def test_what_is_no_key_and_no_certificate_is_said(look, own: Path) -> None:
    (own / "node-1.key").write_text("no key")
    (own / "ca.crt").write_text("no certificate")
    said = look(1)[1]
    assert (
        "is no private key of a site; make one" in said["key"][0]
        and "holds no certificate" in said["certificate"][0]
    )


def test_an_authority_that_runs_out_and_a_full_disk_are_said(
    look, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "WARN_DAYS", 4000)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: argparse.Namespace(free=1e9))
    with coordinator(certs) as port:
        code, said = look(port)
    assert code == 1
    assert (
        said["certificate"][0].startswith("warning")
        and "ask the coordinator for a new ca.crt" in said["certificate"][0]
    )
    assert (
        said["state folder"][0].startswith("problem")
        and "1.0 GB free; make room" in said["state folder"][0]
    )

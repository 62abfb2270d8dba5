"""``fedhubert site --check``: would this site work? Each thing that it needs is looked at, and said
in a line."""

import datetime
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedhubert.errors import ConfigError
from fedhubert.federation.site.plan import SitePlan
from fedhubert.reporting.findings import Finding, look

WARN_DAYS = 30
LEAST_FREE_GB = 5.0
GB = 1e9
CONNECT_S = 10.0


def check(plan: SitePlan) -> list[Finding]:
    """Look at everything that a site needs; what goes wrong on the way is a finding, not an
    error."""
    checks: dict[str, Callable[[SitePlan], Iterator[Finding]]] = {
        "key": _key,
        "certificate": _authority,
        "manifest": _manifest,
        "state folder": _state_folder,
        "device": _device,
        "policy": _policy,
        "signatures": _signatures,
        "roster": _roster,
        "coordinator": _coordinator,
    }
    return look({name: partial(each, plan) for name, each in checks.items()})


def _key(plan: SitePlan) -> Iterator[Finding]:
    private = plan.key or plan.supernode_secret
    if private is None:
        yield Finding("key", True, "none: plain HTTP", "for trying things out only")
        return
    content = private.read_bytes()
    mode = stat.S_IMODE(private.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "key",
            False,
            f"{private} can be read by others (mode {mode:04o})",
            f"chmod 600 {private}",
        )
    elif plan.key is None:
        plan.secret()
        yield Finding("key", True, f"secret of the SuperNode, mode {mode:04o}")
    else:
        try:
            usable = isinstance(load_ssh_private_key(content, None), ec.EllipticCurvePrivateKey)
        except (ValueError, TypeError):
            usable = False
        remedy = "" if usable else "make one with `fedhubert certs`"
        words = (
            f"{private}, mode {mode:04o}" if usable else f"{private} is no private key of a site"
        )
        yield Finding("key", usable, words, remedy)


def _authority(plan: SitePlan) -> Iterator[Finding]:
    if plan.certificates is not None:
        try:
            certificates = x509.load_pem_x509_certificates(plan.certificates.read_bytes())
        except ValueError:
            raise ConfigError(
                f"{plan.certificates} holds no certificate: ask the coordinator for ca.crt"
            ) from None
        for certificate in certificates:
            yield _expiry(
                "certificate",
                str(plan.certificates),
                certificate,
                "ask the coordinator for a new ca.crt",
            )


def _expiry(name: str, what: str, certificate: x509.Certificate, remedy: str) -> Finding:
    now, end = datetime.datetime.now(datetime.UTC), certificate.not_valid_after_utc
    if certificate.not_valid_before_utc > now:
        return Finding(
            name,
            False,
            f"{what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}",
            "is this host's clock right?",
        )
    days = (end - now).days
    if end <= now:
        return Finding(name, False, f"{what} ran out on {end:%Y-%m-%d}", remedy)
    return Finding(
        name,
        True,
        f"{what} is valid until {end:%Y-%m-%d}, {days} days",
        remedy if days <= WARN_DAYS else "",
    )


def _manifest(plan: SitePlan) -> Iterator[Finding]:
    from fedhubert.data.manifest import Manifest

    config = plan.options.node_config
    if "manifest" not in config:
        yield Finding("manifest", True, "the run's own (--shared-manifest)")
        return
    root = config.get("audio-root")
    manifest = Manifest.read(str(config["manifest"]), str(root) if root else None)
    if not len(manifest):
        raise ConfigError(
            f"{config['manifest']} has no utterances: make it with `fedhubert prepare folder`"
        )
    hours = float((manifest.num_samples / manifest.sample_rates_hz).sum()) / 3600
    for row in {0, len(manifest) // 2, len(manifest) - 1}:
        with manifest.audio_path(row).open("rb"):
            pass
    yield Finding(
        "manifest",
        True,
        f"{config['manifest']}: {len(manifest)} utterances, {hours:.1f} h of audio in "
        f"{manifest.root}",
    )


def _state_folder(plan: SitePlan) -> Iterator[Finding]:
    plan.prepare()
    folder = plan.options.state_dir
    with tempfile.TemporaryFile(dir=folder):
        pass
    free, mode = shutil.disk_usage(folder).free / GB, stat.S_IMODE(folder.stat().st_mode)
    limit = float(str(plan.options.node_config.get("state-max-gb") or LEAST_FREE_GB))
    words = f"{folder}, {free:.1f} GB free"
    if free < min(limit, LEAST_FREE_GB):
        yield Finding(
            "state folder",
            False,
            words,
            "make room (`fedhubert state`), or name another disk with --state-dir",
        )
    elif mode & 0o077:
        yield Finding(
            "state folder",
            True,
            f"{words}, open to others (mode {mode:04o})",
            f"chmod 700 {folder}",
        )
    else:
        yield Finding("state folder", True, words)


def _device(plan: SitePlan) -> Iterator[Finding]:
    import torch

    from fedhubert.config.client import device_names
    from fedhubert.training.device import resolve_devices

    devices = resolve_devices(device_names(str(plan.options.node_config["device"])))
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU is used"
        torch.zeros(1, device=device)
        yield Finding("device", True, f"{device}, {name}; torch {torch.__version__}")


def _policy(plan: SitePlan) -> Iterator[Finding]:
    from fedhubert.federation.site.context import site_context

    site_context(plan.options)
    if plan.options.policy is None and "manifest" not in plan.options.node_config:
        yield Finding("policy", True, "none: the run brings its own manifest")
    elif plan.options.policy is None:
        yield Finding("policy", True, "the strict default (what it allows: --explain-policy)")
    else:
        yield Finding(
            "policy", True, f"{plan.options.policy} can be read (what it allows: --explain-policy)"
        )


def _signatures(plan: SitePlan) -> Iterator[Finding]:
    config = plan.options.node_config
    if not config.get("coordinator-key"):
        yield Finding(
            "signatures",
            True,
            "no coordinator.pub: whoever reaches the SuperLink gives orders here",
            "put it beside the keys (--keys)",
        )
    elif not config.get("site-key"):
        yield Finding(
            "signatures",
            True,
            "no site-N.key: replies are not signed",
            "`fedhubert certs --site N` makes it",
        )
    else:
        yield Finding(
            "signatures",
            True,
            f"orders by {config['coordinator-key']} alone, replies by {config['site-key']}",
        )


def _roster(plan: SitePlan) -> Iterator[Finding]:
    from fedhubert.federation.site.unmasked import pinned_from

    pinned = pinned_from(plan.options.node_config)
    if pinned is not None:
        roster = pinned.roster
        yield Finding(
            "roster",
            True,
            f"{roster.federation}, {len(roster.sites)} sites, sums of {roster.min_sites} or more; "
            "nothing leaves unmasked; "
            f"digits {roster.digits}",
        )


def _coordinator(plan: SitePlan) -> Iterator[Finding]:
    address = plan.superlink or plan.supernode or ""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise ConfigError(f"{address}: HOST:PORT is wanted")
    try:
        with socket.create_connection((host, int(port)), CONNECT_S) as connection:
            if plan.certificates is None:
                yield Finding("coordinator", True, f"{address} takes connections")
                return
            trust = ssl.create_default_context(cafile=str(plan.certificates))
            with trust.wrap_socket(connection, server_hostname=host) as secured:
                theirs = secured.getpeercert(binary_form=True)
                version = secured.version()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"{address} shows a certificate that is not to be believed ({error.verify_message}): "
            "wrong ca.crt, a name that the "
            "certificate does not have, or somebody in between"
        ) from None
    except ssl.SSLError as error:
        raise ConfigError(
            f"{address} does not speak TLS ({error.reason}): a wrong port, or a SuperLink without "
            "certificates"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{address} does not answer ({error.strerror or error}): is it up, and does a firewall "
            "let this host through?"
        ) from None
    assert theirs is not None, "verified"
    yield Finding("coordinator", True, f"{address} answers in {version}")
    yield _expiry(
        "coordinator",
        "its certificate",
        x509.load_der_x509_certificate(theirs),
        "tell the coordinator to renew it",
    )

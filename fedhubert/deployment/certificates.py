"""Certificates and keys of a federation.

A private certificate authority signs the SuperLink's TLS certificate, and every SuperNode gets a
key pair of the kind that Flower's node authentication takes (SECP384R1, OpenSSH format). Nothing is
replaced: a second call makes what is missing. Sites make their keys themselves
(:mod:`fedhubert.deployment.enrolment`); those that are made here, all in one place, are for trying
out.
"""

import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhubert.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Always in the SuperLink's certificate: its own helper processes reach it there."""
CA_DAYS = 3650
_ONE_DAY = datetime.timedelta(days=1)
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*"
)


def make_certificates(
    out: Path, hosts: Sequence[str], nodes: int, *, days: int, force: bool = False
) -> list[Path]:
    """Make what is missing in ``out`` and return the new files.

    ``ca.crt``/``.key`` (the authority), ``server.crt``/``.key`` (the SuperLink, for ``hosts`` and
    the loopback names), ``superexec.secret`` (shared by a SuperLink or SuperNode with its SuperExec
    under ``--isolation process``), and ``node-N.key``/``.pub`` for N below ``nodes``. Private files
    have mode 0600 and appear whole.

    Raises:
        ConfigError: a host that is neither a name nor an address; half of a pair; an existing
            certificate that does not cover ``hosts``, has run out, or is not of this authority; a
            folder that cannot be written.
    """
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
    if nodes < 0:
        raise ConfigError(f"--nodes {nodes}: a number of nodes", setting="--nodes")
    _check_days(days)
    made: list[Path] = []
    try:
        new_server = force or not has_pair(out / "server.crt", out / "server.key")
        if new_server and not hosts:
            raise ConfigError(
                "name the hosts by which sites reach the SuperLink: --host NAME ...",
                setting="--host",
            )
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        if force or not has_pair(out / "ca.crt", out / "ca.key", may_lack_key=True):
            made += _write_authority(out)
        if new_server:
            made += _write_server(out, names, hosts[0], days)
        else:
            _check_server(out, names)
        made += _write_secret(out / "superexec.secret", force)
        for node in range(nodes):
            private, public = out / f"node-{node}.key", out / f"node-{node}.pub"
            if force or not has_pair(public, private):
                made += write_node_key(private, public, f"node-{node}")
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", setting="--out") from None
    return made


def _check_days(days: int) -> None:
    if not 1 <= days <= CA_DAYS:
        raise ConfigError(
            f"--days {days}: from 1 to {CA_DAYS}, as long as the authority lasts", setting="--days"
        )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST_NAME.fullmatch(host) or re.fullmatch(r"[\d.]+", host):
        raise ConfigError(
            f"--host {host}: neither a host name nor an IP address (no port, no scheme)",
            setting="--host",
        )
    return x509.DNSName(host)


def renew_server(out: Path, hosts: Sequence[str], *, days: int) -> list[Path]:
    """Replace the SuperLink's certificate and key by new ones of the same authority, for ``hosts``
    (none: those of the old); return the files.

    Raises:
        ConfigError: there is no authority with its key in ``out``; no old certificate, and no
            hosts.
    """
    path = out / "server.crt"
    if not hosts and path.exists():
        covered = (
            load_certificate(path)
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value
        )
        hosts = [str(name.value) for name in covered if str(name.value) not in LOOPBACK]
    if not hosts:
        raise ConfigError(
            "name the hosts by which sites reach the SuperLink: --host NAME ...", setting="--host"
        )
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
    _check_days(days)
    try:
        return _write_server(out, names, hosts[0], days)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", setting="--out") from None


def has_pair(public: Path, private: Path, *, may_lack_key: bool = False) -> bool:
    """Whether both files are there; raises :class:`ConfigError` for one without the other."""
    if public.exists() == private.exists():
        return public.exists()
    if public.exists() and may_lack_key:  # the authority's key is best kept elsewhere
        return True
    there, missing = (public, private) if public.exists() else (private, public)
    raise ConfigError(
        f"{there} is there without {missing.name}: bring that back, or move {there.name} away",
        setting="--out",
    )


def _write_authority(out: Path) -> list[Path]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"fedhubert private CA {secrets.token_hex(4)}")]
    )
    usage = _key_usage(signs_certificates=True)
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )
    return [
        write_whole(out / "ca.key", _private_bytes(key), 0o600),
        write_whole(out / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644),
    ]


def _write_server(
    out: Path, names: Sequence[x509.GeneralName], common_name: str, days: int
) -> list[Path]:
    authority, authority_key = _load_authority(out)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    certificate = (
        _builder(subject, authority.subject, key.public_key(), days, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    return [
        write_whole(out / "server.key", _private_bytes(key), 0o600),
        write_whole(
            out / "server.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644
        ),
    ]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _ONE_DAY)  # sites whose clocks lag
        .not_valid_after(now + days * _ONE_DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(out: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if not (out / "ca.key").exists():
        raise ConfigError(
            f"{out / 'ca.key'} is not here: bring it back to sign a certificate", setting="--out"
        )
    certificate = load_certificate(out / "ca.crt")
    try:
        key = serialization.load_pem_private_key((out / "ca.key").read_bytes(), password=None)
    except (ValueError, TypeError):
        raise ConfigError(
            f"{out / 'ca.key'} is not a private key in PEM form without a password", setting="--out"
        ) from None
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        raise ConfigError(f"{out / 'ca.key'} is not the key of ca.crt", setting="--out")
    return certificate, key


def load_certificate(path: Path) -> x509.Certificate:
    """Return the certificate in ``path``; raises :class:`ConfigError` where there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise ConfigError(f"{path} is not a certificate in PEM form", setting="--out") from None


def _check_server(out: Path, names: Sequence[x509.GeneralName]) -> None:
    """Raise :class:`ConfigError` when the SuperLink's certificate cannot serve ``names``; a
    certificate is never changed unasked."""
    path = out / "server.crt"
    certificate = load_certificate(path)
    remedy = (
        "move server.crt and server.key away and run this again to make a new certificate (the "
        "sites need not change)"
    )
    try:
        certificate.verify_directly_issued_by(load_certificate(out / "ca.crt"))
    except Exception:
        raise ConfigError(f"{path} was not signed by ca.crt; {remedy}", setting="--out") from None
    if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise ConfigError(
            f"{path} ran out on {certificate.not_valid_after_utc:%Y-%m-%d}; {remedy}",
            setting="--out",
        )
    covered = list(
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    )
    missing = [str(name.value) for name in names if name not in covered]
    if missing:
        raise ConfigError(f"{path} does not cover {', '.join(missing)}; {remedy}", setting="--host")


def _write_secret(path: Path, force: bool) -> list[Path]:
    return (
        []
        if path.exists() and not force
        else [write_whole(path, secrets.token_hex(32).encode(), 0o600)]
    )


def write_node_key(private: Path, public: Path, comment: str) -> list[Path]:
    """Make a key by which Flower knows a node."""
    key = ec.generate_private_key(ec.SECP384R1())
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return [
        write_whole(private, _private_bytes(key, serialization.PrivateFormat.OpenSSH), 0o600),
        write_whole(public, line + f" {comment}\n".encode(), 0o644),
    ]


def _private_bytes(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def write_whole(path: Path, content: bytes, mode: int) -> Path:
    """Write ``path`` whole, and private from its first byte."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path

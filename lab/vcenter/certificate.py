"""The front's self-signed certificate: made once, kept in the state directory, pinned by its thumbprint."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALIDITY_DAYS = 825  # the longest that common TLS clients accept


@dataclass(frozen=True)
class Certificate:
    """Where certificate and key lie (PEM), and the SHA-256 of the DER form (lower-case hex, no colons)."""

    certificate_path: Path
    key_path: Path
    thumbprint: str


def ensure_certificate(state_dir: Path) -> Certificate:
    """Return the certificate of `state_dir`; make it when it is not there yet.

    It is valid for `localhost`, `127.0.0.1` and `::1` (subjectAltName), and is its own CA, so that a client
    can use the PEM file as its CA bundle with host name verification on.
    """
    certificate_path, key_path = state_dir / "vcenter.pem", state_dir / "vcenter.key"
    if not (certificate_path.exists() and key_path.exists()):
        _make(certificate_path, key_path)
    der = ssl.PEM_cert_to_DER_cert(certificate_path.read_text())
    return Certificate(certificate_path, key_path, hashlib.sha256(der).hexdigest())


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """A TLS 1.2+ server context that presents `certificate`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate.certificate_path, certificate.key_path)
    return context


def _make(certificate_path: Path, key_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "safehaul lab"),
            x509.NameAttribute(NameOID.COMMON_NAME, "localhost"),
        ]
    )
    alternatives = x509.SubjectAlternativeName(
        [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.IPAddress(ipaddress.ip_address("::1")),
        ]
    )
    # An hour of grace: a client whose clock is a little behind must not refuse a certificate just made.
    start = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=_VALIDITY_DAYS))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(key_path, private)
    write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def write_private(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write `content` to `path` at once (temporary file, fsync, rename) with `mode`."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)

"""Certificates for a vCenter on loopback: good ones, and each kind that a client must refuse."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.vcenter.certificate import Certificate

LOOPBACK = ("localhost", "127.0.0.1")
_DAY = dt.timedelta(days=1)


class Authority:
    """A CA of the test's own. `path` is its certificate, as a `ca_file`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        self._certificate = (
            _builder(name, name, self._key, now - 400 * _DAY, now + 400 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str, hosts: Sequence[str] = LOOPBACK, *, from_day: int = -1, days: int = 30
    ) -> Certificate:
        """A server's certificate for the hosts, valid for `days` from `from_day` on (0: today)."""
        key = ec.generate_private_key(ec.SECP256R1())
        start = dt.datetime.now(dt.UTC) + from_day * _DAY
        signed = _server(_builder(name, self._name, key, start, start + days * _DAY), hosts).sign(
            self._key, hashes.SHA256()
        )
        return _written(self._directory, name, signed, key)


def self_signed(directory: Path, name: str, hosts: Sequence[str] = LOOPBACK) -> Certificate:
    """A certificate that nobody else vouches for, and that is no CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    signed = _server(_builder(name, name, key, now - _DAY, now + 30 * _DAY), hosts).sign(key, hashes.SHA256())
    return _written(directory, name, signed, key)


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, start: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _server(builder: x509.CertificateBuilder, hosts: Sequence[str]) -> x509.CertificateBuilder:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False).add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
    )


def _written(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> Certificate:
    certificate_path, key_path = directory / f"{name}.pem", directory / f"{name}.key"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Certificate(certificate_path, key_path, certificate.fingerprint(hashes.SHA256()).hex())

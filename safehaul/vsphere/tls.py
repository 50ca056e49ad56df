"""Whom we trust to be vCenter: a CA, one certificate by its SHA-256 thumbprint, or (named, logged) anybody.

pyVim switches verification off by itself for loopback names. pyVmomi checks a thumbprint only on a connection
whose ordinary verification failed, and then switches verification off in the context that later connections
share. So neither is used: each connection verifies itself here, before a byte is sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import logging
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safehaul.errors import ConfigError

log = logging.getLogger(__name__)

_SHA256_HEX = re.compile(r"^[0-9a-f]{64}$")


def sha256_thumbprint(certificate_der: bytes) -> str:
    """`AA:BB:…`: SHA-256 of a certificate's DER form, written as vSphere's own tools write it."""
    return hashlib.sha256(certificate_der).digest().hex(":").upper()


@dataclass(frozen=True, slots=True)
class Trust:
    """What makes a vCenter's certificate good. With none of the three: the system's own CA bundle."""

    ca_file: Path | None = None
    thumbprint_sha256: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        if sum((self.ca_file is not None, bool(self.thumbprint_sha256), self.insecure)) > 1:
            raise ConfigError("give one of ca_file, thumbprint_sha256 and insecure, not several")
        if self.thumbprint_sha256 and not _SHA256_HEX.match(_plain_hex(self.thumbprint_sha256)):
            raise ConfigError(
                f"thumbprint_sha256 {self.thumbprint_sha256!r} is not SHA-256: give 64 hexadecimal digits, "
                "colons allowed (40 digits would be SHA-1, which is not accepted)"
            )

    def context(self) -> ssl.SSLContext:
        """A context of its own for one vCenter.

        Raises:
            ConfigError: the CA file cannot be read or holds no certificate.
        """
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"ca_file {self.ca_file}: no CA certificate can be read from it: {error}"
            ) from error
        if self.insecure or self.thumbprint_sha256:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def check(self, sock: ssl.SSLSocket, peer: str) -> None:
        """Compares the certificate of a connection with the pinned thumbprint, if there is one.

        Raises:
            ConfigError: another certificate; names both thumbprints.
        """
        if not self.thumbprint_sha256:
            return
        seen = sha256_thumbprint(sock.getpeercert(binary_form=True) or b"")
        if not hmac.compare_digest(_plain_hex(seen), _plain_hex(self.thumbprint_sha256)):
            raise ConfigError(
                f"{peer} shows a certificate with SHA-256 thumbprint {seen}, expected is "
                f"{self.thumbprint_sha256}: if vCenter's certificate was renewed, change thumbprint_sha256; "
                "if not, somebody stands between"
            )


def _plain_hex(thumbprint: str) -> str:
    return thumbprint.replace(":", "").strip().lower()


def connection_class(trust: Trust, peer: str) -> type[http.client.HTTPSConnection]:
    """A connection class for pyVmomi's stub that verifies each new connection by `trust`."""

    class VerifiedConnection(http.client.HTTPSConnection):
        def connect(self) -> None:
            try:
                super().connect()
            except ssl.SSLCertVerificationError as error:
                raise ConfigError(_untrusted(self.host, self.port, self.timeout, peer, error)) from error
            sock: Any = self.sock
            try:
                trust.check(sock, peer)
            except ConfigError:
                self.close()
                raise

    return VerifiedConnection


def _untrusted(
    host: str, port: int, timeout_s: float | None, peer: str, error: ssl.SSLCertVerificationError
) -> str:
    """Says why, and which certificate it was, so that a person can compare and pin it."""
    seen = "unknown"
    # Only to name the thumbprint: nothing is sent over this connection, and a failure changes nothing.
    with contextlib.suppress(OSError):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection((host, port), timeout=timeout_s) as raw,
            context.wrap_socket(raw, server_hostname=host) as sock,
        ):
            seen = sha256_thumbprint(sock.getpeercert(binary_form=True) or b"")
    return (
        f"{peer}: the certificate is not trusted ({error.verify_message}); its SHA-256 thumbprint is {seen}: "
        "configure ca_file, or thumbprint_sha256 after comparing it with the one that vCenter itself shows"
    )

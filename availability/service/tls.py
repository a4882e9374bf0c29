"""Server credentials from PEM files. Certificates are read at start; a renewed one needs a restart.

It may not decide where plain text is allowed: `auth.require_loopback` and the composition root do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc


class TlsFileError(Exception):
    """A certificate or key file cannot be used; the message names the file and why, never its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files. With `client_ca_file` every client must show a certificate signed by it."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Read the files and make credentials; TlsFileError where one is missing or is not PEM."""
    key = _pem(files.key_file, b"PRIVATE KEY-----")
    cert = _pem(files.cert_file, b"-----BEGIN CERTIFICATE-----")
    client_ca = _pem(files.client_ca_file, b"-----BEGIN CERTIFICATE-----") if files.client_ca_file else None
    return grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=client_ca, require_client_auth=client_ca is not None
    )


def _pem(path: Path, mark: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsFileError(f"cannot read {path}: {error.strerror}") from error
    if mark not in content:
        raise TlsFileError(f"{path} holds no {mark.decode().strip('-').replace('BEGIN ', '').lower()} in PEM")
    return content

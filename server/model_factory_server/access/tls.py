"""TLS of the server's port: certificate, key and client authorities, read again when their files change."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from model_factory.errors import ServerError
from model_factory_server.access.file_stamps import FileStamp, stamps_of
from model_factory_server.settings.server_settings import AccessSettings

log = logging.getLogger(__name__)

_DAY_SECONDS = 86400.0
_WARN_DAYS = 7.0


class ServerTls:
    """The certificates in use."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files. With ``client_ca``, clients must have a certificate of one of these authorities.

        Raises:
            ServerError: a file cannot be read, or the key belongs to another certificate.
        """
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._files = tuple(path for path in (cert, key, client_ca) if path is not None)
        self._stamps: tuple[FileStamp, ...] = stamps_of(self._files)
        configuration, self._expiry = self._read()
        self.credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            configuration,
            self._read_if_changed,  # type: ignore[arg-type]  # the stubs lack None: unchanged
            require_client_authentication=client_ca is not None,
        )
        """Credentials of the port."""

    def expiry(self) -> float:
        """Return the expiry of the certificate in use, in seconds since the epoch."""
        return self._expiry

    def _read(self) -> tuple[grpc.ServerCertificateConfiguration, float]:
        certificate, key = _read_file(self._cert), _read_file(self._key)
        expiry = _check_pair(self._cert, certificate, self._key, key)
        authorities = None if self._client_ca is None else _read_file(self._client_ca)
        configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authorities)
        _warn_of_expiry(self._cert, expiry)
        return configuration, expiry

    def _read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration of new connections; None: unchanged. Called by gRPC for every handshake."""
        try:
            stamps = stamps_of(self._files)
            if stamps == self._stamps:
                return None
            configuration, self._expiry = self._read()
        except ServerError as error:
            log.error("the certificates stay unchanged: %s", error)  # noqa: TRY400  the text is complete
            return None
        self._stamps = stamps
        log.info("read the certificates again")
        return configuration


def load_tls(settings: AccessSettings) -> ServerTls | None:
    """Return the TLS of the port; None: without encryption.

    Raises:
        ServerError: a file cannot be read, the key belongs to another certificate, or a setting is missing.

    Example:
        >>> load_tls(AccessSettings()) is None
        True
    """
    if settings.tls_cert is None or settings.tls_key is None:
        if settings.tls_cert is not None or settings.tls_key is not None or settings.tls_client_ca is not None:
            raise ServerError("TLS needs --tls-cert and --tls-key; mutual TLS also needs --tls-client-ca")
        return None
    return ServerTls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def _check_pair(certificate_path: Path, certificate: bytes, key_path: Path, key: bytes) -> float:
    """Check that the key belongs to the certificate, the first of a chain; return the expiry of the certificate."""
    try:
        first = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise ServerError(f"{certificate_path} does not hold a certificate in PEM") from None
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: the key has a password
        raise ServerError(f"{key_path} does not hold a private key in PEM without a password") from None
    if private.public_key() != first.public_key():
        raise ServerError(f"the key in {key_path} does not belong to the certificate in {certificate_path}")
    return first.not_valid_after_utc.timestamp()


def _warn_of_expiry(path: Path, expiry: float) -> None:
    days = (expiry - time.time()) / _DAY_SECONDS
    if days < 0:
        log.error("the certificate in %s has expired: no client will connect. Remedy: replace the file", path)
    elif days < _WARN_DAYS:
        log.warning("the certificate in %s expires in %.1f days", path, days)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None

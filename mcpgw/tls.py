"""The gateway's own certificate: read, checked, and taken over anew when its files change.

Connections keep the certificate that they have begun with. A new pair of files that cannot be used changes
nothing: the old one stays in force.
"""

import asyncio
import errno
import os
import shlex
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from mcpgw.config_watch import Seen, look_at, watch_files
from mcpgw.errors import ConfigError
from mcpgw.settings import ServerSettings

SOON: Final = timedelta(days=14)
"""How long before its end a certificate is warned of."""

_LARGEST_FILE: Final = 1024 * 1024
_PATIENCE_SECONDS: Final = 1.0
_LEAST_RSA_BITS: Final = 2048
_Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey


@dataclass(frozen=True, slots=True)
class Certificate:
    """A pair that can be used: `context` speaks with it, from `begins` until `ends`, for `names`."""

    context: ssl.SSLContext
    names: tuple[str, ...]
    begins: datetime
    ends: datetime

    def __str__(self) -> str:
        """The names and the end."""
        return f"for {', '.join(self.names) or 'no name'}, until {self.ends:%Y-%m-%d %H:%M} UTC"

    def warning(self, now: datetime | None = None) -> str:
        """What is about to go wrong, as the end of a sentence; empty where nothing is."""
        now = now or datetime.now(UTC)
        if now < self.begins:
            return f"does not hold before {self.begins:%Y-%m-%d %H:%M} UTC: clients will refuse it"
        if now >= self.ends:
            return f"has held until {self.ends:%Y-%m-%d %H:%M} UTC: clients refuse it"
        if now >= self.ends - SOON:
            return f"holds until {self.ends:%Y-%m-%d %H:%M} UTC"
        return ""


def load_certificate(server: ServerSettings) -> Certificate:
    """The certificate of the configuration; it reads files.

    TLS 1.2 is the least that is spoken (RFC 9325, section 3.1.1), with the ciphers of OpenSSL's own choice
    that keep past connections secret.

    Raises:
        ConfigError: a file cannot be read, others may read the key, or the two do not go together.
    """
    certificate, key = Path(server.tls_certificate), Path(server.tls_key)
    first = _first_certificate(certificate)
    _require_private(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        raise ConfigError([_fault_of(error, certificate, key)]) from None
    except OSError as error:
        raise ConfigError([f"server.tls_key: {key}: {error.strerror or error}"]) from None
    return Certificate(context, _names(first), first.not_valid_before_utc, first.not_valid_after_utc)


async def watch_certificate(
    server: ServerSettings,
    on_change: Callable[[Certificate], None],
    on_fault: Callable[[ConfigError], None],
    *,
    seen: Seen,
    interval: float,
) -> None:
    """Call `on_change` with each new certificate that can be used, and `on_fault` for one that cannot.

    Until cancelled. `seen` is what stood in the files when they were read (`certificate_files`); they are
    looked at every `interval` seconds in any case.
    """

    async def read_again() -> None:
        try:
            try:
                certificate = await asyncio.to_thread(load_certificate, server)
            except ConfigError:
                # No two files are replaced at once: what does not go together now may in a moment.
                await asyncio.sleep(_PATIENCE_SECONDS)
                certificate = await asyncio.to_thread(load_certificate, server)
        except ConfigError as error:
            on_fault(error)
        else:
            on_change(certificate)

    await watch_files(lambda: certificate_files(server), read_again, seen=seen, interval=interval)


def certificate_files(server: ServerSettings) -> tuple[Path, ...]:
    """The files of the certificate."""
    return Path(server.tls_certificate), Path(server.tls_key)


async def look_at_certificate(server: ServerSettings) -> Seen:
    """What stands in the files of the certificate now."""
    return await look_at(certificate_files(server))


def _first_certificate(file: Path) -> x509.Certificate:
    place = f"server.tls_certificate: {file}"
    try:
        text = _read(file)
    except OSError as error:
        raise ConfigError([f"{place}: {error.strerror or error}"]) from None
    try:
        found = x509.load_pem_x509_certificates(text)
        key = found[0].public_key()
        _ = _names(found[0])
    except (ValueError, x509.ExtensionNotFound):
        raise ConfigError(
            [f"{place}: holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"]
        ) from None
    except (UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ConfigError([f"{place}: cannot be used: {error}"]) from None
    if isinstance(key, dsa.DSAPublicKey) or not isinstance(key, _Key):
        raise ConfigError([f"{place}: its key is none that TLS clients take: RSA, ECDSA or EdDSA"])
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        raise ConfigError([f"{place}: its RSA key has {key.key_size} bits; {_LEAST_RSA_BITS} are the least"])
    return found[0]


def _require_private(file: Path) -> None:
    """Refuse a key that others than its owner can read or change, or that is encrypted.

    A group may read a file of root's: so programs that do not run as root are given keys (Debian's
    ``ssl-cert``, ``fsGroup`` of Kubernetes). Links are followed, for renewed keys are swapped by them.
    """
    place = f"server.tls_key: {file}"
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError([f"{place}: {error.strerror or error}"]) from None
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        text = stream.read(_LARGEST_FILE) if stat.S_ISREG(status.st_mode) else b""
    if b"ENCRYPTED" in text:
        raise ConfigError([f"{place}: is encrypted; the gateway needs it without a passphrase"])
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError([f"{place}: not a regular file"])
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError([f"{place}: another user (uid {status.st_uid}) owns it"])
    is_given_by_root = status.st_uid == 0 and os.geteuid() != 0
    if mode & (0o037 if is_given_by_root else 0o077):
        mend = f"chmod 600 {shlex.quote(str(file))}"
        raise ConfigError([f"{place}: others may read or change it (mode {mode:04o}); run: {mend}"])


def _read(file: Path) -> bytes:
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return stream.read(_LARGEST_FILE)


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    names = extension.value
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _fault_of(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"server.tls_key: {key}: is not the key of {certificate}"
    # What OpenSSL names may stand in either file.
    reason = (error.reason or "no PEM").lower().replace("_", " ")
    return f"server.tls_key: {key}: cannot be used with {certificate} ({reason})"

"""Whose certificates a client of the gateway believes, where it is not the system's own list."""

import ssl
from os import PathLike
from pathlib import Path
from typing import Final

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


def trusting(ca_file: str | PathLike[str]) -> ssl.SSLContext:
    """Believe the authorities in a PEM file, and no others; for `tls` of the client.

    Without such a context the system's are believed, or those of ``SSL_CERT_FILE`` (OpenSSL).

    Raises:
        ValueError: the file cannot be read, or holds no certificate; says why.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise ValueError(f"{ca_file} holds no certificates in PEM form") from None
    except OSError as error:
        raise ValueError(f"{ca_file}: {error.strerror or error}") from None


def trusting_only(certificate_file: str | PathLike[str]) -> ssl.SSLContext:
    """Believe the first certificate of a PEM file, whatever name it is for, and no other one.

    For a gateway whose certificate is at hand: it cannot be anybody else, and need not be called by the name
    that others know it by.

    Raises:
        ValueError: the file cannot be read, or holds no certificate; says why.
    """
    try:
        text = Path(certificate_file).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ValueError(f"{certificate_file}: {error.strerror or error}") from None
    _, begin, rest = text.partition(_BEGIN)
    first, end, _ = rest.partition(_END)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Its issuer is not to be believed: it has issued others' certificates too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=begin + first + end)
    except (ssl.SSLError, ValueError):
        raise ValueError(f"{certificate_file} holds no certificate in PEM form") from None
    return context

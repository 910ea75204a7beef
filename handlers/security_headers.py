"""What every answer tells a browser not to do with it, and what a page of the gateway's own may do.

Sources: WHATWG Fetch (``Cross-Origin-Resource-Policy``, ``X-Content-Type-Options``), WHATWG HTML
(``Cross-Origin-Opener-Policy``, ``X-Frame-Options``), W3C Referrer Policy, Permissions Policy and Content
Security Policy Level 3, RFC 6797 (``Strict-Transport-Security``), RFC 9111 (``Cache-Control``).
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

_POWERFUL: Final = ("camera", "display-capture", "geolocation", "microphone", "payment", "usb")
"""Features of browsers that no page of the gateway has any use for."""

SECURITY_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        # Addresses hold tickets and links.
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": ", ".join(f"{feature}=()" for feature in _POWERFUL),
        "Cache-Control": "no-store",
    }
)
"""The headers of every answer that says nothing else: no page, nobody's to embed, and not to be kept."""


def page_policy(
    *, script: str, style: str, connect: str = "'self'", image: str = "", form: str = "'none'"
) -> str:
    """The ``Content-Security-Policy`` of a page: its own script and style, and nothing that is not named.

    Each argument is a list of sources, as ``'self'`` or what `inline` makes.
    """
    directives: Iterable[str] = (
        "default-src 'none'",
        f"script-src {script}",
        f"style-src {style}",
        f"connect-src {connect}",
        *([f"img-src {image}"] if image else ()),
        "base-uri 'none'",
        f"form-action {form}",
        "frame-ancestors 'none'",
    )
    return "; ".join(directives)


def inline(text: str) -> str:
    """The source that allows one inline block with this content (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def transport_security(seconds: float, host: str) -> str:
    """The value of ``Strict-Transport-Security`` for an answer over TLS; empty where none is sent.

    Not for this machine's own names: a browser would refuse http to every other port of them, too.
    """
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    is_local = name.lower() == "localhost" or name.lower().endswith(".localhost")
    return "" if is_local or seconds < 1 else f"max-age={int(seconds)}"

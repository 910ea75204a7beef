"""``/docs``: a page that shows the OpenAPI document and sends requests, without anything from elsewhere."""

from functools import cache
from importlib.resources import files

from .base import BaseHandler
from .security_headers import page_policy

_PAGES = {
    "": ("api.html", "text/html; charset=utf-8"),
    "api.js": ("api.js", "text/javascript; charset=utf-8"),
    "api.css": ("api.css", "text/css; charset=utf-8"),
}
_POLICY = page_policy(script="'self'", style="'self'", image="data:")
"""What the page may do: its own script, and requests to this gateway (W3C, Content Security Policy 3)."""


class DocsHandler(BaseHandler):
    """The page and its parts. They hold nothing secret: what is shown, a token has to ask for."""

    def get(self, name: str = "") -> None:
        """Answer one of them."""
        file, content_type = _PAGES[name]
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Content-Security-Policy", _POLICY)
        self.finish(_text(file))

    def head(self, name: str = "") -> None:
        """The same without its body (RFC 9110 section 9.3.2)."""
        self.get(name)


@cache
def _text(file: str) -> str:
    return files("mcpgw").joinpath("pages", file).read_text(encoding="utf-8")

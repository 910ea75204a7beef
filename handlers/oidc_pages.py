"""Pages of a login at an identity provider: one is in, one is out, or something went wrong."""

from html import escape
from typing import Final

from .security_headers import inline, page_policy

_STYLE: Final = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
main { max-width: 22rem; margin: 15vh auto 0; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
button { font: inherit; padding: .5rem 1.25rem; }
[hidden] { display: none; }
"""
_SCRIPT: Final = """
"use strict";
const xsrf = () => (document.cookie.match(/(?:^|; )mcpgw_xsrf=([^;]*)/) || [])[1] || "";
const button = document.querySelector("button");
const told = document.getElementById("told");
button.addEventListener("click", async () => {
  button.disabled = true;
  try {
    const answer = await fetch("logout", { method: "POST", headers: { "X-XSRFToken": xsrf() } });
    if (answer.status === 200) {
      location.assign((await answer.json()).endSessionUrl);
    } else {
      told.textContent = answer.ok ? "You are logged out." : (await answer.json()).error.message;
      button.hidden = answer.ok;
    }
  } catch {
    told.textContent = "The gateway does not answer.";
  }
  button.disabled = false;
});
"""


def _page(title: str, body: str, script: str = "") -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - mcpgw</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>MCP Gateway</h1>
{body}
</main>
{script}</body>
</html>
"""


LOGGED_IN: Final = _page(
    "Logged in",
    '<p id="told" role="status">You are logged in.</p>\n<button>Log out</button>',
    f"<script>{_SCRIPT}</script>\n",
)
"""Where a login ends that nobody wanted a page behind; it can be ended there."""

LOGGED_OUT: Final = _page("Logged out", '<p>You are logged out.</p>\n<p><a href="login">Log in</a></p>')
"""Where a provider sends somebody who has logged out there too."""

PAGE_POLICY: Final = page_policy(script=inline(_SCRIPT), style=inline(_STYLE))
"""The Content-Security-Policy of these pages: their own two blocks, and requests to the gateway alone."""


def error_page(message: str) -> str:
    """The page that says why a login did not come to its end."""
    return _page(
        "Not logged in", f'<p role="alert">{escape(message)}</p>\n<p><a href="login">Begin again</a></p>'
    )

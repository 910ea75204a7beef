"""The page on which a person logs in: with name and password, or with a one-use link."""

import base64
import hashlib
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
main { max-width: 22rem; margin: 15vh auto 0; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
label { display: block; margin: 1rem 0; }
input { display: block; width: 100%; box-sizing: border-box; margin-top: .25rem; padding: .5rem; }
input, button { font: inherit; }
button { padding: .5rem 1.25rem; }
[hidden] { display: none; }
"""
_SCRIPT: Final = """
"use strict";
const secret = location.hash.slice(1);
if (secret) {
  // The secret is not to stay in the history of the browser.
  history.replaceState(null, "", location.pathname);
  document.getElementById("name").hidden = true;
  document.getElementById("user").required = false;
  document.getElementById("password").required = false;
  document.getElementById("password").autocomplete = "new-password";
  document.getElementById("what").textContent =
    "Choose a password of at least 12 characters, or leave it empty";
}
const form = document.querySelector("form");
const told = document.getElementById("told");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const password = document.getElementById("password").value;
  const body = secret
    ? { link: secret, ...(password && { password }) }
    : { user: document.getElementById("user").value, password };
  told.textContent = "";
  try {
    const answer = await fetch(location.pathname, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const content = await answer.json();
    if (answer.ok) {
      form.hidden = true;
      told.textContent = `You are logged in as ${content.user}.`;
    } else {
      told.textContent = content.error.message;
    }
  } catch {
    told.textContent = "The gateway does not answer.";
  }
});
"""

PAGE: Final = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in - mcpgw</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>MCP Gateway</h1>
<form method="post" action="">
<label id="name">Name
<input id="user" name="user" autocomplete="username" maxlength="128" required autofocus></label>
<label><span id="what">Password</span>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="256" required>
</label>
<button>Log in</button>
</form>
<p id="told" role="status"></p>
<noscript>This page needs JavaScript.</noscript>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    """A source expression for an inline block (Content Security Policy Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


SECURITY_POLICY: Final = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page: its own two blocks, and requests to the gateway alone."""

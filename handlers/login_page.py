"""The page on which a person logs in: with name and password, or with a one-use link."""

from collections.abc import Mapping
from typing import Final

from .security_headers import inline, page_policy

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
  document.querySelector("form").hidden = false;
  document.getElementById("name").hidden = true;
  document.getElementById("user").required = false;
  document.getElementById("password").required = false;
  document.getElementById("password").autocomplete = "new-password";
  document.getElementById("what").textContent =
    "Choose a password of at least 12 characters, or leave it empty";
}
// What shows that this page, and no other site's, sends the request.
const xsrf = () => (document.cookie.match(/(?:^|; )mcpgw_login_xsrf=([^;]*)/) || [])[1] || "";
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
      headers: { "Content-Type": "application/json", "X-XSRFToken": xsrf() },
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

_BEFORE: Final = f"""<!doctype html>
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
"""
_FORM: Final = """<form method="post" action="">
<label id="name">Name
<input id="user" name="user" autocomplete="username" maxlength="128" required autofocus></label>
<label><span id="what">Password</span>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="256" required>
</label>
<button>Log in</button>
</form>
"""
_AFTER: Final = f"""<p id="told" role="status"></p>
<noscript>This page needs JavaScript.</noscript>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def login_page(providers: Mapping[str, str], *, has_passwords: bool) -> str:
    """The page; `providers` has the links to those who know people too, by their names, both as HTML.

    Without passwords the form is there for one-use links alone.
    """
    links = "".join(f'<p><a href="{link}">Log in with {name}</a></p>\n' for name, link in providers.items())
    form = _FORM if has_passwords else _FORM.replace("<form ", "<form hidden ", 1)
    return f"{_BEFORE}{form}{links}{_AFTER}"


SECURITY_POLICY: Final = page_policy(script=inline(_SCRIPT), style=inline(_STYLE))
"""The Content-Security-Policy of the page: its own two blocks, and requests to the gateway alone."""

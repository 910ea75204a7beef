"""A real OpenID provider (``tests/servers/openid_provider.mjs``), which tests can have go wrong."""

import html
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin

import httpx2

from tests.support.node import node_22

SCRIPT = Path(__file__).parent.parent / "servers" / "openid_provider.mjs"
PASSWORD = "known to the provider alone"
_SECONDS = 10.0


class OpenIdProvider:
    """A provider as a process of its own; `url` is its issuer. Ends with the block that it is used in."""

    def __init__(self) -> None:
        modules = SCRIPT.parent.parent / "node_modules" / "oidc-provider"
        assert modules.exists(), "make test installs tests/node_modules"
        self._process = subprocess.Popen(
            [node_22(), SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        assert self.url, f"the provider has ended: {self._process.wait(_SECONDS)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(_SECONDS)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(_SECONDS)

    def add_account(self, name: str, **claims: Any) -> str:
        """Somebody who can log in with `PASSWORD`; answers the ``sub`` of theirs, which is not their name."""
        subject = f"subject-of-{name}"
        account = {"sub": subject, "preferred_username": name, "email": f"{name}@example.com", **claims}
        self._control("accounts", {name: {**account, "password": PASSWORD}})
        return subject

    def add_client(
        self,
        client_id: str,
        *,
        secret: str = "",
        redirect_uris: Iterable[str],
        post_logout_redirect_uris: Iterable[str] = (),
        **metadata: Any,
    ) -> None:
        """A client with a secret (sent by ``client_secret_basic``) or none, or others in its place."""
        known = {"client_secret": secret} if secret else {"token_endpoint_auth_method": "none"}
        self._control(
            "client",
            {
                "client_id": client_id,
                "redirect_uris": list(redirect_uris),
                "post_logout_redirect_uris": list(post_logout_redirect_uris),
                **known,
                **metadata,
            },
        )

    def rotate(self) -> None:
        """Sign with new keys from now on; the old ones are published no more."""
        self._control("rotate", {})

    def use_algorithm(self, name: str) -> None:
        """Sign access tokens with ``RS256`` or ``ES256``."""
        self._control("algorithm", {"name": name})

    def mint(self, claims: Mapping[str, Any], **how: Any) -> str:
        """A token with these claims alone, signed with the keys of now.

        `how`: ``type`` (the header's ``typ``), ``algorithm``, ``header``, and ``key="foreign"`` for a
        signature of another key under the same ``kid``.
        """
        return str(self._control("mint", {"claims": claims, **how})["token"])

    @contextmanager
    def forging(self, **how: Any) -> Iterator[None]:
        """Change the id tokens that are given out inside the block.

        `how`: as for `mint`, with ``claims`` over the right ones and ``without`` names of them; ``answer``
        has members of the whole answer of the token endpoint.
        """
        self._control("forge", how)
        try:
            yield
        finally:
            self._control("forge", {})

    @contextmanager
    def answering(self, path: str, **how: Any) -> Iterator[None]:
        """Answer requests of `path` wrongly inside the block: ``status``, ``body``, ``size``, ``delayMs``."""
        self._control("answers", {path: how})
        try:
            yield
        finally:
            self._control("answers", {})

    def count(self, path: str) -> int:
        """How many requests of `path` have come."""
        return int(self._control("seen", {})["requests"].get(path, 0))

    async def log_in(self, url: str, name: str = "ann", *, browser: httpx2.AsyncClient | None = None) -> str:
        """Do what a person in a browser does who is sent to `url`; answers where they are sent in the end.

        `browser` keeps its cookies, so that who has logged in once is asked no more.
        """
        if browser is None:
            async with httpx2.AsyncClient(timeout=_SECONDS, verify=False) as fresh:
                return await self.log_in(url, name, browser=fresh)
        for _ in range(10):
            answer = await browser.get(url)
            if answer.status_code == 200:
                action = re.search(r'<form method="post" action="([^"]+)"', answer.text)
                assert action is not None, answer.text
                form = {"login": name, "password": PASSWORD}
                answer = await browser.post(urljoin(url, html.unescape(action[1])), data=form)
            assert answer.status_code in (302, 303), answer.text
            url = urljoin(url, answer.headers["Location"])
            if not url.startswith(self.url):
                return url
        raise AssertionError("ten redirects and no end")

    def _control(self, what: str, given: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/control/{what}", json.dumps(given).encode())
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            told: dict[str, Any] = json.load(answer)
        return told

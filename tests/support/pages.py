"""A browser, as far as cookies and the headers of its own go."""

from collections.abc import Mapping

from tests.conftest import LiveGateway
from tests.support.logins import GOOD, send
from tests.support.raw_socket import RawAnswer

LOGIN_PAGE = "/api/v1/auth/login"


class Browser:
    """One browser with a page of the gateway open: it keeps `cookies`, and `attributes` of each."""

    def __init__(
        self, gateway: LiveGateway, *, origin: str = "", proxied: Mapping[str, str] | None = None
    ) -> None:
        """Open pages of `origin`; `proxied` is what a proxy between adds to each request."""
        self.gateway = gateway
        self.origin = origin or gateway.url
        self.proxied = dict(proxied or {})
        self.cookies: dict[str, str] = {}
        self.attributes: dict[str, set[str]] = {}

    async def open_login(self) -> RawAnswer:
        """Open the page on which one logs in, by typing its address."""
        typed = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        return self._keep(await send(self.gateway, "GET", LOGIN_PAGE, headers={**typed, **self._own}))

    async def log_in(self, name: str = "ann", password: str = GOOD) -> RawAnswer:
        """Log in as the script of that page does."""
        return await self.send(
            "POST", LOGIN_PAGE, {"user": name, "password": password}, xsrf="mcpgw_login_xsrf"
        )

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        xsrf: str | None = "mcpgw_xsrf",
        headers: Mapping[str, str] | None = None,
    ) -> RawAnswer:
        """A request of a script of that page, which repeats the cookie `xsrf` in the header."""
        own = {"Origin": self.origin, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        shown = {"X-XSRFToken": self.cookies.get(xsrf, "")} if xsrf else {}
        sent = {**own, **self._own, **shown, **(headers or {})}
        return self._keep(await send(self.gateway, method, path, body, headers=sent))

    @property
    def _own(self) -> dict[str, str]:
        pairs = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return {**self.proxied, "Cookie": pairs} if pairs else self.proxied

    def _keep(self, answer: RawAnswer) -> RawAnswer:
        for line in answer.set_cookies:
            pair, *attributes = line.split("; ")
            name, _, value = pair.partition("=")
            self.cookies[name], self.attributes[name] = value.strip('"'), set(attributes)
            if not self.cookies[name]:
                del self.cookies[name], self.attributes[name]
        return answer

"""Two gateways for all attacks, with those in one of them whose credentials are tried."""

import asyncio
import json
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mcpgw.access.accounts import Accounts
from mcpgw.access.keys import Keys
from mcpgw.access.passwords import Passwords
from mcpgw.roles import BUILT_IN
from mcpgw.store import By, Store
from tests.attacks.doors import IN, Door, Headers
from tests.attacks.foreign_issuer import ForeignIssuer
from tests.support.gateway_process import GatewayProcess, wait_until
from tests.support.plain_http import ask
from tests.support.raw_socket import RawSocket

BY = By("root", is_told=True)
_SENTINELS = count()
_SHORT = 20


class Trap:
    """A server that an attacker names in a token; `visits` counts who came."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/keys.json"
        self.visits = 0
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@dataclass
class Besieged:
    """A gateway under attack. `secrets` are credentials by name, `users` whose they are, `shown` all
    that were ever shown to it.
    """

    process: GatewayProcess
    trap: Trap
    issuer: ForeignIssuer
    admin: str = ""
    secrets: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it is."""
        return self.process.url

    @property
    def audit_file(self) -> Path:
        """Its audit log."""
        return self.process.folder / "audit.jsonl"


class Watch:
    """Parts of both logs, between one `mark` and the next, on a connection of its own.

    A mark is a line of the audit log itself, so that a line of what was done before never comes late.
    """

    def __init__(self, gateway: Besieged, connection: RawSocket) -> None:
        self._gateway = gateway
        self._connection = connection
        self._name = f"/sentinel-{next(_SENTINELS)}-"
        self._marks = 0
        self._begin = gateway.audit_file.stat().st_size
        self._log_begin = gateway.process.log_file.stat().st_size

    async def mark(self) -> None:
        """What is written from now on is another part."""
        await self._connection.request("GET", f"{self._name}{self._marks}", {"Host": "sentinel.example"})
        assert (await self._connection.read_answer()).status == 403
        self._marks += 1

    async def calls(self) -> Any:
        """What the gateway counts of calls."""
        headers = {"Authorization": f"Bearer {self._gateway.admin}"}
        await self._connection.request("GET", "/api/v1/gateway/stats", headers)
        answer = await self._connection.read_answer()
        assert answer.status == 200, answer.body
        return answer.json()["calls"]

    async def parts(self) -> list[list[dict[str, Any]]]:
        """The lines of the audit log between every two marks."""
        last = f'GET {self._name}{self._marks - 1}"'
        async with asyncio.timeout(5):
            while last not in (written := self._written()) or not written.endswith("\n"):
                await asyncio.sleep(0.002)
        parts: list[list[dict[str, Any]]] = [[]]
        for line in map(json.loads, written.splitlines()):
            if self._name in str(line["what"].get("action")):
                parts.append([])
            else:
                parts[-1].append(line)
        assert len(parts) == self._marks + 1
        return parts[1:-1]

    def text(self) -> str:
        """All that was written since this watch began."""
        with self._gateway.process.log_file.open("rb") as file:
            file.seek(self._log_begin)
            return self._written() + file.read().decode()

    def _written(self) -> str:
        with self._gateway.audit_file.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode()


@asynccontextmanager
async def watching(gateway: Besieged) -> AsyncIterator[Watch]:
    """A watch whose first part begins now."""
    async with await RawSocket.connect(gateway.url) as connection:
        watch = Watch(gateway, connection)
        await watch.mark()
        yield watch


@asynccontextmanager
async def _store_of(data_dir: Path) -> AsyncIterator[tuple[Accounts, Keys]]:
    store, passwords = await Store.open(data_dir / "mcpgw.db"), Passwords()
    yield Accounts(store, passwords, BUILT_IN), Keys(store)
    passwords.close()
    await store.close()


async def _make_users(data_dir: Path, gateway: Besieged) -> None:
    """Those who have accounts, logins and keys. Links let them in, so that no password has to be hashed."""
    secrets = gateway.secrets
    async with _store_of(data_dir) as (accounts, keys):
        for name, role in (("root", "admin"), ("ann", "operator"), ("eve", "viewer"), ("dora", "operator")):
            await accounts.add(name, role=role, password=None, by=BY)
            granted = _log_in(gateway.url, await accounts.make_link(name, by=BY))
            secrets[f"token of {name}"] = granted["accessToken"]
            secrets[f"refresh of {name}"] = granted["refreshToken"]
            gateway.users[f"token of {name}"] = name
        for user, what in (("ann", "key"), ("ann", "good key"), ("dora", "key")):
            secret, kept = await keys.create(user, "attack", ["tools:call", "events:read"], by=BY)
            secrets[f"{what} of {user}"], secrets[f"id of the {what} of {user}"] = secret, kept.id
        granted = _log_in(gateway.url, await accounts.make_link("ann", by=BY))
        ask(gateway.url, "/api/v1/auth/logout", {"refreshToken": granted["refreshToken"]}, method="POST")
        secrets["token of an ended login"] = granted["accessToken"]
        secrets["login link"] = await accounts.make_link("ann", by=BY)


def _log_in(url: str, link: str) -> Any:
    return ask(url, "/api/v1/auth/login", {"link": link, "refresh": "body"})


async def _shut_out(data_dir: Path, secrets: dict[str, str]) -> None:
    async with _store_of(data_dir) as (accounts, keys):
        await accounts.set_disabled("dora", True, by=BY)
        await keys.revoke(secrets["id of the key of ann"], by=BY)


def _invite(gateway: Besieged) -> None:
    """Guests of rooms for the tools of another server: one who is in, one who was removed, others."""
    rooms, secrets = "/api/v1/rooms", gateway.secrets
    for name in ("open", "over"):
        room = {"name": name, "scopes": ["tools:call:another"]}
        code = ask(gateway.url, rooms, room, token=gateway.admin)["code"]
        for guest in ("Gus", "Kim"):
            joined = ask(gateway.url, f"{rooms}/join", {"code": code, "name": guest})
            secrets[f"guest {guest} of {name}"] = joined["accessToken"]
            gateway.users[f"guest {guest} of {name}"] = joined["user"]
    ask(gateway.url, f"{rooms}/open/guests/Kim/kick", token=gateway.admin, method="POST")
    ask(gateway.url, f"{rooms}/over", token=gateway.admin, method="DELETE")


def _is_shut_out(url: str, credential: str) -> bool:
    try:
        ask(url, "/api/v1/auth/me", token=credential)
    except AssertionError as refused:
        return "401" in str(refused)
    return False


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Besieged, Besieged]]:
    """The two gateways, which start side by side, each with its audit log beside it."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    folders = [tmp_path_factory.mktemp(name) for name in ("besieged", "published")]
    (folders[1] / "public.pem").write_bytes(pem)
    keys = ("", f'algorithm = "RS256"\npublic_key = "${{file:{folders[1]}/public.pem}}"\n')
    trap, issuer = Trap(), ForeignIssuer()
    gateways = []
    for folder, key in zip(folders, keys, strict=True):
        audit = f'[audit]\nfile = "{folder}/audit.jsonl"\n[auth]\nrate = 1000\nburst = 1000\n'
        process = GatewayProcess(folder, configuration=audit + key + issuer.configuration())
        gateways.append(Besieged(process, trap, issuer))
    besieged, published = gateways
    published.secrets["private"] = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    published.secrets["public"] = pem.decode()
    try:
        for gateway in gateways:
            gateway.process.wait_listening()
        yield besieged, published
    finally:
        for gateway in gateways:
            gateway.process.process.send_signal(signal.SIGTERM)
        trap.close()
        issuer.close()
        for gateway in gateways:
            gateway.process.terminate()


@pytest.fixture(scope="session")
def besieged(both: tuple[Besieged, Besieged]) -> Iterator[Besieged]:
    """A gateway that makes its own tokens, and what was once good for it."""
    gateway = both[0]
    data_dir, secrets = gateway.process.data_dir, gateway.secrets
    asyncio.run(_make_users(data_dir, gateway))
    gateway.admin = secrets["token of root"]
    asyncio.run(_shut_out(data_dir, secrets))
    _invite(gateway)
    wait_until(partial(_is_shut_out, gateway.url, secrets["key of dora"]), what="a disabled user")
    yield gateway
    written = gateway.audit_file.read_text("utf-8") + gateway.process.log() + gateway.process.printed()
    kept = {secret for name, secret in secrets.items() if not name.startswith("id of ")}
    for secret in gateway.shown | kept:
        assert secret not in written
    assert gateway.trap.visits == 0, "no token tells the gateway where to look for keys"


@pytest.fixture(scope="session")
def published(both: tuple[Besieged, Besieged]) -> Besieged:
    """A gateway whose tokens come from elsewhere: all the world has the key that it checks them with."""
    return both[1]


@dataclass(frozen=True)
class Knock:
    """Somebody at a door, to be refused with `code`.

    `status` is the one of the door for bad credentials, unless it is given.
    """

    door: Door
    credential: str | None
    code: str
    status: int | None = None
    headers: Headers = field(default_factory=dict)


async def refused(gateway: Besieged, knocks: Iterable[Knock]) -> None:
    """Knock at doors in turn: each is refused, with one line of the audit log, and without an effect."""
    faults: dict[str, str] = {}
    tried: list[Knock] = []
    async with watching(gateway) as watch:
        before = await watch.calls()
        await watch.mark()
        for knock in knocks:
            tried.append(knock)
            gateway.shown |= {knock.credential} if knock.credential else set()
            outcome = await knock.door.knock(gateway.url, knock.credential, knock.headers)
            await watch.mark()
            name, expected = str(knock.door), (knock.status or knock.door.status, knock.code)
            if (outcome.status, outcome.code) != expected:
                faults[name] = f"{outcome.status} {outcome.code}"
            if outcome.status == 401 and not outcome.headers["www-authenticate"].startswith("Bearer"):
                faults[name] = "no challenge"
        assert await watch.calls() == before
        _, *parts = await watch.parts()
        for knock, lines in zip(tried, parts, strict=True):
            if len([line for line in lines if line["outcome"] == knock.code]) != 1:
                faults[f"{knock.door}, in the audit log"] = repr(lines)
            if any(line["event"] == "call" for line in lines):
                faults[f"{knock.door}, a call"] = repr(lines)
        written = watch.text()
    for part in {part for knock in tried for part in (knock.credential or "").split(".")}:
        assert len(part) <= _SHORT or part not in written
    assert tried
    assert faults == {}


async def let_in(gateway: Besieged, door: Door, credential: str) -> None:
    """Knock at a door: what is asked for is done, and the audit log says so."""
    gateway.shown.add(credential)
    async with watching(gateway) as watch:
        assert (await door.knock(gateway.url, credential, {})).code == IN, str(door)
        # The line of a call may come behind its answer.
        async with asyncio.timeout(5):
            while True:
                await watch.mark()
                lines = [line for part in await watch.parts() for line in part]
                if any(line["event"] == door.done and line["outcome"] == "ok" for line in lines):
                    return

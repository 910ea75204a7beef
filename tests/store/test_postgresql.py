"""PostgreSQL under the store and under whole gateways: what it does that a file does not."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from psycopg.conninfo import timeout_from_conninfo
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from mcpgw.errors import ConfigError
from mcpgw.store import By, Store, StoreError, postgresql
from tests.conftest import LiveGateway, StartGateway
from tests.store.conftest import ON_POSTGRESQL
from tests.support.command_line import clean_environment
from tests.support.forked import ForkedProcess
from tests.support.gateway_process import GatewayProcess
from tests.support.logins import GOOD, add_user, audited, log_in, send
from tests.support.plain_http import ask
from tests.support.postgresql import PostgresServer
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

pytestmark = ON_POSTGRESQL

ADMIN = By("root", is_told=False)
SHARED_SECRET = f'[auth]\nsecret = "{"0123456789abcdef" * 4}"\n'


def on(url: str) -> str:
    """The configuration of a gateway on a database."""
    return f'[store]\nurl = "{url}"\n'


async def refusal(url: str) -> str:
    """Why a store cannot be opened."""
    with pytest.raises(ConfigError) as refused:
        await Store.open(url, busy_timeout=0.1)
    (fault,) = refused.value.faults
    assert str(make_url(url).password) not in fault
    return fault


async def failure(store: Store) -> str:
    """Why the store refuses a write."""
    with pytest.raises(StoreError) as refused:
        await store.users.add("bob", role="viewer", by=ADMIN)
    assert refused.value.http_status == 503
    assert refused.value.temporary
    return refused.value.message


@pytest.mark.gen_test
async def test_what_keeps_it_from_opening_is_said_without_the_password(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    url = make_url(postgres_url)
    wrong = url.set(password="wrong-password").render_as_string(hide_password=False)
    assert "password authentication failed" in await refusal(wrong)
    nowhere = url.set(database="nowhere").render_as_string(hide_password=False)
    assert 'database "nowhere" does not exist' in await refusal(nowhere)
    closed = url.set(port=1).render_as_string(hide_password=False)
    fault = await refusal(closed)
    assert "the database cannot be reached" in fault
    assert f"{url.username}:***@127.0.0.1:1" in fault
    guest = url.set(query={"options": "-c default_transaction_read_only=on"})
    assert "takes no writes" in await refusal(guest.render_as_string(hide_password=False))
    in_query = closed.replace(f":{url.password}@", "@") + f"?password={url.password}&sslmode=disable"
    assert "127.0.0.1:1/store" in (fault := await refusal(in_query))
    assert "sslmode=disable" in fault


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
@pytest.mark.gen_test
async def test_a_database_that_does_not_keep_every_text_is_refused(postgres_url: str, encoding: str) -> None:
    name = f"in_{encoding.lower()}"
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        how = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        connection.execute(text(f"CREATE DATABASE {name} {how}"))
    engine.dispose()
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    assert f"encoded in {encoding}" in await refusal(url)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.gen_test
async def test_writers_take_turns_whatever_the_server_takes_for_usual(postgres_url: str, level: str) -> None:
    escaped = level.replace(" ", "\\ ")
    usual = {"options": f"-c default_transaction_isolation={escaped}"}
    url = make_url(postgres_url).set(query=usual).render_as_string(hide_password=False)
    stores = [await Store.open(url) for _ in range(3)]
    await stores[0].users.add("ann", role="viewer", by=ADMIN)

    async def write(store: Store) -> list[bool]:
        return [await store.users.set_role("ann", str(number), by=ADMIN) for number in range(10)]

    assert all(all(done) for done in await asyncio.gather(*map(write, stores)))
    for store in stores:
        await store.close()


@pytest.mark.gen_test
async def test_any_spelling_of_the_url_will_do_and_a_missing_driver_is_named(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("postgresql", "postgres"):
        store = await Store.open(postgres_url.replace("postgresql+psycopg", scheme))
        await store.close()
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'mcpgw[postgresql]'" in await refusal(postgres_url)


@pytest.mark.gen_test
async def test_a_server_that_goes_and_comes_back_costs_errors_in_words_and_nothing_that_was_written(
    postgres_url: str, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = await Store.open(postgres_url)
    await store.users.add("ann", role="viewer", by=ADMIN)
    postgres_server.stop()
    try:
        with caplog.at_level("INFO", logger="mcpgw.store"):
            said = [await failure(store) for _ in range(5)]
            assert any("cannot be reached" in one or "ending or starting" in one for one in said), said
            assert "nothing was written" in said[0]
            assert not any(part in "".join(said) for part in ("127.0.0.1", postgres_server.password))
    finally:
        postgres_server.start()
    with caplog.at_level("INFO", logger="mcpgw.store"):
        await until_it_works(store)
    told = [record.getMessage() for record in caplog.records if record.name == "mcpgw.store"]
    assert len([line for line in told if "refused" in line]) <= 2, told
    assert [line for line in told if "works again" in line], told
    assert postgres_server.password not in "".join(told)
    assert [user.name for user in await store.users.list()] == ["ann", "bob"]
    await store.close()


async def until_it_works(store: Store) -> None:
    """Add bob, as soon as that is possible."""
    deadline = time.monotonic() + 5
    while True:
        try:
            assert await store.users.add("bob", role="viewer", by=ADMIN)
        except StoreError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


@pytest.fixture
def short_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is waited for a fifth of the time, since the driver takes nothing below two seconds."""
    monkeypatch.setattr(postgresql, "_CONNECT_SECONDS", 2)
    monkeypatch.setattr(
        "psycopg.connection.timeout_from_conninfo", lambda given: timeout_from_conninfo(given) / 5
    )


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch, short_connects: None) -> None:
    """As the gateway has them, but a test cannot wait so long."""
    monkeypatch.setattr(postgresql, "_STATEMENT_SECONDS", 0.4)
    monkeypatch.setattr(postgresql, "_CUT_SECONDS", 0.2)


@pytest.mark.usefixtures("short_times")
@pytest.mark.gen_test
async def test_a_server_that_answers_nothing_is_waited_for_no_longer_than_a_limit(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    store = await Store.open(postgres_url, busy_timeout=0.1)
    postgres_server.hang()
    try:
        async with asyncio.timeout(8):
            assert "cannot be reached" in await failure(store)
    finally:
        postgres_server.go_on()
    await until_it_works(store)
    postgres_server.hang()
    try:
        async with asyncio.timeout(8):
            await store.close()
    finally:
        postgres_server.go_on()


@pytest.mark.usefixtures("short_connects")
@pytest.mark.gen_test(timeout=20)
async def test_who_ends_does_not_wait_as_long_for_a_server_that_answers_nothing(
    postgres_url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpgw.store.store._END_SECONDS", 0.2)
    store = await Store.open(postgres_url)
    postgres_server.hang()
    try:
        waiting = asyncio.ensure_future(store.users.list())
        await asyncio.sleep(0.1)
        async with asyncio.timeout(8):
            await store.close()
        with pytest.raises(StoreError, match="cannot be reached"):
            await waiting
    finally:
        postgres_server.go_on()


@pytest.mark.usefixtures("short_times")
@pytest.mark.gen_test
async def test_a_writer_that_stands_still_holds_the_others_up_for_a_limited_time(postgres_url: str) -> None:
    store = await Store.open(postgres_url, busy_timeout=0.2)
    engine = create_engine(postgres_url)
    with engine.connect() as other:
        other.execute(text(f"SELECT pg_advisory_xact_lock({postgresql._WRITERS})"))
        said = await failure(store)
        assert "another program holds the database locked (55P03); nothing was written" in said
        assert await store.users.list() == [], "readers wait for nobody"
    engine.dispose()
    still = await Store.open(postgres_url, busy_timeout=0.2)
    late = asyncio.ensure_future(still.run(lambda _: time.sleep(1)))
    await until_it_works(store)
    with pytest.raises(StoreError):
        await late
    for one in (store, still):
        await one.close()


def test_a_whole_gateway_keeps_everything_there_and_shows_the_password_nowhere(
    gateway_process: Callable[..., GatewayProcess],
    postgres_url: str,
    postgres_server: PostgresServer,
    tmp_path: Path,
) -> None:
    password_file = tmp_path / "url"
    password_file.write_text(postgres_url + "\n", encoding="utf-8")
    password_file.chmod(0o600)
    configuration = on(f"${{file:{password_file}}}") + SHARED_SECRET + "[memory]\nenabled = false\n"
    first = gateway_process(configuration=configuration)
    file = first.folder / "mcpgw.toml"
    added = printed_by("user", "add", "ann", "--role", "admin", "--link", "--config", file, folder=tmp_path)
    login = {"link": added.split("#")[1].split()[0], "password": GOOD, "refresh": "body"}
    granted = ask(first.url, "/api/v1/auth/login", login)
    definition = {"command": sys.executable, "args": ["-c", "import sys; sys.stdin.read()"], "enabled": False}
    ask(first.url, "/api/v1/servers", {"id": "one", "definition": definition}, token=granted["accessToken"])
    assert first.terminate() == 0
    second = gateway_process(configuration=configuration)
    there = ("--config", file, "--data-dir", second.data_dir)
    shown = printed_by("config", "show", *there, folder=tmp_path)
    assert "[store]\nurl = " in shown
    renewed = ask(second.url, "/api/v1/auth/refresh", {"refreshToken": granted["refreshToken"]})
    servers = ask(second.url, "/api/v1/servers", token=renewed["accessToken"])
    assert [one["id"] for one in servers["servers"]] == ["one"]
    masked = ask(second.url, "/api/v1/config", token=renewed["accessToken"])
    written = first.printed() + first.log() + second.printed() + second.log() + shown
    written += json.dumps(masked) + added
    assert "store" in written
    assert postgres_server.password not in written


def printed_by(*command: object, folder: Path) -> str:
    """What a command prints that comes to a good end."""
    output = folder / "printed.txt"
    with output.open("wb") as printed:
        words = list(map(str, command))
        process = ForkedProcess(words, folder=folder, environment=clean_environment(), output=printed)
    code = process.wait(20)
    assert code == 0, output.read_text("utf-8")
    return output.read_text("utf-8")


@pytest.mark.gen_test
async def test_two_gateways_on_one_database_hear_of_each_other_within_a_second(
    start_gateway: StartGateway, postgres_url: str
) -> None:
    configuration = on(postgres_url) + SHARED_SECRET
    one, other = [await start_gateway(configuration) for _ in range(2)]
    await add_user(one)
    granted = await log_in(one)
    await until_it_answers(other, granted["accessToken"], 200)
    client = await SocketClient.connect(other.socket_url, token=granted["accessToken"])
    assert (await client.receive())["data"]["authenticated"] is True
    began = time.monotonic()
    ended = await send(one, "POST", "/api/v1/auth/logout", {"refreshToken": granted["refreshToken"]})
    assert ended.status == 204
    assert await client.closed() == 3503
    assert time.monotonic() - began < 1.5
    await until_it_answers(other, granted["accessToken"], 401)
    again = await log_in(other)
    await one.services.access.accounts.set_disabled("ann", True, by=ADMIN)
    await until_it_answers(other, again["accessToken"], 401)
    await until_it_answers(one, again["accessToken"], 401)

    def told() -> list[str]:
        lines = [line for gateway in (one, other) for line in audited(gateway)]
        return [line["what"]["target"] for line in lines if line["what"].get("action") == "users.disable"]

    await until(told)
    assert told() == ["ann"], "one of them has written it into its audit log, and only one"


async def until_it_answers(gateway: LiveGateway, token: str, status: int) -> None:
    """Ask who one is until the answer has that status; 1.5 s are enough for news of another gateway."""
    deadline = time.monotonic() + 1.5
    while (await send(gateway, "GET", "/api/v1/auth/me", token=token)).status != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.mark.gen_test
async def test_a_gateway_whose_database_is_away_keeps_its_sockets_and_says_so_to_who_logs_in(
    start_gateway: StartGateway, postgres_url: str, postgres_server: PostgresServer
) -> None:
    gateway = await start_gateway(on(postgres_url), memory=True)
    await add_user(gateway)
    granted = await log_in(gateway)
    client = await SocketClient.connect(gateway.socket_url, token=granted["accessToken"])
    assert (await client.receive())["data"]["authenticated"] is True
    postgres_server.stop()
    try:
        answer = await send(gateway, "POST", "/api/v1/auth/login", {"user": "ann", "password": GOOD})
        assert (answer.status, answer.json()["error"]["code"]) == (503, "internal_error")
        assert answer.json()["error"]["temporary"] is True
        assert "127.0.0.1" not in answer.body.decode()
        assert (await client.call("memory", "memory_search", {"project": "none"}))["type"] == "tool_response"
    finally:
        postgres_server.start()

    async def works() -> bool:
        body = {"user": "ann", "password": GOOD}
        return (await send(gateway, "POST", "/api/v1/auth/login", body)).status == 200

    deadline = time.monotonic() + 10
    while not await works():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    await client.leave()

"""The Python client on a network that fails: what is asked for is answered once, what is followed goes on."""

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcpgw.client import (
    GAP,
    LAGGED,
    ChannelEvent,
    ConnectionLost,
    Gateway,
    NotReachable,
    Refused,
    RequestFailed,
    Subscription,
    TokenUnavailable,
)
from mcpgw.client.backoff import Backoff
from mcpgw.client.token_source import expires_at, renewal_delay
from mcpgw.conversation import Conversation
from mcpgw.errors import CloseCode
from mcpgw.session import Session
from tests.conftest import LiveGateway, StartGateway
from tests.support.gateway_process import ALL_SCOPES, GatewayProcess
from tests.support.ports import free_port
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import until

COUNTING_SERVER = Path(__file__).parent / "servers" / "slow_server.py"
ROOMS = (*ALL_SCOPES, "rooms:join")


def counting(record: Path) -> str:
    """The configuration of the server that notes each run of its tool in `record`."""
    return (
        "[servers.counting]\n"
        f"command = {json.dumps(sys.executable)}\nargs = {json.dumps([str(COUNTING_SERVER), str(record)])}\n"
    )


def runs(record: Path) -> Counter[str]:
    """How often the call of each key has run."""
    return Counter(record.read_text(encoding="utf-8").split()) if record.exists() else Counter()


def client(url: str, token: object, **options: object) -> Gateway:
    """A client that comes back quickly."""
    return Gateway(url, token, **{"first_pause": 0.02, "longest_pause": 0.1, **options})  # type: ignore[arg-type]


def say(live: LiveGateway, number: int, level: str = "info") -> None:
    """Publish an event of the channel ``system``."""
    live.services.bus.publish("system.alert", {"level": level, "message": str(number)})


async def numbers(subscription: Subscription, count: int) -> list[int]:
    """The numbers of the next `count` alerts."""
    async with asyncio.timeout(10):
        return [int((await anext(subscription)).data["message"]) for _ in range(count)]


@asynccontextmanager
async def followed(live: LiveGateway, **options: object) -> AsyncIterator[tuple[Proxy, Gateway]]:
    """A client behind a proxy in front of a gateway."""
    async with Proxy(live.url) as proxy, client(proxy.url, live.token(), **options) as gateway:
        yield proxy, gateway


# --- calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before-it-arrives", "while-it-runs", "before-it-is-read"])
@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_is_cut_off_is_answered_and_runs_once(
    start_gateway: StartGateway, tmp_path: Path, moment: str
) -> None:
    record = tmp_path / "record"
    live = await start_gateway(counting(record))
    async with followed(live) as (proxy, gateway):
        if moment == "before-it-arrives":
            proxy.to_gateway.cut_after(3)
        elif moment == "before-it-is-read":
            proxy.to_client.hold()
        call = asyncio.create_task(gateway.call("counting", "count", {"key": "k", "seconds": 0.2}))
        if moment == "before-it-arrives":
            await until(lambda: not gateway.is_connected)
            proxy.to_gateway.release()
        else:
            await until(lambda: runs(record)["k"])
            if moment == "before-it-is-read":
                await until(lambda: not any(session.open_calls for session in live_sessions(live)))
            proxy.cut()
            proxy.to_client.release()
        async with asyncio.timeout(10):
            assert (await call).result == {"result": "k"}
    assert runs(record) == {"k": 1}


def live_sessions(live: LiveGateway) -> list[Session]:
    """The sessions of connections that are open."""
    return list(live.services.sessions._live.values())


@pytest.mark.gen_test(timeout=60)
async def test_calls_side_by_side_survive_cuts_at_random_moments(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    record, chance = tmp_path / "record", random.Random()
    live = await start_gateway(counting(record))
    async with followed(live) as (proxy, gateway):
        for turn in range(15):
            keys = [f"{turn}-{number}" for number in range(4)]
            calls = [
                asyncio.create_task(
                    gateway.call("counting", "count", {"key": key, "seconds": chance.random() * 0.05})
                )
                for key in keys
            ]
            for _ in range(2):
                await asyncio.sleep(chance.random() * 0.05)  # the random moment is what is tested
                proxy.cut()
            async with asyncio.timeout(10):
                answers = await asyncio.gather(*calls)
            assert [answer.result for answer in answers] == [{"result": key} for key in keys]
    assert set(runs(record).values()) == {1}
    assert runs(record).total() == 60


@pytest.mark.gen_test(timeout=30)
async def test_what_is_asked_during_an_outage_waits_for_its_end(start_gateway: StartGateway) -> None:
    live = await start_gateway(memory=True)
    async with followed(live) as (proxy, gateway):
        proxy.to_client.hold()
        proxy.cut()
        await until(lambda: not gateway.is_connected)
        call = asyncio.create_task(gateway.call("memory", "memory_projects"))
        listing = asyncio.create_task(gateway.list_tools("memory"))
        await asyncio.sleep(0)
        assert not call.done()
        proxy.to_client.release()
        async with asyncio.timeout(10):
            assert (await call).success
            assert len(await listing) == 6


@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_is_given_up_during_an_outage_is_cancelled_after_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    live = await start_gateway(counting(record))
    async with followed(live) as (proxy, gateway):
        call = asyncio.create_task(gateway.call("counting", "count", {"key": "k", "seconds": 600}))
        await until(lambda: runs(record)["k"])
        proxy.to_client.hold()
        proxy.cut()
        await until(lambda: not gateway.is_connected)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        proxy.to_client.release()
        assert (await gateway.status())["openCalls"] == []


@pytest.mark.gen_test(timeout=30)
async def test_a_connection_that_is_dead_without_a_word_is_noticed_and_made_anew(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    live = await start_gateway(
        counting(record), settings={"websocket.ping_interval": 0.5, "websocket.pong_timeout": 0.3}
    )
    async with followed(live) as (proxy, gateway):
        call = asyncio.create_task(gateway.call("counting", "count", {"key": "k", "seconds": 0.3}))
        await until(lambda: runs(record)["k"])
        proxy.to_client.hold()
        proxy.to_gateway.hold()
        proxy.to_client, proxy.to_gateway = Direction(), Direction()  # for the next connection
        started = time.monotonic()
        async with asyncio.timeout(10):
            assert (await call).success
        assert time.monotonic() - started < 3
        await asyncio.sleep(1.2)  # pings and pongs keep a quiet connection
        assert gateway.is_connected
    assert runs(record) == {"k": 1}


# --- subscriptions ------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_a_subscription_goes_on_without_a_gap_and_without_doubles(start_gateway: StartGateway) -> None:
    live = await start_gateway()
    async with followed(live) as (proxy, gateway), gateway.subscribe("system") as events:
        for turn in range(5):
            first = turn * 30
            for number in range(first, first + 10):
                say(live, number)
            proxy.to_client.cut_after(300)
            for number in range(first + 10, first + 20):
                say(live, number)
            await until(lambda: not gateway.is_connected)
            for number in range(first + 20, first + 30):
                say(live, number)
            proxy.to_client.release()
            assert await numbers(events, 30) == list(range(first, first + 30))
        assert events.recovered is True


@pytest.mark.gen_test(timeout=30)
async def test_readers_of_one_channel_each_have_their_own_filter_and_place(
    start_gateway: StartGateway,
) -> None:
    live = await start_gateway()
    async with followed(live) as (proxy, gateway), gateway.subscribe("system") as all_of_them:
        say(live, 0)
        first = await anext(all_of_them)
        say(live, 1, "error")
        async with (
            gateway.subscribe("system", since=first.id) as later,
            gateway.subscribe("system", min_level="error") as errors,
            gateway.subscribe("system", types=["system.maintenance"]) as maintenance,
        ):
            say(live, 2)
            proxy.cut()
            say(live, 3, "critical")
            live.services.bus.publish("system.maintenance", {"message": "soon"})
            assert await numbers(all_of_them, 3) == [1, 2, 3]
            assert await numbers(later, 3) == [1, 2, 3]
            assert await numbers(errors, 1) == [3]
            async with asyncio.timeout(10):
                assert (await anext(maintenance)).data == {"message": "soon"}
                assert (await anext(errors)).type == "system.maintenance"


@pytest.mark.gen_test(timeout=30)
async def test_a_channel_of_states_begins_with_the_present_ones(start_gateway: StartGateway) -> None:
    live = await start_gateway(memory=True)
    async with followed(live) as (proxy, gateway), gateway.subscribe("servers", servers=["memory"]) as events:
        async with asyncio.timeout(10):
            first = await anext(events)
        assert (first.channel, first.data["serverId"]) == ("servers", "memory")
        proxy.cut()
        live.services.bus.publish("server.error", {"serverId": "memory", "reason": "later"})
        async with asyncio.timeout(10):
            assert (await anext(events)).data["reason"] == "later"


@pytest.mark.gen_test(timeout=30)
async def test_a_gap_that_the_log_cannot_fill_is_told_where_it_is(start_gateway: StartGateway) -> None:
    live = await start_gateway(settings={"events.log_size": 100})
    async with followed(live) as (proxy, gateway), gateway.subscribe("system") as events:
        say(live, 0)
        assert await numbers(events, 1) == [0]
        proxy.to_client.hold()
        proxy.cut()
        await until(lambda: not gateway.is_connected)
        for number in range(200):
            say(live, number)
        proxy.to_client.release()
        async with asyncio.timeout(10):
            gap = await anext(events)
        assert (gap.type, gap.id, gap.channel) == (GAP, "", "system")
        assert events.recovered is False
        say(live, 1000)
        assert await numbers(events, 1) == [1000]


@pytest.mark.gen_test(timeout=30)
async def test_a_reader_that_does_not_read_loses_the_oldest_and_is_told(start_gateway: StartGateway) -> None:
    live = await start_gateway()
    async with followed(live) as (_, gateway), gateway.subscribe("system", queue_size=5) as events:
        for number in range(20):
            say(live, number)
        await gateway.ping()
        lagged = await anext(events)
        assert (lagged.type, lagged.data) == (LAGGED, {"channel": "system", "dropped": 15})
        assert await numbers(events, 5) == list(range(15, 20))


@pytest.mark.gen_test(timeout=30)
async def test_rooms_are_published_to_and_tell_who_is_there(start_gateway: StartGateway) -> None:
    live = await start_gateway()
    async with (
        Proxy(live.url) as proxy,
        client(proxy.url, live.token(scopes=ROOMS)) as ann,
        client(live.url, live.token("bea", scopes=ROOMS)) as bea,
        ann.subscribe("room:x", types=["room.message"]) as heard,
        bea.subscribe("room:x") as other,
    ):
        assert [member["user"] for member in other.present] == ["ann", "bea"]
        offset = await bea.publish("room:x", {"word": 1})
        async with asyncio.timeout(10):
            message = await anext(heard)
            assert (message.data["payload"], message.id.partition("-")[2]) == ({"word": 1}, str(offset))
            proxy.cut()
            await bea.publish("room:x", 2)
            assert (await anext(heard)).data["payload"] == 2
            await ann.publish("room:x", 3)
            assert (await anext(heard)).data["payload"] == 3


@pytest.mark.gen_test(timeout=30)
async def test_a_subscription_that_is_refused_raises_why(start_gateway: StartGateway) -> None:
    live = await start_gateway()
    async with client(live.url, live.token()) as gateway:
        with pytest.raises(RequestFailed) as unknown:
            async with gateway.subscribe("sistem"):
                pytest.fail("it stands")
        assert unknown.value.code == "unknown_channel"
        with pytest.raises(Refused) as refused:
            await anext(gateway.subscribe("user:bea"))
        assert refused.value.code == "permission_denied"
        wrong: list[dict[str, Any]] = [{"since": "here"}, {"types": "all"}, {"types": []}]
        for arguments in (*wrong, {"min_level": "loud"}, {"queue_size": 0}):
            with pytest.raises(ValueError, match=r"since|types|min_level|queue"):
                gateway.subscribe("system", **arguments)


@pytest.mark.gen_test(timeout=30)
async def test_a_subscription_ends_with_its_block_or_with_its_iterator(start_gateway: StartGateway) -> None:
    live = await start_gateway()

    async def first_of(gateway: Gateway) -> ChannelEvent:
        async for event in gateway.subscribe("system"):
            return event
        raise AssertionError("it ended")

    async with client(live.url, live.token()) as gateway:
        async with gateway.subscribe("system") as events:
            assert (await gateway.status())["channels"] == ["system"]
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        assert (await gateway.status())["channels"] == []
        reading = asyncio.create_task(first_of(gateway))
        await until(lambda: "system" in live.services.bus.listeners())
        say(live, 1)
        assert (await reading).data["message"] == "1"
        del reading
        gc.collect()
        say(live, 2)  # nobody is there to read it: the client notices
        await gateway.ping()
        await gateway.ping()
        assert (await gateway.status())["channels"] == []


# --- a gateway that begins anew -----------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_a_gateway_that_begins_anew_is_found_and_tells_what_is_lost(tmp_path: Path) -> None:
    record, port = tmp_path / "record", str(free_port())

    def start() -> GatewayProcess:
        process = GatewayProcess(tmp_path, configuration=counting(record), arguments=["--port", port])
        return process.wait_listening()

    process = await asyncio.to_thread(start)
    try:
        async with client(process.url, process.token) as gateway, gateway.subscribe("servers") as events:
            call = asyncio.create_task(gateway.call("counting", "count", {"key": "k", "seconds": 600}))
            await until(lambda: runs(record)["k"])
            await asyncio.to_thread(process.kill)
            await until(lambda: not gateway.is_connected)
            process = await asyncio.to_thread(start)
            with pytest.raises(RequestFailed) as unknown:
                async with asyncio.timeout(10):
                    await call
            assert (unknown.value.code, unknown.value.temporary) == ("outcome_unknown", False)
            async with asyncio.timeout(10):
                while (await anext(events)).type != GAP:
                    pass
                assert (await anext(events)).data["serverId"] in ("counting", "memory")
            assert events.recovered is False
            assert (await gateway.call("counting", "count", {"key": "again"})).success
    finally:
        await asyncio.to_thread(process.terminate)
    assert runs(record) == {"k": 1, "again": 1}


@pytest.mark.gen_test(timeout=30)
async def test_a_session_that_the_gateway_has_forgotten_never_runs_a_call_twice(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    live = await start_gateway(counting(record))
    async with followed(live) as (proxy, gateway):
        call = asyncio.create_task(gateway.call("counting", "count", {"key": "k", "seconds": 600}))
        await until(lambda: runs(record)["k"])
        proxy.to_client.hold()
        proxy.cut()
        await until(lambda: live.services.sessions._parked)
        live.services.sessions.close()
        proxy.to_client.release()
        with pytest.raises(RequestFailed) as unknown:
            async with asyncio.timeout(10):
                await call
        assert unknown.value.code == "outcome_unknown"
    assert runs(record) == {"k": 1}


@pytest.mark.gen_test(timeout=30)
async def test_an_outage_that_is_too_long_ends_everything_and_no_time_is_wasted(
    start_gateway: StartGateway,
) -> None:
    live = await start_gateway()
    async with Proxy(live.url) as proxy, client(proxy.url, live.token(), give_up_after=0.6) as gateway:
        events = gateway.subscribe("system")
        async with events:
            server = proxy._server
            assert server is not None
            server.close()
            processor, started = time.process_time(), time.monotonic()
            proxy.cut()
            with pytest.raises(ConnectionLost, match=r"within 0\.6 s") as lost:
                await asyncio.wait_for(anext(events), 10)
            assert isinstance(lost.value.__cause__, NotReachable)
            assert 0.4 < time.monotonic() - started < 3
            assert time.process_time() - processor < 0.5
        with pytest.raises(ConnectionLost):
            await gateway.ping()
        with pytest.raises(ConnectionLost):
            await anext(gateway.subscribe("system"))


# --- credentials, and words of the gateway ------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_a_token_is_renewed_before_it_ends_and_for_a_new_connection(
    start_gateway: StartGateway,
) -> None:
    live = await start_gateway(memory=True, settings={"auth.leeway": 0})
    made: list[str] = []

    async def fresh() -> str:
        made.append(live.token(ttl=600 if made else 2))
        return made[-1]

    async with Proxy(live.url) as proxy, client(proxy.url, fresh) as gateway:
        await until(lambda: len(made) >= 2)
        await asyncio.sleep(0.8)  # the first token has ended
        assert (await gateway.call("memory", "memory_projects")).success
        before = len(made)
        proxy.cut()
        assert (await gateway.call("memory", "memory_projects")).success
        assert len(made) == before + 1


@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_comes_too_late_for_its_token_is_sent_again_with_a_fresh_one(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    live = await start_gateway(counting(record), settings={"auth.leeway": 0})
    tokens = [live.token(ttl=1)]

    async with client(live.url, lambda: tokens[-1]) as gateway:
        await asyncio.sleep(2.2)  # the first token has ended, and could not be renewed: there was no other
        tokens.append(live.token())
        assert (await gateway.call("counting", "count", {"key": "k"}, timeout=10)).success
    assert runs(record) == {"k": 1}


@pytest.mark.gen_test(timeout=30)
async def test_a_token_that_cannot_be_made_is_one_of_the_clients_errors(start_gateway: StartGateway) -> None:
    live = await start_gateway()

    def fail() -> str:
        raise LookupError("no such secret")

    with pytest.raises(TokenUnavailable) as unavailable:
        async with client(live.url, fail):
            pytest.fail("it connected")
    assert isinstance(unavailable.value.__cause__, LookupError)
    assert unavailable.value.temporary is False
    with pytest.raises(TokenUnavailable):
        async with client(live.url, lambda: "no token"):
            pytest.fail("it connected")


@pytest.mark.parametrize(
    "code", [CloseCode.INVALID_TOKEN, CloseCode.NO_AUTH_IN_TIME, CloseCode.CONNECTION_LIMIT]
)
@pytest.mark.gen_test(timeout=30)
async def test_a_close_that_says_so_is_final(start_gateway: StartGateway, code: CloseCode) -> None:
    live = await start_gateway()
    async with client(live.url, live.token()) as gateway, gateway.subscribe("system") as events:
        for session in live_sessions(live):
            assert isinstance(session.outlet, Conversation)
            session.outlet.disconnect(code, "enough")
        with pytest.raises(ConnectionLost, match="enough") as lost:
            await asyncio.wait_for(anext(events), 10)
        assert (lost.value.close_code, lost.value.temporary) == (code, False)
        accepted = live.services.hub.statistics().accepted
        await asyncio.sleep(0.3)  # several pauses long
        assert live.services.hub.statistics().accepted == accepted == 1


@pytest.mark.gen_test(timeout=30)
async def test_a_shutdown_is_not_final(start_gateway: StartGateway) -> None:
    live = await start_gateway()
    async with client(live.url, live.token()) as gateway, gateway.subscribe("system") as events:
        for session in live_sessions(live):
            assert isinstance(session.outlet, Conversation)
            session.outlet.disconnect(CloseCode.SHUTDOWN, "back soon")
        say(live, 1)
        assert await numbers(events, 1) == [1]
        assert live.services.hub.statistics().accepted == 2


@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_is_too_large_is_refused_before_it_is_sent(start_gateway: StartGateway) -> None:
    live = await start_gateway(memory=True)
    async with client(live.url, live.token()) as gateway:
        with pytest.raises(RequestFailed, match="1048576 bytes") as large:
            await gateway.call("memory", "memory_search", {"project": "x" * 2_000_000})
        assert large.value.code == "too_large"
        assert await gateway.ping() > 0
    assert live.services.hub.statistics().accepted == 1


# --- the example --------------------------------------------------------------------------------------------


def test_the_example_shows_a_gateway_through_an_outage(shared_gateway: GatewayProcess) -> None:
    script = Path(__file__).parent.parent / "examples" / "live_demo.py"

    def run(*, token: str | None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MCPGW_")}
        return subprocess.run(
            [sys.executable, str(script), "--url", shared_gateway.url],
            env=environment | ({} if token is None else {"MCPGW_TOKEN": token}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = run(token=shared_gateway.token(scopes=ROOMS))
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("server.started", "the call still waits", "call.finished", "ann: {'hello': 'everyone'}"):
        assert words in done.stdout
    assert done.stdout.endswith("all went well\n")
    refused = run(token="no.good.token")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("auth_failed: ")
    assert run(token=None).returncode == 2


# --- small parts --------------------------------------------------------------------------------------------


def test_pauses_are_spread_below_a_bound_that_doubles_and_no_shorter_than_asked() -> None:
    for failures, bound in enumerate((1, 2, 4, 8, 8, 8)):
        pauses = []
        for _ in range(200):
            backoff = Backoff(1.0, 8.0)
            for _ in range(failures):
                backoff.pause()
            pauses.append(backoff.pause())
        assert 0 <= min(pauses) < bound * 0.2
        assert bound * 0.8 < max(pauses) <= bound
    assert 5 <= Backoff(1.0, 8.0).pause(5.0) <= 6
    backoff = Backoff(1.0, 2.0**60)
    for _ in range(5000):
        backoff.pause()
    backoff.reset()
    assert backoff.pause() <= 1
    with pytest.raises(ValueError, match="above 0"):
        Backoff(0, 1)


def test_the_end_of_a_token_is_read_where_it_has_one() -> None:
    assert expires_at("e30.eyJleHAiOjE3MH0.x") == 170
    for other in ("opaque", "a.b.c", "e30.e30.x", "e30.W10.x", "e30.eyJleHAiOnRydWV9.x", "ü.ü.ü"):
        assert expires_at(other) is None
    assert renewal_delay(3600) == 3540
    assert renewal_delay(10) == 8
    assert renewal_delay(-5) == 1

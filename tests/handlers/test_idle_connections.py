"""What an open connection keeps while nothing happens on it, and what is left of it when it is closed."""

import asyncio
import gc
import weakref
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from mcpgw.errors import CloseCode
from tests.conftest import LiveGateway, StartGateway
from tests.support.raw_socket import CLOSE, TEXT, RawSocket
from tests.support.socket_client import SocketClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from handlers.websocket_protocol import GatewayWebSocketProtocol
    from handlers.ws import GatewaySocket
else:
    from mcpgw.handlers.websocket_protocol import GatewayWebSocketProtocol
    from mcpgw.handlers.ws import GatewaySocket


def handlers_of(gateway: LiveGateway) -> list[GatewaySocket]:
    """Every open socket of a gateway."""
    settings = gateway.services
    return [
        each
        for each in gc.get_objects()
        # isinstance would ask a proxy for its class, whose object may be gone.
        if issubclass(type(each), GatewaySocket) and each.services is settings
    ]


async def idle_socket(gateway: LiveGateway) -> tuple[SocketClient, GatewaySocket]:
    """A client and its socket, once the upgrade is over and a message was answered."""
    client = await gateway.connect()
    await client.request({"type": "ping", "id": "p"})
    (handler,) = handlers_of(gateway)
    return client, handler


@pytest.mark.gen_test
async def test_an_open_socket_keeps_nothing_of_its_handshake(start_gateway: StartGateway) -> None:
    client, handler = await idle_socket(await start_gateway())
    # A name that stands here is new, in Tornado or here: it belongs into the slots of its class where it is
    # needed for as long as the socket is open, else into what `forget_handshake` lets go.
    assert vars(handler) == {}
    assert vars(handler.ws_connection) == {}
    assert not hasattr(handler.request, "headers")
    await client.leave()


@pytest.mark.gen_test
async def test_what_waits_to_be_written_has_short_queues_that_tornado_still_uses(
    start_gateway: StartGateway,
) -> None:
    client, handler = await idle_socket(await start_gateway())
    protocol = handler.ws_connection
    assert isinstance(protocol, GatewayWebSocketProtocol)
    stream = protocol.stream
    for queue in (stream._write_futures, stream._write_buffer._buffers):
        assert isinstance(queue, list)
        assert not queue
    written = [stream.write(b"\x8a\x00" * 2000) for _ in range(3)]  # pongs that nobody asked for
    await asyncio.wait_for(asyncio.gather(*written), 5)
    assert not stream.writing()
    pong = await client.request({"type": "ping", "id": "q"})
    assert pong["id"] == "q"
    await client.leave()


async def raw_socket(gateway: LiveGateway, user: str) -> RawSocket:
    """A client without a task or a timer in this loop; it has read an answer."""
    socket = await RawSocket.connect(gateway.url)
    await socket.upgrade(headers={"Authorization": f"Bearer {gateway.token(user)}"})
    await socket.read_frame()
    await socket.send_frame(TEXT, b'{"type":"ping","id":"p"}')
    await socket.read_frame()
    return socket


@pytest.mark.gen_test
async def test_an_idle_socket_has_no_task_and_no_timer_of_its_own(start_gateway: StartGateway) -> None:
    gateway, loop = await start_gateway(), asyncio.get_running_loop()

    def timers() -> int:
        gc.collect()
        # Cancelled ones lie about until the loop's next timer is due.
        handles: list[Any] = [each for each in gc.get_objects() if type(each) is asyncio.TimerHandle]
        return sum(each._loop is loop and not each.cancelled() for each in handles)

    async with AsyncExitStack() as sockets:
        await sockets.enter_async_context(await raw_socket(gateway, "first"))
        await until(lambda: not any("_frames" in repr(task) for task in asyncio.all_tasks()))
        tasks_with_one, timers_with_one = len(asyncio.all_tasks()), timers()
        for number in range(8):
            await sockets.enter_async_context(await raw_socket(gateway, f"user-{number}"))
        await until(lambda: len(asyncio.all_tasks()) == tasks_with_one)
        # The one timer for all deadlines may have been set anew, and the old one waits for its end.
        assert timers() <= timers_with_one + 2


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["left", "cut", "refused", "thrown out"])
async def test_a_closed_connection_is_let_go_without_the_collector(
    start_gateway: StartGateway, way: str
) -> None:
    gateway = await start_gateway()
    async with await raw_socket(gateway, "ann") as socket:
        await socket.send_frame(TEXT, b'{"type":"subscribe","id":"s","data":{"channel":"servers"}}')
        await socket.read_frame()
        (handler,) = handlers_of(gateway)
        protocol, conversation = handler.ws_connection, handler.conversation
        assert isinstance(protocol, GatewayWebSocketProtocol)
        assert conversation is not None
        # A conversation has no weak references: what it alone holds tells of it.
        left = [weakref.ref(part) for part in (handler, protocol, protocol.stream)]
        del handler, protocol
        gc.collect()
        gc.disable()
        try:
            if way == "left":
                await socket.send_frame(CLOSE, b"\x03\xe8")
            elif way == "cut":
                socket.reset()
            elif way == "refused":
                await socket.send_frame(TEXT, b"\xff")
            else:
                conversation.disconnect(CloseCode.SHUTDOWN, "the test ends it")
                await socket.send_frame(CLOSE, b"\x03\xe8")
            del conversation
            if way != "cut":
                await socket.read_to_end()
            await until(lambda: not [each for part in left if (each := part()) is not None], what=way)
        finally:
            gc.enable()
        assert len(gateway.services.sessions) == 1

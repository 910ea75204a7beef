"""The Python client: resources, prompts, completion, what servers ask in mid-call, approvals."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mcpgw.client import (
    Gateway,
    InputAnswer,
    InputRequest,
    Queued,
    Refused,
    RequestFailed,
    decide_approval,
    list_approvals,
)
from tests.conftest import LiveGateway, StartGateway
from tests.support.forked import server_table
from tests.support.proxy import Proxy

OFFERING = Path(__file__).parent / "servers" / "offering_server.py"


async def offering(start_gateway: StartGateway, *, approval: str = "never") -> LiveGateway:
    """A gateway in front of a server that offers all there is."""
    return await start_gateway(server_table("offering", OFFERING, more=f'approval = "{approval}"'))


@pytest.mark.gen_test
async def test_resources_prompts_and_completion_are_a_call_away(start_gateway: StartGateway) -> None:
    live = await offering(start_gateway)
    async with Gateway(live.url, live.token()) as gateway:
        assert [one["uri"] for one in await gateway.list_resources()] == ["note:one", "note:two"]
        assert (await gateway.list_resource_templates("offering"))[0]["uriTemplate"] == "note:{name}"
        assert (await gateway.read_resource("offering", "note:one"))[0]["text"] == "first"
        assert [one["name"] for one in await gateway.list_prompts("offering")] == ["greet"]
        prompt = await gateway.get_prompt("offering", "greet", {"who": "Ann"})
        assert prompt["messages"][0]["content"]["text"] == "Hello Ann"
        ref = {"type": "ref/prompt", "name": "greet"}
        assert await gateway.complete("offering", ref, "who", "A", known={"x": "y"}) == ["Aa", "Ab", "x"]
        with pytest.raises(RequestFailed) as failure:
            await gateway.read_resource("offering", "note:none")
        assert failure.value.code == "tool_execution_error"


@pytest.mark.gen_test
async def test_a_callback_answers_what_a_server_asks_and_without_one_it_is_declined(
    start_gateway: StartGateway,
) -> None:
    live = await offering(start_gateway)
    asked: list[InputRequest] = []

    async def answer(request: InputRequest) -> InputAnswer:
        asked.append(request)
        await asyncio.sleep(0)
        return InputAnswer("accept", {"name": "Ann"})

    def wrong(request: InputRequest) -> InputAnswer:
        return InputAnswer("accept", {"name": 7})

    def broken(request: InputRequest) -> InputAnswer:
        raise KeyError("nobody is there")

    async with Gateway(live.url, live.token()) as gateway:
        accepted = await gateway.call("offering", "elicit", on_input=answer)
        assert accepted.result["content"] == {"name": "Ann"}
        assert (asked[0].kind, asked[0].message, asked[0].server) == ("elicitation", "Who?", "offering")
        assert asked[0].schema is not None
        assert (await gateway.call("offering", "elicit")).result["action"] == "decline"
        prompt = await gateway.get_prompt("offering", "asked", on_input=answer)
        assert '"name":"Ann"' in prompt["messages"][0]["content"]["text"].replace(" ", "")
        with pytest.raises(RequestFailed) as failure:
            await gateway.call("offering", "elicit", on_input=wrong)
        assert failure.value.code == "invalid_params"
        with pytest.raises(KeyError):
            await gateway.call("offering", "elicit", on_input=broken)
        assert (await gateway.status())["openCalls"] == []


@pytest.mark.gen_test
async def test_a_question_outlives_its_connection(start_gateway: StartGateway) -> None:
    live = await offering(start_gateway)
    async with Proxy(live.url) as proxy:
        cut = False

        async def answer(request: InputRequest) -> InputAnswer:
            nonlocal cut
            cut = True
            proxy.cut()
            return InputAnswer("accept", {"name": "Ann"})

        async with Gateway(proxy.url, live.token(), first_pause=0.01, longest_pause=0.05) as gateway:
            accepted = await gateway.call("offering", "elicit", on_input=answer)
        assert cut
        assert accepted.result["content"] == {"name": "Ann"}


@pytest.mark.gen_test
async def test_changes_of_named_resources_are_events(start_gateway: StartGateway) -> None:
    live = await offering(start_gateway)
    async with Gateway(live.url, live.token()) as gateway:
        both = [("offering", "note:one"), ("offering", "note:two")]
        one = gateway.subscribe("servers", types=["server.resource_updated"], resources=both[:1])
        two = gateway.subscribe("servers", types=["server.resource_updated"], resources=both)
        async with asyncio.timeout(10), one, two:
            for _, uri in reversed(both):
                await gateway.call("offering", "touch", {"uri": uri})
            assert (await anext(one)).data["uri"] == "note:one"
            assert [(await anext(two)).data["uri"] for _ in both] == ["note:two", "note:one"]


@pytest.mark.gen_test
async def test_a_call_that_waits_is_approved_by_another_program(start_gateway: StartGateway) -> None:
    live = await offering(start_gateway, approval="required")
    waits = asyncio.Event()

    places: list[Queued] = []

    def queued(place: Queued) -> None:
        places.append(place)
        waits.set()

    olga = live.token("olga", ("calls:approve",))
    async with Gateway(live.url, live.token()) as gateway:
        calling = asyncio.create_task(gateway.call("offering", "rich", {"a": 1}, on_queued=queued))
        await asyncio.wait_for(waits.wait(), 10)
        (approval,) = await list_approvals(live.url, olga)
        assert (approval["user"], approval["arguments"]) == ("ann", {"a": 1})
        assert (places[0].reason, places[0].request_id) == ("approval", approval["requestId"])
        assert places[0].expires_at is not None
        with pytest.raises(RequestFailed) as failure:
            await decide_approval(live.url, olga, approval["requestId"], accept=True, arguments_hash="0" * 64)
        assert failure.value.code == "invalid_params"
        await decide_approval(
            live.url, olga, approval["requestId"], accept=True, arguments_hash=approval["argumentsHash"]
        )
        assert (await calling).success


@pytest.mark.parametrize(
    "answer",
    [
        InputAnswer("accept", {"name": datetime(2026, 1, 1)}),  # noqa: DTZ001 - no JSON value, whatever its zone
        InputAnswer("accept", {"name": "\udcff"}),
        InputAnswer("accept", {"name": float("nan")}),
        InputAnswer("perhaps"),  # type: ignore[arg-type]
        "yes",
        None,
    ],
    ids=["no JSON", "a surrogate", "no number", "no action", "a text", "nothing"],
)
@pytest.mark.gen_test
async def test_an_answer_that_cannot_be_sent_ends_its_call_and_nothing_else(
    start_gateway: StartGateway, answer: Any
) -> None:
    live = await offering(start_gateway)
    async with (
        Proxy(live.url) as proxy,
        Gateway(proxy.url, live.token(), first_pause=0.01, longest_pause=0.05) as gateway,
    ):
        with pytest.raises((TypeError, ValueError)):
            await asyncio.wait_for(gateway.call("offering", "elicit", on_input=lambda _: answer), 5)
        assert (await gateway.status())["openCalls"] == []
        proxy.cut()
        assert await gateway.ping() > 0


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.gen_test
async def test_a_program_that_reads_calls_is_asked_to_approve_them(
    start_gateway: StartGateway, is_async: bool
) -> None:
    live = await offering(start_gateway, approval="required")
    asked: list[InputRequest] = []

    def decide(request: InputRequest) -> InputAnswer | None:
        asked.append(request)
        number = request.data["arguments"]["a"]
        return None if number == 3 else InputAnswer("accept" if number == 1 else "decline")

    async def decide_later(request: InputRequest) -> InputAnswer | None:
        await asyncio.sleep(0)
        return decide(request)

    olga = live.token("olga", ("calls:approve", "events:read"))
    on_approval = decide_later if is_async else decide
    async with (
        Gateway(live.url, olga, on_approval=on_approval) as approver,
        approver.subscribe("calls"),
        Gateway(live.url, live.token()) as gateway,
    ):
        assert (await gateway.call("offering", "rich", {"a": 1})).success
        with pytest.raises(Refused) as failure:
            await gateway.call("offering", "rich", {"a": 2})
        assert failure.value.code == "permission_denied"
        left = asyncio.create_task(gateway.call("offering", "rich", {"a": 3}))
        async with asyncio.timeout(10):
            while len(asked) < 3:
                await asyncio.sleep(0.01)
        await decide_approval(live.url, olga, asked[-1].data["requestId"], accept=True)
        assert (await left).success
    assert [(one.kind, one.server, one.data["user"]) for one in asked] == [
        ("approval", "offering", "ann")
    ] * 3


@pytest.mark.gen_test
async def test_what_a_callback_for_approvals_raises_is_reported_and_decides_nothing(
    start_gateway: StartGateway,
) -> None:
    live = await offering(start_gateway, approval="required")
    reported: asyncio.Queue[Any] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: reported.put_nowait(told["exception"]))

    def broken(request: InputRequest) -> InputAnswer:
        raise KeyError("nobody is there")

    olga = live.token("olga", ("calls:approve", "events:read"))
    async with (
        Gateway(live.url, olga, on_approval=broken) as approver,
        approver.subscribe("calls"),
        Gateway(live.url, live.token()) as gateway,
    ):
        calling = asyncio.create_task(gateway.call("offering", "rich", {"a": 1}))
        assert isinstance(await asyncio.wait_for(reported.get(), 10), KeyError)
        assert await approver.ping() > 0
        (waiting,) = await list_approvals(live.url, olga)
        await decide_approval(live.url, olga, waiting["requestId"], accept=True)
        assert (await calling).success

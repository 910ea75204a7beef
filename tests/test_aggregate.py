"""Names under which many servers are one; what waits for its caller; what is told of changes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import PromptsListChanged, ResourceUpdated, ServerEvent, ToolsListChanged

from mcpgw.aggregate.changes import Changes, Follower
from mcpgw.aggregate.envelope import for_nobody_else
from mcpgw.aggregate.failures import as_mcp_error
from mcpgw.aggregate.names import Names, address_at, split_address, with_own_addresses
from mcpgw.aggregate.offers import EVERYTHING, Offer
from mcpgw.aggregate.relay import Relay
from mcpgw.aggregate.suspended import Binding, OpenRequest, Suspended
from mcpgw.backends.requests import InputRequest, Observer
from mcpgw.errors import QueueFull, ServerUnavailable, ToolExecutionError
from mcpgw.gateway import Gateway, GatewayListener
from tests.support.waiting import until

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)


class FormFiller:
    """Somebody who follows a request and can answer forms."""

    def can_answer(self, request: InputRequest) -> bool:
        return request.kind == "elicitation"

    def progress(self, *_: object) -> None:
        """Nothing."""

    log = progress


FILLER = cast("Relay", FormFiller())


# --- names -------------------------------------------------------------------------------------------------


@given(server=NAMES, tool=st.text(min_size=1, max_size=20), separator=st.sampled_from(["__", ".", "-", "::"]))
def test_a_joined_name_leads_back_to_its_server(server: str, tool: str, separator: str) -> None:
    names = Names(separator)
    found = names.splits(names.joined(server, tool), {server, "another"})
    assert (server, tool) in found
    assert all(names.joined(*one) == names.joined(server, tool) for one in found)


def test_a_name_that_can_be_split_twice_may_be_that_of_either_server() -> None:
    names = Names("__")
    assert names.splits("a__b__c", {"a", "a__b"}) == [("a__b", "c"), ("a", "b__c")]
    assert names.splits("a__b__c", {"a"}) == [("a", "b__c")]
    assert names.splits("a___c", {"a", "a_"}) == [("a_", "c"), ("a", "_c")]
    assert names.splits("b__c", {"a"}) == []
    assert names.splits("__c", {"a"}) == []
    assert Names("__", "b").splits("a__b", {"a"}) == [("b", "a__b")]


def test_only_resources_that_several_servers_have_bear_their_server() -> None:
    found = [("a", {"uri": "x:1"}), ("b", {"uri": "x:1"}), ("b", {"uri": "x:2", "name": "two"})]
    assert list(with_own_addresses(found, "uri")) == [
        {"uri": "mcpgw://a/x:1"},
        {"uri": "mcpgw://b/x:1"},
        {"uri": "x:2", "name": "two"},
    ]


@given(server=NAMES, uri=st.text(min_size=1, max_size=30))
def test_an_address_leads_back_to_its_server(server: str, uri: str) -> None:
    assert split_address(address_at(server, uri), {server}) == (server, uri)


def test_an_address_in_lower_case_still_finds_its_server() -> None:
    assert split_address("mcpgw://files/x:1", {"Files"}) == ("Files", "x:1")
    assert split_address("mcpgw://files/x:1", {"Files", "FILES"}) is None
    assert split_address("file:///x", {"file"}) is None
    assert split_address("mcpgw://files", {"files"}) is None


# --- envelopes ---------------------------------------------------------------------------------------------


def test_an_answer_is_for_its_user_alone_whatever_the_server_says() -> None:
    sent = {"contents": [], "ttlMs": 5, "cacheScope": "public"}
    assert for_nobody_else("2026-07-28", sent) == {"contents": [], "ttlMs": 5, "cacheScope": "private"}
    assert for_nobody_else("2025-11-25", {"contents": []}) == {"contents": []}


def test_an_error_of_a_server_keeps_its_code_and_one_of_the_gateway_has_its_own() -> None:
    said = ToolExecutionError("no", details={"code": -32042, "message": "not like this", "data": {"a": 1}})
    assert as_mcp_error(said).error.model_dump() == {
        "code": -32042,
        "message": "not like this",
        "data": {"a": 1},
    }
    own = as_mcp_error(ServerUnavailable("down", retry_after_ms=5))
    assert own.error.code == -32000
    assert own.error.data == {"code": "server_unavailable", "temporary": True, "retryAfterMs": 5}


def test_what_cannot_be_handed_on_is_not_offered() -> None:
    offer = Offer.of_server({"tools": {}, "tasks": {}, "extensions": {"x": {}}}, "words", {"name": "n"})
    assert offer.capabilities == {"tools": {}}
    assert offer.has("tools/call")
    assert not offer.has("prompts/list")
    assert offer.has("ping")
    assert Offer.of_server({}, None, None).capabilities == EVERYTHING


# --- requests that wait for their callers ------------------------------------------------------------------


def asking(*keys: str) -> Callable[[Observer], Awaitable[dict[str, Any]]]:
    """A request that asks for all of `keys` at once, and answers what it was told."""

    async def work(observer: Observer) -> dict[str, Any]:
        answers = await asyncio.gather(
            *(
                observer.input_required(InputRequest("elicitation", key, {"message": key}, key))
                for key in keys
            )
        )
        return {key: answer.content for key, answer in zip(keys, answers, strict=True)}

    return work


def filled(**content: str) -> dict[str, Any]:
    """A form that was filled in."""
    return {"action": "accept", "content": content}


BINDING = Binding("ann", None, "tools/call", {"name": "t"})


@pytest.mark.gen_test(timeout=10)
async def test_what_is_asked_for_together_is_asked_in_one_answer() -> None:
    opened = OpenRequest(asking("a", "b"), {})
    result, questions = await opened.next(FILLER)
    assert result is None
    assert questions == {
        key: {"method": "elicitation/create", "params": {"message": key}} for key in ("a", "b")
    }
    opened.answer({"a": filled(x="1"), "unknown": filled(), "b": "no answer"})
    result, questions = await opened.next(FILLER)
    assert (result, list(questions)) == (None, ["b"])
    opened.answer({"b": filled(y="2")})
    assert await opened.next(FILLER) == ({"a": {"x": "1"}, "b": {"y": "2"}}, {})


@pytest.mark.gen_test(timeout=10)
async def test_an_answer_that_came_with_the_request_is_used_once() -> None:
    async def twice(observer: Observer) -> dict[str, Any]:
        first = await asking("a")(observer)
        return {"first": first, "second": await asking("a")(observer)}

    opened = OpenRequest(twice, {"a": filled(x="1"), "other": filled()})
    result, questions = await opened.next(FILLER)
    assert (result, list(questions)) == (None, ["a"])
    opened.cancel()
    await opened.wait()


@pytest.mark.gen_test(timeout=10)
async def test_what_a_caller_cannot_answer_is_declined_for_it() -> None:
    async def work(observer: Observer) -> dict[str, Any]:
        answer = await observer.input_required(InputRequest("sampling", "say", {}))
        return {"action": answer.action}

    assert await OpenRequest(work, {}).next(FILLER) == ({"action": "decline"}, {})


@pytest.mark.gen_test(timeout=10)
async def test_a_state_is_for_one_user_one_request_and_one_time() -> None:
    suspended = Suspended(10, 10, 60)
    opened = OpenRequest(asking("a"), {})
    await opened.next(FILLER)
    state = suspended.park(opened, BINDING)
    for other in (
        Binding("bob", None, "tools/call", {"name": "t"}),
        Binding("ann", "one", "tools/call", {"name": "t"}),
        Binding("ann", None, "prompts/get", {"name": "t"}),
        Binding("ann", None, "tools/call", {"name": "u"}),
    ):
        with pytest.raises(MCPError):
            suspended.take(state, other)
    assert suspended.take(state, BINDING) is opened
    with pytest.raises(MCPError):
        suspended.take(state, BINDING)
    assert len(suspended) == 0
    opened.cancel()
    await opened.wait()


@pytest.mark.gen_test(timeout=10)
async def test_what_nobody_comes_back_for_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def work(observer: Observer) -> dict[str, Any]:
        try:
            return await asking("a")(observer)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    suspended = Suspended(10, 2, 0.05)
    for _ in range(2):
        opened = OpenRequest(work, {})
        await opened.next(FILLER)
        suspended.park(opened, BINDING)
    with pytest.raises(QueueFull):
        suspended.park(opened, BINDING)
    await until(lambda: len(suspended) == 0, what="the end of the wait")
    await cancelled.wait()
    await opened.wait()
    await suspended.close()


@pytest.mark.gen_test(timeout=10)
async def test_a_caller_who_leaves_in_the_middle_takes_the_request_along() -> None:
    told = asyncio.Event()

    async def work(_observer: Observer) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # telling the backend takes a moment, and must not be cancelled too
            told.set()
            raise
        return {}

    opened = OpenRequest(work, {})
    waiting = asyncio.create_task(opened.next(FILLER))
    await asyncio.sleep(0)
    for _ in range(3):  # as anyio cancels: again and again
        waiting.cancel()
        await asyncio.sleep(0)
    await asyncio.wait({waiting})
    await asyncio.wait_for(told.wait(), 5)
    await opened.wait()


# --- changes -----------------------------------------------------------------------------------------------


class Servers:
    """The one thing of a gateway that `Changes` needs."""

    def __init__(self) -> None:
        self.tell: GatewayListener | None = None

    def listen(self, listener: GatewayListener) -> Callable[[], None]:
        self.tell = listener
        return lambda: None


@pytest.mark.gen_test(timeout=10)
async def test_many_changes_in_a_moment_are_told_once_and_only_to_those_who_may_know() -> None:
    servers = Servers()
    changes = Changes(cast("Gateway", servers))
    assert servers.tell is not None
    heard: list[ServerEvent] = []
    others: list[ServerEvent] = []
    follower = Follower(
        "ann", heard.append, lambda server: server == "one", {("one", "x:1"): "mcpgw://one/x:1"}
    )
    changes.follow(follower)
    changes.follow(Follower("bob", others.append, lambda server: server == "two"))
    for _ in range(100):
        servers.tell("one", "tools_changed", {"tools": 1}, None)
        servers.tell("one", "resource_updated", {"uri": "x:1"}, None)
    servers.tell("one", "resource_updated", {"uri": "x:2"}, None)
    servers.tell("one", "log", {}, None)
    servers.tell("two", "prompts_changed", {}, "ann")  # an instance of ann's own
    await until(lambda: len(heard) == 2, what="the changes")
    assert heard == [ToolsListChanged(), ResourceUpdated("mcpgw://one/x:1")]
    assert others == []
    servers.tell("two", "prompts_changed", {}, "bob")
    await until(lambda: others, what="the change")
    assert others == [PromptsListChanged()]
    changes.close()

"""The rounds in which a backend asks before it answers."""

import asyncio
from typing import Any

import mcp_types as types
import pytest
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError
from tornado.ioloop import IOLoop

from mcpgw.backends.failures import LocalFault, is_never_sent, is_unanswered, local_error
from mcpgw.backends.rounds import MOST_ROUNDS, RawResult, run_rounds
from mcpgw.errors import ToolExecutionError

DONE: RawResult = {"resultType": "complete", "content": [], "x-kept": None}
ROOTS = {"method": "roots/list"}


class Sent:
    """A backend that answers as it is told to, and keeps what it was sent."""

    def __init__(self, *answers: RawResult) -> None:
        self.answers = list(answers)
        self.received: list[tuple[Any, str | None]] = []

    async def __call__(self, responses: types.InputResponses | None, state: str | None) -> RawResult:
        self.received.append((responses, state))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def asking(*keys: str, state: str | None = None) -> RawResult:
    """A result that asks."""
    raw: RawResult = {"resultType": "input_required", "inputRequests": dict.fromkeys(keys, ROOTS)}
    return raw if state is None else raw | {"requestState": state}


async def no_question(key: str, _: types.InputRequest) -> types.ErrorData:
    raise AssertionError(f"nobody is to be asked {key}")


@pytest.mark.gen_test
async def test_a_result_at_once_is_answered_as_it_was_sent(io_loop: IOLoop) -> None:
    backend = Sent(DONE)
    assert await run_rounds(backend, no_question) is DONE
    assert backend.received == [(None, None)]


@pytest.mark.gen_test
async def test_the_questions_of_a_round_are_asked_side_by_side_and_answered_together(io_loop: IOLoop) -> None:
    backend = Sent(asking("a", "b", state="one"), asking("c", state="two"), DONE)
    both = asyncio.Barrier(2)

    async def answer(key: str, asked: types.InputRequest) -> types.ListRootsResult:
        assert isinstance(asked, types.ListRootsRequest)
        if key != "c":
            await both.wait()
        return types.ListRootsResult.model_validate({"roots": [{"uri": f"file:///{key}"}]})

    async with asyncio.timeout(5):
        assert await run_rounds(backend, answer) is DONE
    (_, first), (responses, second), (others, third) = backend.received
    assert (first, second, third) == (None, "one", "two")
    assert responses.keys() == {"a", "b"}
    assert [str(root.uri) for root in others["c"].roots] == ["file:///c"]


@pytest.mark.gen_test
async def test_a_question_that_is_refused_ends_the_request_and_the_other_questions(io_loop: IOLoop) -> None:
    backend, cancelled = Sent(asking("slow", "refused")), asyncio.Event()

    async def answer(key: str, _: types.InputRequest) -> types.ErrorData:
        if key == "refused":
            return types.ErrorData(code=-1, message="no")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with asyncio.timeout(5):
        with pytest.raises(MCPError, match="no"):
            await run_rounds(backend, answer)
    assert cancelled.is_set()


@pytest.mark.gen_test
async def test_a_state_without_questions_is_sent_back_alone_and_not_for_ever(io_loop: IOLoop) -> None:
    waiting: RawResult = {"resultType": "input_required", "requestState": "same"}
    backend = Sent(waiting, waiting, DONE)
    assert await run_rounds(backend, no_question) is DONE
    assert backend.received == [(None, None), (None, "same"), (None, "same")]
    endless = Sent(waiting)
    with pytest.raises(ToolExecutionError, match="more than 10 times"):
        await run_rounds(endless, no_question)
    assert len(endless.received) == MOST_ROUNDS + 1


@pytest.mark.parametrize("fault", [LocalFault.NOT_SENT, LocalFault.SESSION_LOST])
@pytest.mark.gen_test
async def test_a_later_round_that_was_not_sent_does_not_make_the_request_one_that_has_not_run(
    io_loop: IOLoop, fault: LocalFault
) -> None:
    async def send(_: types.InputResponses | None, state: str | None) -> RawResult:
        if state is None:
            return {"resultType": "input_required", "requestState": "one"}
        raise MCPError.from_error_data(local_error(fault, "its connection was refused"))

    with pytest.raises(MCPError, match="its connection was refused") as failed:
        await run_rounds(send, no_question)
    assert is_unanswered(failed.value)
    assert not is_never_sent(failed.value)


@pytest.mark.gen_test
async def test_questions_that_are_none_are_a_fault_of_the_backend(io_loop: IOLoop) -> None:
    with pytest.raises(ValidationError):
        await run_rounds(Sent({"resultType": "input_required", "inputRequests": 3}), no_question)

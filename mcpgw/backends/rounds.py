"""The rounds in which a backend asks for input before it answers.

Instead of its result a backend may answer with questions; the request is sent again with the answers, and
with the state that came with the questions. Source: MCP 2026-07-28, "Multi round-trip requests". The loop of
the SDK is private to its client.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import mcp_types as types
from mcp.shared.exceptions import MCPError

from mcpgw.backends.failures import LocalFault, is_never_sent, local_error
from mcpgw.errors import ToolExecutionError

MOST_ROUNDS = 10
"""As the SDKs have it."""
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.25

RawResult = dict[str, Any]
Answer = Callable[[str, types.InputRequest], Awaitable[types.InputResponse | types.ErrorData]]
"""Answers one question: takes the backend's name for it, and what it asks."""
Send = Callable[[types.InputResponses | None, str | None], Awaitable[RawResult]]
"""Sends the request with answers and the backend's state, both None at first; answers the raw result."""


async def run_rounds(send: Send, answer: Answer) -> RawResult:
    """Send a request, and again with what `answer` says as long as questions come; answers the final result.

    The questions of one round are asked side by side. A round without any has the backend's state sent back
    after a short pause.

    Raises:
        MCPError: the backend answered with an error, or a question with one.
        ValidationError: the questions are not as the protocol has them.
        ToolExecutionError: there were more rounds than may be.
    """
    raw, pause = await send(None, None), _FIRST_PAUSE
    for _ in range(MOST_ROUNDS):
        if raw.get("resultType") != "input_required":
            return raw
        asked = types.InputRequiredResult.model_validate(raw, by_name=False)
        responses: types.InputResponses | None = None
        if asked.input_requests:
            responses, pause = await _answered(asked.input_requests, answer), _FIRST_PAUSE
        else:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        try:
            raw = await send(responses, asked.request_state)
        except MCPError as error:
            if is_never_sent(error):
                # This round did not run; those before it did, so that the request must not begin anew.
                raise MCPError.from_error_data(local_error(LocalFault.MAYBE_SENT, error.message)) from error
            raise
    if raw.get("resultType") != "input_required":
        return raw
    raise ToolExecutionError(f"the server asked for input more than {MOST_ROUNDS} times in one call")


async def _answered(questions: Mapping[str, types.InputRequest], answer: Answer) -> types.InputResponses:
    """The answers to all questions; the first that is an error ends the rest."""
    responses: types.InputResponses = {}

    async def ask(key: str, asked: types.InputRequest) -> None:
        response = await answer(key, asked)
        if isinstance(response, types.ErrorData):
            raise MCPError.from_error_data(response)
        responses[key] = response

    asking = [asyncio.create_task(ask(key, asked)) for key, asked in questions.items()]
    try:
        await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    return responses

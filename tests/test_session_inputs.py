"""Questions of servers to one client, without sockets."""

import asyncio

import pytest

from mcpgw.backends.requests import InputAnswer, InputRequest
from mcpgw.errors import InvalidParams, QueueFull, UnknownCall
from mcpgw.session_inputs import SessionInputs
from mcpgw.wire import frames
from mcpgw.wire.frames import ReplyTo

CALL = ReplyTo("call-1")
LOOSE = InputRequest("elicitation", "?", {"message": "?", "requestedSchema": {"type": "object"}})


class Asked:
    """The questions of one client, and what was sent to it."""

    def __init__(self) -> None:
        self.sent: list[frames.InputRequest] = []
        self.inputs = SessionInputs(lambda _reply, frame: self.sent.append(frame))
        self.tasks: list[asyncio.Task[InputAnswer]] = []

    async def ask(self, request: InputRequest = LOOSE) -> asyncio.Task[InputAnswer]:
        """Ask, and let the question be sent."""
        task = asyncio.create_task(self.inputs.ask(CALL, request, "s", "t", seconds=1))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    def answer(self, number: int, action: str = "accept", content: object = None) -> None:
        """Answer one of the questions."""
        response = frames.InputResponse(self.sent[number].request_id, action, content)  # type: ignore[arg-type]
        self.inputs.respond(response)

    async def end(self) -> None:
        """Stop to wait for what is open."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.gen_test
async def test_each_question_has_its_own_answer_once() -> None:
    asked = Asked()
    first, second = await asked.ask(), await asked.ask()
    asked.answer(1, "decline")
    asked.answer(0, "accept", {"a": 1})
    with pytest.raises(UnknownCall):
        asked.answer(0, "decline")
    assert (await first, await second) == (InputAnswer("accept", {"a": 1}), InputAnswer("decline"))
    assert asked.inputs.open == ()


@pytest.mark.gen_test
async def test_the_open_questions_of_one_client_are_bounded() -> None:
    asked = Asked()
    for _ in range(32):
        await asked.ask()
    with pytest.raises(QueueFull):
        await (await asked.ask())
    asked.answer(0)
    await asked.tasks[0]
    await asked.ask()
    assert len(asked.sent) == 33
    await asked.end()
    assert asked.inputs.open == ()


@pytest.mark.gen_test
async def test_what_is_asked_again_is_only_what_waits() -> None:
    asked = Asked()
    first = await asked.ask()
    await asked.ask()
    asked.answer(0)
    await first
    asked.sent.clear()
    asked.inputs.say_all()
    assert [frame.request_id for frame in asked.sent] == list(asked.inputs.open)
    await asked.end()


@pytest.mark.parametrize(
    "schema",
    [{"type": "nonsense"}, {"type": "object", "$ref": "http://localhost/elsewhere"}],
    ids=["no schema", "leads elsewhere"],
)
@pytest.mark.gen_test
async def test_a_schema_that_cannot_be_used_leaves_the_answer_to_the_server(schema: object) -> None:
    asked = Asked()
    task = await asked.ask(InputRequest("elicitation", "?", {"requestedSchema": schema}))
    asked.answer(0, "accept", {"a": 1})
    assert (await task).content == {"a": 1}


@pytest.mark.gen_test
async def test_a_declined_question_needs_no_content_and_an_accepted_one_fits_its_schema() -> None:
    asked = Asked()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    task = await asked.ask(InputRequest("elicitation", "?", {"requestedSchema": schema}))
    with pytest.raises(InvalidParams) as failure:
        asked.answer(0, "accept", {"a": "x"})
    assert failure.value.details == [{"path": "/data/content/a", "reason": "must be of type integer"}]
    asked.answer(0, "cancel")
    assert await task == InputAnswer("cancel")


@pytest.mark.gen_test
async def test_a_question_that_is_no_json_is_declined_and_others_go_on() -> None:
    asked = Asked()
    sound = await asked.ask()

    def say(reply: ReplyTo, frame: frames.InputRequest) -> None:
        frames.encode(frame, reply)
        asked.sent.append(frame)

    asked.inputs._say = say
    schema = {"type": "object", "properties": {"a": {"type": "number", "default": float("nan")}}}
    broken = await asked.ask(InputRequest("elicitation", "?", {"requestedSchema": schema}))
    assert await broken == InputAnswer("decline")
    assert len(asked.sent) == 1
    asked.answer(0)
    assert await sound == InputAnswer("accept", {})

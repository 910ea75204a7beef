"""The conversation with one client, without a socket: texts in, texts out."""

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpgw.errors import AuthFailed, CloseCode
from mcpgw.settings import AuthSettings, SessionSettings, WebSocketSettings
from tests.support.gateway_process import ALL_SCOPES
from tests.support.talk import TOKENS, Frame, Talk, code_of, text_result


def token(user: str = "ann", ttl: float = 600) -> str:
    """A token that `TOKENS` takes."""
    return TOKENS.issue(user=user, scopes=ALL_SCOPES, ttl=ttl)


@pytest.mark.gen_test
async def test_the_first_frame_is_the_status_of_the_connection() -> None:
    talk = Talk(user=None)
    (status,) = talk.recorder.take()
    assert status["type"] == "status"
    assert "id" not in status
    assert status["data"]["requiresAuth"] is True
    assert status["data"]["authenticated"] is False
    assert status["data"]["clientId"] == "c-1"
    assert "user" not in status["data"]
    talk.conversation.lost(1000)


@pytest.mark.gen_test
async def test_credentials_that_do_not_hold_are_told_after_the_status() -> None:
    talk = Talk(user=None, refused=AuthFailed("the token does not hold"))
    status, error = talk.recorder.take()
    assert (status["type"], code_of(error)) == ("status", "auth_failed")
    talk.conversation.lost(1000)


@pytest.mark.gen_test
async def test_without_credentials_only_ping_status_and_auth_are_answered() -> None:
    talk = Talk(user=None)
    assert talk.say({"type": "ping", "id": "p"})[0]["type"] == "pong"
    assert talk.say({"type": "status", "id": "s"})[0]["data"]["requiresAuth"] is True
    for kind in ("list_tools", "tool_call", "cancel", "tool_cal", "subscribe"):
        (answer,) = talk.say({"type": kind, "id": "x"})
        assert (answer["id"], code_of(answer)) == ("x", "auth_required")
    (answer,) = talk.say({"type": "auth", "id": "a", "data": {"token": token()}})
    assert (answer["id"], answer["data"]["authenticated"], answer["data"]["user"]) == ("a", True, "ann")
    assert talk.say({"type": "list_tools", "id": "l"})[0]["type"] == "tools"


@pytest.mark.gen_test
async def test_who_sends_no_auth_in_time_is_told_and_closed() -> None:
    talk = Talk(user=None, auth=AuthSettings(timeout=0.01))
    talk.recorder.take()
    (goodbye,) = await talk.frames()
    assert (goodbye["type"], goodbye["data"]["code"], goodbye["data"]["reconnect"]) == (
        "disconnect",
        3502,
        False,
    )
    assert talk.recorder.closed is not None
    assert talk.recorder.closed[0] == 3502
    assert talk.say({"type": "ping"}) == []


@pytest.mark.gen_test
async def test_auth_again_renews_the_same_user_and_refuses_another() -> None:
    talk = Talk()
    assert talk.say({"type": "auth", "data": {"token": token()}})[0]["data"]["user"] == "ann"
    assert code_of(talk.say({"type": "auth", "data": {"token": token("eve")}})[0]) == "permission_denied"
    assert talk.say({"type": "status"})[0]["data"]["user"] == "ann"


@pytest.mark.gen_test
async def test_too_many_failed_auths_close_the_connection() -> None:
    talk = Talk(user=None, auth=AuthSettings(max_attempts=3))
    for _ in range(2):
        assert code_of(talk.say({"type": "auth", "data": {"token": "nonsense"}})[0]) == "auth_failed"
    error, goodbye = talk.say({"type": "auth", "data": {"token": "nonsense"}})
    assert (code_of(error), goodbye["data"]["code"]) == ("auth_failed", 3500)
    talk.conversation.lost(3500)


@pytest.mark.gen_test
async def test_a_token_that_runs_out_ends_requests_but_not_the_connection() -> None:
    talk = Talk(expires_in=-60)
    assert code_of(talk.call("k")[0]) == "token_expired"
    assert talk.say({"type": "ping"})[0]["type"] == "pong"
    talk.say({"type": "auth", "data": {"token": token()}})
    assert talk.say({"type": "list_tools"})[0]["type"] == "tools"


@pytest.mark.gen_test
async def test_a_slow_call_does_not_hold_up_a_fast_one() -> None:
    talk = Talk()
    talk.call("slow")
    await talk.gateway.started("slow")
    talk.call("fast", "say")
    (answer,) = await talk.frames()
    assert (answer["id"], answer["data"]["result"]) == ("fast", "fast")
    talk.gateway.release("slow", "at last")
    (answer,) = await talk.frames()
    assert (answer["id"], answer["data"]["result"]) == ("slow", "at last")


@pytest.mark.gen_test
async def test_progress_and_logs_carry_the_id_of_their_call_and_stop_with_its_end() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    on_progress, on_log = talk.gateway.callbacks["k"]
    on_progress(1, 3.0, "one of three")
    on_log("info", "tool", {"said": "hello"})
    progress, log = talk.recorder.take()
    assert progress["id"] == log["id"] == "k"
    assert progress["data"] == {
        "progress": 1,
        "total": 3,
        "message": "one of three",
        "serverId": "script",
        "toolName": "wait",
    }
    assert log["data"] == {"level": "info", "logger": "tool", "data": {"said": "hello"}}
    talk.gateway.release("k")
    assert [frame["type"] for frame in await talk.frames()] == ["tool_response"]
    on_progress(3, 3.0, "too late")
    on_log("info", None, "too late")
    assert talk.recorder.take() == []


@pytest.mark.gen_test
async def test_progress_that_is_no_json_is_dropped_and_the_call_still_ends_once() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    talk.gateway.callbacks["k"][0](float("nan"), None, None)
    talk.gateway.callbacks["k"][1]("info", None, "half a pair: \ud800")
    talk.gateway.release("k", "\ud800")
    (end,) = await talk.frames()
    assert (end["id"], code_of(end)) == ("k", "tool_execution_error")


@pytest.mark.gen_test
async def test_cancel_ends_the_call_at_once_and_tells_the_gateway() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    (end,) = talk.say({"type": "cancel", "id": "k"})
    assert (end["id"], code_of(end)) == ("k", "cancelled")
    await talk.conversation.wait_settled()
    assert talk.gateway.cancelled == ["k"]
    assert code_of(talk.say({"type": "cancel", "id": "k"})[0]) == "unknown_call"
    assert talk.recorder.take() == []


@pytest.mark.gen_test
async def test_an_id_can_be_used_again_once_its_call_has_ended() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    (refusal,) = talk.call("k")
    assert (refusal["id"], code_of(refusal)) == ("k", "duplicate_id")
    talk.gateway.release("k", "first")
    assert (await talk.frames())[0]["data"]["result"] == "first"
    talk.call("k", "say")
    assert (await talk.frames())[0]["data"]["result"] == "k"


@pytest.mark.gen_test
async def test_more_calls_at_once_than_the_limit_are_refused_with_a_time_to_try_again() -> None:
    talk = Talk(websocket=WebSocketSettings(max_calls=2))
    talk.call("one")
    talk.call("two")
    (refusal,) = talk.call("three")
    assert (refusal["id"], code_of(refusal), refusal["data"]["temporary"]) == ("three", "queue_full", True)
    assert refusal["data"]["retryAfterMs"] > 0
    assert talk.say({"type": "status"})[0]["data"]["openCalls"] == ["one", "two"]
    talk.conversation.lost(1000)
    await talk.conversation.wait_settled()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("code", "on_disconnect", "cancelled"),
    [
        (1000, None, True),
        (1001, None, True),
        (None, None, False),
        (1006, None, False),
        (4000, None, False),
        (1000, "keep", False),
        (None, "cancel", True),
        (None, "keep", False),
        (1001, "cancel", True),
    ],
)
async def test_a_clean_close_cancels_calls_and_a_broken_connection_keeps_them_unless_the_call_says_so(
    code: int | None, on_disconnect: str | None, cancelled: bool
) -> None:
    talk = Talk()
    talk.call("k", **({} if on_disconnect is None else {"onDisconnect": on_disconnect}))
    await talk.gateway.started("k")
    talk.conversation.lost(code)
    if cancelled:
        await talk.conversation.wait_settled()
    assert talk.gateway.cancelled == (["k"] if cancelled else [])
    assert talk.recorder.take() == []
    talk.sessions.close()
    await talk.conversation.wait_settled()
    assert talk.gateway.cancelled == ["k"]


@pytest.mark.gen_test
async def test_calls_of_a_broken_connection_are_cancelled_when_nobody_came_back_in_the_resume_time() -> None:
    talk = Talk(sessions=SessionSettings(resume_time=0.05))
    talk.call("k")
    await talk.gateway.started("k")
    talk.cut()
    assert len(talk.sessions) == 1
    async with asyncio.timeout(5):
        await talk.conversation.wait_settled()
    assert talk.gateway.cancelled == ["k"]
    assert len(talk.sessions) == 0


@pytest.mark.gen_test
async def test_what_a_client_answers_to_a_close_of_the_gateway_cancels_nothing() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    talk.conversation.disconnect(CloseCode.SLOW_READER, "the client does not read")
    talk.conversation.lost(1000)
    status, *rest = talk.again().resume(talk.session, "k")
    assert status["data"]["resumed"] is True
    assert (rest, talk.gateway.cancelled) == ([], [])


@pytest.mark.gen_test
async def test_a_fault_of_the_gateway_is_an_internal_error_that_tells_nothing_but_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    talk = Talk()
    talk.call("k", "break")
    (end,) = await talk.frames()
    assert (end["id"], code_of(end)) == ("k", "internal_error")
    assert "secret-argument" not in end["data"]["error"]
    assert end["data"]["error"].split()[-1] in caplog.text


@pytest.mark.gen_test
async def test_draining_waits_for_open_calls_and_then_says_goodbye() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    draining = asyncio.create_task(talk.conversation.drain(asyncio.get_running_loop().time() + 5))
    await asyncio.sleep(0)
    assert talk.recorder.closed is None
    talk.gateway.release("k")
    await draining
    end, goodbye = talk.recorder.take()
    assert (end["type"], goodbye["type"], goodbye["data"]["code"]) == ("tool_response", "disconnect", 3001)
    assert goodbye["data"]["reconnect"] is True


@pytest.mark.gen_test
async def test_draining_ends_a_hung_call_at_the_deadline() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    await talk.conversation.drain(asyncio.get_running_loop().time() + 0.02)
    end, goodbye = talk.recorder.take()
    assert (end["id"], code_of(end), goodbye["type"]) == ("k", "outcome_unknown", "disconnect")
    await talk.conversation.wait_settled()
    assert talk.gateway.cancelled == ["k"]


@pytest.mark.gen_test
async def test_the_answer_to_request_id_carries_both_spellings() -> None:
    talk = Talk()
    (answer,) = talk.say({"type": "ping", "request_id": "r-1"})
    assert (answer["id"], answer["request_id"]) == ("r-1", "r-1")
    talk.say({"type": "tool_call", "request_id": "r-2", "data": {"serverId": "script", "toolName": "say"}})
    (end,) = await talk.frames()
    assert (end["id"], end["request_id"]) == ("r-2", "r-2")


@pytest.mark.gen_test
async def test_a_fault_of_the_envelope_is_answered_with_the_id_where_that_is_sound() -> None:
    talk = Talk()
    for frame in ({"id": "x"}, {"type": 7, "id": "x"}, {"type": "ping", "id": "x", "data": 7}):
        (answer,) = talk.say(frame)
        assert (answer["id"], code_of(answer)) == ("x", "invalid_params")
    (answer,) = talk.say({"type": "ping", "id": "x" * 129})
    assert ("id" not in answer, code_of(answer)) == (True, "invalid_params")


@pytest.mark.gen_test
async def test_a_batch_is_answered_frame_by_frame() -> None:
    talk = Talk()
    answers = talk.say(
        [{"type": "ping", "id": "1"}, 7, {"type": "pin", "id": "2"}, {"type": "status", "id": "3"}]
    )
    assert [(a["type"], a.get("id")) for a in answers] == [
        ("pong", "1"),
        ("error", None),
        ("error", "2"),
        ("status", "3"),
    ]
    assert [code_of(answers[1]), code_of(answers[2])] == ["parse_error", "unknown_type"]


frame_ids = st.sampled_from(["a", "b", "c"])
call_data = st.fixed_dictionaries(
    {
        "serverId": st.just("script"),
        "toolName": st.sampled_from(["say", "wait", "break"]),
        "params": st.fixed_dictionaries({"key": frame_ids}),
    }
)
channel_data = st.fixed_dictionaries(
    {"channel": st.sampled_from(["servers", "calls", "user:ann", "user:bob", "room:a", "room:-", "nosuch"])},
    optional={
        "since": st.sampled_from(["0123456789abcdef-1", "nonsense", ""]),
        "payload": st.none() | st.floats(allow_nan=False) | st.text(max_size=5),
        "filter": st.fixed_dictionaries(
            {}, optional={"types": st.just(["call.started"]), "minLevel": frame_ids}
        ),
    },
)
resume_data = st.fixed_dictionaries(
    {"session": st.text(max_size=5), "pending": st.lists(frame_ids, max_size=3)},
    optional={"since": st.sampled_from(["0123456789abcdef-1", "nonsense"])},
)
sane_frames = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["subscribe", "unsubscribe", "publish"]), "id": st.just("of a channel")},
        optional={"data": channel_data},
    ),
    st.fixed_dictionaries({"type": st.just("resume"), "data": resume_data}),
    st.fixed_dictionaries({"type": st.sampled_from(["ping", "cancel"]), "id": frame_ids}),
    st.fixed_dictionaries({"type": st.just("status"), "request_id": frame_ids}),
    st.fixed_dictionaries({"type": st.just("tool_call"), "id": frame_ids, "data": call_data}),
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=8,
)
anything = sane_frames | json_values | st.text(max_size=40) | st.binary(max_size=20)


@settings(max_examples=60)
@given(messages=st.lists(anything, max_size=15))
def test_no_sequence_of_messages_raises_or_gives_a_call_two_ends(messages: list[object]) -> None:
    async def run() -> None:
        talk = Talk(websocket=WebSocketSettings(max_calls=2), scopes=("admin",))
        talk.recorder.take()
        begun: dict[str, int] = {}
        ends: dict[str, int] = {}
        for message in messages:
            begins = isinstance(message, dict) and message.get("type") == "tool_call"
            talk.conversation.receive(message if isinstance(message, str | bytes) else json.dumps(message))
            if begins:
                begun[message["id"]] = begun.get(message["id"], 0) + 1  # type: ignore[index]
        for _ in range(20):
            await asyncio.sleep(0)
        for future in talk.gateway.waiting:
            if not future.done():
                future.set_result(text_result("done"))
        await talk.conversation.wait_settled()
        for frame in talk.recorder.take():
            if frame["type"] == "tool_response" or (frame["type"] == "error" and frame.get("id") in begun):
                ends[frame["id"]] = ends.get(frame["id"], 0) + 1
        cancels = sum(isinstance(m, dict) and m.get("type") == "cancel" for m in messages)
        # What is pending and was never begun has an end, too.
        cancels += sum(
            len(set(m["data"]["pending"]))
            for m in messages
            if isinstance(m, dict) and m.get("type") == "resume" and "pending" in m["data"]
        )
        for key, count in begun.items():
            # Each call that was begun has one end; a cancel that found no call has an error of its own.
            assert count <= ends[key] <= count + cancels
        talk.conversation.lost(None)

    asyncio.run(run())


def test_the_settings_of_a_status_are_in_milliseconds_and_bytes() -> None:
    async def run() -> Frame:
        talk = Talk(websocket=WebSocketSettings(ping_interval=20.0, pong_timeout=5.0, max_message_size=4096))
        return talk.recorder.take()[0]

    data = asyncio.run(run())["data"]
    assert (data["pingInterval"], data["pongTimeout"], data["maxMessageSize"]) == (20000, 5000, 4096)


@pytest.mark.gen_test
async def test_what_the_gateway_closes_with_is_recorded_whatever_the_client_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="mcpgw.websocket")
    talk = Talk()
    talk.conversation.disconnect(CloseCode.DISCONNECTED, "the login has ended")
    talk.conversation.lost(1000)
    assert talk.conversation.closed_with == 3503
    (line,) = (record for record in caplog.records if record.getMessage().startswith("disconnected"))
    assert "3503" in str(line.__dict__)

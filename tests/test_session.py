"""Sessions that outlive their connections, without sockets: what a client finds when it comes back."""

import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpgw.errors import CloseCode
from mcpgw.kept_ends import EndedCalls, KeptEnd, KeptEnds, SharedLimit
from mcpgw.settings import SessionSettings
from mcpgw.wire.events import Position
from tests.support.gateway_process import ALL_SCOPES
from tests.support.talk import TOKENS, Frame, Talk, code_of, text_result

EVERYTHING = (*ALL_SCOPES, "rooms:join")


def publish(talk: Talk, line: str) -> str:
    """Publish a log line; answers the position of its event."""
    talk.bus.publish("server.log", {"serverId": "script", "level": "info", "line": line})
    return str(talk.bus.position)


def lines_of(said: list[Frame]) -> list[str]:
    """The log lines among frames, in order."""
    return [frame["data"]["line"] for frame in said if frame["type"] == "server.log"]


@pytest.mark.gen_test
async def test_each_pending_id_has_what_it_needs_and_a_call_that_goes_on_has_nothing_yet() -> None:
    first = Talk()
    for key in ("runs", "ended", "read"):
        first.call(key)
        await first.gateway.started(key)
    first.gateway.release("read")
    await first.frames()
    first.cut()
    first.gateway.release("ended", "while away")
    await first.gateway.settled("ended")
    second = first.again()
    status, *ends = second.resume(first.session, "runs", "ended", "never sent", "ended")
    assert (status["type"], status["id"]) == ("status", "resume")
    assert status["data"]["resumed"] is True
    assert status["data"]["session"] == first.session
    assert status["data"]["openCalls"] == ["runs"]
    assert [(end["id"], end["type"]) for end in ends] == [("ended", "tool_response"), ("never sent", "error")]
    assert ends[0]["data"]["result"] == "while away"
    assert (code_of(ends[1]), ends[1]["data"]["details"]) == ("outcome_unknown", {"received": False})
    first.gateway.release("runs", "at last")
    (end,) = await second.frames()
    assert (end["id"], end["data"]["result"]) == ("runs", "at last")
    assert first.gateway.cancelled == []


@pytest.mark.gen_test
async def test_the_end_of_a_call_that_used_request_id_comes_back_with_both_spellings() -> None:
    first = Talk()
    data = {"serverId": "script", "toolName": "say", "params": {"text": "x"}}
    first.say({"type": "tool_call", "request_id": "r", "data": data})
    await first.frames()
    first.cut()
    _, end = first.again().resume(first.session, "r")
    assert (end["id"], end["request_id"]) == ("r", "r")


@pytest.mark.gen_test
async def test_another_users_session_is_not_resumed_and_tells_nothing() -> None:
    first = Talk()
    first.call("k", "say")
    await first.frames()
    first.cut()
    eve = first.again(user="eve")
    status, end = eve.resume(first.session, "k")
    assert (status["data"]["resumed"], code_of(end)) == (False, "outcome_unknown")
    # Nothing is known of what that session received: the call must not be taken for one that never came.
    assert "details" not in end["data"]
    status, end = first.again().resume(first.session, "k")
    assert (status["data"]["resumed"], end["type"]) == (True, "tool_response")


@pytest.mark.gen_test
async def test_after_the_resume_time_the_session_is_gone_and_its_calls_are_unknown() -> None:
    first = Talk(sessions=SessionSettings(resume_time=0.02))
    first.call("k")
    await first.gateway.started("k")
    first.cut()
    async with asyncio.timeout(5):
        await first.conversation.wait_settled()
    second = first.again()
    status, end = second.resume(first.session, "k")
    assert (status["data"]["resumed"], status["data"]["session"]) == (False, second.session)
    assert (code_of(end), "details" in end["data"]) == ("outcome_unknown", False)
    assert first.gateway.cancelled == ["k"]


@pytest.mark.gen_test
async def test_resume_behind_a_call_or_a_subscription_is_invalid() -> None:
    first = Talk()
    first.cut()
    for frame in (
        {"type": "tool_call", "id": "a", "data": {"serverId": "script", "toolName": "say"}},
        {"type": "subscribe", "id": "b", "data": {"channel": "servers"}},
    ):
        second = first.again()
        second.say(frame)
        (refusal,) = second.resume(first.session)
        assert code_of(refusal) == "invalid_params"
    third = first.again()
    third.say({"type": "ping"})
    third.say({"type": "status"})
    assert third.resume(first.session)[0]["data"]["resumed"] is True


@pytest.mark.gen_test
async def test_a_session_that_is_taken_over_says_goodbye_on_the_old_connection_and_ends_on_the_new() -> None:
    first = Talk()
    first.call("k")
    await first.gateway.started("k")
    first.recorder.take()
    second = first.again()
    (status,) = second.resume(first.session, "k")
    (goodbye,) = first.recorder.take()
    assert (goodbye["type"], goodbye["data"]["code"], goodbye["data"]["reconnect"]) == (
        "disconnect",
        3505,
        False,
    )
    assert first.recorder.closed is not None
    # What the old socket still carries is heard no more: the new one was told that it never came.
    assert first.call("late") == []
    first.conversation.lost(1000)
    assert (first.gateway.cancelled, status["data"]["openCalls"]) == ([], ["k"])
    first.gateway.release("k")
    assert [frame["id"] for frame in await second.frames()] == ["k"]
    assert first.recorder.take() == []


@pytest.mark.gen_test
async def test_a_session_can_be_resumed_again_and_again() -> None:
    first = Talk()
    first.call("k")
    await first.gateway.started("k")
    talk = first
    for _ in range(5):
        talk.cut()
        talk = talk.again()
        assert [frame["type"] for frame in talk.resume(first.session, "k")] == ["status"]
    first.gateway.release("k")
    await first.gateway.settled("k")
    talk.cut()
    for _ in range(2):
        talk = talk.again()
        _, end = talk.resume(first.session, "k")
        assert end["data"]["result"] == "done"
    assert len(talk.sessions) == 1


@pytest.mark.gen_test
async def test_subscriptions_go_on_behind_since_without_a_gap_and_with_nothing_twice() -> None:
    first = Talk(scopes=EVERYTHING)
    first.say({"type": "subscribe", "data": {"channel": "servers"}})
    first.say({"type": "subscribe", "data": {"channel": "gateway"}})
    publish(first, "read")
    seen = str(first.bus.position)
    publish(first, "sent but not read")
    first.cut()
    publish(first, "while away")
    first.bus.publish("gateway.error", {"faultId": "f"})
    publish(first, "while away too")
    second = first.again(scopes=EVERYTHING)
    status, *rest = second.resume(first.session, since=seen)
    assert status["data"]["channels"] == ["servers", "gateway"]
    assert [(f["data"]["channel"], f["data"]["recovered"]) for f in rest[:2]] == [
        ("servers", True),
        ("gateway", True),
    ]
    assert [f["type"] for f in rest[2:]] == ["server.log", "server.log", "gateway.error", "server.log"]
    assert lines_of(rest) == ["sent but not read", "while away", "while away too"]
    publish(first, "live")
    assert lines_of(second.recorder.take()) == ["live"]


@pytest.mark.gen_test
async def test_a_position_that_the_log_does_not_reach_brings_the_present_state_in_order() -> None:
    first = Talk()
    for channel in ("gateway", "servers"):
        first.say({"type": "subscribe", "data": {"channel": channel}})
    first.cut()
    first.bus.publish("server.starting", {"serverId": "script"})
    first.bus.publish("gateway.started", {"state": "started"})
    first.bus.publish("server.starting", {"serverId": "other"})
    second = first.again()
    _, *rest = second.resume(first.session, since="0123456789abcdef-5")
    assert [f["data"]["recovered"] for f in rest[:2]] == [False, False]
    assert [f["type"] for f in rest[2:]] == ["server.starting", "gateway.started", "server.starting"]
    offsets = [int(f["id"].rpartition("-")[2]) for f in rest[2:]]
    assert offsets == sorted(offsets)


@pytest.mark.gen_test
async def test_who_comes_back_is_in_the_room_again_and_the_others_are_told() -> None:
    ann = Talk(scopes=EVERYTHING)
    bob = ann.again(user="bob", scopes=EVERYTHING)
    for talk in (ann, bob):
        talk.say({"type": "subscribe", "data": {"channel": "room:tea"}})
    seen = str(ann.bus.position)
    ann.cut()
    assert bob.recorder.take()[-1]["type"] == "room.left"
    bob.say({"type": "publish", "data": {"channel": "room:tea", "payload": "anybody?"}})
    back = bob.again(scopes=EVERYTHING)
    _, subscribed, *missed = back.resume(ann.session, since=seen)
    assert {member["user"] for member in subscribed["data"]["present"]} == {"ann", "bob"}
    assert "anybody?" in [f["data"].get("payload") for f in missed]
    assert bob.recorder.take()[-1]["type"] == "room.joined"
    assert back.say({"type": "publish", "data": {"channel": "room:tea", "payload": "me"}})


@pytest.mark.gen_test
async def test_a_weaker_token_does_not_go_on_with_what_it_may_not_read() -> None:
    first = Talk(scopes=EVERYTHING)
    for channel in ("servers", "room:tea"):
        first.say({"type": "subscribe", "data": {"channel": channel}})
    first.cut()
    second = first.again(scopes=("events:read",))
    frames = second.resume(first.session)
    (gone,) = (frame for frame in frames if frame["type"] == "unsubscribed")
    assert gone["data"]["channel"] == "room:tea"
    (status,) = (frame for frame in frames if frame["type"] == "status")
    assert status["data"]["channels"] == ["servers"]
    assert first.rooms.present("room:tea") == ()


WEAK = ("events:read", "tools:call:elsewhere")


@pytest.mark.gen_test
async def test_a_weaker_token_is_given_no_end_that_it_could_not_have_asked_for() -> None:
    first = Talk()
    for key in ("ended", "open"):
        first.call(key)
        await first.gateway.started(key)
    first.gateway.release("ended", "secret")
    await first.frames()
    first.cut()
    weak = first.again(scopes=WEAK)
    status, *ends = weak.resume(first.session, "ended", "open", "never")
    assert (status["data"]["resumed"], status["data"]["openCalls"]) == (True, [])
    assert [(frame["id"], code_of(frame)) for frame in ends] == [
        ("ended", "permission_denied"),
        ("open", "permission_denied"),
        ("never", "outcome_unknown"),
    ]
    first.gateway.callbacks["open"][0](1, 2, "a secret")
    (refused,) = weak.say({"type": "cancel", "id": "open"})
    assert code_of(refused) == "permission_denied"
    first.gateway.release("open", "secret")
    await first.gateway.settled("open")
    assert weak.recorder.take() == [], "neither progress nor the end"
    assert first.gateway.cancelled == []
    # With the token that began them, or one like it, both are there as they were.
    weak.cut()
    strong = first.again()
    ends = strong.resume(first.session, "ended", "open")[1:]
    assert [(frame["id"], frame["data"]["result"]) for frame in ends] == [
        ("ended", "secret"),
        ("open", "secret"),
    ]


@pytest.mark.gen_test
async def test_a_weaker_token_that_leaves_does_not_stop_the_calls_of_the_stronger() -> None:
    first = Talk()
    first.call("open")
    first.call("goes", onDisconnect="cancel")
    for key in ("open", "goes"):
        await first.gateway.started(key)
    first.conversation.disconnect(CloseCode.NO_PONG, "asleep")
    weak = first.again(scopes=WEAK)
    assert weak.resume(first.session)[0]["data"]["resumed"] is True
    weak.conversation.lost(1000)
    await asyncio.sleep(0)
    assert first.gateway.cancelled == ["goes"]
    strong = first.again()
    assert strong.resume(first.session, "open")[0]["data"]["openCalls"] == ["open"]


@pytest.mark.gen_test
async def test_a_call_that_a_renewed_token_does_not_allow_ends_for_its_client_at_once() -> None:
    talk = Talk()
    talk.call("open")
    await talk.gateway.started("open")
    weaker = TOKENS.issue(user="ann", scopes=WEAK, ttl=60)
    ended, status = talk.say({"type": "auth", "id": "a", "data": {"token": weaker}})
    assert (ended["id"], code_of(ended)) == ("open", "permission_denied")
    assert (status["id"], status["data"]["authenticated"]) == ("a", True)
    stronger = TOKENS.issue(user="ann", scopes=ALL_SCOPES, ttl=60)
    assert len(talk.say({"type": "auth", "id": "b", "data": {"token": stronger}})) == 1
    talk.gateway.release("open")
    await talk.gateway.settled("open")
    assert talk.recorder.take() == [], "it has had its one end"


@pytest.mark.gen_test
async def test_the_same_token_gets_the_same_end_also_where_it_allowed_nothing() -> None:
    first = Talk(scopes=WEAK)
    first.call("k", "say")
    (told,) = await first.frames()
    first.cut()
    second = first.again(scopes=(*WEAK, "servers:read"))
    assert second.resume(first.session, "k")[1] == told


def said(frames: list[Frame]) -> list[str]:
    """The payloads of what was said in a room."""
    return [frame["data"]["payload"] for frame in frames if frame["type"] == "room.message"]


def speak(talk: Talk, word: str) -> None:
    """Say something in the room."""
    talk.say({"type": "publish", "data": {"channel": "room:tea", "payload": word}})


def come_in(talk: Talk, since: str | None = None) -> tuple[Frame, list[str]]:
    """Subscribe to the room; answers the answer, and what was said before."""
    data = {"channel": "room:tea"} | ({} if since is None else {"since": since})
    subscribed, *rest = talk.say({"type": "subscribe", "data": data})
    return subscribed["data"], said(rest)


@pytest.mark.gen_test
async def test_what_was_said_in_a_room_before_a_reader_came_is_not_for_them() -> None:
    ann = Talk(scopes=EVERYTHING)
    come_in(ann)
    position = str(ann.bus.position)
    speak(ann, "before bob")
    bob = ann.again(user="bob", scopes=EVERYTHING)
    answer, heard = come_in(bob, since=position)
    assert (answer["recovered"], heard) == (False, [])
    speak(ann, "with bob")
    assert said(bob.recorder.take()) == ["with bob"]
    # A member that asks again hears what was said since they came, and is told of what was before.
    answer, heard = come_in(bob, since=position)
    assert (answer["recovered"], heard) == (False, ["with bob"])
    # Who leaves was no member meanwhile.
    bob.say({"type": "unsubscribe", "data": {"channel": "room:tea"}})
    away = str(ann.bus.position)
    speak(ann, "without bob")
    answer, heard = come_in(bob, since=away)
    assert (answer["recovered"], heard) == (False, [])


@pytest.mark.gen_test
async def test_who_is_up_to_date_misses_nothing_by_coming_into_a_room() -> None:
    ann = Talk(scopes=EVERYTHING)
    answer, heard = come_in(ann, since=str(ann.bus.position))
    assert (answer["recovered"], heard) == (True, [])


@pytest.mark.gen_test
async def test_a_resumed_session_hears_what_was_said_while_it_was_away_and_nothing_older() -> None:
    ann = Talk(scopes=EVERYTHING)
    come_in(ann)
    before = str(ann.bus.position)
    speak(ann, "before bob")
    bob = ann.again(user="bob", scopes=EVERYTHING)
    come_in(bob)
    bob.cut()
    speak(ann, "while bob was away")
    back = ann.again(user="bob", scopes=EVERYTHING)
    frames = back.resume(bob.session, since=before)
    assert said(frames) == ["while bob was away"]
    answer, heard = come_in(back, since=before)
    assert (answer["recovered"], heard) == (False, ["while bob was away"])


@pytest.mark.gen_test
async def test_an_answer_that_is_no_json_is_told_alike_to_the_caller_to_readers_and_on_resume() -> None:
    first = Talk()
    first.say({"type": "subscribe", "data": {"channel": "calls"}})
    first.call("k")
    await first.gateway.started("k")
    first.gateway.release("k", "half a pair: \ud800")
    said = await first.frames(3)
    assert [f["type"] for f in said if f["type"].startswith("call.")] == ["call.started", "call.failed"]
    first.cut()
    _, *rest = first.again().resume(first.session, "k")
    assert "tool_execution_error" in [code_of(f) for f in rest if f["type"] == "error"]


@pytest.mark.gen_test
async def test_what_is_large_in_structured_content_does_not_stand_in_an_event() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    result = text_result("short")
    talk.gateway.released["k"].set_result(
        type(result)(result.content, {"large": "x" * 100_000}, True, False, None)
    )
    await talk.gateway.settled("k")
    events = talk.bus.since(type(talk.bus.position)(talk.bus.position.epoch, 0), ("calls",)).events
    (finished,) = (event for event in events if event.type.name == "call.finished")
    assert "result" not in finished.data


@pytest.mark.gen_test
async def test_a_call_whose_task_is_stopped_from_elsewhere_still_has_its_end() -> None:
    talk = Talk()
    talk.call("k")
    await talk.gateway.started("k")
    talk.gateway.released["k"].cancel()
    (end,) = await talk.frames()
    assert (end["id"], code_of(end)) == ("k", "outcome_unknown")


@pytest.mark.gen_test
async def test_kept_ends_are_bounded_in_number_and_the_newest_stay() -> None:
    first = Talk(sessions=SessionSettings(max_results=3))
    for number in range(6):
        first.call(str(number), "say")
        await first.frames()
    first.cut()
    _, *ends = first.again().resume(first.session, *map(str, range(6)))
    codes = [code_of(end) if end["type"] == "error" else "ok" for end in ends]
    assert codes == ["outcome_unknown"] * 3 + ["ok"] * 3
    # They have run: none of them is said to have never come.
    assert all("details" not in end["data"] for end in ends)


def end(text: str) -> KeptEnd:
    """The end of a call that its caller was allowed to make by name."""
    return KeptEnd(text, "script", "wait", frozenset({"tools:call:script/wait"}))


def test_kept_ends_are_bounded_in_bytes_for_a_session_and_for_all_together() -> None:
    ends = KeptEnds(SessionSettings(max_result_bytes=10_000))
    for number in range(5):
        ends.keep(str(number), end("x" * 4000))
    assert (ends.get("2"), ends.get("3"), len(ends)) == (None, end("x" * 4000), 2)
    ends.keep("too large", end("x" * 20_000))
    assert (len(ends), ends.size) == (0, 0)

    limit = SharedLimit(10_000)
    small, large = KeptEnds(SessionSettings()), KeptEnds(SessionSettings())
    small.keep("s", end("x" * 1000))
    for holder in (small, large):
        holder.share(limit)
    for number in range(10):
        large.keep(str(number), end("y" * 2000))
    assert small.get("s") is not None, "who keeps most gives way, not who keeps little"
    assert len(large) < 10
    assert limit.size == small.size + large.size <= 10_000
    large.clear()
    assert limit.size == small.size


def test_the_same_id_again_takes_the_place_of_the_older_end() -> None:
    ends = KeptEnds(SessionSettings())
    ends.keep("k", end("first"))
    ends.keep("k", end("second"))
    assert (ends.get("k"), len(ends)) == (end("second"), 1)


def test_a_call_that_was_here_is_remembered_and_forgetting_one_makes_others_doubtful() -> None:
    ended = EndedCalls(most=3, seconds=0.05)
    for key in ("a", "b", "c"):
        ended.add(key)
    assert [ended.may_hold(key) for key in ("a", "b", "c", "never")] == [True, True, True, False]
    ended.add("d")
    assert [ended.may_hold(key) for key in ("d", "a", "never")] == [True, True, True]
    ended = EndedCalls(most=3, seconds=0.0)
    for key in ("a", "b", "c", "d"):
        ended.add(key)
    assert [ended.may_hold(key) for key in ("b", "c", "d", "never")] == [True, True, True, False]


# --- what was still on its way at a cut --------------------------------------------------------------------


def alert(talk: Talk, message: str) -> str:
    """Publish an alert; answers the position of its event."""
    return str(talk.bus.publish("system.alert", {"level": "info", "message": message}))


def alerts(said: list[Frame]) -> list[str]:
    """The alerts among frames, in order."""
    return [frame["data"]["message"] for frame in said if frame["type"] == "system.alert"]


def recovered(said: list[Frame]) -> dict[str, bool]:
    """What each channel was told of what it missed."""
    return {f["data"]["channel"]: f["data"]["recovered"] for f in said if f["type"] == "subscribed"}


def behind(count: int, room_for: int) -> tuple[Talk, list[Frame]]:
    """A client with a live channel and one that has a part of what it missed; with what it was told."""
    talk = Talk(scopes=EVERYTHING)
    since = str(talk.bus.position)
    for number in range(count):
        alert(talk, str(number))
    talk.say({"type": "subscribe", "data": {"channel": "servers"}})
    talk.recorder.room_for = room_for
    return talk, talk.say({"type": "subscribe", "data": {"channel": "system", "since": since}})


@pytest.mark.gen_test
async def test_what_was_still_to_come_of_a_channel_at_a_cut_comes_though_another_was_ahead() -> None:
    first, told = behind(count=100, room_for=2)
    assert 0 < len(alerts(told)) < 100
    newest = publish(first, "live")
    assert lines_of(first.recorder.take()) == ["live"]
    first.cut()
    second = first.again(scopes=EVERYTHING)
    rest = second.resume(first.session, since=newest)
    assert recovered(rest) == {"servers": True, "system": True}
    assert alerts(rest) == [str(number) for number in range(100)], "nobody knows which of them had come"
    assert lines_of(rest) == [], "nothing of the channel that was ahead is missing"
    alert(second, "live")
    assert alerts(second.recorder.take()) == ["live"]


@pytest.mark.gen_test
async def test_what_was_written_but_may_not_have_come_at_a_cut_is_given_again() -> None:
    first, _ = behind(count=20, room_for=1000)
    at_the_end = str(first.bus.position)
    first.cut()
    second = first.again(scopes=EVERYTHING)
    rest = second.resume(first.session, since=at_the_end)
    assert (recovered(rest)["system"], len(alerts(rest))) == (True, 20)


@pytest.mark.gen_test
async def test_who_has_seen_what_is_newer_than_all_that_was_missed_is_given_nothing_twice() -> None:
    first, _ = behind(count=20, room_for=1000)
    newest = publish(first, "live")
    first.cut()
    alert(first, "while away")
    second = first.again(scopes=EVERYTHING)
    rest = second.resume(first.session, since=newest)
    assert (recovered(rest), alerts(rest)) == ({"servers": True, "system": True}, ["while away"])


@pytest.mark.gen_test
async def test_a_resume_that_is_cut_goes_on_where_its_client_says_and_does_not_begin_anew() -> None:
    talk = Talk(scopes=EVERYTHING)
    for channel in ("servers", "system"):
        talk.say({"type": "subscribe", "data": {"channel": channel}})
    since, session = publish(talk, "seen"), talk.session
    talk.cut()
    for number in range(100):
        alert(talk, str(number))
        publish(talk, str(number))
    heard: list[Frame] = []
    for _ in range(20):
        talk = talk.again(scopes=EVERYTHING)
        talk.recorder.room_for = 4
        got = talk.resume(session, since=since)
        assert recovered(got) == {"servers": True, "system": True}
        heard += got
        since = ([since] + [f["id"] for f in got if "." in f["type"]])[-1]
        talk.cut()
    assert alerts(heard) == lines_of(heard) == [str(number) for number in range(100)]


@pytest.mark.gen_test
async def test_the_present_state_that_was_still_to_come_at_a_cut_comes_on_resume() -> None:
    first = Talk(scopes=EVERYTHING)
    for number in range(50):
        first.bus.publish("server.starting", {"serverId": str(number)})
    first.recorder.room_for = 1
    told = first.say({"type": "subscribe", "data": {"channel": "servers"}})
    assert len(told) < 50
    (position,) = (f"{f['data']['epoch']}-{f['data']['offset']}" for f in told if f["type"] == "subscribed")
    first.cut()
    first.bus.publish("server.stopped", {"serverId": "0"})
    second = first.again(scopes=EVERYTHING)
    rest = second.resume(first.session, since=position)
    states = [(f["type"], f["data"]["serverId"]) for f in rest if f["type"].startswith("server.")]
    assert states == [*(("server.starting", str(n)) for n in range(1, 50)), ("server.stopped", "0")]


@pytest.mark.gen_test
async def test_where_the_log_no_longer_has_what_was_still_to_come_that_channel_alone_is_not_recovered() -> (
    None
):
    first, _ = behind(count=100, room_for=2)
    newest = publish(first, "live")
    first.cut()
    for number in range(1100):  # the log of these conversations holds 1000
        alert(first, f"later {number}")
    publish(first, "while away")
    second = first.again(scopes=EVERYTHING)
    rest = second.resume(first.session, since=newest)
    assert recovered(rest) == {"servers": True, "system": False}
    assert lines_of(rest) == ["while away"]


CHANNELS = ("servers", "system", "gateway")
movements = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.integers(1, 40)),
    st.tuples(st.just("subscribe"), st.sampled_from(CHANNELS), st.none() | st.integers(0, 100)),
    st.tuples(st.just("room"), st.just(""), st.integers(0, 20)),
    st.tuples(st.just("read"), st.just(""), st.integers(1, 30)),
    st.tuples(st.just("cut"), st.just(""), st.integers(0, 60)),
)


class Commuter:
    """A client of several channels that reads only a part of what is written before each cut.

    `habit` is what it takes for its place: the last that it was told, the greatest, or its greatest event.
    """

    def __init__(self, habit: str) -> None:
        self.habit = habit
        self.talk = Talk(scopes=EVERYTHING)
        self.session = self.talk.session
        self.written: list[Frame] = []
        self.had: dict[str, set[int]] = {channel: set() for channel in CHANNELS}
        self.needs: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.place: dict[str, int] = {}
        self.began_with_state: set[str] = set()
        self.last: int | None = None
        self.greatest = self.greatest_event = -1
        self.talk.recorder.take()

    def read(self, count: int) -> None:
        """Read so many of the frames that were written."""
        self.written += self.talk.recorder.take()
        for frame in self.written[:count]:
            if frame["type"] == "subscribed":
                self._told(**frame["data"])
            elif "." in frame["type"]:
                offset = int(frame["id"].rpartition("-")[2])
                self.had[frame["channel"]].add(offset)
                self.greatest_event = max(self.greatest_event, offset)
                # The present state is older than the place that was told with it.
                if offset > self.place[frame["channel"]]:
                    self._stand(offset)
        del self.written[:count]

    def _told(self, *, channel: str, offset: int, recovered: bool, **_: object) -> None:
        self.place[channel] = offset
        if not recovered:
            self.began_with_state.add(channel)
            self.needs[channel] = offset
        elif channel not in self.needs:
            self.needs[channel] = self.asked[channel]
        self._stand(offset)

    def _stand(self, offset: int) -> None:
        self.last = offset
        self.greatest = max(self.greatest, offset)

    def since(self) -> str | None:
        """The place that this client believes to have come to."""
        offset = {
            "last": -1 if self.last is None else self.last,
            "greatest": self.greatest,
            "greatest event": self.greatest_event,
        }[self.habit]
        return None if offset < 0 else f"{self.talk.bus.position.epoch}-{offset}"

    def come_back(self, room_for: int | None) -> None:
        """Lose the connection and what was not read, and go on with another."""
        since = self.since()
        self.written.clear()
        self.talk.cut()
        self.talk = self.talk.again(scopes=EVERYTHING)
        self.talk.recorder.room_for = room_for
        self.written += self.talk.resume(self.session, since=since)

    def subscribe(self, channel: str, percent: int | None) -> None:
        """Subscribe to a channel that was not yet, from a place in the log."""
        if channel in self.asked:
            return
        now = self.talk.bus.position
        data: dict[str, str] = {"channel": channel}
        self.asked[channel] = now.offset if percent is None else now.offset * percent // 100
        if percent is None:
            self.began_with_state.add(channel)
        else:
            data["since"] = f"{now.epoch}-{self.asked[channel]}"
        self.written += self.talk.recorder.take()
        self.written += self.talk.say({"type": "subscribe", "data": data})

    def publish(self, channel: str, count: int) -> None:
        """Have things happen."""
        for number in range(count):
            if channel == "servers":
                self.talk.bus.publish("server.starting", {"serverId": str(number % 7)})
            elif channel == "system":
                alert(self.talk, str(number))
            else:
                self.talk.bus.publish("gateway.error", {"faultId": str(number)})

    def check(self) -> None:
        """Nothing is missing of what was promised to follow, nor of the present state."""
        bus = self.talk.bus
        for channel, begins in self.needs.items():
            log = bus.since(Position(bus.position.epoch, 0), [channel])
            assert log.recovered
            missing = {event.position.offset for event in log.events} - self.had[channel]
            assert {offset for offset in missing if offset > begins} == set()
            if channel in self.began_with_state:
                state = {event.position.offset for event in bus.latest(channel)}
                assert state <= self.had[channel]
        assert set(self.needs) == set(self.asked)


@settings(max_examples=150)
@given(habit=st.sampled_from(["last", "greatest", "greatest event"]), script=st.lists(movements, max_size=25))
def test_no_order_of_cuts_amid_what_was_missed_loses_an_event_of_any_channel(
    habit: str, script: list[tuple[str, str, int | None]]
) -> None:
    async def run() -> None:
        client = Commuter(habit)
        for action, what, number in script:
            match action:
                case "publish":
                    client.publish(what, number or 0)
                case "subscribe":
                    client.subscribe(what, number)
                case "room":
                    client.talk.recorder.room_for = number
                    client.talk.conversation.catch_up()
                case "read":
                    client.read(number or 0)
                case _:
                    client.come_back(number)
        client.come_back(None)
        client.read(1 << 20)
        client.check()
        client.talk.conversation.lost(1000)
        client.talk.sessions.close()

    asyncio.run(run())


# --- any order of things -----------------------------------------------------------------------------------

keys = st.sampled_from(["a", "b", "c", "d"])
steps = st.one_of(
    st.tuples(st.just("call"), keys),
    st.tuples(st.just("end"), keys),
    st.tuples(st.just("progress"), keys),
    st.tuples(st.just("cancel"), keys),
    st.tuples(st.just("publish"), keys),
    st.tuples(st.just("subscribe"), st.sampled_from(["servers", "calls", "room:a", "gateway", "nonsense"])),
    st.tuples(st.just("unsubscribe"), st.sampled_from(["servers", "calls", "room:a"])),
    st.tuples(st.just("close"), st.sampled_from(["cut", "clean"])),
    st.tuples(st.just("resume"), st.sampled_from(["since", "no since", "half-open"])),
    st.tuples(st.just("wait"), st.just("")),
)


class Wanderer:
    """A client that keeps one session over many connections, and checks what it hears."""

    def __init__(self) -> None:
        self.talk = Talk(scopes=EVERYTHING)
        self.session = self.talk.session
        self.number = 0
        self.sent: dict[str, str] = {}
        self.ends: Counter[str] = Counter()
        self.last: str | None = None
        self.subscribed_at = 0
        self.talk.recorder.take()

    def hear(self) -> None:
        """Take what came; every id has one end, and events come in the order of the log."""
        for frame in self.talk.recorder.take():
            if frame["type"] == "subscribed":
                self.subscribed_at = frame["data"]["offset"]
            if frame["type"] in ("tool_response", "error") and frame.get("id") in self.sent.values():
                assert frame["data"].get("code") != "internal_error", frame
                self.ends[frame["id"]] += 1
                assert self.ends[frame["id"]] == 1, f"a second end: {frame}"
            if "." in frame["type"]:
                offset = int(frame["id"].rpartition("-")[2])
                last = 0 if self.last is None else int(self.last.rpartition("-")[2])
                # The present state of a channel that was just subscribed is older than what came before.
                assert offset > last or offset <= self.subscribed_at, frame
                if offset > last:
                    self.last = frame["id"]

    def pending(self) -> list[str]:
        """The calls that have not had their end."""
        return [call for call in self.sent.values() if not self.ends[call]]

    async def step(self, action: str, what: str) -> None:
        """Do one thing."""
        talk = self.talk
        match action:
            case "call" if self.sent.get(what) not in self.pending():
                self.number += 1
                call_id = self.sent[what] = f"{what}{self.number}"
                data = {"serverId": "script", "toolName": "wait", "params": {"key": call_id}}
                talk.conversation.receive(json.dumps({"type": "tool_call", "id": call_id, "data": data}))
            case "end" | "progress":
                await asyncio.sleep(0)
                self.move_on(self.sent.get(what, ""), is_end=action == "end")
            case "cancel":
                if self.sent.get(what) in self.pending():
                    talk.conversation.receive(json.dumps({"type": "cancel", "id": self.sent[what]}))
            case "publish":
                publish(talk, what)
            case "subscribe" | "unsubscribe":
                talk.conversation.receive(json.dumps({"type": action, "data": {"channel": what}}))
            case "wait":
                for _ in range(5):
                    await asyncio.sleep(0)
            case "close" | "resume":
                self.hear()
                await self.come_back(action, what)
        self.hear()

    def move_on(self, call_id: str, *, is_end: bool) -> None:
        """Have a call that runs report progress, or end."""
        future = self.talk.gateway.released.get(call_id)
        if future is not None and not future.done():
            if is_end:
                future.set_result(text_result(call_id))
            else:
                self.talk.gateway.callbacks[call_id][0](1, 2, "half")

    async def come_back(self, action: str, how: str) -> None:
        """Lose the connection and resume on another."""
        if how != "half-open":
            self.talk.conversation.lost(1000 if how == "clean" else None)
        await asyncio.sleep(0)
        old, self.talk = self.talk, self.talk.again(scopes=EVERYTHING)
        since = self.last if how != "no since" else None
        status, *rest = self.talk.resume(self.session, *self.pending(), since=since)
        assert status["data"]["resumed"] is True
        self.talk.recorder.frames = rest + self.talk.recorder.frames
        if since is None:
            self.last = None
        if how == "half-open":
            old.conversation.lost(None)


@settings(max_examples=80)
@given(script=st.lists(steps, max_size=30))
def test_no_order_of_calls_cuts_and_resumes_raises_or_gives_two_ends_or_events_out_of_order(
    script: list[tuple[str, str]],
) -> None:
    async def run() -> None:
        client = Wanderer()
        for action, what in script:
            await client.step(action, what)
        for _ in range(3):
            for future in client.talk.gateway.waiting:
                if not future.done():
                    future.set_result(text_result("done"))
            for _ in range(5):
                await asyncio.sleep(0)
        client.hear()
        assert client.pending() == []
        client.talk.conversation.lost(None)
        client.talk.sessions.close()
        await client.talk.conversation.wait_settled()

    asyncio.run(run())

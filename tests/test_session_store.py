"""The store of sessions: who may take which, and how many it keeps."""

import asyncio
from dataclasses import replace

import pytest

from mcpgw.settings import SessionSettings
from tests.support.talk import Talk


@pytest.mark.gen_test
async def test_a_session_is_known_while_its_connection_lives_and_while_it_is_parked() -> None:
    talk = Talk()
    assert (len(talk.sessions), talk.sessions.parked) == (1, 0)
    talk.cut()
    assert (len(talk.sessions), talk.sessions.parked) == (1, 1)
    assert talk.sessions.take(talk.session, "eve") is None
    assert talk.sessions.take("nonsense", "ann") is None
    assert talk.sessions.take(talk.session, "ann") is not None
    assert (len(talk.sessions), talk.sessions.parked) == (1, 0)


@pytest.mark.gen_test
async def test_nobody_can_resume_what_was_never_authenticated() -> None:
    talk = Talk(user=None)
    assert len(talk.sessions) == 0
    talk.cut()
    assert len(talk.sessions) == 0


@pytest.mark.gen_test
async def test_a_parked_session_ends_after_the_resume_time() -> None:
    talk = Talk(sessions=SessionSettings(resume_time=0.02))
    talk.cut()
    async with asyncio.timeout(5):
        while len(talk.sessions):
            await asyncio.sleep(0.005)
    assert talk.sessions.take(talk.session, "ann") is None


@pytest.mark.gen_test
async def test_a_session_that_was_taken_does_not_end_by_the_timer_of_its_parking() -> None:
    talk = Talk(sessions=SessionSettings(resume_time=0.02))
    talk.cut()
    back = talk.again()
    assert back.resume(talk.session)[0]["data"]["resumed"] is True
    other = talk.again()
    other.cut()
    async with asyncio.timeout(5):
        while talk.sessions.take(other.session, "ann") is not None:
            other.sessions.park(other.sessions.take(other.session, "ann"))  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
    assert back.say({"type": "status"})[0]["data"]["session"] == talk.session
    assert talk.sessions.take(talk.session, "ann") is not None


@pytest.mark.gen_test
async def test_too_many_parked_sessions_cost_the_user_who_has_most_the_longest_parked() -> None:
    settings = replace(SessionSettings(), max_sessions=3)
    ann = Talk(sessions=settings)
    ann.call("k")
    await ann.gateway.started("k")
    ann.cut()
    eves = [ann.again(user="eve") for _ in range(4)]
    for eve in eves:
        eve.cut()
    assert ann.sessions.parked == 3
    known = [ann.sessions.take(eve.session, "eve") is not None for eve in eves]
    assert known == [False, False, True, True]
    assert ann.gateway.cancelled == []
    assert ann.sessions.take(ann.session, "ann") is not None


@pytest.mark.gen_test
async def test_what_all_sessions_keep_is_counted_and_given_back_with_them() -> None:
    talk = Talk()
    for number in range(3):
        talk.call(str(number), "say")
        await talk.frames()
    kept = talk.sessions.kept_bytes
    assert kept > 0
    talk.sessions.sweep()
    assert talk.sessions.kept_bytes == kept, "the newest ends may not have been read yet"
    talk.cut()
    assert talk.sessions.kept_bytes == kept
    talk.sessions.close()
    assert (talk.sessions.kept_bytes, len(talk.sessions)) == (0, 0)

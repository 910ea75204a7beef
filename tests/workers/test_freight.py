"""What is told between workers and may be large."""

from typing import Any

import pytest
from tornado.ioloop import IOLoop

from mcpgw.workers.freight import PIECE, Freight
from tests.support.joined import joined
from tests.support.waiting import until


@pytest.mark.gen_test(timeout=30)
async def test_small_and_large_come_in_the_order_in_which_they_were_told(io_loop: IOLoop) -> None:
    taken: list[tuple[int, Any]] = []
    async with joined() as workers:
        told, heard = (Freight(workers.workers[number], "goods") for number in (1, 2))
        heard.listen("thing", lambda sender, data: taken.append((sender, data)))
        sent = ["a", "b" * PIECE * 9, "c", {"d": "ü" * PIECE * 3}, "e", "f" * (PIECE - 2), "g" * PIECE]
        for thing in sent:
            told.tell(2, "thing", thing)
        await until(lambda: len(taken) == len(sent))
        assert taken == [(1, thing) for thing in sent]
        told.tell(2, "thing", "h")
        await until(lambda: taken[-1] == (1, "h"))
        assert not told._lanes


@pytest.mark.gen_test(timeout=30)
async def test_what_waits_for_a_worker_that_does_not_read_stays_here(io_loop: IOLoop) -> None:
    async with joined() as workers:
        told = Freight(workers.workers[1], "goods")
        for _ in range(20):  # nobody listens there, so that nothing is ever taken
            told.tell(2, "thing", "x" * PIECE * 16)
        assert workers.workers[1]._link._waiting < 5 * PIECE
        await workers.leave(2)
        await until(lambda: not told._lanes)


@pytest.mark.gen_test(timeout=30)
async def test_the_end_of_what_was_meant_for_another_life_of_a_worker_is_no_message(io_loop: IOLoop) -> None:
    taken: list[Any] = []
    async with joined() as workers:
        heard = Freight(workers.workers[2], "goods")
        heard.listen("thing", lambda _, data: taken.append(data))
        told = workers.workers[1]
        told.tell("goods", ("", 3, 2, 'tail"', "thing"), to=2)
        told.tell("goods", ("", 4, 0, '"be', ""), to=2)
        told.tell("goods", ("", 4, 1, 'gun"', "thing"), to=2)
        await until(lambda: taken == ["begun"])

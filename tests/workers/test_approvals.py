"""Calls that wait for an approval in one worker, and those who decide in another."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from mcpgw.access.callers import Caller
from mcpgw.access.tokens import Principal
from mcpgw.approvals import ApprovalRequest
from mcpgw.audit import Actor
from mcpgw.backends.requests import SilentObserver
from mcpgw.errors import GatewayError, InvalidParams, PermissionDenied, QueueFull, UnknownCall
from mcpgw.services import Services
from tests.support.waiting import until
from tests.support.workers import Workers, gateway_of_workers

OLGA = Principal("olga", frozenset({"calls:approve"}), time.time() + 600, "t")
PAUL = Principal("paul", frozenset({"calls:approve"}), time.time() + 600, "t")


def asking(services: Services, **arguments: Any) -> asyncio.Task[None]:
    """A call of ann's that waits in this worker."""
    caller = Caller(Principal("ann", frozenset(), time.time() + 600, "t"), "test")
    return asyncio.create_task(
        services.approvals.ask(
            caller,
            "offering",
            "rich",
            arguments,
            settings=services.gateway.call_settings,
            observer=SilentObserver(),
        )
    )


def pending(services: Services, principal: Principal = OLGA) -> list[ApprovalRequest]:
    """What waits for a decision, as this worker sees it."""
    return services.approvals.pending(principal, services.gateway.call_settings)


async def decide(
    services: Services, request: str, action: str, principal: Principal = OLGA, **more: Any
) -> None:
    """Decide in this worker."""
    later = services.approvals.decide(
        principal,
        request,
        action,
        actor=Actor("127.0.0.1", principal.user),
        settings=services.gateway.call_settings,
        **more,
    )
    if later is not None:
        await later


def audited(workers: Workers) -> list[tuple[str, str]]:
    """Outcome and user of each line on approvals."""
    lines = [json.loads(line) for line in workers.audit().splitlines()]
    return [(line["outcome"], line["who"]["user"]) for line in lines if line["event"] == "approval"]


@pytest.mark.gen_test(timeout=30)
async def test_a_call_is_approved_in_another_worker_than_its_own(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        one, two = workers.each
        heard: list[ApprovalRequest] = []
        two.approvals.listen(heard.append)
        call = asking(one, a="ü", password="hunter2")
        await until(lambda: pending(two))
        assert pending(two) == pending(one) == heard
        assert "hunter2" not in json.dumps(heard[0].to_json())
        assert pending(two, Principal("eve", frozenset(), time.time() + 600, "t")) == []
        await decide(two, heard[0].id, "accept", arguments_hash=heard[0].arguments_hash)
        await call
        await until(lambda: not pending(two))
        await until(lambda: audited(workers) == [("asked", "ann"), ("approved", "olga")])
        await until(lambda: workers.told("call.approved"))
        assert [data["by"] for data in workers.told("call.approved")] == ["olga"]


@pytest.mark.gen_test(timeout=30)
async def test_of_two_who_decide_in_two_workers_at_once_one_decides(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, count=3) as workers:
        call = asking(workers.each[0])
        await until(lambda: all(pending(services) for services in workers.each))
        (request,) = pending(workers.each[0])
        ends = await asyncio.gather(
            decide(workers.each[1], request.id, "accept", OLGA),
            decide(workers.each[2], request.id, "decline", PAUL),
            return_exceptions=True,
        )
        faults = [end for end in ends if end is not None]
        assert [type(fault) for fault in faults] == [UnknownCall]
        try:
            await call
            assert ends[0] is None
        except PermissionDenied:
            assert ends[1] is None
        await until(lambda: len(audited(workers)) == 2)


@pytest.mark.gen_test(timeout=30)
async def test_the_rules_of_deciding_are_the_same_in_another_worker(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        one, two = workers.each
        call = asking(one)
        await until(lambda: pending(two))
        request = pending(two)[0].id
        ann = Principal("ann", frozenset({"calls:approve"}), time.time() + 600, "t")
        eve = Principal("eve", frozenset({"tools:call"}), time.time() + 600, "t")
        tries: list[tuple[Principal, str, str, dict[str, str], type[GatewayError]]] = [
            (ann, request, "accept", {}, PermissionDenied),
            (eve, request, "accept", {}, PermissionDenied),
            (OLGA, request, "perhaps", {}, InvalidParams),
            (OLGA, request, "accept", {"arguments_hash": "0" * 64}, InvalidParams),
            (OLGA, "apr-0", "accept", {}, UnknownCall),
        ]
        for principal, name, action, more, fault in tries:
            with pytest.raises(fault):
                await decide(two, name, action, principal, **more)
        assert not call.done()
        await decide(two, request, "decline")
        with pytest.raises(PermissionDenied):
            await call


@pytest.mark.gen_test(timeout=30)
async def test_the_calls_that_may_wait_are_bounded_in_all_workers_together(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, flags={"calls.max_approvals": 1}) as workers:
        one, two = workers.each
        call = asking(one)
        await until(lambda: pending(two))
        with pytest.raises(QueueFull):
            await asking(two)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: not pending(two))
        other = asking(two)
        await until(lambda: pending(one))
        other.cancel()
        await asyncio.wait({other})


@pytest.mark.gen_test(timeout=30)
async def test_what_waits_in_a_worker_that_has_gone_waits_no_more(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path) as workers:
        one, two = workers.each
        call = asking(two)
        await until(lambda: pending(one))
        workers.office.lose(2)
        await until(lambda: not pending(one))
        with pytest.raises(UnknownCall):
            await decide(one, "apr-0", "accept")
        call.cancel()
        await asyncio.wait({call})

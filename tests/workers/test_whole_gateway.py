"""What is asked of the gateway as a whole, while it is several processes."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mcpgw.backends.status import BackendState
from mcpgw.merged_metrics import MergedMetrics, to_families
from mcpgw.workers.peers import Peers
from tests.support.administered import ADMIN, program, toml
from tests.support.forked import server_command
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import fetch
from tests.support.socket_client import SocketClient, tool_call
from tests.support.waiting import until
from tests.support.workers import gateway_of_workers

OFFERING = Path(__file__).parent.parent / "servers" / "offering_server.py"
HOMES = Peers(1, 2)
ANN = "ann"
"""At home in one of them …"""
OLGA = next(
    name for name in (f"olga-{number}" for number in range(99)) if HOMES.home_of(name) != HOMES.home_of(ANN)
)
"""… and this one in the other."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of two workers with a server all of whose calls need an approval."""
    folder = tmp_path_factory.mktemp("workers")
    command, *arguments = server_command(OFFERING)
    process = GatewayProcess(
        folder,
        configuration=(
            "[memory]\nenabled = false\n[auth]\nrate = 1000\nburst = 1000\n"
            f'[servers.offering]\ncommand = "{command}"\nargs = {arguments}\napproval = "required"\n'
        ),
        arguments=("--workers", "2"),
        forked=False,
    )
    try:
        yield process.wait_listening(60)
    finally:
        process.terminate(30)


async def ask(gateway: GatewayProcess, path: str, user: str = "root", *scopes: str) -> Any:
    """What GET answers, as JSON."""
    token = gateway.token(user, scopes or ("admin",))
    answer = await fetch(gateway.url, path, headers={"Authorization": f"Bearer {token}"})
    assert answer.status == 200, answer
    return json.loads(answer.body)


async def connect(gateway: GatewayProcess, user: str, *scopes: str) -> SocketClient:
    """A socket of a user, in the worker where that one is at home."""
    client = await SocketClient.connect(gateway.socket_url, token=gateway.token(user, scopes))
    assert (await client.receive())["data"]["authenticated"] is True
    return client


@pytest.mark.gen_test(timeout=60)
async def test_statistics_are_of_all_workers_and_name_each(gateway: GatewayProcess) -> None:
    clients = [await connect(gateway, user, "events:read") for user in (ANN, OLGA, OLGA)]
    for asking in (ANN, OLGA):
        found = await ask(gateway, "/api/v1/gateway/stats", asking, "admin")
        assert found["connections"]["byUser"] == {ANN: 1, OLGA: 2}
        assert found["connections"]["all"] == 3
        assert found["sessions"] == 3
        each = {one["worker"]: one for one in found["workers"]}
        assert each[HOMES.home_of(ANN)]["connections"]["byUser"] == {ANN: 1}
        assert each[HOMES.home_of(OLGA)]["connections"]["byUser"] == {OLGA: 2}
        assert found["memory"]["residentBytes"] == sum(
            one["memory"]["residentBytes"] for one in found["workers"]
        )
        assert found["events"]["published"] == each[1]["events"]["published"]
    for client in clients:
        client.close()


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
async def test_one_scrape_has_the_numbers_of_all_workers(gateway: GatewayProcess, accept: str) -> None:
    async def connections() -> int:
        return int((await ask(gateway, "/api/v1/gateway/stats"))["connections"]["all"])

    async with asyncio.timeout(20):
        while await connections():
            await asyncio.sleep(0.05)
    clients = [await connect(gateway, user, "events:read") for user in (ANN, OLGA)]
    answer = await fetch(gateway.url, "/metrics", headers={"Accept": accept})
    parse = parse_openmetrics if accept else parse_text
    samples = [one for family in parse(answer.body.decode()) for one in family.samples]

    def values(name: str, **labels: str) -> dict[str, float]:
        """By their worker."""
        return {
            one.labels.get("worker", ""): one.value
            for one in samples
            if one.name == name and labels.items() <= one.labels.items()
        }

    assert values("mcpgw_connections", kind="websocket") == {"": 2}
    statistics = await ask(gateway, "/api/v1/gateway/stats")
    assert values("mcpgw_sessions") == {"": statistics["sessions"]}, "of clients that may come back too"
    assert values("mcpgw_backend_up", server="offering") == {"1": 1, "2": 1}
    assert set(values("process_resident_memory_bytes")) == {"1", "2"}
    assert len({(one.name, tuple(sorted(one.labels.items()))) for one in samples}) == len(samples)
    for client in clients:
        client.close()


@pytest.mark.gen_test(timeout=60)
async def test_an_approver_at_home_elsewhere_is_asked_and_decides_by_frame_and_by_rest(
    gateway: GatewayProcess,
) -> None:
    ann = await connect(gateway, ANN, "tools:call")
    olga = await connect(gateway, OLGA, "calls:approve", "events:read")
    assert (await olga.request({"type": "subscribe", "id": "s", "data": {"channel": "calls"}}))[
        "type"
    ] == "subscribed"

    async def asked() -> str:
        while True:
            frame = await olga.receive()
            if frame["type"] == "input_request":
                return str(frame["data"]["requestId"])

    await ann.send(tool_call("offering", "rich", call_id="by-frame"))
    request = await asked()
    for _ in range(2):
        await olga.send({"type": "input_response", "data": {"requestId": request, "action": "accept"}})
    assert (await ann.end_of("by-frame"))["type"] == "tool_response"
    while (frame := await olga.receive())["type"] != "error":
        pass
    assert frame["data"]["code"] == "unknown_call", "the second decision is told that it is none"

    await ann.send(tool_call("offering", "rich", call_id="by-rest"))
    request = await asked()
    listed = await ask(gateway, "/api/v1/approvals", OLGA, "calls:approve")
    assert [one["requestId"] for one in listed["approvals"]] == [request]
    token = gateway.token(OLGA, ("calls:approve",))
    answer = await fetch(
        gateway.url,
        f"/api/v1/approvals/{request}",
        method="POST",
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        body=json.dumps({"action": "decline"}).encode(),
    )
    assert answer.status == 200, answer
    assert (await ann.end_of("by-rest"))["data"]["code"] == "permission_denied"
    for client in (ann, olga):
        client.close()


@pytest.mark.gen_test(timeout=60)
async def test_a_server_added_and_removed_by_rest_is_so_at_once_in_every_worker(
    gateway: GatewayProcess,
) -> None:
    token = gateway.token("root", ("admin",))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"id": "added", "definition": program()}).encode()
    answer = await fetch(gateway.url, "/api/v1/servers", method="POST", headers=headers, body=body)
    assert answer.status == 201, answer
    for user in (ANN, OLGA):
        client = await connect(gateway, user, "tools:call")
        async with asyncio.timeout(20):
            while (answered := await client.call("added", "echo", {"text": "x"}))["type"] != "tool_response":
                assert answered["data"]["details"] == {"state": "starting"}, "it is there"
                await asyncio.sleep(0.05)
        client.close()
    answer = await fetch(gateway.url, "/api/v1/servers/added", method="DELETE", headers=headers)
    assert answer.status == 204
    for user in (ANN, OLGA):
        listed = await ask(gateway, "/api/v1/servers", user, "servers:read")
        assert [server["id"] for server in listed["servers"]] == ["offering"]


@pytest.mark.gen_test(timeout=60)
async def test_a_server_tells_its_state_in_each_worker_where_they_differ(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, toml("a")) as workers:
        one, two = workers.each

        async def differing(**more: bool) -> dict[str, list[str]]:
            found = await one.whole.states(**more)
            return {name: [state["state"] for state in states] for name, states in found.items()}

        async with asyncio.timeout(20):
            while not all(
                status.state is BackendState.READY
                for services in workers.each
                for status in services.gateway.statuses()
            ):
                await asyncio.sleep(0.02)
        assert await differing() == {}
        await two.gateway.stop_server("a")
        assert await differing() == {"a": ["ready", two.gateway.statuses()[0].state.value]}
        await two.administration.start("a", ADMIN)
        async with asyncio.timeout(20):
            while await differing():
                await asyncio.sleep(0.02)
        workers.office.lose(2)
        await until(lambda: not one.peers.present)
        assert await differing() == {}


@pytest.mark.gen_test(timeout=60)
async def test_the_lines_of_a_server_are_those_of_all_workers(tmp_path: Path) -> None:
    script = "import os, sys; print('from', os.getpid(), file=sys.stderr, flush=True); sys.stdin.read()"
    table = f'[servers.a]\ncommand = "{sys.executable}"\nargs = ["-c", "{script}"]\n'
    async with gateway_of_workers(tmp_path, table) as workers:
        async with asyncio.timeout(20):
            lines: list[str] = []
            while [line.partition(" from")[0] for line in lines] != ["worker 1:", "worker 2:"]:
                await asyncio.sleep(0.05)
                lines = await workers.each[1].whole.last_lines("a")
        assert len({line.split()[-1] for line in lines}) == 2, "two programs"


def registry(count: int, times: tuple[float, ...] = ()) -> CollectorRegistry:
    """The numbers of one process."""
    made = CollectorRegistry()
    Counter("mcpgw_frames_total", "Frames.", ("type",), registry=made).labels("ping").inc(count)
    Gauge("mcpgw_connections", "Connections.", registry=made).set(count)
    Gauge("process_open_fds", "Files.", registry=made).set(count)
    histogram = Histogram("mcpgw_call_seconds", "Time.", registry=made, buckets=(1.0, 2.0))
    for seconds in times:
        histogram.observe(seconds)
    return made


def numbers(merged: MergedMetrics, own: CollectorRegistry) -> dict[str, float]:
    """What a scraper reads, by name and labels."""
    body, _ = merged.render(to_families(own.collect()), 1, "")
    return {
        one.name + "".join(f" {value}" for value in one.labels.values()): one.value
        for family in parse_text(body.decode())
        for one in family.samples
    }


def told(*registries: tuple[int, CollectorRegistry]) -> dict[int, Any]:
    """What others answer, as it comes over the link."""
    return {
        number: [
            [one.name, one.help, one.kind, one.unit, [[s.name, s.labels, s.value] for s in one.samples]]
            for one in to_families(made.collect())
        ]
        for number, made in registries
    }


def test_counters_histograms_and_gauges_are_summed_and_those_of_processes_are_not() -> None:
    merged = MergedMetrics()
    merged.learn(told((2, registry(5, (0.5, 1.5))), (3, registry(7, (9.0,)))))
    found = numbers(merged, registry(1, (0.5,)))
    assert found["mcpgw_frames_total ping"] == 13
    assert found["mcpgw_connections"] == 13
    assert [found[f"process_open_fds {number}"] for number in (1, 2, 3)] == [1, 5, 7]
    assert [found[f"mcpgw_call_seconds_bucket {bound}"] for bound in ("1.0", "2.0", "+Inf")] == [2, 3, 4]
    assert found["mcpgw_call_seconds_sum"] == 11.5


def test_counters_never_fall_where_a_worker_ends_begins_anew_or_does_not_answer() -> None:
    merged = MergedMetrics()
    seen = []
    for others in (
        told((2, registry(5, (0.5,)))),
        {},  # it does not answer in time
        None,  # it ends
        {},
        told((2, registry(1, (0.5,)))),  # it has begun anew
        None,
        told((2, registry(2, (0.5, 0.5)))),
    ):
        if others is None:
            merged.worker_gone(2)
        else:
            merged.learn(others)
        found = numbers(merged, registry(1))
        seen.append((found["mcpgw_frames_total ping"], found["mcpgw_call_seconds_count"]))
        assert found["mcpgw_connections"] == found.get("process_open_fds 2", 0) + 1, "a gauge is of now"
    assert seen == [(6, 1), (6, 1), (6, 1), (6, 1), (7, 2), (7, 2), (9, 4)]

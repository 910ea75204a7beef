"""The numbers of the gateway: right, bounded in labels, cheap, and in two formats."""

import re
import threading
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mcpgw.errors import CloseCode, codes
from mcpgw.metrics import (
    CONTENT_TYPE,
    DECLARATIONS,
    DROP_REASONS,
    OPENMETRICS_CONTENT_TYPE,
    OTHER,
    OTHER_SERVER,
    Metrics,
)


def make() -> Metrics:
    return Metrics(
        servers=["memory", "files"],
        frame_types=["ping", "tool_call", "tool_response"],
        channels=["servers", "user"],
    )


def families(metrics: Metrics, accept: str = "") -> dict[str, Metric]:
    """What a scraper reads, by the name of the family."""
    body, content_type = metrics.render(accept)
    parse = parse_openmetrics if content_type == OPENMETRICS_CONTENT_TYPE else parse_text
    return {family.name: family for family in parse(body.decode())}


def value(metrics: Metrics, name: str, **labels: object) -> float | None:
    """One sample; None where there is none."""
    wanted = {label: str(text) for label, text in labels.items()}
    for family in families(metrics).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == wanted:
                return float(sample.value)
    return None


def test_a_call_is_counted_by_server_and_outcome_and_its_time_by_server() -> None:
    metrics = make()
    metrics.call_started("memory")
    metrics.call_started("memory")
    assert value(metrics, "mcpgw_calls_open", server="memory") == 2
    metrics.call_ended("memory", "ok", 0.02)
    metrics.call_ended("memory", "timeout", 61)
    assert value(metrics, "mcpgw_calls_open", server="memory") == 0
    assert value(metrics, "mcpgw_calls_total", server="memory", outcome="ok") == 1
    assert value(metrics, "mcpgw_calls_total", server="memory", outcome="timeout") == 1
    assert value(metrics, "mcpgw_call_seconds_count", server="memory") == 2
    assert value(metrics, "mcpgw_call_seconds_sum", server="memory") == pytest.approx(61.02)
    assert value(metrics, "mcpgw_call_seconds_bucket", server="memory", le="0.025") == 1
    assert value(metrics, "mcpgw_call_seconds_bucket", server="memory", le="60.0") == 1
    assert value(metrics, "mcpgw_call_seconds_bucket", server="memory", le="300.0") == 2
    assert value(metrics, "mcpgw_call_seconds_count", server="files") == 0


@pytest.mark.parametrize("outcome", ["rate_limited", "permission_denied", "server_unavailable", "draining"])
def test_a_call_that_never_reached_its_server_has_an_outcome_and_no_time(outcome: str) -> None:
    metrics = make()
    metrics.call_started("memory")
    metrics.call_ended("memory", outcome, 0.001)
    assert value(metrics, "mcpgw_calls_total", server="memory", outcome=outcome) == 1
    assert value(metrics, "mcpgw_call_seconds_count", server="memory") == 0


def test_connections_are_counted_while_they_are_open_and_for_ever() -> None:
    metrics = make()
    for _ in range(3):
        metrics.connection_opened("websocket")
    metrics.connection_opened("sse")
    metrics.connection_closed("websocket")
    assert value(metrics, "mcpgw_connections", kind="websocket") == 2
    assert value(metrics, "mcpgw_connections_opened_total", kind="websocket") == 3
    assert value(metrics, "mcpgw_connections", kind="sse") == 1


def test_a_socket_without_a_close_frame_counts_as_1006() -> None:
    metrics = make()
    metrics.socket_closed(None)
    metrics.socket_closed(CloseCode.SLOW_READER)
    metrics.socket_closed(4711)
    assert value(metrics, "mcpgw_closes_total", code=1006) == 1
    assert value(metrics, "mcpgw_closes_total", code=3008) == 1
    assert value(metrics, "mcpgw_closes_total", code=OTHER) == 1


def test_every_close_code_and_every_error_code_has_a_number_from_the_start() -> None:
    metrics = make()
    for close_code in CloseCode:
        assert value(metrics, "mcpgw_closes_total", code=close_code.value) == 0
    for error_code in codes():
        assert value(metrics, "mcpgw_errors_total", code=error_code) == 0


def test_frames_events_subscriptions_drops_and_backends_are_counted() -> None:
    metrics = make()
    metrics.frame_received("ping")
    metrics.frame_sent("tool_response")
    metrics.frame_sent("tool_response", 999)
    metrics.error_sent("queue_full")
    metrics.event_published("servers")
    metrics.event_published("user:ann")
    metrics.subscribed("user:ann")
    metrics.subscribed("user:bob")
    metrics.unsubscribed("user:ann")
    for reason in DROP_REASONS:
        metrics.dropped(reason, 3)
    metrics.backend_up("memory", True)
    metrics.backend_restarted("memory")
    metrics.count_sessions(lambda: 7)
    assert value(metrics, "mcpgw_frames_total", direction="in", type="ping") == 1
    assert value(metrics, "mcpgw_frames_total", direction="out", type="tool_response") == 1000
    assert value(metrics, "mcpgw_errors_total", code="queue_full") == 1
    assert value(metrics, "mcpgw_events_total", channel="servers") == 1
    assert value(metrics, "mcpgw_events_total", channel="user") == 1
    assert value(metrics, "mcpgw_subscriptions", channel="user") == 1
    assert [value(metrics, "mcpgw_dropped_total", reason=reason) for reason in DROP_REASONS] == [3] * len(
        DROP_REASONS
    )
    assert value(metrics, "mcpgw_backend_up", server="memory") == 1
    assert value(metrics, "mcpgw_backend_up", server="files") == 0
    assert value(metrics, "mcpgw_backend_restarts_total", server="memory") == 1
    assert value(metrics, "mcpgw_sessions") == 7


def test_the_process_python_and_its_garbage_collector_tell_of_themselves() -> None:
    names = families(make()).keys()
    assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds"} <= names
    assert {"python_info", "python_gc_collections"} <= names


@given(st.lists(st.text(), max_size=20), st.text())
def test_whatever_a_client_sends_becomes_no_label(names: list[str], accept: str) -> None:
    metrics = make()
    known = series(metrics)
    for name in names:
        for count in (
            metrics.frame_received,
            metrics.frame_sent,
            metrics.error_sent,
            metrics.event_published,
        ):
            count(f"x{name}")
        metrics.subscribed(f"x{name}")
        metrics.unsubscribed(f"x{name}")
        metrics.connection_opened(f"x{name}")
        metrics.connection_closed(f"x{name}")
        metrics.dropped(f"x{name}")
        metrics.call_started(f"x{name}")
        metrics.call_ended(f"x{name}", f"x{name}", 1)
        metrics.call_ended("memory", f"x{name}", 1)
        metrics.backend_up(f"x{name}", True)
        metrics.backend_restarted(f"x{name}")
    metrics.render(accept)
    labels = {text for _, pairs in series(metrics) - known for _, text in pairs}
    assert labels <= {OTHER, OTHER_SERVER, "memory", "ok"} | {text for text in labels if is_bound(text)}


def is_bound(text: str) -> bool:
    """Whether it is the upper bound of a bucket."""
    return text == "+Inf" or re.fullmatch(r"\d+\.\d+", text) is not None


def series(metrics: Metrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every series by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in families(metrics).values()
        for sample in family.samples
    }


def test_a_server_that_is_added_is_counted_and_one_that_is_removed_leaves_nothing_behind() -> None:
    metrics = make()
    before = series(metrics)
    metrics.add_server("new")
    metrics.add_server("new")
    metrics.call_started("new")
    metrics.call_ended("new", "ok", 1)
    metrics.call_started("new")
    metrics.call_ended("new", "cancelled", 1)
    metrics.backend_up("new", True)
    assert value(metrics, "mcpgw_calls_total", server="new", outcome="ok") == 1
    metrics.remove_server("new")
    metrics.remove_server("new")
    assert series(metrics) == before


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_every_declared_metric_is_told_with_its_kind_its_help_and_its_labels(accept: str) -> None:
    metrics = make()
    metrics.call_started("memory")
    metrics.call_ended("memory", "ok", 1)
    metrics.certificate_ends(1.8e9)
    told = families(metrics, accept)
    own = {name: family for name, family in told.items() if name.startswith("mcpgw_")}
    assert own.keys() == {row.name.removesuffix("_total") for row in DECLARATIONS}
    for row in DECLARATIONS:
        family = own[row.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (row.kind, row.help)
        assert row.help.endswith(".")
        assert family.samples, row.name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(row.labels)
            assert not sample.name.endswith("_created")


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", CONTENT_TYPE),
        ("*/*", CONTENT_TYPE),
        ("text/plain;version=abc", CONTENT_TYPE),
        ("application/openmetrics-text;q=0, text/plain", CONTENT_TYPE),
        ("application/openmetrics-text", OPENMETRICS_CONTENT_TYPE),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.4,*/*;q=0.2",
            OPENMETRICS_CONTENT_TYPE,
        ),
    ],
)
def test_the_format_follows_the_accept_header(accept: str, content_type: str) -> None:
    body, told = make().render(accept)
    assert told == content_type
    assert body.endswith(b"# EOF\n") == (told == OPENMETRICS_CONTENT_TYPE)


def test_two_gateways_in_one_process_count_apart() -> None:
    one, other = make(), make()
    one.connection_opened("sse")
    assert value(one, "mcpgw_connections", kind="sse") == 1
    assert value(other, "mcpgw_connections", kind="sse") == 0


def test_a_scrape_in_another_thread_disturbs_no_count() -> None:
    metrics, ending = make(), threading.Event()
    faults: list[BaseException] = []

    def scrape() -> None:
        try:
            while not ending.is_set():
                metrics.render()
        except BaseException as fault:  # noqa: BLE001 - the test tells it
            faults.append(fault)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        for number in range(300):
            metrics.add_server(f"s{number}")
            metrics.call_started(f"s{number}")
            metrics.call_ended(f"s{number}", "ok", 0.1)
            if number % 2:
                metrics.remove_server(f"s{number}")
    finally:
        ending.set()
        thread.join(10)
    assert not faults
    assert value(metrics, "mcpgw_calls_total", server="s298", outcome="ok") == 1
    assert value(metrics, "mcpgw_calls_total", server="s299", outcome="ok") is None


def test_counting_costs_little() -> None:
    metrics = make()

    def count() -> None:
        metrics.frame_received("tool_call")
        metrics.call_started("memory")
        metrics.call_ended("memory", "ok", 0.1)
        metrics.frame_sent("tool_response")

    # Four methods of about a microsecond; the bound leaves room for a machine that has other work.
    assert min(timeit.repeat(count, number=5_000, repeat=5)) / 5_000 < 40e-6

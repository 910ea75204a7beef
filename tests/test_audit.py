"""The audit log: who did what, from where, and what came of it; no secret, no wait, no line lost unsaid."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.audit import EVENTS, MAXIMUM_ARGUMENTS, Actor, Audit
from mcpgw.bus import LocalBus
from mcpgw.call_record import CallRecords
from mcpgw.errors import ConfigError
from mcpgw.settings import AuditSettings
from tests.support.parts import metrics

ROOT = Path(__file__).resolve().parents[1]
ANN = Actor(remote="127.0.0.1", user="ann", token_id="t-1", client="4f2a")
PART_OF_A_KEY = "mcpgw_0123456789ab_Zm9vYmFyYmF6"
WEB_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl-_c2ln"


def entries(path: Path) -> list[dict[str, Any]]:
    """Every line of the file; each is one JSON object."""
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def call(audit: Audit, actor: Actor = ANN, **changes: Any) -> None:
    """One call, with `changes`."""
    usual = {"server": "memory", "tool": "memory_search", "call_id": "c1", "outcome": "ok", "seconds": 0.0125}
    audit.call(actor, **{**usual, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "audit.jsonl"


@given(
    st.text(max_size=8) | st.sampled_from([WEB_TOKEN, PART_OF_A_KEY, "token=x", "x" * 200, "", "c1"]),
    st.text(max_size=8) | st.sampled_from(["get_token", 'a", "b', WEB_TOKEN]),
    st.floats(0, 1e6),
)
def test_the_line_of_a_call_is_the_same_whether_its_arguments_could_be_in_it_or_not(
    tmp_path_factory: pytest.TempPathFactory, call_id: str, tool: str, seconds: float
) -> None:
    lines = []
    for arguments in (False, True):
        path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
        with Audit(AuditSettings(file=path, arguments=arguments)) as audit:
            call(audit, call_id=call_id, tool=tool, seconds=seconds)
        lines.append(re.sub(r'"time": "[^"]*"', "", path.read_text()))
    assert lines[0] == lines[1]


def test_names_that_fill_an_address_are_not_kept_for_the_next_line(path: Path) -> None:
    with Audit(AuditSettings(file=path)) as audit:
        records = CallRecords(LocalBus(1, 300), audit, metrics())
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(100):
                tool = f"{number}{'x' * 64_000}"
                records.begin(ANN, call_id="c1", server="web", tool=tool, arguments={}).failed("not_found")
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 2_000_000
    assert [len(entry["what"]["tool"]) for entry in entries(path)] == [500] * 100


def test_long_names_of_arguments_are_masked_and_not_kept(path: Path) -> None:
    with Audit(AuditSettings(file=path, arguments=True)) as audit:
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(100):
                call(audit, arguments={f"{number}{'x' * 64_000}_token": "s3cret"})
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        call(audit, arguments={f"{'x' * 2000}_token": "s3cret"})
    assert after - before < 2_000_000
    assert "s3cret" not in path.read_text()
    assert "[redacted]" in entries(path)[-1]["what"]["arguments"]


def test_each_event_says_who_from_where_what_and_what_came_of_it(path: Path) -> None:
    with Audit(AuditSettings(file=path)) as audit:
        audit.connect(ANN, kind="websocket", path="/ws", credentials="header", agent="Mozilla/5.0")
        audit.auth(ANN, credentials="frame")
        audit.auth(Actor("10.0.0.7", client="77aa"), credentials="frame", outcome="token_expired")
        audit.refused(ANN, action="tool_call", code="permission_denied", reason="the token lacks a scope")
        call(audit)
        audit.approval(
            ANN,
            request_id="apr-1",
            user="bob",
            server="memory",
            tool="memory_search",
            arguments_hash="0" * 64,
            outcome="approved",
        )
        audit.admin(ANN, action="servers.restart", target="memory")
        audit.access(ANN, action="login.logout", target="l-1")
        audit.disconnect(ANN, kind="websocket", code=1000, seconds=12.3456)
        audit.disconnect(ANN, kind="sse", code=None, seconds=1)
    who = {"user": "ann", "tokenId": "t-1", "client": "4f2a"}
    where = {"remote": "127.0.0.1"}
    lines = entries(path)
    times = [line.pop("time") for line in lines]
    assert times == sorted(times)
    assert all(len(stamp) == len("2026-11-21T20:54:50.123Z") and stamp.endswith("Z") for stamp in times)
    common = {"who": who, "where": where}
    connect = {"kind": "websocket", "path": "/ws", "credentials": "header", "agent": "Mozilla/5.0"}
    refused = {"action": "tool_call", "reason": "the token lacks a scope"}
    called = {"server": "memory", "tool": "memory_search", "callId": "c1", "ms": 12.5}
    assert lines == [
        {"event": "connect", **common, "what": connect, "outcome": "ok"},
        {"event": "auth", **common, "what": {"credentials": "frame"}, "outcome": "ok"},
        {
            "event": "auth",
            "who": {"client": "77aa"},
            "where": {"remote": "10.0.0.7"},
            "what": {"credentials": "frame"},
            "outcome": "token_expired",
        },
        {"event": "refused", **common, "what": refused, "outcome": "permission_denied"},
        {"event": "call", **common, "what": called, "outcome": "ok"},
        {
            "event": "approval",
            **common,
            "what": {
                "requestId": "apr-1",
                "user": "bob",
                "server": "memory",
                "tool": "memory_search",
                "argumentsHash": "0" * 64,
            },
            "outcome": "approved",
        },
        {
            "event": "admin",
            **common,
            "what": {"action": "servers.restart", "target": "memory"},
            "outcome": "ok",
        },
        {
            "event": "access",
            **common,
            "what": {"action": "login.logout", "target": "l-1"},
            "outcome": "ok",
        },
        {
            "event": "disconnect",
            **common,
            "what": {"kind": "websocket", "seconds": 12.346},
            "outcome": "1000",
        },
        {"event": "disconnect", **common, "what": {"kind": "sse", "seconds": 1}, "outcome": "closed"},
    ]
    assert {line["event"] for line in lines} == set(EVENTS)


def test_arguments_stand_in_the_line_only_where_the_configuration_has_it(path: Path) -> None:
    arguments = {"query": "blue-whale", "limit": 3}
    with Audit(AuditSettings(file=path)) as audit:
        call(audit, arguments=arguments)
    assert "blue-whale" not in path.read_text()
    with Audit(AuditSettings(file=path, arguments=True)) as audit:
        call(audit, arguments=arguments)
        call(audit)
    _, with_arguments, without = entries(path)
    assert json.loads(with_arguments["what"]["arguments"]) == arguments
    assert "arguments" not in without["what"]


def test_secrets_among_arguments_are_masked_by_their_names_and_by_what_they_look_like(path: Path) -> None:
    arguments = {
        "password": "hunter2",
        "deep": [{"api_key": {"inner": "hunter2"}}, {"note": f"Bearer hunter2 {WEB_TOKEN}"}],
        "headers": {"Cookie": "hunter2"},
        "text": 'a "quoted" token=hunter2 end',
    }
    with Audit(AuditSettings(file=path, arguments=True)) as audit:
        call(audit, arguments=arguments)
    assert "hunter2" not in path.read_text()
    assert WEB_TOKEN not in path.read_text()
    (line,) = entries(path)
    masked = json.loads(line["what"]["arguments"])
    assert masked["password"] == "[redacted]"
    assert masked["deep"][0] == {"api_key": "[redacted]"}
    assert masked["text"].endswith("end")


def test_no_token_gets_into_a_line_whatever_brought_it(path: Path) -> None:
    actor = Actor(remote="127.0.0.1", user="ann", client=WEB_TOKEN)
    with Audit(AuditSettings(file=path)) as audit:
        audit.connect(actor, kind="sse", path=f"/ws?token={WEB_TOKEN}", credentials="header", agent=WEB_TOKEN)
        audit.refused(actor, action=f"Bearer {WEB_TOKEN}", code="auth_failed", reason=WEB_TOKEN)
        call(audit, actor, server=WEB_TOKEN, tool=f"token={WEB_TOKEN}")
    assert WEB_TOKEN not in path.read_text()
    assert len(entries(path)) == 3


def test_large_arguments_are_cut_and_cost_little(path: Path) -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"a": nested(depth - 1)} if depth else {}

    many = [
        {"text": "x" * 1_000_000},
        {"list": list(range(500_000))},
        {f"k{number}": number for number in range(200_000)},
        {"k" * 1_000_000: 1},
        nested(60),
        {"number": 10**4000, "other": 2.5},
    ]
    started = time.perf_counter()
    with Audit(AuditSettings(file=path, arguments=True)) as audit:
        for arguments in many:
            call(audit, arguments=arguments)
        assert time.perf_counter() - started < 1
    texts = [line["what"]["arguments"] for line in entries(path)]
    assert len(texts) == len(many)
    assert all(len(text) <= MAXIMUM_ARGUMENTS for text in texts)
    assert [text.endswith("…") for text in texts] == [False, True, True, True, False, False]
    assert json.loads(texts[0])["text"].endswith("…")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.text(),
)
def test_whatever_clients_send_makes_one_line_each(
    tmp_path_factory: pytest.TempPathFactory, sent: Any, text: str
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    actor = Actor(remote=text, user=text, token_id=text, client=text)
    with Audit(AuditSettings(file=path, arguments=True)) as audit:
        call(audit, actor, server=text, tool=text, outcome=text, arguments={"sent": sent, text: sent})
        audit.refused(actor, action=text, code=text, reason=text)
        assert audit.lost == 0
    assert [line["event"] for line in entries(path)] == ["call", "refused"]


def test_the_file_is_rotated_and_so_many_old_ones_are_kept(path: Path) -> None:
    with Audit(AuditSettings(file=path, max_size=2048, backups=2)) as audit:
        for number in range(100):
            call(audit, call_id=str(number))
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(file.stat().st_size <= 2048 for file in files)
    kept = [line["what"]["callId"] for file in (files[2], files[1], files[0]) for line in entries(file)]
    assert kept == [str(number) for number in range(100 - len(kept), 100)]


def test_only_the_owner_and_the_group_may_read_the_file(path: Path) -> None:
    with Audit(AuditSettings(file=path)):
        assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_cannot_be_written_is_told_at_the_start_with_the_flag_for_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"log file .*: (Not a directory|File exists); .*--audit-file"):
        Audit(AuditSettings(file=tmp_path / "file" / "audit.jsonl"))


def test_a_disk_that_hangs_never_holds_up_the_caller_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    pipe = tmp_path / "hanging.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    audit = Audit(AuditSettings(file=pipe), queue_size=100)
    started = time.perf_counter()
    for number in range(3000):
        call(audit, call_id=str(number), tool="t" * 400)
    assert time.perf_counter() - started < 2
    assert audit.lost > 1000
    os.set_blocking(reader, True)
    received: list[bytes] = []

    def drain() -> None:
        while part := os.read(reader, 65536):
            received.append(part)

    thread = threading.Thread(target=drain)
    thread.start()
    audit.close()
    thread.join(10)
    assert not thread.is_alive()
    os.close(reader)
    lines = [json.loads(line) for line in b"".join(received).splitlines()]
    calls = sum(line["event"] == "call" for line in lines)
    told = sum(line["count"] for line in lines if line["event"] == "lines_lost")
    assert told == audit.lost == 3000 - calls


def test_nothing_of_it_gets_into_the_log_and_nothing_of_the_log_into_it(path: Path, tmp_path: Path) -> None:
    script = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "from mcpgw.audit import Actor, Audit\n"
        "from mcpgw.logs import configure_logging, log_event\n"
        "from mcpgw.settings import AuditSettings\n"
        "log, audit = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "with configure_logging(\n"
        "    file=log, format='text', level='debug', max_size=10**6, backups=1\n"
        "), Audit(AuditSettings(file=audit)) as written:\n"
        "    written.admin(Actor('127.0.0.1', 'ann'), action='only.audited')\n"
        "    log_event(logging.getLogger('mcpgw.http'), logging.ERROR, 'only-logged')\n"
    )
    log = tmp_path / "gateway.log"
    subprocess.run([sys.executable, "-W", "error", "-c", script, log, path], cwd=ROOT, timeout=30, check=True)
    assert "only.audited" not in log.read_text()
    assert "only-logged" in log.read_text()
    (line,) = entries(path)
    assert line["what"] == {"action": "only.audited"}


def test_a_program_that_ends_without_closing_loses_no_line(path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mcpgw.audit import Actor, Audit\n"
        "from mcpgw.settings import AuditSettings\n"
        "audit = Audit(AuditSettings(file=Path(sys.argv[1])))\n"
        "for number in range(500): audit.admin(Actor(''), action=str(number))\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script, path], cwd=ROOT, timeout=30, check=True)
    assert [line["what"]["action"] for line in entries(path)] == [str(number) for number in range(500)]


def test_a_closed_audit_takes_nothing_more_and_can_be_closed_again(path: Path) -> None:
    audit = Audit(AuditSettings(file=path))
    call(audit)
    audit.close()
    audit.close()
    call(audit)
    assert len(entries(path)) == 1


def test_a_line_costs_the_caller_little(path: Path) -> None:
    with Audit(AuditSettings(file=path), queue_size=10) as audit:
        started = time.perf_counter()
        for _ in range(2000):
            call(audit)
        assert (time.perf_counter() - started) / 2000 < 300e-6

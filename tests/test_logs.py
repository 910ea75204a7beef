"""The log: one line an event, never a forged one, never a secret, and never a wait."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mcpgw.errors import ConfigError
from mcpgw.log_writer import MAXIMUM_TRACEBACK
from mcpgw.logs import LogHandle, configure_logging, log_event, log_often
from mcpgw.redaction import redact

ROOT = Path(__file__).resolve().parents[1]
LOGGER = logging.getLogger("mcpgw.websocket")
WEB_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl-_c2ln"


def open_log(file: Path | None, **changes: Any) -> LogHandle:
    settings = {"format": "text", "level": "info", "max_size": 1_000_000, "backups": 2}
    return configure_logging(file=file, **{**settings, **changes})


def lines_after(
    path: Path, action: Callable[[], object], shape: Literal["text", "json"] = "text", level: str = "debug"
) -> list[str]:
    """The lines of the log file that `action` makes."""
    path.unlink(missing_ok=True)
    with open_log(path, format=shape, level=level):
        action()
    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


def named(name: str, value: object) -> dict[str, Any]:
    """One field with a name that Python's grammar would not allow."""
    return {name: value}


def run_script(script: str, *arguments: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    start = (
        "import logging, sys\nfrom pathlib import Path\nfrom mcpgw.logs import configure_logging, log_event\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start + script, *map(str, arguments)],
        cwd=ROOT,
        timeout=30,
        text=True,
        check=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "gateway.log"


@pytest.fixture(autouse=True)
def root_logger_is_left_as_it_was() -> Iterator[None]:
    names = ["", "mcpgw"]
    before = [(logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names]
    yield
    assert before == [(logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names]


def test_a_text_line_has_time_level_logger_event_and_fields(log_path: Path) -> None:
    (line,) = lines_after(
        log_path,
        lambda: log_event(
            LOGGER,
            logging.INFO,
            "connected",
            client="4f2a",
            user="alice",
            agent="Mozilla/5.0 (X11)",
            remote="127.0.0.1",
            seconds=0.25,
            resumed=False,
            reason=None,
            path=Path("/ws"),
        ),
    )
    stamp, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert rest == (
        'INFO  mcpgw.websocket connected client=4f2a user=alice agent="Mozilla/5.0 (X11)" remote=127.0.0.1 '
        "seconds=0.25 resumed=false reason=null path=/ws"
    )


def test_a_json_line_is_one_object_with_the_fields_in_their_types(log_path: Path) -> None:
    (line,) = lines_after(
        log_path,
        lambda: log_event(
            LOGGER, logging.WARNING, "closed", code=1001, clean=True, reason=None, name="Jürgen"
        ),
        "json",
    )
    content = json.loads(line)
    stamp = content.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert content == {
        "level": "WARNING",
        "logger": "mcpgw.websocket",
        "event": "closed",
        "code": 1001,
        "clean": True,
        "reason": None,
        "name": "Jürgen",
    }


def test_the_time_is_that_of_the_event_in_utc(log_path: Path) -> None:
    record = LOGGER.makeRecord(LOGGER.name, logging.INFO, "", 0, "then", (), None)
    record.created = 1_795_294_490.1234
    (line,) = lines_after(log_path, lambda: LOGGER.handle(record))
    assert line.startswith("2026-11-21T20:54:50.123Z INFO  mcpgw.websocket then")


@pytest.mark.parametrize("shape", ["text", "json"])
def test_no_value_can_start_a_line_of_its_own(log_path: Path, shape: Literal["text", "json"]) -> None:
    evil = "x\n2026-01-01T00:00:00.000Z ERROR mcpgw.http forged\r\x1b[2J\x00\x85\u2028\u2029\u202e\ud800\\"

    def action() -> None:
        log_event(LOGGER, logging.INFO, evil, agent=evil, level="forged", **named(evil, "1"))
        logging.getLogger("asyncio").warning("plain %s", evil)

    lines = lines_after(log_path, action, shape)
    assert len(lines) == 2
    for line in lines:
        assert line.isprintable()
        assert line.splitlines() == [line]
    if shape == "json":
        first = json.loads(lines[0])
        assert first["agent"] == evil.replace("\ud800", "\\ud800")
        assert (first["level"], first["level_"]) == ("INFO", "forged")
    else:
        assert r"agent=\"x\n2026" in lines[0].replace('agent="', r"agent=\"")


@given(event=st.text(), name=st.text(), value=st.text() | st.floats() | st.integers() | st.binary())
def test_any_event_and_value_make_one_line_that_can_be_read_again(
    tmp_path_factory: pytest.TempPathFactory, event: str, name: str, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.log"
    (line,) = lines_after(path, lambda: log_event(LOGGER, logging.INFO, event, **named(name, value)), "json")
    assert len(json.loads(line)) == 5
    (line,) = lines_after(path, lambda: log_event(LOGGER, logging.INFO, event, **named(name, value)))
    assert line.isprintable()


def test_a_quoted_text_value_cannot_pose_as_another_field(log_path: Path) -> None:
    (line,) = lines_after(
        log_path, lambda: log_event(LOGGER, logging.INFO, "x", agent='a" user="root', tool="a=b", empty="")
    )
    assert line.endswith(r'x agent="a\" user=\"root" tool="a=b" empty=""')


@pytest.mark.parametrize("shape", ["text", "json"])
@given(user=st.text(max_size=20) | st.sampled_from([WEB_TOKEN, "a=b", 'token="x"']), ms=st.floats(0, 1e9))
def test_a_line_that_comes_often_is_no_other_than_it_would_be_alone(
    tmp_path_factory: pytest.TempPathFactory, shape: Literal["text", "json"], user: str, ms: float
) -> None:
    fields = (("client", "4f2a"), ("user", user), ("server", None), ("tool", "get_token"), ("outcome", "ok"))
    other = logging.NullHandler()

    def log() -> None:
        log_often(LOGGER, logging.INFO, "call", fields, ms=ms)
        log_often(LOGGER, logging.INFO, "call", fields, ms=ms)
        LOGGER.addHandler(other)  # it hears the line, so that it has to be made in the ordinary way
        log_often(LOGGER, logging.INFO, "call", fields, ms=ms)

    handlers, logging.root.handlers = logging.root.handlers, []
    try:
        lines = lines_after(tmp_path_factory.mktemp("log") / "log", log, shape)
    finally:
        logging.root.handlers = handlers
        LOGGER.removeHandler(other)
    without_time = {re.sub(r"20\d\d-\d\d-\d\dT[0-9:.]{12}Z", "", line) for line in lines}
    assert (len(lines), len(without_time)) == (3, 1)


def test_lines_that_come_often_wait_for_their_level_and_are_counted_where_they_are_lost(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    fields = (("user", "ann"),)
    assert not lines_after(
        log_path, lambda: log_often(LOGGER, logging.INFO, "call", fields, ms=1.0), level="warning"
    )
    with open_log(log_path, queue_size=10) as log:
        for _ in range(100_000):
            log_often(LOGGER, logging.INFO, "call", fields, ms=1.0)
    written = log_path.read_text().count(" call user=ann ms=1.0")
    assert log.lost > 0
    assert written + log.lost == 100_000


def test_long_values_events_and_tracebacks_are_bounded(log_path: Path) -> None:
    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        raise ValueError("y" * 100_000)

    def action() -> None:
        log_event(
            LOGGER,
            logging.INFO,
            "e" * 100_000,
            text="x" * 100_000,
            data=b"z" * 100_000,
            many=["w" * 900] * 900,
        )
        try:
            deep(300)
        except ValueError:
            LOGGER.exception("failed")

    first, second = (json.loads(line) for line in lines_after(log_path, action, "json"))
    assert first["text"] == "x" * 499 + "…"
    assert len(first["event"]) == 2000
    assert len(first["data"]) <= 510
    assert len(first["many"]) == 500 or len(first["many"]) < 1000
    assert len(second["traceback"]) == MAXIMUM_TRACEBACK
    assert len(second["exception"]) == 500


def test_a_value_whose_text_cannot_be_made_is_named_and_does_no_harm(log_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    (line,) = lines_after(
        log_path, lambda: log_event(LOGGER, logging.INFO, "x", a=Broken(), b=10**5000, c=float("nan"), d="ok")
    )
    assert 'a="<Broken: RuntimeError>" b="<int: ValueError>" c=nan d=ok' in line


def test_our_own_exceptions_keep_their_traceback_in_one_line(log_path: Path) -> None:
    def action() -> None:
        try:
            os.environ["MEM\nORY"]
        except KeyError as fault:
            log_event(LOGGER, logging.ERROR, "call_failed", exception=fault, call="call-1")
            LOGGER.exception("again")

    first, second = (json.loads(line) for line in lines_after(log_path, action, "json"))
    assert first["exception"] == r"KeyError: 'MEM\nORY'"
    assert first["call"] == "call-1"
    for content in (first, second):
        assert content["traceback"].startswith("Traceback (most recent call last):\n")
        assert 'os.environ["MEM\\nORY"]' in content["traceback"]
    for line in lines_after(log_path, action):
        assert r'traceback="Traceback (most recent call last):\n' in line


class Arguments(BaseModel):
    amount: int


def log_a_refused_argument(name: str) -> None:
    try:
        Arguments.model_validate({"amount": " ".join(["my", "diary"])})  # the traceback shows this line
    except ValidationError as fault:
        logging.getLogger(name).exception("Failed to validate %s", fault)  # noqa: TRY401 - as the SDK may


@pytest.mark.parametrize("name", ["mcp.client.stdio", "mcp", "client", "client.part"])
def test_what_the_sdk_knows_of_arguments_stays_out_of_the_log(log_path: Path, name: str) -> None:
    (line,) = lines_after(log_path, lambda: log_a_refused_argument(name), "json")
    content = json.loads(line)
    content.pop("time")
    assert content == {
        "level": "ERROR",
        "logger": name,
        "event": "Failed to validate ValidationError",
        "exception": "ValidationError",
    }


@pytest.mark.parametrize("name", ["mcpgw.backend", "asyncio", "clients"])
def test_other_loggers_keep_the_exception_but_not_the_input_that_pydantic_repeats(
    log_path: Path, name: str
) -> None:
    (line,) = lines_after(log_path, lambda: log_a_refused_argument(name))
    assert "my diary" not in line
    assert "model_validate" in line
    assert "int_parsing" in line


def test_other_libraries_are_heard_from_warning_up_whatever_the_level(log_path: Path) -> None:
    def action() -> None:
        for name in (
            "mcp.client",
            "client",
            "httpx2",
            "httpcore2.http11",
            "asyncio",
            "tornado.access",
            "mcpgwx",
        ):
            logging.getLogger(name).info("quiet %s", name)
            logging.getLogger(name).warning("loud")
        LOGGER.debug("ours")

    loud_on_purpose = logging.getLogger("httpx2")
    loud_on_purpose.setLevel(logging.DEBUG)
    try:
        lines = lines_after(log_path, action, level="debug")
    finally:
        loud_on_purpose.setLevel(logging.NOTSET)
    assert len(lines) == 8
    assert not [line for line in lines if "quiet" in line]
    assert [line for line in lines if line.endswith("DEBUG mcpgw.websocket ours")]


@pytest.mark.parametrize(
    ("level", "found"), [("debug", "dDiwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")]
)
def test_the_level_is_the_least_that_is_written(log_path: Path, level: str, found: str) -> None:
    def action() -> None:
        for name, number in (("d", 10), ("D", 15), ("i", 20), ("w", 30), ("e", 40)):
            log_event(LOGGER, number, name)

    lines = lines_after(log_path, action, level=level)
    assert "".join(line[-1] for line in lines) == found


SECRETS = [
    (f"sent {WEB_TOKEN} away", "sent [redacted] away"),
    (f"mcpgw.v1, bearer.{WEB_TOKEN}", "mcpgw.v1, bearer.[redacted]"),
    (f"\\n{WEB_TOKEN}\\n", "\\n[redacted]\\n"),
    ("alg none eyJhbGciOiJub25lIn0.eyJzdWIi.", "alg none [redacted]"),
    ("cut eyJhbGciOiJub25lIn0.eyJzdWIi", "cut [redacted]"),
    ("Authorization: Bearer k-123/45+6==", "Authorization: [redacted]"),
    ('{"authorization": "Basic dXNlcjpwYXNz"}', '{"authorization": "[redacted]"}'),
    ("bearer abc, next", "bearer [redacted], next"),
    ("GET /ws?ticket=abc.def&x=1", "GET /ws?ticket=[redacted]&x=1"),
    ("GET /cb?code=1&access_token=abc#top", "GET /cb?code=1&access_token=[redacted]#top"),
    ("?TOKEN=abc%20def", "?TOKEN=[redacted]"),
    (r'{"line": "{\"api_key\": \"abc\"}"}', r'{"line": "{\"api_key\": \"[redacted]\"}"}'),
    ("'client_secret': 'abc'", "'client_secret': '[redacted]'"),
]


@pytest.mark.parametrize(("text", "masked"), SECRETS)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert redact(text) == masked
    assert redact(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "a.b.c",
        "server 1.2.3 at 127.0.0.1:3000",
        "tokens=5",
        "token expired",
        "max tokens: 5",
        "keyJ.abc ok"[4:],
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "part", ["eyJ", "eyJ.", "a.", "token", "bearer ", "authorization: ", 'token": "', "token="]
)
def test_masking_takes_no_longer_for_a_line_made_to_slow_it_down(part: str) -> None:
    started = time.perf_counter()
    redact(part * 20_000)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("shape", ["text", "json"])
def test_no_secret_reaches_the_file(log_path: Path, shape: Literal["text", "json"]) -> None:
    def action() -> None:
        log_event(
            LOGGER, logging.INFO, "a", url="/ws?ticket=hunter2", header="Bearer hunter2", line=WEB_TOKEN
        )
        log_event(
            LOGGER, logging.INFO, "b", token="hunter2 hunter2", refresh_token=b"hunter2", cookie="hunter2"
        )
        logging.getLogger("tornado.access").warning("403 GET /ws?token=hunter2 (127.0.0.1) 0.5ms")
        try:
            Path("/nowhere/ws?ticket=hunter2 with Bearer hunter2").read_text()
        except OSError:
            LOGGER.exception("c")

    lines = lines_after(log_path, action, shape)
    assert len(lines) == 4
    for line in lines:
        assert "hunter2" not in line
        assert WEB_TOKEN.split(".")[2] not in line
        assert "[redacted]" in line
        if shape == "json":
            json.loads(line)


def test_a_full_file_is_rotated_and_only_so_many_old_ones_stay(log_path: Path) -> None:
    with open_log(log_path, max_size=2_000, backups=2):
        for number in range(200):
            log_event(LOGGER, logging.INFO, "n", number=number, filling="ü" * 50)
    names = sorted(path.name for path in log_path.parent.iterdir())
    assert names == ["gateway.log", "gateway.log.1", "gateway.log.2"]
    lines: list[str] = []
    for name in reversed(names):
        assert 0 < (log_path.parent / name).stat().st_size <= 2_000
        lines += (log_path.parent / name).read_text(encoding="utf-8").splitlines()
    numbers = [int(re.findall(r"number=(\d+)", line)[0]) for line in lines]
    assert numbers == list(range(200 - len(numbers), 200))


def test_several_processes_write_one_file_and_rotate_it_without_losing_a_line(log_path: Path) -> None:
    program = (
        "import logging, sys\nfrom pathlib import Path\n"
        "from mcpgw.logs import configure_logging, log_event\n"
        "file, size = Path(sys.argv[1]), 20_000\n"
        "with configure_logging(file=file, format='text', level='info', max_size=size, backups=50):\n"
        "    for number in range(2_000):\n"
        "        log_event(logging.getLogger('mcpgw'), logging.INFO, 'n', of=sys.argv[2], number=number)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(log_path), str(number)]) for number in range(3)
    ]
    for writer in writers:
        assert writer.wait(30) == 0
    files = list(log_path.parent.iterdir())
    assert len(files) > 5
    found = [
        (int(of), int(number))
        for file in files
        for of, number in re.findall(r" n of=(\d) number=(\d+)\n", file.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == [(of, number) for of in range(3) for number in range(2_000)]


def test_without_backups_a_full_file_starts_anew(log_path: Path) -> None:
    with open_log(log_path, max_size=2_000, backups=0):
        for number in range(200):
            log_event(LOGGER, logging.INFO, "n", number=number)
    assert [path.name for path in log_path.parent.iterdir()] == ["gateway.log"]
    assert log_path.stat().st_size <= 2_000
    assert log_path.read_text().endswith("number=199\n")


def test_a_file_that_was_removed_is_made_again(log_path: Path) -> None:
    with open_log(log_path) as handle:
        log_event(LOGGER, logging.INFO, "first")
        wait_until(lambda: log_path.stat().st_size > 0)
        log_path.unlink()
        log_event(LOGGER, logging.INFO, "second")
    assert log_path.read_text().endswith(" second\n")
    assert handle.lost == 0


def test_a_folder_that_was_removed_costs_the_lines_until_it_is_there_again(log_path: Path) -> None:
    with open_log(log_path) as handle:
        log_event(LOGGER, logging.INFO, "first")
        wait_until(lambda: log_path.stat().st_size > 0)
        shutil.rmtree(log_path.parent)
        log_event(LOGGER, logging.INFO, "nowhere")
        wait_until(lambda: handle.lost == 1)
        log_event(LOGGER, logging.INFO, "nowhere")
        wait_until(lambda: handle.lost == 2)
        log_path.parent.mkdir()
        log_event(LOGGER, logging.INFO, "second")
    lines = log_path.read_text().splitlines()
    assert lines[0].endswith(" second")
    assert "lines_lost count=2" in lines[1]


def test_a_log_whose_folder_is_gone_comes_to_its_end(log_path: Path) -> None:
    with open_log(log_path) as handle:
        log_event(LOGGER, logging.INFO, "first")
        wait_until(lambda: log_path.stat().st_size > 0)
        shutil.rmtree(log_path.parent)
        log_event(LOGGER, logging.INFO, "nowhere")
    assert handle.lost == 1


def test_lines_are_added_to_the_file_of_an_earlier_start(log_path: Path) -> None:
    for name in ("first", "second"):
        with open_log(log_path):
            log_event(LOGGER, logging.INFO, name)
    assert [line.split()[-1] for line in log_path.read_text().splitlines()] == ["first", "second"]


def test_closing_writes_what_waits_and_a_second_time_does_nothing(log_path: Path) -> None:
    threads = threading.active_count()
    handle = open_log(log_path)
    for number in range(2000):
        log_event(LOGGER, logging.INFO, "n", number=number)
    handle.close()
    handle.close()
    log_event(LOGGER, logging.CRITICAL, "too late")
    assert len(log_path.read_text().splitlines()) == 2000
    assert threading.active_count() == threads


def test_the_log_of_a_program_that_forgets_to_close_it_is_whole(log_path: Path) -> None:
    run_script(
        "handle = configure_logging("
        "file=Path(sys.argv[1]), format='json', level='info', max_size=10**6, backups=1)\n"
        "for number in range(1000):\n"
        "    log_event(logging.getLogger('mcpgw.http'), logging.INFO, 'n', number=number)\n",
        log_path,
    )
    assert json.loads(log_path.read_text().splitlines()[-1])["number"] == 999


def test_the_terminal_sees_warnings_as_text_and_the_traceback_stays_in_the_file(log_path: Path) -> None:
    script = (
        "file = Path(sys.argv[1]) if sys.argv[1:] else None\n"
        "logger = logging.getLogger('mcpgw.http')\n"
        "with configure_logging(file=file, format='json', level='info', max_size=10**6, backups=1):\n"
        "    log_event(logger, logging.INFO, 'quiet')\n"
        "    try:\n"
        "        1 / 0\n"
        "    except ZeroDivisionError as fault:\n"
        "        log_event(logger, logging.ERROR, 'loud', exception=fault, header='Bearer hunter2')\n"
    )
    done = run_script(script, log_path)
    (line,) = done.stderr.splitlines()
    assert line.endswith(
        'ERROR mcpgw.http loud header="Bearer [redacted]" exception="ZeroDivisionError: division by zero"'
    )
    assert done.stdout == ""
    assert "traceback" in log_path.read_text().splitlines()[1]
    assert 'traceback="Traceback' in run_script(script).stderr


def test_a_terminal_that_is_not_read_does_not_stop_the_file(log_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        run_script(
            "with configure_logging(\n"
            "    file=Path(sys.argv[1]), format='text', level='info', max_size=10**7, backups=1\n"
            "):\n"
            "    for number in range(1000):\n"
            "        log_event(logging.getLogger('mcpgw.http'), logging.ERROR, 'n', filling='x' * 400)\n",
            log_path,
            stderr=writer,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert len(log_path.read_text().splitlines()) == 1000


def test_a_file_that_cannot_be_written_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "gateway.log", tmp_path):
        with pytest.raises(
            ConfigError, match=r"log file .*: (Not a directory|Is a directory|File exists); .*--log-file"
        ):
            open_log(path)


def test_a_wrong_level_or_format_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="log level 'warn' is not known; did you mean 'warning'"):
        open_log(None, level="warn")
    with pytest.raises(ConfigError, match="log format 'jsn' is not known; did you mean 'json'"):
        open_log(None, format="jsn")


def test_a_full_disk_loses_whole_lines_tells_so_once_and_is_left_behind_when_there_is_room(
    log_path: Path,
) -> None:
    done = run_script(
        "import resource, time\n"
        "logger = logging.getLogger('mcpgw.http')\n"
        "def disk(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "def wait(done):\n"
        "    end = time.monotonic() + 10\n"
        "    while not done() and time.monotonic() < end: time.sleep(0.01)\n"
        "    assert done()\n"
        "with configure_logging(\n"
        "    file=Path(sys.argv[1]), format='json', level='info', max_size=10**7, backups=1\n"
        ") as handle:\n"
        "    disk(4096)\n"
        "    for number in range(100): log_event(logger, logging.INFO, 'before', number=number)\n"
        "    wait(lambda: handle.lost > 50)\n"
        "    wait(lambda: handle.lost + len(Path(sys.argv[1]).read_text().splitlines()) == 100)\n"
        "    disk(resource.RLIM_INFINITY)\n"
        "    log_event(logger, logging.INFO, 'after')\n"
        "print(handle.lost)\n",
        log_path,
    )
    lost = int(done.stdout)
    contents = [json.loads(line) for line in log_path.read_text().splitlines()]
    assert [content["event"] for content in contents] == ["before"] * (100 - lost) + ["after", "lines_lost"]
    assert contents[-1]["count"] == lost
    complaint, report = done.stderr.splitlines()
    assert complaint == f"mcpgw: log file {log_path}: File too large; lines are lost (1 so far)"
    assert report.endswith(f"WARNING mcpgw.logs lines_lost count={lost}")


def test_a_device_without_room_costs_one_line_on_the_terminal_and_no_exception() -> None:
    done = run_script(
        "logger = logging.getLogger('mcpgw.http')\n"
        "handle = configure_logging(\n"
        "    file=Path('/dev/full'), format='text', level='info', max_size=100, backups=1\n"
        ")\n"
        "for number in range(500): log_event(logger, logging.INFO, 'n', number=number)\n"
        "handle.close()\n"
        "print(handle.lost)\n"
    )
    assert done.stdout == "500\n"
    assert done.stderr == "mcpgw: log file /dev/full: No space left on device; lines are lost (1 so far)\n"


def test_a_disk_that_hangs_never_holds_up_the_caller_and_the_losses_are_counted(tmp_path: Path) -> None:
    pipe = tmp_path / "hanging.log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    handle = open_log(pipe, queue_size=100)
    started = time.perf_counter()
    for number in range(3000):
        log_event(LOGGER, logging.INFO, "n", number=number, filling="x" * 400)
    assert time.perf_counter() - started < 2
    assert handle.lost > 1000
    os.set_blocking(reader, True)
    received: list[bytes] = []

    def drain() -> None:
        while part := os.read(reader, 65536):
            received.append(part)

    thread = threading.Thread(target=drain)
    thread.start()
    handle.close()
    thread.join(10)
    assert not thread.is_alive()
    os.close(reader)
    lines = b"".join(received).decode().splitlines()
    told = sum(int(count) for line in lines for count in re.findall(r"lines_lost count=(\d+)", line))
    assert told == handle.lost == 3000 - sum("number=" in line for line in lines)


def test_a_hanging_disk_holds_up_the_end_for_some_seconds_only(tmp_path: Path) -> None:
    pipe = tmp_path / "hanging.log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        started = time.monotonic()
        done = run_script(
            "import mcpgw.log_writer\n"
            "mcpgw.log_writer._CLOSE_TIMEOUT = 0.5\n"
            "handle = configure_logging(\n"
            "    file=Path(sys.argv[1]), format='text', level='info', max_size=100, backups=1\n"
            ")\n"
            "for number in range(500): log_event(logging.getLogger('mcpgw'), 20, 'n', a='x' * 400)\n"
            "handle.close()\n",
            pipe,
        )
        assert time.monotonic() - started < 5
        assert "does not take its last lines" in done.stderr
    finally:
        os.close(reader)


def test_a_message_that_does_not_fit_its_arguments_is_told_without_them(log_path: Path) -> None:
    done = run_script(
        "with configure_logging(\n"
        "    file=Path(sys.argv[1]), format='text', level='info', max_size=10**6, backups=1\n"
        "):\n"
        "    logging.getLogger('tornado.general').error('%d bytes', 'hunter2')\n"
        "    log_event(logging.getLogger('mcpgw.http'), logging.INFO, 'next')\n",
        log_path,
    )
    complaint, report = done.stderr.splitlines()
    assert complaint == "mcpgw: a line of logger tornado.general cannot be logged (TypeError)"
    assert report.endswith("lines_lost count=1")
    assert log_path.read_text().splitlines()[0].endswith(" next")


def test_many_threads_write_whole_lines(log_path: Path) -> None:
    def write(name: int) -> None:
        for number in range(200):
            log_event(LOGGER, logging.INFO, "n", thread=name, number=number)

    with open_log(log_path, format="json") as handle:
        threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    contents = [json.loads(line) for line in log_path.read_text().splitlines()]
    assert handle.lost == 0
    assert sorted((content["thread"], content["number"]) for content in contents) == [
        (name, number) for name in range(8) for number in range(200)
    ]


def test_a_log_that_is_collected_as_garbage_while_logging_does_not_hang(log_path: Path) -> None:
    class Farewell:
        def __del__(self) -> None:
            log_event(LOGGER, logging.INFO, "deleted")

    with open_log(log_path):
        for number in range(200):
            log_event(LOGGER, logging.INFO, "n", number=number, value=Farewell())
    assert log_path.read_text().count(" deleted\n") == 200


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again until `condition` holds, for ten seconds at most."""
    end = time.monotonic() + 10
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.005)

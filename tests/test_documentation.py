"""What the pages of docs/ promise, held against the code and the schemas."""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mcpgw.app
from mcpgw.access.permissions import SCOPES
from mcpgw.audit import EVENTS
from mcpgw.backends.status import BackendState
from mcpgw.errors import CloseCode, codes
from mcpgw.metrics import DECLARATIONS, DROP_REASONS
from mcpgw.settings import MEBIBYTE, SETTINGS, Setting
from mcpgw.wire.event_texts import CHANNEL_TEXTS, with_events_block
from mcpgw.wire.events import CHANNELS, EVENT_TYPES
from mcpgw.wire.frames import CLIENT_TYPES, Envelope, decode
from mcpgw.wire.validation import load_schema
from tests.support.schemas import SERVER_TYPES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
PAGES += sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
LIMITED = ("server", "auth", "websocket", "calls", "backends", "events", "sessions")
"""The sections of the configuration whose numbers are limits."""


@cache
def text_of(page: str) -> str:
    """The text of a page, or of a source file."""
    return (ROOT / page).read_text(encoding="utf-8")


def section(title: str, page: str = "docs/protocol.md") -> str:
    """The text of one section of a page, to the next heading of the same or a higher level."""
    match = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", text_of(page), re.MULTILINE | re.DOTALL
    )
    assert match is not None, f"{page} has no section {title!r}"
    return match[2]


def table(title: str, page: str = "docs/protocol.md") -> list[list[str]]:
    """The rows of the table of a section, without its head."""
    lines = [line for line in section(title, page).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[1:]]


def rows(title: str, page: str = "docs/protocol.md") -> dict[str, list[str]]:
    """The table of a section: its first column, without backticks, with the cells behind it."""
    found = table(title, page)
    named = {cells[0].strip("`"): cells[1:] for cells in found}
    assert len(named) == len(found), f"{title} of {page} names something twice"
    return named


def words(text: str) -> set[str]:
    """What stands in backticks, blocks of code aside."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def test_every_error_code_stands_in_the_page_and_in_the_schema_as_the_code_has_it() -> None:
    documented = {code: cells[0] == "yes" for code, cells in rows("Error codes").items()}
    assert documented == {code: error.temporary for code, error in codes().items()}
    error_data = load_schema("server-frames")["$defs"]["errorData"]
    assert set(error_data["properties"]["code"]["enum"]) == set(codes())


def test_every_close_code_stands_in_the_page_with_what_a_client_has_to_do() -> None:
    documented = {code: (cells[0], cells[1]) for code, cells in rows("Close codes").items()}
    # Faults of the protocol itself close without a word: the connection has failed (RFC 6455 section 7.1.7).
    assert documented == {
        str(code.value): ("yes" if code.reconnect else "no", "yes" if code.value >= 3000 else "no")
        for code in CloseCode
    }


def test_every_frame_type_stands_in_the_page_and_has_a_schema() -> None:
    assert set(rows("You send")) == set(CLIENT_TYPES)
    client_schema = load_schema("client-frames")
    assert {entry["$ref"].rpartition("/")[2] for entry in client_schema["oneOf"]} == set(CLIENT_TYPES)
    assert set(rows("The gateway sends")) == set(SERVER_TYPES)


@pytest.mark.parametrize("frame_type", SERVER_TYPES)
def test_every_member_of_a_frame_of_the_gateway_stands_in_the_page(frame_type: str) -> None:
    definitions = load_schema("server-frames")["$defs"]
    data = definitions[frame_type]["properties"]["data"]
    if "$ref" in data:
        data = definitions[data["$ref"].rpartition("/")[2]]
    (cell,) = rows("The gateway sends")[frame_type]
    documented = set(re.findall(r"`(\w+)\??`", cell))
    inner = set(re.findall(r"`(\w+)\??`", cell.partition("objects with")[2]))
    assert documented - inner == set(data["properties"])
    optional = set(re.findall(r"`(\w+)\?`", cell)) - inner
    assert optional == set(data["properties"]) - set(data["required"])


@pytest.mark.parametrize("frame_type", CLIENT_TYPES)
def test_every_member_of_a_frame_of_a_client_stands_in_the_page(frame_type: str) -> None:
    definitions = load_schema("client-frames")["$defs"]
    data = definitions[frame_type]["properties"]["data"]
    if "$ref" in data:
        data = definitions[data["$ref"].rpartition("/")[2]]
    cell = re.sub(r"\(.*\)", "", rows("You send")[frame_type][0])
    required = set(data.get("required", ()))
    assert words(cell) == {name + "?" * (name not in required) for name in data["properties"]}


def test_every_scope_stands_in_the_page() -> None:
    documented = set(rows("Tokens"))
    assert {scope for scope in documented if not re.search("[A-Z]", scope)} == set(SCOPES)


def test_the_page_of_events_is_what_the_table_gives() -> None:
    page = text_of("docs/events.md")
    assert page == with_events_block(page), "run: make docs"
    assert set(CHANNEL_TEXTS) == {*CHANNELS, "user:", "room:"}
    assert set(CHANNEL_TEXTS) == {event_type.channel for event_type in EVENT_TYPES.values()}
    assert set(EVENT_TYPES) <= words(page)


def test_every_route_stands_in_the_page_with_its_methods() -> None:
    verbs = ("get", "post", "put", "patch", "delete")
    found = set()
    routes: list[tuple[str, type]] = vars(mcpgw.app)["ROUTES"]
    for pattern, handler in routes:
        methods = {verb: getattr(handler, verb).__qualname__ for verb in verbs}
        own = [verb for verb, name in methods.items() if not name.startswith("RequestHandler.")]
        assert own, handler
        path = re.sub(r"\([^)]*\)", "*", pattern)
        found |= {f"{verb.upper()} {path}" for verb in own}
    documented = rows("HTTP")
    assert {re.sub(r"/[A-Z]+\b", "/*", name) for name in documented} == found


def test_every_metric_stands_in_the_page_with_its_labels() -> None:
    documented = {name: words(cells[0]) for name, cells in rows("Metrics", "docs/operations.md").items()}
    assert documented == {metric.name: set(metric.labels) for metric in DECLARATIONS}
    assert set(DROP_REASONS) <= words(rows("Metrics", "docs/operations.md")["mcpgw_dropped_total"][1])


def test_every_event_of_the_audit_log_stands_in_the_page() -> None:
    assert tuple(rows("The audit log", "docs/operations.md")) == EVENTS


def said(file: Path) -> Iterator[str]:
    """The events that a source file logs; what is filled in reads as ``*``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        on = ast.unparse(called.value).lower() if isinstance(called, ast.Attribute) else ""
        by_logger = "logger" in on and name in ("debug", "info", "warning", "error", "exception")
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if texts and (by_logger or name in ("log_event", "log_often", "_log", "_log_line", "_tell")):
            yield re.sub(r"%s", "*", texts[0])


def test_every_event_of_the_log_stands_in_the_page() -> None:
    logging = {"lines_lost", *(state.value for state in BackendState)}
    for file in (*(ROOT / "mcpgw").rglob("*.py"), *(ROOT / "handlers").rglob("*.py")):
        # The memory server is a process of its own; its stderr is logged as any server's is.
        if file.name not in ("memory.py", "reaper.py"):
            logging |= set(said(file))
    documented = {(row[0].strip("`"), row[1].strip("`")) for row in table("The log", "docs/operations.md")}
    assert {re.sub(r"\b[A-Z]+\b", "*", event) for _, event in documented} == logging
    sources = "".join(text_of(str(p.relative_to(ROOT))) for p in (ROOT / "mcpgw").rglob("*.py"))
    sources += "".join(text_of(str(p.relative_to(ROOT))) for p in (ROOT / "handlers").rglob("*.py"))
    for logger, _ in documented:
        assert f'"{logger}"' in sources, logger


def test_every_limit_stands_in_the_page() -> None:
    documented = set(rows("Limits", "docs/operations.md"))
    limits = {s.name for s in SETTINGS if s.section in LIMITED and s.type in (int, float)}
    assert documented == limits - {"server.port"}


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_a_page_names_is_one(page: str) -> None:
    names = {setting.name for setting in SETTINGS}
    sections = {setting.section for setting in SETTINGS}
    events = set(EVENT_TYPES)
    for word in words(text_of(page)):
        if re.fullmatch(r"[a-z]+\.[a-z_]+", word) and word.partition(".")[0] in sections:
            is_file = word.rpartition(".")[2] in ("py", "md", "json", "jsonl", "toml", "log")
            assert word in names or word in events or is_file, f"{page} names {word}"


def default_in_words(setting: Setting) -> str:
    """A default as the pages write it."""
    value = setting.default
    assert isinstance(value, int | float)
    if setting.unit == "seconds":
        return f"{value:g} s"
    if setting.unit == "bytes":
        return f"{value // MEBIBYTE} MiB" if value % MEBIBYTE == 0 else f"{value} bytes"
    return f"{value:,.12g}"


def test_a_default_that_a_page_tells_is_the_setting_s() -> None:
    by_name = {setting.name: setting for setting in SETTINGS}
    told = 0
    for page in PAGES:
        for name, default in re.findall(r"`([a-z]+\.[a-z_]+)`\s\((\d[^)]*)\)", text_of(page)):
            assert default == default_in_words(by_name[name]), f"{page}: {name}"
            told += 1
    assert told > 10


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        found = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert found.exists(), f"{page} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9 _-]", "", text.lower()).replace(" ", "-") for text in headings}
            assert heading in anchors, f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_json_example_is_json(page: str) -> None:
    for example in re.findall(r"```json\n(.*?)```", text_of(page), re.DOTALL):
        json.loads(example)


def test_every_frame_that_a_client_is_shown_to_send_is_valid() -> None:
    shown = re.findall(r"```json\n(.*?)```", section("Frames") + section("Events"), re.DOTALL)
    shown += [word for word in words(section("Frames")) if word.startswith("{")]
    frames = [json.loads(example) for example in shown]
    assert {frame["type"] for frame in frames} == {"tool_call", "subscribe"}
    for frame in frames:
        decode(Envelope.open(frame))


@pytest.mark.parametrize("page", PAGES)
def test_a_file_of_the_sources_that_a_page_names_exists(page: str) -> None:
    for word in words(text_of(page)):
        if re.fullmatch(r"[\w/.-]+/[\w.-]*", word) and word.split("/")[0] in ("mcpgw", "handlers", "schemas"):
            assert (ROOT / word).exists(), f"{page} names {word}"
        elif re.fullmatch(r"(backends|wire|bus|access)/\w+\.py", word):
            assert (ROOT / "mcpgw" / word).exists(), f"{page} names {word}"

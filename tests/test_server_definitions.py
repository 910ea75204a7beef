"""``[servers.NAME]``: the schema, sentences for every fault, references."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mcpgw.references import References, UnresolvedReferenceError
from mcpgw.server_definitions import ServerDefinition, define_server, is_server_name

ENVIRONMENT = {"HOME": "/home/ann", "TOKEN": "hush", "EMPTY": ""}


def define(
    table: object, folder: Path = Path("/etc"), environment: dict[str, str] | None = None
) -> tuple[ServerDefinition | None, list[str]]:
    found: list[str] = []
    references = References(ENVIRONMENT if environment is None else environment, folder)
    definition = define_server("x", table, place="[servers.x]", references=references, report=found.append)
    return definition, found


def defined(table: object, folder: Path = Path("/etc")) -> ServerDefinition:
    definition, found = define(table, folder)
    assert found == []
    assert definition is not None
    return definition


def faults(table: object) -> list[str]:
    definition, found = define(table)
    assert definition is None
    return found


def test_the_schema_is_a_valid_schema_that_describes_every_key() -> None:
    schema = json.loads(files("mcpgw.schemas").joinpath("server-definition.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    assert all(rule["description"].endswith(".") for rule in schema["properties"].values())


def test_a_program_is_spoken_to_over_stdio() -> None:
    definition = defined(
        {
            "command": "uvx",
            "args": ["a", "$${b}"],
            "env": {"KEY": "${TOKEN}"},
            "cwd": "work",
            "timeout": 5,
            "enabled": False,
        }
    )
    assert definition == ServerDefinition(
        name="x",
        transport="stdio",
        command="uvx",
        args=("a", "${b}"),
        env={"KEY": "hush"},
        cwd=Path("/etc/work"),
        timeout=5.0,
        enabled=False,
        source="[servers.x]",
    )


def test_an_address_is_streamable_http_unless_the_transport_is_sse() -> None:
    url = "https://mcp.example.org/mcp"
    assert defined({"url": url}).transport == "http"
    assert defined({"url": url, "transport": "http"}).transport == "http"
    legacy = defined({"url": url, "transport": "sse", "headers": {"Authorization": "Bearer ${env:TOKEN}"}})
    assert legacy.transport == "sse"
    assert legacy.headers == {"Authorization": "Bearer hush"}


def test_what_may_be_secret_is_not_in_the_repr() -> None:
    program = defined({"command": "x", "args": ["--key=${TOKEN}"], "env": {"KEY": "${TOKEN}"}})
    address = defined({"url": "http://h/?key=${TOKEN}", "headers": {"A": "${TOKEN}"}})
    assert "hush" in program.args[0]
    assert "hush" in str(address.url)
    assert "hush" not in repr(program) + repr(address)


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("npx", "npx"),
        ("./run.sh", "/etc/run.sh"),
        ("bin/run", "/etc/bin/run"),
        ("/bin/x", "/bin/x"),
        ("~/run", "/home/ann/run"),
    ],
)
def test_a_command_that_is_a_relative_path_begins_at_the_folder_of_its_file(command: str, path: str) -> None:
    assert defined({"command": command}).command == path


FAULTS: list[tuple[Any, list[str]]] = [
    (3, [": is not a table"]),
    (
        {},
        [": has neither command (a server to start) nor url (a server to reach)"],
    ),
    (
        {"command": "a", "url": "http://h"},
        [": has both command and url; a server is either started (command) or reached (url)"],
    ),
    (
        {"comand": "a"},
        [
            ": has neither command (a server to start) nor url (a server to reach)",
            " comand: unknown key; did you mean 'command'?",
        ],
    ),
    ({"command": 1}, [" command: is not text"]),
    ({"command": ""}, [" command: is empty"]),
    ({"command": "a\0"}, [" command: holds a character that cannot stand in text for a program (NUL)"]),
    ({"command": "a", "args": "b"}, [" args: is not a list"]),
    ({"command": "a", "args": ["b", 1]}, [" args[1]: is not text"]),
    ({"command": "a", "env": []}, [" env: is not a table"]),
    ({"command": "a", "env": {"K": 1}}, [" env.K: is not text"]),
    ({"command": "a", "env": {"A=B": "1"}}, [" env.A=B: cannot be the name of an environment variable"]),
    ({"command": "a", "env": {"": "1"}}, [" env.: cannot be the name of an environment variable"]),
    ({"command": "a", "cwd": ""}, [" cwd: is empty"]),
    ({"command": "a", "headers": {}}, [" headers: goes with url only"]),
    (
        {"url": "http://h", "args": [], "env": {}, "cwd": "/"},
        [
            " args: goes with command only",
            " cwd: goes with command only",
            " env: goes with command only",
        ],
    ),
    ({"url": "ftp://h"}, [" url: is not an http:// or https:// address"]),
    ({"url": "h"}, [" url: is not an http:// or https:// address"]),
    (
        {"url": "http://a b"},
        [" url: holds a character that cannot stand in an address (a space or control character)"],
    ),
    (
        {"url": "http://h\n"},
        [" url: holds a character that cannot stand in an address (a space or control character)"],
    ),
    ({"url": "http://h:99999"}, [" url: is not a complete address: its host or port is wrong"]),
    ({"url": "http://:80"}, [" url: is not a complete address: its host or port is wrong"]),
    ({"url": "http://[::1"}, [" url: is not a complete address: its host or port is wrong"]),
    (
        {"url": "http://h", "headers": {"A B": "c"}},
        [" headers.A B: cannot be the name of an HTTP header field"],
    ),
    (
        {"url": "http://h", "headers": {"A": "b\r\nC: d", "B": " b", "C": "ü", "D": "b\n"}},
        [
            f" headers.{name}: holds a character that cannot stand in a header "
            "(printable ASCII, no space at its ends)"
            for name in "ABCD"
        ],
    ),
    ({"command": "a", "transport": "http"}, [" transport: is stdio where a command is given"]),
    ({"url": "http://h", "transport": "stdio"}, [" transport: is http or sse where a url is given"]),
    (
        {"url": "http://h", "transport": "pigeon"},
        [" transport: is none of stdio, http, sse"],
    ),
    ({"command": "a", "enabled": "yes"}, [" enabled: is not true or false"]),
    ({"command": "a", "timeout": "5"}, [" timeout: is not a number"]),
    ({"command": "a", "timeout": True}, [" timeout: is not a number"]),
    ({"command": "a", "timeout": 0}, [" timeout: is not above 0 (unit: seconds)"]),
    ({"command": "a", "timeout": 86401}, [" timeout: is above the most, 86400 seconds"]),
    ({"command": "a", "args": ["\ud800"]}, [" args[0]: is not Unicode text"]),
]


@pytest.mark.parametrize(("table", "expected"), FAULTS)
def test_every_fault_has_its_path_and_a_sentence(table: object, expected: list[str]) -> None:
    assert faults(table) == [f"[servers.x]{sentence}" for sentence in expected]


def test_all_faults_of_a_definition_are_told_and_none_shows_a_value() -> None:
    found = faults(
        {
            "command": ["hush"],
            "env": {"A": ["hush"], "B": "${NONE}"},
            "args": {"hush": 1},
            "timeout": -5,
            "colour": "hush",
        }
    )
    assert [fault.partition(": ")[0].removeprefix("[servers.x] ") for fault in found] == [
        "env.B",
        "args",
        "colour",
        "command",
        "env.A",
        "timeout",
    ]
    assert "hush" not in "".join(found)


def test_a_single_server_is_shared_and_says_why_it_must_be() -> None:
    assert defined({"command": "x", "single": True}).single
    assert defined({"command": "x", "single": False, "isolation": "user"}).isolation == "user"
    [fault] = faults({"command": "x", "single": True, "isolation": "user"})
    assert fault.startswith(
        '[servers.x] single: goes with isolation = "shared" only: the instances of a user'
    )


def test_a_reference_that_cannot_be_replaced_is_one_fault_not_two() -> None:
    assert faults({"url": "${NONE}"}) == ["[servers.x] url: environment variable NONE is not set"]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("command", "args", "env", "cwd", "url", "headers", "transport", "enabled", "timeout", "other")


@given(st.dictionaries(st.sampled_from(KEYS), json_values) | json_values)
def test_any_table_is_either_a_definition_or_faults(table: object) -> None:
    definition, found = define(table)
    assert (definition is None) == bool(found)


@pytest.mark.parametrize("name", ["a", "A.b_c-1", "9", "a" * 64])
def test_a_name_that_fits_is_taken(name: str) -> None:
    assert is_server_name(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "ü", "a" * 65])
def test_a_name_that_does_not_fit_is_not(name: str) -> None:
    assert not is_server_name(name)


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("plain $ and { }", "plain $ and { }"),
        ("${TOKEN}", "hush"),
        ("a${env:TOKEN}b${TOKEN}", "ahushbhush"),
        ("${EMPTY}", ""),
        ("${EMPTY:-x}${NONE:-y}${env:NONE:-}", "xy"),
        ("${TOKEN:-x}", "hush"),
        ("$${TOKEN}", "${TOKEN}"),
        ("${workspaceFolder}/a", "/w/a"),
    ],
)
def test_references_are_replaced(text: str, replaced: str) -> None:
    references = References(ENVIRONMENT, Path("/etc"), {"workspaceFolder": "/w"})
    assert references.replace(text) == replaced


def test_the_text_of_a_variable_is_not_searched_for_references() -> None:
    assert References({"A": "${B}", "B": "x"}, Path("/")).replace("${A}") == "${B}"


def test_the_text_of_a_file_comes_without_the_line_break_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "unix").write_bytes(b"one\ntwo\n")
    (tmp_path / "windows").write_bytes(b"one\r\n")
    references = References({"HOME": str(tmp_path)}, tmp_path)
    assert references.replace("<${file:unix}>") == "<one\ntwo>"
    assert references.replace("<${file:~/windows}>") == "<one>"
    assert references.replace(f"<${{file:{tmp_path}/windows}}>") == "<one>"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("${NONE}", "environment variable NONE is not set"),
        ("${env:NONE}", "environment variable NONE is not set"),
        ("${BYTES}", "environment variable BYTES is not UTF-8"),
        ("${file:none}", "${file:none}: cannot be read: No such file or directory"),
        ("${file:.}", "${file:.}: cannot be read: Is a directory"),
        ("${file:big}", "${file:big}: is larger than 65536 bytes"),
        ("${file:bytes}", "${file:bytes}: line 1: is not UTF-8"),
        ("${TOKEN", "a ${ without its }; write $${ for a plain ${"),
        (
            "${pa ss}",
            "a ${…} that is none of ${NAME}, ${env:NAME} and ${file:PATH}; write $${ for a plain ${",
        ),
        (
            "${input:api-key}",
            (
                "${input:api-key}: mcpgw asks no questions; put the value into an environment variable and "
                "write ${env:API_KEY}, or into a file and write ${file:PATH}"
            ),
        ),
    ],
)
def test_a_reference_that_cannot_be_replaced_says_why(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 65537)
    (tmp_path / "bytes").write_bytes(b"\xff")
    references = References({"BYTES": "\udcff"}, tmp_path)
    with pytest.raises(UnresolvedReferenceError) as refused:
        references.replace(f"a {text}")
    assert refused.value.sentences == (sentence,)


def test_the_environment_is_in_no_repr() -> None:
    assert "hush" not in repr(References(ENVIRONMENT, Path("/")))

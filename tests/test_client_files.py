"""The files of desktop clients, taken as they are; JSON with comments."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.client_files import fitting_name
from mcpgw.commented_json import parse_commented_json
from mcpgw.config import Config, load_config
from mcpgw.errors import ConfigError
from mcpgw.server_definitions import is_server_name

ENVIRONMENT = {"HOME": "/home/ann", "TOKEN": "hush"}


def load(file: Path, text: str) -> Config:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(text, "utf-8")
    return load_config(
        file=None, environment=ENVIRONMENT, flags={"memory.enabled": False}, servers_files=[file]
    )


def faults(file: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(file, text)
    return [fault.replace(str(file), "FILE") for fault in refused.value.faults]


def notes(config: Config, file: Path) -> list[str]:
    return [note.replace(str(file), "FILE") for note in config.notes]


def test_the_file_of_claude_desktop_is_taken_as_it_is(tmp_path: Path) -> None:
    config = load(
        tmp_path / "claude_desktop_config.json",
        """{
          "globalShortcut": "Ctrl+Space",
          "mcpServers": {
            "filesystem": {
              "command": "npx",
              "args": ["-y", "@modelcontextprotocol/server-filesystem", "/home/ann/Desktop"]
            },
            "memory": {"command": "npx", "args": ["-y", "server-memory"], "env": {"FILE": "/tmp/m.json"}},
            "off": {"command": "x", "disabled": true, "autoApprove": ["a"], "alwaysAllow": []}
          }
        }""",
    )
    assert list(config.servers) == ["filesystem", "memory", "off"]
    filesystem = config.servers["filesystem"]
    assert (filesystem.transport, filesystem.command, filesystem.args[0]) == ("stdio", "npx", "-y")
    assert config.servers["memory"].env == {"FILE": "/tmp/m.json"}
    assert [server.enabled for server in config.servers.values()] == [True, True, False]
    assert config.notes == ()


def test_the_file_of_cursor_is_taken_as_it_is(tmp_path: Path) -> None:
    config = load(
        tmp_path / ".cursor" / "mcp.json",
        """{"mcpServers": {
            "local": {"type": "stdio", "command": "python", "args": ["${workspaceFolder}/tools/server.py"],
                      "env": {"KEY": "${env:TOKEN}", "DIR": "${userHome}${/}x"}},
            "remote": {"url": "http://localhost:3000/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}}
        }}""",
    )
    assert config.servers["local"].args == (f"{tmp_path}/tools/server.py",)
    assert config.servers["local"].env == {"KEY": "hush", "DIR": "/home/ann/x"}
    assert config.servers["remote"].transport == "http"
    assert config.servers["remote"].headers == {"Authorization": "Bearer hush"}


def test_the_file_of_vs_code_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / ".vscode" / "mcp.json"
    config = load(
        file,
        """{
          // comments, and commas at the end
          "inputs": [{"type": "promptString", "id": "unused", "description": "not asked for"},],
          "servers": {
            "io.github.upstash/context7": {"type": "stdio", "command": "npx", "args": ["-y", "context7"],
                                           "gallery": "https://x", "version": "1.0.0"},
            "tickets": {"type": "http", "url": "https://example.org/mcp" /* not // a comment */ },
            "older": {"type": "sse", "url": "https://example.org/sse"},
            "local": {"type": "stdio", "command": "${workspaceFolder}/run", "cwd": "${workspaceFolder}",
                      "env": {"LEVEL": 3, "NONE": null}, "envFile": "${workspaceFolder}/.env"},
          },
        }""",
    )
    assert {name: server.transport for name, server in config.servers.items()} == {
        "io.github.upstash-context7": "stdio",
        "tickets": "http",
        "older": "sse",
        "local": "stdio",
    }
    local = config.servers["local"]
    assert (local.command, local.cwd, local.env) == (f"{tmp_path}/run", tmp_path, {"LEVEL": "3"})
    assert notes(config, file) == [
        "FILE: servers['io.github.upstash/context7']: is called 'io.github.upstash-context7' here",
        "FILE: servers.local envFile: has no effect here; put its variables into env",
    ]


def test_the_settings_of_vs_code_have_servers_too(tmp_path: Path) -> None:
    config = load(tmp_path / "settings.json", '{"a": 1, "mcp": {"servers": {"x": {"command": "c"}}}}')
    assert config.servers["x"].source.endswith("mcp.servers.x")


@pytest.mark.parametrize("name", ["http", "streamable-http", "streamableHttp"])
@pytest.mark.parametrize("key", ["type", "transport"])
def test_streamable_http_has_several_names(tmp_path: Path, key: str, name: str) -> None:
    entry = {"url": "https://example.org/mcp", key: name}
    config = load(tmp_path / "f.json", json.dumps({"mcpServers": {"x": entry}}))
    assert config.servers["x"].transport == "http"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"type": "ws", "url": "http://h"}, [" type: is none of stdio, http, "]),
        (
            {"comand": "a"},
            [
                " comand: unknown key; did you mean 'command'?",
                ": has neither command (a server to start) nor url (a server to reach)",
            ],
        ),
        ({"command": "a", "disabled": "yes"}, [" disabled: is not true or false"]),
        ({"command": "a", "env": {"K": True}}, [" env.K: is not text"]),
        ({"command": "a", "env": "K=1"}, [" env: is not a table"]),
        ({"command": "a", "args": "b"}, [" args: is not a list"]),
        ("a", [": is not a table"]),
        (
            {"command": "a", "env": {"K": "${input:api-key}"}},
            [" env.K: ${input:api-key}: mcpgw asks no questions; put the value into an "],
        ),
    ],
)
def test_a_fault_of_an_entry_names_file_and_path(tmp_path: Path, entry: Any, expected: list[str]) -> None:
    found = faults(tmp_path / "f.json", json.dumps({"mcpServers": {"x": entry}}))
    assert len(found) == len(expected)
    for fault, beginning in zip(found, expected, strict=True):
        assert fault.startswith("FILE: mcpServers.x" + beginning)


def test_names_that_cannot_be_made_to_fit_or_become_the_same_are_faults(tmp_path: Path) -> None:
    entry = {"command": "a"}
    found = faults(
        tmp_path / "f.json", json.dumps({"mcpServers": {"日本": entry, "a b": entry, "a/b": entry}})
    )
    assert found == [
        (
            "FILE: mcpServers['日本']: no name can be made of this (letters, digits, '_', '.' and '-', "
            "at most 64, a letter or digit first); give the server another one"
        ),
        "FILE: mcpServers['a/b']: becomes 'a-b', as 'a b' does; give one of them another name",
    ]


@given(st.text(max_size=100))
def test_a_name_made_to_fit_fits_or_is_empty(given: str) -> None:
    name = fitting_name(given)
    assert name == "" or is_server_name(name)


@given(st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?", fullmatch=True))
def test_a_name_that_fits_and_ends_in_a_letter_stays_as_it_is(name: str) -> None:
    assert fitting_name(name) == name


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "FILE: line 1, column 2: Expecting property name enclosed in double quotes"),
        ("{}", "FILE: has no object mcpServers (Claude Desktop, Cursor) or servers (VS Code)"),
        ("[]", "FILE: has no object mcpServers (Claude Desktop, Cursor) or servers (VS Code)"),
        ('{"mcpServers": 1}', "FILE: has no object mcpServers (Claude Desktop, Cursor) or servers (VS Code)"),
        ('{"mcpServers": {"a": {}, "a": {}}}', "FILE: the member 'a' stands twice in one object"),
        ("[" * 100_000, "FILE: is nested too deep"),
    ],
)
def test_a_file_that_is_not_of_a_client_is_a_fault(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path / "f.json", text) == [fault]


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read: No such file or directory"):
        load_config(file=None, environment={}, flags={}, servers_files=[tmp_path / "none.json"])


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.sampled_from(["// no", "/* no */", ",]", '"', "\\", '\\"//', "\\\\"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_plain_json_is_read_as_json_reads_it(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse_commented_json(text) == json.loads(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2, // end\n]", [1, 2]),
        ('{"a": "x // y", /* , */ }', {"a": "x // y"}),
        ('["\\"// no", "/* no */", ",]"]', ['"// no', "/* no */", ",]"]),
        ("/* a\n * b */ 1 // c", 1),
        ("[[1,],]", [[1]]),
        ("[1, // a, ]\n 2]", [1, 2]),
    ],
)
def test_comments_and_trailing_commas_are_let_through(text: str, value: Any) -> None:
    assert parse_commented_json(text) == value


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[,]", "line 1, column 2"),
        ("[1,,]", "line 1, column 4"),
        ('{"a":,}', "line 1, column 6"),
        ("{,}", "line 1, column 2"),
        ("1/**/2", "line 1, column 6"),
        ("// a\n/* b\n c */ [1 2]", "line 3, column 10"),
        ("[1] /* open", "line 1, column 5"),
        ('["open', "line 1, column 2"),
        ("[NaN]", "NaN is no JSON"),
    ],
)
def test_what_is_no_json_is_a_fault_with_its_true_place(text: str, place: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        parse_commented_json(text)
    assert str(refused.value).startswith(place)

"""What callers see of a server's tools."""

from pathlib import Path
from typing import Any

import pytest

from mcpgw.backends.tools import Tool
from mcpgw.errors import InvalidParams
from mcpgw.references import References
from mcpgw.server_definitions import ServerDefinition, ToolPolicy, ToolRule, define_server
from mcpgw.tool_policy import ServedTool, policy_of, serve_tools

_SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "depth": {"type": "integer"}, "root": {"type": "string"}},
    "required": ["path", "root"],
    "additionalProperties": False,
}


def tool(name: str, *, read_only: bool = False) -> Tool:
    raw: dict[str, Any] = {"name": name, "description": f"does {name}", "inputSchema": _SCHEMA}
    if read_only:
        raw["annotations"] = {"readOnlyHint": True}
    return Tool.from_json(raw)


def served(policy: ToolPolicy, *tools: Tool, **members: Any) -> dict[str, ServedTool]:
    definition = ServerDefinition(name="files", transport="stdio", command="files", tools=policy, **members)
    return serve_tools(definition, tools)


def test_without_a_policy_every_tool_is_served_as_its_server_says() -> None:
    one, two = tool("read"), tool("write")
    tools = served(ToolPolicy(), one, two)
    assert [entry.tool for entry in tools.values()] == [one, two]
    assert tools["read"].own_name == "read"
    assert tools["read"].is_listed
    assert not tools["write"].needs_approval
    given = {"path": "a", "root": "b"}
    assert tools["read"].arguments(given) is given


def test_only_what_a_pattern_allows_is_served() -> None:
    tools = served(ToolPolicy(allow=("read_*", "stat")), tool("read_file"), tool("stat"), tool("write_file"))
    assert list(tools) == ["read_file", "stat"]


def test_an_empty_list_allows_nothing() -> None:
    assert served(ToolPolicy(allow=()), tool("read")) == {}


def test_blocking_wins_over_allowing() -> None:
    tools = served(ToolPolicy(allow=("*",), block=("write_*",)), tool("read_file"), tool("write_file"))
    assert list(tools) == ["read_file"]


def test_patterns_tell_upper_case_from_lower_case() -> None:
    assert list(served(ToolPolicy(block=("Write",)), tool("write"))) == ["write"]


def test_a_hidden_tool_can_be_called_and_stands_in_no_list() -> None:
    tools = served(ToolPolicy(hidden=("debug_*",)), tool("debug_dump"), tool("read"))
    assert not tools["debug_dump"].is_listed
    assert tools["read"].is_listed


def test_a_tool_has_the_name_and_the_words_that_its_rule_gives_it() -> None:
    policy = ToolPolicy(prefix="files_", rules={"read": ToolRule(rename="open", description="Opens a file")})
    tools = served(policy, tool("read"), tool("write"))
    assert list(tools) == ["files_open", "files_write"]
    seen = tools["files_open"]
    assert seen.own_name == "read"
    assert seen.tool.description == "Opens a file"
    assert seen.tool.raw["name"] == "files_open"
    assert seen.tool.raw["description"] == "Opens a file"
    assert tools["files_write"].tool.description == "does write"


def test_of_two_tools_with_one_name_the_first_is_served(caplog: pytest.LogCaptureFixture) -> None:
    tools = served(ToolPolicy(rules={"write": ToolRule(rename="read")}), tool("read"), tool("write"))
    assert tools["read"].own_name == "read"
    assert any("two tools with one name" in record.getMessage() for record in caplog.records)


def test_a_default_is_sent_where_a_caller_gives_nothing_else() -> None:
    read = served(ToolPolicy(rules={"read": ToolRule(defaults={"root": "/srv"})}), tool("read"))["read"]
    assert read.arguments({"path": "a"}) == {"path": "a", "root": "/srv"}
    assert read.arguments({"path": "a", "root": "/tmp"}) == {"path": "a", "root": "/tmp"}
    assert read.tool.input_schema["required"] == ["path"]
    assert read.tool.input_schema["properties"]["root"] == {"type": "string", "default": "/srv"}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("root", "${HOME_OF_ALL}"),
        ("root", ["plain", {"deep": "a${B:-c}"}]),
        ("api_key", "plain words"),
        ("root", "ghp_abcdefghijklmnop1234"),
    ],
)
def test_a_default_that_may_be_a_secret_is_sent_and_not_shown(name: str, written: object) -> None:
    schema = {"type": "object", "properties": {name: {}, "path": {}}, "required": [name, "path"]}
    read = Tool.from_json({"name": "read", "inputSchema": schema})
    table = {"command": "files", "tools": {"read": {"defaults": {name: written, "path": "$${a}"}}}}
    references = References({"HOME_OF_ALL": "s3cret", "B": "s3cret"}, Path("/"))
    definition = define_server("files", table, place="", references=references, report=pytest.fail)
    assert definition is not None
    entry = serve_tools(definition, [read])["read"]
    assert entry.tool.input_schema == {
        "type": "object",
        "properties": {name: {}, "path": {"default": "${a}"}},
    }
    assert entry.arguments({}) == definition.tools.rules["read"].defaults
    assert "s3cret" not in str(entry.tool.raw)


def test_what_a_policy_adds_is_a_secret_unless_it_is_known_to_be_none() -> None:
    read = Tool.from_json({"name": "read", "inputSchema": {"type": "object"}})
    rules = {"defaults": {"key": "k", "depth": 1}, "fixed": {"root": "${HOME_OF_ALL}", "mode": "fast"}}
    table = {"command": "files", "tools": {"read": rules}}
    references = References({"HOME_OF_ALL": "s3cret"}, Path("/"))
    definition = define_server("files", table, place="", references=references, report=pytest.fail)
    assert definition is not None
    entry = serve_tools(definition, [read])["read"]
    assert entry.added_secrets({}) == {"key", "root"}
    assert entry.added_secrets({"key": "mine", "root": "theirs"}) == {"root"}


def test_a_fixed_argument_is_always_sent_and_callers_do_not_see_it() -> None:
    read = served(ToolPolicy(rules={"read": ToolRule(fixed={"root": "/srv"})}), tool("read"))["read"]
    assert read.arguments({"path": "a"}) == {"path": "a", "root": "/srv"}
    assert list(read.tool.input_schema["properties"]) == ["path", "depth"]
    assert read.tool.input_schema["required"] == ["path"]
    assert _SCHEMA["required"] == ["path", "root"], "the server's own schema stays as it is"


@pytest.mark.parametrize("value", ["/etc", "/srv"])
def test_a_caller_who_gives_a_fixed_argument_is_told_to_leave_it_out(value: str) -> None:
    read = served(ToolPolicy(rules={"read": ToolRule(fixed={"root": "/srv"})}), tool("read"))["read"]
    with pytest.raises(InvalidParams) as refusal:
        read.arguments({"path": "a", "root": value})
    assert refusal.value.details == [
        {"path": "/data/params/root", "reason": "is set by the gateway: leave it out"}
    ]


def test_a_schema_that_asks_for_nothing_any_more_has_no_empty_list() -> None:
    fixed = {"root": "/srv", "path": "a"}
    read = served(ToolPolicy(rules={"read": ToolRule(fixed=fixed)}), tool("read"))["read"]
    assert "required" not in read.tool.input_schema


def test_approval_is_asked_for_as_the_server_or_the_rule_of_the_tool_says() -> None:
    tools = (tool("read", read_only=True), tool("write"))
    assert [entry.needs_approval for entry in served(ToolPolicy(), *tools, approval="required").values()] == [
        True,
        True,
    ]
    assert [entry.needs_approval for entry in served(ToolPolicy(), *tools, approval="writes").values()] == [
        False,
        True,
    ]
    own = ToolPolicy(rules={"read": ToolRule(approval="required"), "write": ToolRule(approval="never")})
    assert [entry.needs_approval for entry in served(own, *tools, approval="writes").values()] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("name", "is_served", "words"),
    [
        ("f_read", True, ""),
        ("read", False, "[servers.files.tools] prefix: names of its tools begin with 'f_'"),
        ("f_list", False, "[servers.files.tools] renames 'list' to 'f_names'"),
        ("f_names", True, "each call waits until somebody approves it"),
        ("f_raw_read", False, "[servers.files.tools] block has 'raw_*'"),
        ("f_write", False, "[servers.files.tools] allow has nothing that matches 'write'"),
    ],
)
def test_a_policy_tells_without_its_server_who_may_call_what(name: str, is_served: bool, words: str) -> None:
    policy = ToolPolicy(
        allow=("*read", "list"),
        block=("raw_*",),
        prefix="f_",
        rules={"list": ToolRule(rename="names", approval="required")},
    )
    definition = ServerDefinition(name="files", transport="stdio", command="files", tools=policy)
    assert policy_of(definition, name) == (is_served, words)
    if is_served or name != "f_write":
        own = {"f_read": "read", "f_names": "list", "f_raw_read": "raw_read"}.get(name)
        assert own is None or (name in serve_tools(definition, [tool(own)])) is is_served

"""What people see of a server's definition."""

from typing import Any

import pytest

from mcpgw.server_masks import shown_table, texts_with_references, unmasked

MASK = "[redacted]"


def shown_arguments(*arguments: str) -> list[str]:
    shown: list[str] = shown_table({"args": list(arguments)})["args"]
    return shown


def test_values_of_the_environment_and_of_headers_are_never_shown() -> None:
    table = {"command": "a", "env": {"TZ": "UTC", "EMPTY": ""}, "headers": {"X-Project": "demo"}}
    assert shown_table(table) == {
        "command": "a",
        "env": {"TZ": MASK, "EMPTY": ""},
        "headers": {"X-Project": MASK},
    }


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("${NAME}", "${NAME}"),
        ("${file:secret.txt}", "${file:secret.txt}"),
        ("Bearer ${env:NAME}", "Bearer ${env:NAME}"),
        ("Bearer abc", MASK),
        ("abc${NAME}", f"{MASK}${{NAME}}"),
        ("${NAME:-hunter2}", f"${{NAME:-{MASK}}}"),
        ("$${NAME}", MASK),
    ],
)
def test_a_reference_is_shown_as_it_was_written_and_nothing_beside_it(written: str, shown: str) -> None:
    assert shown_table({"headers": {"A": written}}) == {"headers": {"A": shown}}


@pytest.mark.parametrize(
    "argument",
    [
        "--api-key=hunter2",
        "--password=hunter2",
        "API_TOKEN=hunter2",
        "X-Api-Key: hunter2",
        "postgresql://me:hunter2@localhost/db",
        "--db=postgresql://me:hunter2@localhost/db",
        "https://host/mcp?token=hunter2",
        "sk-hunter2hunter2hunter2",
        "ghp_hunter2hunter2hunter2",
        "0123456789abcdef0123456789hunter2",
        "eyJhbGciOiJIUzI1NiJ9.hunter2.hunter2",
    ],
)
def test_an_argument_that_looks_like_a_secret_is_masked(argument: str) -> None:
    (shown,) = shown_arguments(argument)
    assert "hunter2" not in shown
    assert MASK in shown


def test_what_follows_the_flag_of_a_secret_is_masked() -> None:
    assert shown_arguments("--token", "x", "--key", "y", "--port", "3", "--token", "--verbose") == [
        *("--token", MASK, "--key", MASK, "--port", "3", "--token", "--verbose")
    ]


@pytest.mark.parametrize(
    "argument",
    [
        "-y",
        "@modelcontextprotocol/server-filesystem",
        "/home/ann/documents/a-long-name-of-a-folder-2026",
        "--port=3000",
        "mcp-server-time==2025.8.4",
        "${env:TOKEN}",
        "--token=${env:TOKEN}",
        "https://mcp.example.org/mcp?project=demo",
    ],
)
def test_an_ordinary_argument_is_shown(argument: str) -> None:
    assert shown_arguments(argument) == [argument]


def test_an_address_is_shown_without_what_is_secret_in_it() -> None:
    url = "https://me:hunter2@mcp.example.org:8080/s/0123456789abcdef0123/mcp?api_key=hunter2&a=b&k=${K}"
    assert shown_table({"url": url}) == {
        "url": f"https://{MASK}@mcp.example.org:8080/s/{MASK}/mcp?api_key={MASK}&a=b&k=${{K}}"
    }
    assert shown_table({"url": "https://[::1"}) == {"url": MASK}


def test_arguments_that_the_gateway_adds_are_masked_by_their_names() -> None:
    table = {"tools": {"search": {"fixed": {"password": "x", "root": "/a", "deep": {"token": "x"}}}}}
    assert shown_table(table) == {
        "tools": {"search": {"fixed": {"password": MASK, "root": "/a", "deep": {"token": MASK}}}}
    }


def test_what_was_masked_can_be_sent_back() -> None:
    present = {"env": {"A": "secret", "B": "other"}, "args": ["--token=x", "y"], "timeout": 3}
    faults: list[Any] = []

    def report(*fault: object) -> None:
        faults.append(fault)

    changed = {**shown_table(present), "timeout": 4}
    assert unmasked(changed, present, shown_table(present), report) == {**present, "timeout": 4}
    assert faults == []
    unmasked({"env": {"C": MASK}, "args": ["y", MASK]}, present, shown_table(present), report)
    assert [path for path, _ in faults] == [("env", "C"), ("args", 1)]


def test_texts_with_references_are_found_wherever_they_stand() -> None:
    table = {
        "url": "https://h/${A}",
        "headers": {"x": "${B}${C}", "y": "$$${{D}"},
        "tools": {"a": {"fixed": {"b": ["", "${D}"]}}},
    }
    assert dict(texts_with_references({**table, "timeout": 3, "cwd": "$${E}"})) == {
        ("url",): "https://h/${A}",
        ("headers", "x"): "${B}${C}",
        ("headers", "y"): "$$${{D}",
        ("tools", "a", "fixed", "b", 1): "${D}",
    }

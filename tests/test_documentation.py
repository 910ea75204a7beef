"""What the pages of docs/ promise, held against the code and the schemas."""

import json
import re
from pathlib import Path

import pytest

from mcpgw.access.permissions import SCOPES
from mcpgw.errors import CloseCode, codes
from mcpgw.wire.frames import CLIENT_TYPES
from mcpgw.wire.validation import load_schema
from tests.support.schemas import SERVER_TYPES

ROOT = Path(__file__).parent.parent
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text of one section of docs/protocol.md, to the next heading of the same or a higher level."""
    match = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", PROTOCOL, re.MULTILINE | re.DOTALL
    )
    assert match is not None, f"docs/protocol.md has no section {title!r}"
    return match[2]


def rows(title: str) -> dict[str, list[str]]:
    """The table of a section: its first column, without backticks, with the cells behind it."""
    found = [line.strip("| ").split(" | ") for line in section(title).splitlines() if line.startswith("| ")]
    return {cells[0].strip("` "): [cell.strip() for cell in cells[1:]] for cells in found[1:]}


def test_every_error_code_stands_in_the_page_and_in_the_schema_as_the_code_has_it() -> None:
    documented = {code: cells[0] == "yes" for code, cells in rows("Error codes").items()}
    assert documented == {code: error.temporary for code, error in codes().items()}
    error_data = load_schema("server-frames")["$defs"]["errorData"]
    assert set(error_data["properties"]["code"]["enum"]) == set(codes())


def test_every_close_code_that_the_gateway_sends_stands_in_the_page() -> None:
    from_clients = {CloseCode.NORMAL, CloseCode.GOING_AWAY}
    assert set(rows("Close codes")) == {str(code.value) for code in CloseCode if code not in from_clients}


def test_every_frame_type_stands_in_the_page_and_has_a_schema() -> None:
    assert set(rows("You send")) == set(CLIENT_TYPES)
    client_schema = load_schema("client-frames")
    assert {entry["$ref"].rpartition("/")[2] for entry in client_schema["oneOf"]} == set(CLIENT_TYPES)
    assert set(rows("The gateway sends")) == set(SERVER_TYPES)


@pytest.mark.parametrize("frame_type", SERVER_TYPES)
def test_every_member_of_a_frame_stands_in_the_page(frame_type: str) -> None:
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


def test_every_scope_stands_in_the_page() -> None:
    documented = set(rows("Tokens"))
    assert {scope for scope in documented if "SERVER" not in scope} == set(SCOPES)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/protocol.md", "docs/architecture.md", "docs/cli.md"]
)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", ["README.md", "docs/protocol.md"])
def test_every_json_example_is_json(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for example in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
        json.loads(example)

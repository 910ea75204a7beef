"""One member put into JSON with comments: everything else stays as it was."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpgw.cli.json_editing import member, set_member
from mcpgw.commented_json import parse_commented_json

ENTRY = {"command": "mcpgw", "args": ["stdio"]}
PATH = ("mcpServers", "mcpgw")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '{\n  "a": {\n    "b": 1\n  }\n}\n'),
        (" // nothing yet\n", '{\n  "a": {\n    "b": 1\n  }\n}\n'),
        ("{}", '{\n  "a": {\n    "b": 1\n  }\n}'),
        ('{"x": 0}\n', '{"x": 0,\n  "a": {\n    "b": 1\n  }\n}\n'),
        ('{"a": {"b": 2, "c": 3}}', '{"a": {"b": 1, "c": 3}}'),
        ('{"a": {}}', '{"a": {\n    "b": 1\n  }}'),
        (
            '{\n\t"a": {\n\t\t"c": [1, {"b": "}"}] // why\n\t}, // end\n}\n',
            '{\n\t"a": {\n\t\t"c": [1, {"b": "}"}], // why\n\t\t"b": 1\n\t}, // end\n}\n',
        ),
        (
            '{\n    "a": {\n        "c": 1, // why\n        /* more */\n    },\n}',
            '{\n    "a": {\n        "c": 1, // why\n        /* more */\n        "b": 1,\n    },\n}',
        ),
        ("{ // none\n}", '{ // none\n  "a": {\n    "b": 1\n  }\n}'),
        (
            '{\r\n  "x": "// no \\" comment" /* one */\r\n}\r\n',
            '{\r\n  "x": "// no \\" comment", /* one */\r\n  "a": {\r\n    "b": 1\r\n  }\r\n}\r\n',
        ),
        (
            '{"a": {"b" /* name */ : /* value */ [1, 2] /* end */ }}',
            '{"a": {"b" /* name */ : /* value */ 1 /* end */ }}',
        ),
        ('{"\\u0061": {"c": -1.5e3}}', '{"\\u0061": {"c": -1.5e3,\n    "b": 1\n  }}'),
    ],
)
def test_a_member_is_put_where_it_belongs_and_the_rest_stays(before: str, after: str) -> None:
    assert set_member(before, ("a", "b"), 1) == after
    assert member(after, ("a", "b")) == 1


def test_to_set_what_is_there_already_changes_nothing() -> None:
    once = set_member('{"theme": "dark"}\n', PATH, ENTRY)
    assert set_member(once, PATH, ENTRY) == once


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "what it holds is no object"),
        ('{"mcpServers": null}', "mcpServers is no object"),
        ('{"mcpServers": {}', "line 1, column 18"),
        ('{"a": 1, "a": 2}', "stands twice"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        set_member(text, PATH, ENTRY)


SPACES = st.sampled_from(["", " ", "\n", "\n  ", "\t", " // no, {\n", "/* } */", "\r\n"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text('a"\\/*{},: é', max_size=5))


@st.composite
def written(draw: st.DrawFn, depth: int = 3) -> str:
    """The text of an object, with space and comments wherever they may stand."""

    def space() -> str:
        return draw(SPACES)

    names = draw(st.lists(st.sampled_from(["mcpServers", "mcpgw", "x", "é"]), unique=True, max_size=3))
    parts = []
    for name in names:
        is_object = depth > 0 and (name in PATH or draw(st.booleans()))
        value = draw(written(depth - 1)) if is_object else json.dumps(draw(st.lists(SCALARS, max_size=2)))
        if not is_object and name == "mcpServers":
            value = "{}"
        parts.append(f"{space()}{json.dumps(name)}{space()}:{space()}{value}{space()}")
    is_trailed: bool = draw(st.booleans())
    comma = "," if parts and is_trailed else ""
    return f"{{{','.join(parts)}{comma}{space()}}}"


@given(written())
@settings(max_examples=300)
def test_whatever_the_file_looks_like_nothing_but_the_member_changes(text: str) -> None:
    before = parse_commented_json(text)
    after = parse_commented_json(set_member(text, PATH, ENTRY))
    assert after["mcpServers"].pop("mcpgw") == ENTRY
    before.get("mcpServers", {}).pop("mcpgw", None)
    if "mcpServers" not in before:
        assert after.pop("mcpServers") == {}
    assert after == before
    comments = [text.count(sign) for sign in ("// no, {", "/* } */")]
    if "mcpgw" not in text:
        edited = set_member(text, PATH, ENTRY)
        assert [edited.count(sign) for sign in ("// no, {", "/* } */")] == comments


def test_a_large_file_is_edited_in_a_moment() -> None:
    rows = [{"name": f"row {number}", "values": [number, "a // b", None]} for number in range(30_000)]
    text = json.dumps({"history": rows, "mcpServers": {"other": {}}}, indent=2)
    assert len(text) > 3_000_000
    started = time.process_time()
    edited = set_member(text, PATH, ENTRY)
    assert time.process_time() - started < 3.0
    assert json.loads(edited)["mcpServers"].keys() == {"other", "mcpgw"}

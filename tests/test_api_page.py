"""The page that shows the REST interface, where its schemas are a stranger's."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import node_22

PAGE = Path(__file__).parent.parent / "mcpgw" / "pages" / "api.js"
RUN = """
const [document_, schema] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const element = { addEventListener() {} };
const source = require("fs").readFileSync(process.argv[1], "utf8");
const take = "; api = given; return [plain(schema), sample(schema)];";
const page = new Function("document", "given", "schema", source + take);
process.stdout.write(JSON.stringify(page({ getElementById: () => element }, document_, schema)));
"""


def shown(schema: object, schemas: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """A schema as the page shows it, and what its form begins with."""
    sent = json.dumps([{"components": {"schemas": schemas or {}}}, schema])
    done = subprocess.run(
        [node_22(), "-e", RUN, PAGE], input=sent, capture_output=True, text=True, timeout=10, check=True
    )
    plain, sample = json.loads(done.stdout)
    return plain, sample


def test_references_are_followed_and_a_form_begins_with_what_is_required() -> None:
    point = {"type": "object", "properties": {"x": {"type": "number"}, "y": {}}, "required": ["x"]}
    schema = {
        "type": "object",
        "properties": {
            "from": {"$ref": "#/components/schemas/a~1point"},
            "to": {"$ref": "#/components/schemas/a~1point"},
            "how": {"enum": ["fast", "slow"]},
            "at": {"default": {"deep": [1]}},
        },
        "required": ["from", "to", "how", "at"],
    }
    plain, sample = shown(schema, {"a/point": point})
    assert plain["properties"]["from"] == plain["properties"]["to"] == point
    assert plain["required"] == schema["required"]
    assert sample == {"from": {"x": 0}, "to": {"x": 0}, "how": "fast", "at": {"deep": [1]}}


def test_a_reference_to_itself_is_followed_once() -> None:
    reference = {"$ref": "#/components/schemas/tree"}
    tree = {"type": "object", "properties": {"next": reference}, "required": ["next"]}
    plain, sample = shown(reference, {"tree": tree})
    assert plain == tree
    assert sample == {"next": None}


@pytest.mark.parametrize("levels", [1, 12])
def test_a_schema_that_grows_without_end_freezes_nothing(levels: int) -> None:
    # Every level refers to the next one many times: 40 ** 12 ways, and none of them twice the same.
    schemas = {}
    for level in range(levels):
        inner = {"$ref": f"#/components/schemas/{(level + 1) % levels}"}
        properties = {f"p{number}": inner for number in range(40)}
        schemas[str(level)] = {"type": "object", "properties": properties, "required": list(properties)}
    plain, sample = shown({"$ref": "#/components/schemas/0"}, schemas)
    assert len(json.dumps([plain, sample])) < 200_000


def test_long_words_are_cut_however_often_they_are_referred_to() -> None:
    schemas = {"long": {"description": "x" * 500_000, "default": "x" * 500_000}}
    properties = {f"p{number}": {"$ref": "#/components/schemas/long"} for number in range(1500)}
    plain, sample = shown({"properties": properties, "required": list(properties)}, schemas)
    assert sample["p0"] is None
    assert len(plain["properties"]["p0"]["description"]) == 10_000

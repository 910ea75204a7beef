"""What others keep private may change with any release of theirs: nothing of it is used."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFINED = {Path("handlers/websocket_protocol.py")}
"""Where it cannot be helped: tests/handlers/test_websocket_protocol.py breaks with what changes there."""


def imported(tree: ast.AST) -> list[str]:
    """The dotted names that a module imports from elsewhere."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def is_private(name: str) -> bool:
    """Whether a part of a dotted name of somebody else's begins with one underscore."""
    parts = name.split(".")
    own = parts[0] in ("mcpgw", "handlers")
    return not own and any(part.startswith("_") and not part.startswith("__") for part in parts)


def test_a_private_name_is_told_from_others() -> None:
    tree = ast.parse(
        "import mcp._x\nfrom mcp.client._y import z\nfrom mcp import _w\nfrom __future__ import a\n"
    )
    assert list(map(is_private, imported(tree))) == [True, True, True, False]


def test_no_module_imports_what_others_keep_private() -> None:
    found = {
        file.relative_to(ROOT)
        for folder in ("mcpgw", "handlers")
        for file in (ROOT / folder).rglob("*.py")
        if any(map(is_private, imported(ast.parse(file.read_text("utf-8")))))
    }
    assert found == CONFINED

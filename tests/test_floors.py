"""The contracts of import-linter in pyproject.toml: each is broken by an import that it forbids."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"
FLOORS = "Floors of the house"
APP = "Only app imports handlers"
TORNADO = "Only the Tornado skin, the app and the client speak Tornado"
MCP = "Only backends, the MCP server for clients, and its command speak MCP"
HANDLERS = "Handlers reach services"
CLIENT = "The client knows frames and errors"
CIRCLES = "No circles inside a package"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources, to break."""
    for folder in ("mcpgw", "handlers", "schemas"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def broken_contracts(folder: Path) -> set[str]:
    """The names of the contracts that are broken, as far as the report shows them."""
    command: list[str | Path] = [LINT_IMPORTS, "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    found = {match[1].strip() for match in re.finditer(r"^(.+?) ?BROKEN", done.stdout, re.MULTILINE)}
    assert bool(found) == bool(done.returncode)
    return found


def test_every_contract_is_kept(copy: Path) -> None:
    assert broken_contracts(copy) == set()


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("mcpgw/gateway.py", "from mcpgw.session import Session", FLOORS),
        ("mcpgw/bus/bus.py", "from mcpgw.gateway import Gateway", FLOORS),
        ("mcpgw/wire/frames.py", "from mcpgw.bus import Bus", FLOORS),
        ("mcpgw/wire/frames.py", "from mcpgw.access.tokens import Tokens", FLOORS),
        ("mcpgw/session.py", "from mcpgw.session_store import SessionStore", FLOORS),
        ("mcpgw/session_store.py", "from mcpgw.conversation import Conversation", FLOORS),
        ("mcpgw/subscriptions.py", "from mcpgw.rooms import Rooms", FLOORS),
        ("mcpgw/settings.py", "from mcpgw.config import Config", FLOORS),
        ("mcpgw/on_no_floor.py", "", FLOORS),
        ("mcpgw/services.py", "from handlers.ws import GatewaySocket", APP),
        ("mcpgw/cli/serve.py", "import handlers", APP),
        ("mcpgw/session.py", "import tornado.web", TORNADO),
        ("mcpgw/rate_limit.py", "from tornado.ioloop import IOLoop", TORNADO),
        ("mcpgw/cli/serve.py", "import tornado", TORNADO),
        ("mcpgw/session.py", "import mcp_types", MCP),
        ("mcpgw/rooms.py", "from mcp.client import Client", MCP),
        ("handlers/ws.py", "import mcp", MCP),
        ("mcpgw/client/rest.py", "import mcp_types", MCP),
        ("handlers/ws.py", "from mcpgw.gateway import Gateway", HANDLERS),
        ("handlers/events.py", "from mcpgw.bus import Bus", HANDLERS),
        ("handlers/base.py", "from mcpgw import app", HANDLERS),
        ("mcpgw/client/socket.py", "from mcpgw.settings import SETTINGS", CLIENT),
        ("mcpgw/client/rest.py", "from mcpgw.services import Services", CLIENT),
        ("mcpgw/client/address.py", "import mcpgw.logs", CLIENT),
        ("mcpgw/backends/status.py", "from mcpgw.backends.backend import Backend", CIRCLES),
        ("mcpgw/access/permissions.py", "from mcpgw.access.tokens import Tokens", CIRCLES),
        ("mcpgw/wire/strict_json.py", "from mcpgw.wire.frames import Status", CIRCLES),
        ("mcpgw/bus/bus.py", "from mcpgw.bus.local import LocalBus", CIRCLES),
        ("mcpgw/client/errors.py", "from mcpgw.client.socket import Gateway", CIRCLES),
        ("mcpgw/cli/output.py", "from mcpgw.cli.serve import serve", CIRCLES),
        ("handlers/hosts.py", "from handlers.base import BaseHandler", CIRCLES),
    ],
)
def test_an_import_that_is_not_allowed_breaks_its_contract(
    copy: Path, module: str, line: str, contract: str
) -> None:
    with (copy / module).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    assert any(name.startswith(contract) for name in broken_contracts(copy))


def test_only_the_app_names_the_handlers_by_their_second_name() -> None:
    """import-linter does not see ``mcpgw.handlers``: it is in the wheel and on no path of a checkout."""
    found = set()
    for file in sorted([*(ROOT / "mcpgw").rglob("*.py"), *(ROOT / "handlers").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any(name == "mcpgw.handlers" or name.startswith("mcpgw.handlers.") for name in names):
                found.add(file.relative_to(ROOT).as_posix())
    assert found == {"mcpgw/app.py"}

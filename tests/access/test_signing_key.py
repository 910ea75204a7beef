"""The signing key: made once, kept private, refused where it is not a key."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpgw.access.signing_key import load_or_create_signing_key
from mcpgw.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_start_makes_a_key_of_32_bytes_and_later_starts_find_it(tmp_path: Path) -> None:
    key = load_or_create_signing_key(tmp_path / "deep" / "data")
    assert len(bytes.fromhex(key)) == 32
    assert load_or_create_signing_key(tmp_path / "deep" / "data") == key
    assert load_or_create_signing_key(tmp_path / "elsewhere") != key


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_only_the_owner_may_read_a_new_key_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    data = tmp_path / "data"
    if umask == 0o277:
        data.mkdir()
    before = os.umask(umask)
    try:
        load_or_create_signing_key(data)
    finally:
        os.umask(before)
    assert stat.S_IMODE((data / "signing.key").stat().st_mode) == 0o600
    assert umask == 0o277 or stat.S_IMODE(data.stat().st_mode) == 0o700


def test_nothing_but_the_key_is_left_in_the_folder(tmp_path: Path) -> None:
    load_or_create_signing_key(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["signing.key"]


def test_processes_that_start_at_the_same_time_end_up_with_one_key(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from mcpgw.access.signing_key import load_or_create_signing_key\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(load_or_create_signing_key(Path(sys.argv[1])))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "data")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=20)[0].strip() for process in processes}
    assert keys == {load_or_create_signing_key(tmp_path / "data")}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["signing.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_that_others_can_reach_is_refused_with_the_command_that_helps(
    tmp_path: Path, mode: int
) -> None:
    key = load_or_create_signing_key(tmp_path)
    path = tmp_path / "signing.key"
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load_or_create_signing_key(tmp_path)
    assert f"chmod 600 {path}" in str(caught.value)
    assert key not in str(caught.value)
    path.chmod(0o600)
    assert load_or_create_signing_key(tmp_path) == key


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"ab" * 31, b"not hexadecimal" * 10, b"\xff" * 64, b"ab" * 4000],
    ids=["empty", "blank", "short", "words", "bytes", "huge"],
)
def test_a_file_that_holds_no_key_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold a key"):
        load_or_create_signing_key(tmp_path)
    assert path.read_bytes() == content


def test_a_link_a_folder_or_a_pipe_in_place_of_the_key_is_refused_without_waiting(tmp_path: Path) -> None:
    load_or_create_signing_key(tmp_path / "other")
    replacements: dict[str, Callable[[Path], None]] = {
        "link": lambda path: path.symlink_to(tmp_path / "other" / "signing.key"),
        "dangling": lambda path: path.symlink_to(tmp_path / "nowhere"),
        "folder": lambda path: path.mkdir(mode=0o700),
        "pipe": lambda path: os.mkfifo(path, 0o600),
    }
    for name, put in replacements.items():
        (tmp_path / name).mkdir()
        put(tmp_path / name / "signing.key")
        with pytest.raises(ConfigError, match=r"signing key .*signing\.key"):
            load_or_create_signing_key(tmp_path / name)


def test_a_data_folder_that_is_a_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(ConfigError, match="--data-dir"):
        load_or_create_signing_key(tmp_path / "data")
    with pytest.raises(ConfigError, match="Not a directory"):
        load_or_create_signing_key(tmp_path / "data" / "below")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    load_or_create_signing_key(tmp_path)
    os.chown(tmp_path / "signing.key", 4242, -1)
    with pytest.raises(ConfigError, match="uid 4242"):
        load_or_create_signing_key(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_or_create_signing_key(tmp_path)

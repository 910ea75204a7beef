"""Files that are replaced in all the ways that there are, and who is told."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from mcpgw.config_watch import look_at, watch_files
from tests.support.waiting import until

_LONG = 60.0
"""Seconds between two looks: so long that whatever is seen was told by the system."""


@asynccontextmanager
async def watched(*files: Path, interval: float = _LONG) -> AsyncIterator[list[str]]:
    """What stood in the first of `files` at each change."""
    seen: list[str] = []

    async def on_change() -> None:
        seen.append(files[0].read_text() if files[0].exists() else "absent")

    before = await look_at(files)
    task = asyncio.create_task(watch_files(lambda: files, on_change, seen=before, interval=interval))
    try:
        yield seen
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def seen_once(seen: list[str], text: str) -> None:
    """Wait until `text` was seen, and a moment longer, that it may be seen twice."""
    await until(lambda: seen, seconds=5)
    await asyncio.sleep(0.4)
    assert seen == [text]
    seen.clear()


def in_place(file: Path, text: str) -> None:
    file.write_text(text)


def by_rename(file: Path, text: str) -> None:
    other = file.with_name(f".{file.name}.swp")
    other.write_text(text)
    other.replace(file)


def with_a_backup(file: Path, text: str) -> None:
    file.rename(file.with_suffix(".bak"))
    file.write_text(text)


def anew(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


@pytest.mark.gen_test
@pytest.mark.parametrize("replace", [in_place, by_rename, with_a_backup, anew])
async def test_a_file_that_is_replaced_is_told_once_each_time(
    tmp_path: Path, replace: Callable[[Path, str], None]
) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text("one")
    async with watched(file) as seen:
        for text in ("two", "three"):
            replace(file, text)
            await seen_once(seen, text)


@pytest.mark.gen_test
async def test_a_file_that_is_written_slowly_is_told_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text("one")
    async with watched(file) as seen:
        with file.open("w") as stream:
            for part in ("t", "w", "o"):
                await asyncio.sleep(0.1)
                stream.write(part)
                stream.flush()
        await seen_once(seen, "two")


@pytest.mark.gen_test
async def test_a_file_that_was_emptied_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text("one")
    async with watched(file) as seen:
        file.write_text("")
        await asyncio.sleep(0.6)
        assert seen == []
        file.write_text("two")
        await seen_once(seen, "two")


@pytest.mark.gen_test
async def test_a_file_that_goes_is_told_and_so_is_its_return(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text("one")
    async with watched(file) as seen:
        file.unlink()
        await seen_once(seen, "absent")
        file.write_text("one")
        await seen_once(seen, "one")


@pytest.mark.gen_test
async def test_the_links_of_kubernetes_are_followed(tmp_path: Path) -> None:
    # https://kubernetes.io/docs/concepts/configuration/configmap/: ..data is swapped by a rename.
    def publish(version: str, text: str) -> None:
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        (folder / "mcpgw.toml").write_text(text)
        link = tmp_path / "..data_tmp"
        link.symlink_to(folder.name)
        link.replace(tmp_path / "..data")

    publish("one", "one")
    file = tmp_path / "mcpgw.toml"
    file.symlink_to("..data/mcpgw.toml")
    async with watched(file) as seen:
        for version in ("two", "three"):
            publish(version, version)
            await seen_once(seen, version)


@pytest.mark.gen_test
async def test_a_file_behind_a_link_into_another_folder_is_watched_there(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.toml"
    real.parent.mkdir()
    real.write_text("one")
    folder = tmp_path / "here"
    folder.mkdir()
    file = folder / "mcpgw.toml"
    file.symlink_to(real)
    async with watched(file) as seen:
        by_rename(real, "two")
        await seen_once(seen, "two")
        other = tmp_path / "elsewhere" / "other.toml"
        other.write_text("three")
        file.unlink()
        file.symlink_to(other)
        await seen_once(seen, "three")


@pytest.mark.gen_test
async def test_what_is_touched_and_not_changed_is_not_told_nor_are_other_files(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text("one")
    async with watched(file) as seen:
        os.utime(file, (1, 1))
        by_rename(file, "one")
        (tmp_path / "other.toml").write_text("two")
        await asyncio.sleep(0.6)
        assert seen == []


@pytest.mark.gen_test
async def test_every_one_of_several_files_is_watched(tmp_path: Path) -> None:
    file, more = tmp_path / "mcpgw.toml", tmp_path / "more" / "servers.json"
    more.parent.mkdir()
    file.write_text("one")
    more.write_text("{}")
    async with watched(file, more) as seen:
        by_rename(more, "{ }")
        await seen_once(seen, "one")


@pytest.mark.gen_test
async def test_where_no_folder_is_there_to_be_watched_the_files_are_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "not-yet" / "mcpgw.toml"
    async with watched(file, interval=0.2) as seen:
        file.parent.mkdir()
        file.write_text("one")
        await seen_once(seen, "one")


@pytest.mark.gen_test
async def test_a_fault_of_the_listener_does_not_end_the_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text("one")
    seen: list[str] = []

    async def on_change() -> None:
        seen.append(file.read_text())
        if len(seen) == 1:
            raise ZeroDivisionError("a fault")

    before = await look_at([file])
    task = asyncio.create_task(watch_files(lambda: [file], on_change, seen=before, interval=0.2))
    for text in ("two", "three"):
        file.write_text(text)
        await until(lambda text=text: text in seen)  # type: ignore[misc]
    assert "reload failed" in caplog.text
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

"""The SQLite storage of the memory server, on real files and with real processes."""

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mcpgw
from mcpgw.backends import memory_store
from mcpgw.backends.memory_store import (
    InvalidMemoryError,
    Memories,
    MemoryStore,
    StoreUnavailableError,
    StoreUnusableError,
)

ROOT = Path(mcpgw.__file__).parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "memory.db"


@pytest.fixture
def store(path: Path) -> Iterator[MemoryStore]:
    with closing(MemoryStore(path)) as opened:
        yield opened


def contents(found: Memories) -> list[str]:
    return [memory.content for memory in found.memories]


def rows_left(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("memories", "memory_tags", "memory_words")
        }


def test_a_saved_memory_is_the_same_after_the_store_was_opened_again(path: Path) -> None:
    with closing(MemoryStore(path)) as store:
        saved = store.save("p", "a \x00 b\n☕", ["x", "y", "x"], {"deep": [1, {"é": None}], "float": 1.5})
    assert saved.tags == ("x", "y")
    assert saved.metadata == {"deep": [1, {"é": None}], "float": 1.5}
    with closing(MemoryStore(path)) as store:
        assert store.get(saved.id) == saved
        assert store.newest("p", 10).memories == (saved,)


def test_the_folder_and_every_file_are_for_the_owner_alone(path: Path) -> None:
    with closing(MemoryStore(path)) as store:
        store.save("p", "private")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        files = list(path.parent.iterdir())
        assert len(files) == 3
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_every_commit_is_flushed_to_the_disk(store: MemoryStore) -> None:
    with store._read() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_the_newest_come_first_page_by_page_and_each_once(store: MemoryStore) -> None:
    for number in range(7):
        store.save("p", str(number))
        store.save("other", "no")
    first = store.newest("p", 3)
    store.save("p", "saved between the pages")
    second = store.newest("p", 3, first.memories[-1].sequence)
    third = store.newest("p", 3, second.memories[-1].sequence)
    assert [contents(page) for page in (first, second, third)] == [["6", "5", "4"], ["3", "2", "1"], ["0"]]
    assert [page.more for page in (first, second, third)] == [True, True, False]


def test_the_best_match_comes_first_and_has_the_highest_score(store: MemoryStore) -> None:
    store.save("p", "postgres " + "and many other words " * 20)
    store.save("p", "postgres postgres")
    store.save("other", "postgres")
    for filler in range(5):
        store.save("p", f"nothing of interest {filler}")
    found = store.search("p", "Postgres").memories
    assert [memory.content[:17] for memory in found] == ["postgres postgres", "postgres and many"]
    scores = [memory.score for memory in found]
    assert None not in scores
    assert scores[0] > scores[1] > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("content", "query"),
    [
        ("Deploying on Fridays", "deploying fri"),
        ("café naïve", "CAFE"),
        ("cafe\u0301", "café"),
        ("Straße", "STRASSE"),
        ("\uff21\uff22\uff23 full width", "abc"),
        ("東京タワーへ行く", "京タワ"),
        ("我们使用数据库", "数据库"),
        ("서울에서 만나요", "서울"),
        ("ฉันรักประเทศไทย", "ประเทศ"),
        ("हिन्दी भाषा", "हिन्दी"),
        ("error in foo_bar.py:12", "foo_bar.py"),
        ("C++ code", "c++"),
        ("launch 🚀 now", "🚀"),
        ("what?!", "?!"),
        ("NEAR the door AND NOT far", "AND NOT"),
        ('say "hi" (twice)', 'hi" OR ("'),
    ],
)
def test_words_are_found_in_every_script_and_spelling(store: MemoryStore, content: str, query: str) -> None:
    store.save("p", "unrelated")
    store.save("p", content)
    assert contents(store.search("p", query)) == [content]


def test_memories_with_all_words_hide_those_with_some_and_some_are_better_than_none(
    store: MemoryStore,
) -> None:
    store.save("p", "red apple")
    store.save("p", "green apple")
    assert contents(store.search("p", "green apple")) == ["green apple"]
    assert set(contents(store.search("p", "which apple do we like"))) == {"red apple", "green apple"}
    assert contents(store.search("p", "banana")) == []


def test_all_tags_must_match_with_and_without_a_query(store: MemoryStore) -> None:
    store.save("p", "one fish", ["a", "b"])
    store.save("p", "two fish", ["a"])
    store.save("p", "three !?", ["a", "b", "c"])
    assert contents(store.search("p", tags=["a", "b"])) == ["three !?", "one fish"]
    assert contents(store.search("p", "fish", ["b", "a", "b"])) == ["one fish"]
    assert contents(store.search("p", "!?", ["c"])) == ["three !?"]
    assert contents(store.search("p", "fish", ["d"])) == []
    assert contents(store.search("p", "  \t", limit=1)) == ["three !?"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:
    with closing(MemoryStore(tmp_path_factory.mktemp("filled") / "memory.db")) as opened:
        opened.save("p", "the quick brown fox; 東京 🚀 \x00 'quoted' \"twice\" col:umn ^ * ( ) + -")
        yield opened


@settings(max_examples=300)
@given(query=st.text(st.characters(), max_size=60), tags=st.lists(st.text(st.characters()), max_size=3))
@example(query='"', tags=[])
@example(query="\x00", tags=["\x00"])
@example(query="words:fox OR", tags=[])
@example(query="NEAR(a b, 3) AND * ^", tags=[])
@example(query="\ud800 fox", tags=["\udfff"])
@example(query="\ud800", tags=[])
@example(query="\ua7dc", tags=[])
@example(query="fox " * 2_000, tags=[])
@example(query="\u0315\u0300" * 50_000, tags=[])
@example(query="東" * 10_000, tags=[])
def test_no_query_text_is_an_error(filled: MemoryStore, query: str, tags: list[str]) -> None:
    found = filled.search("p", query, tags)
    assert len(found.memories) <= 1
    if tags:
        assert not found.memories
    elif not query.strip():
        assert len(found.memories) == 1


@settings(max_examples=150)
@given(content=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
@example(content="x" * 1_500 + "é")
@example(content="e\u0301" * 900)
def test_every_text_is_found_by_itself(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    with closing(MemoryStore(tmp_path_factory.mktemp("itself") / "memory.db")) as store:
        store.save("p", "something else")
        saved = store.save("p", content)
        assert saved in [replace(memory, score=None) for memory in store.search("p", content).memories]


def test_a_deleted_memory_leaves_nothing_in_any_table(store: MemoryStore, path: Path) -> None:
    saved = store.save("p", "secret word", ["tag"])
    assert store.delete(saved.id) is True
    assert store.delete(saved.id) is False
    assert store.get(saved.id) is None
    assert not store.search("p", "secret").memories
    assert rows_left(path) == {"memories": 0, "memory_tags": 0, "memory_words": 0}
    assert store.projects() == ((), 0)


def test_projects_are_counted_and_the_one_changed_last_comes_first(store: MemoryStore) -> None:
    first = store.save("b", "1")
    store.save("a/ä %", "2")
    with store._write(None) as connection:
        connection.execute(
            "UPDATE memories SET updated_at = updated_at + 60000 WHERE sequence = ?", (first.sequence,)
        )
    store.save("b", "3")
    projects, omitted = store.projects()
    assert [(project.name, project.memories) for project in projects] == [("b", 2), ("a/ä %", 1)]
    assert projects[0].updated_at == first.updated_at + 60_000
    assert omitted == 0
    assert [project.name for project in store.projects_by_name(1)] == ["a/ä %"]
    assert [project.name for project in store.projects_by_name(5, after="a/ä %")] == ["b"]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"project": ""}, "project"),
        ({"project": "p" * 201}, "project"),
        ({"content": ""}, "content"),
        ({"content": "c" * 100_001}, "content"),
        ({"content": "half \ud83d"}, "content"),
        ({"tags": [""]}, r"tags\[0\]"),
        ({"tags": ["ok", "t" * 101]}, r"tags\[1\]"),
        ({"tags": [str(number) for number in range(51)]}, "tags"),
        ({"metadata": {"x": "y" * 16_384}}, "metadata"),
        ({"metadata": {"x": float("nan")}}, "metadata"),
        ({"metadata": {"x": "\ud800"}}, "metadata"),
        ({"metadata": {"x": 10**5000}}, "metadata"),
    ],
)
def test_a_value_over_its_bound_is_refused_by_its_place_and_nothing_is_kept(
    store: MemoryStore, path: Path, values: dict[str, object], place: str
) -> None:
    with pytest.raises(InvalidMemoryError, match=f"^{place}: "):
        store.save(**({"project": "p", "content": "c"} | values))  # type: ignore[arg-type]
    assert rows_left(path)["memories"] == 0


def test_values_at_their_bounds_are_kept(store: MemoryStore) -> None:
    saved = store.save(
        "p" * 200,
        "😀" * 100_000,
        [f"{number:0100}" for number in range(50)],
        {"x": "y" * (16_384 - len('{"x":""}'))},
    )
    assert store.get(saved.id) == saved


def test_an_answer_ends_before_it_grows_too_large_and_says_so(store: MemoryStore) -> None:
    for _ in range(6):
        store.save("p", "word " * 20_000)
    page = store.newest("p", 100)
    assert len(page.memories) == memory_store.ANSWER_CHARACTERS // 100_002
    assert page.more
    rest = store.newest("p", 100, page.memories[-1].sequence)
    assert len(page.memories) + len(rest.memories) == 6
    assert not rest.more


def test_a_full_store_says_so_keeps_no_half_and_can_still_forget(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with closing(MemoryStore(path, maximum_bytes=512 * 1024)) as store:
        saved: list[str] = []

        def fill(words: int) -> None:
            for number in range(1_000):
                text = f"{number} " + " ".join(f"{number}w{word}" for word in range(words))
                saved.append(store.save("p", text, ["t"]).id)

        for words in (2_000, 20, 1):
            with pytest.raises(StoreUnavailableError, match="delete memories or make room"):
                fill(words)
        assert 5 < len(saved) < 1_000
        assert rows_left(path) == dict.fromkeys(("memories", "memory_tags", "memory_words"), len(saved))
        assert all(store.delete(identifier) for identifier in saved[-1:] + saved[:5])
        store.save("p", "there is room again")


def test_a_database_that_another_process_locks_is_an_error_in_time_and_well_afterwards(path: Path) -> None:
    with closing(MemoryStore(path, busy_seconds=0.2)) as store:
        store.save("p", "before")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked"):
                store.save("p", "refused")
            assert contents(store.newest("p", 10)) == ["before"]
            other.execute("ROLLBACK")
        store.save("p", "after")
        assert contents(store.newest("p", 10)) == ["after", "before"]


def test_a_new_file_that_another_process_looks_at_is_waited_for(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM sqlite_master").fetchall()
        with pytest.raises(StoreUnusableError, match="locked"):
            MemoryStore(path, busy_seconds=0.1)
        leave = threading.Timer(0.2, other.execute, ["ROLLBACK"])
        leave.start()
        with closing(MemoryStore(path)) as store:
            assert leave.finished.is_set()
            store.save("p", "first")
        leave.join()


def test_nothing_is_acknowledged_into_a_file_that_was_deleted_or_replaced(
    store: MemoryStore, path: Path
) -> None:
    store.save("p", "here")
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(StoreUnavailableError, match="moved or deleted"):
        store.save("p", "lost")
    path.touch()
    with pytest.raises(StoreUnavailableError, match="moved or deleted"):
        store.save("p", "lost")


def not_a_database(path: Path) -> None:
    path.write_text("these are my notes and no database\n" * 100)


def newer_version(path: Path) -> None:
    MemoryStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (not_a_database, "no SQLite database"),
        (newer_version, "version 99"),
        (other_program, "another program"),
        (folder, "cannot be opened"),
    ],
)
def test_a_file_that_is_no_memory_database_is_refused_and_left_as_it_was(
    tmp_path: Path, make: object, reason: str
) -> None:
    path = tmp_path / "memory.db"
    make(path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreUnusableError, match=reason) as refused:
        MemoryStore(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert before is None or path.read_bytes() == before


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnusableError, match=r"file/memory\.db"):
        MemoryStore(tmp_path / "file" / "memory.db")


def test_readers_and_writers_of_many_threads_hold_up_nobody(store: MemoryStore, path: Path) -> None:
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait(timeout=10)
        for turn in range(10):
            saved = store.save(f"p{number}", f"turn {turn}")
            assert store.get(saved.id) == saved
            assert store.search(f"p{number}", "turn", limit=100).memories[0].sequence <= saved.sequence

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, number) for number in range(8)]:
            done.result(timeout=30)
    assert rows_left(path)["memories"] == 80
    assert len(store._idle) <= 8


SAVE_SOME = """
import sys
from pathlib import Path
from mcpgw.backends.memory_store import MemoryStore
sys.stdin.readline()
store = MemoryStore(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    store.save("p", f"{sys.argv[2]} {number}")
store.close()
"""


def test_processes_that_start_together_on_no_file_make_one_schema_and_lose_nothing(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE_SOME, str(path), f"process{number}", "5"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        failures = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert failures == [""] * 8
    assert rows_left(path)["memories"] == 40

"""What waits for one reader who may be slow."""

import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcpgw.outbox import Outbox

EVERYTHING = 1 << 40
LARGE = 1 << 15


def lagged(source: str, dropped: int) -> str:
    """The frame that tells of a gap, as plain as a test needs it."""
    return f"<{source} lost {dropped}>"


class TextBox(Outbox):
    """An outbox of texts, which are easier to read in a test than bytes."""

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        super().__init__(max_frames, max_bytes, lambda source, dropped: lagged(source, dropped).encode())

    def result(self, text: str) -> None:
        """Put one."""
        self.put_result(text.encode())

    def state(self, key: str, text: str, *, source: str | None = None) -> None:
        """Put one."""
        self.put_state(key, text.encode(), source=source)

    def stream(self, source: str, text: str) -> None:
        """Put one."""
        self.put_stream(source, text.encode())

    def texts(self, max_bytes: int) -> list[str]:
        """Take some."""
        return [text.decode() for text in self.take(max_bytes)]


def make_box(max_frames: int = 4, max_bytes: int = 1000) -> TextBox:
    """A small box."""
    return TextBox(max_frames, max_bytes)


def test_texts_leave_in_the_order_in_which_they_came() -> None:
    box = make_box()
    box.stream("servers", "log")
    box.state("servers:memory", "started")
    box.result("answer")
    assert (len(box), box.size, box.is_full) == (3, 16, False)
    assert box.texts(EVERYTHING) == ["log", "started", "answer"]
    assert (len(box), box.size, box.texts(EVERYTHING)) == (0, 0, [])


def test_a_newer_state_takes_the_place_of_the_older_one_at_the_end() -> None:
    box = make_box()
    box.state("memory", "starting")
    box.stream("logs", "line")
    box.state("files", "stopped")
    box.state("memory", "started")
    assert box.size == len("line" + "stopped" + "started")
    assert box.texts(EVERYTHING) == ["line", "stopped", "started"]
    assert box.dropped == 0


def test_a_state_that_was_taken_does_not_give_way_a_second_time() -> None:
    box = make_box()
    box.state("memory", "starting")
    assert box.texts(EVERYTHING) == ["starting"]
    box.state("memory", "started")
    assert (box.size, box.texts(EVERYTHING)) == (7, ["started"])


def test_a_full_box_loses_the_oldest_of_its_streams_and_says_so_in_its_place() -> None:
    box = make_box(max_frames=4)
    box.result("first answer")
    for number in range(6):
        box.stream("servers", f"line {number}")
    assert (len(box), box.dropped, box.is_full) == (5, 3, False)
    assert box.texts(EVERYTHING) == ["first answer", "<servers lost 3>", "line 3", "line 4", "line 5"]


def test_what_was_dropped_is_counted_for_each_source() -> None:
    box = make_box(max_frames=2)
    for number in range(3):
        box.stream("servers", f"server {number}")
        box.stream("call:7", f"progress {number}")
    assert box.texts(EVERYTHING) == ["<servers lost 2>", "<call:7 lost 2>", "server 2", "progress 2"]


def test_a_gap_that_was_told_is_told_again_only_for_what_was_dropped_since() -> None:
    box = make_box(max_frames=1)
    box.stream("servers", "one")
    box.stream("servers", "two")
    assert box.texts(EVERYTHING) == ["<servers lost 1>", "two"]
    box.stream("servers", "three")
    box.stream("servers", "four")
    box.stream("servers", "five")
    assert box.texts(EVERYTHING) == ["<servers lost 2>", "five"]


def test_a_stream_is_dropped_before_any_state_and_a_state_before_any_result() -> None:
    box = make_box(max_frames=2)
    box.state("memory", "state of memory", source="servers")
    box.stream("logs", "line")
    box.state("files", "state of files", source="servers")
    assert box.dropped == 1
    box.result("answer")
    assert box.texts(EVERYTHING) == ["<servers lost 1>", "<logs lost 1>", "state of files", "answer"]


def test_a_state_without_a_source_is_missed_under_its_key() -> None:
    box = make_box(max_frames=1)
    box.state("memory", "old news")
    box.state("files", "news")
    assert box.texts(EVERYTHING) == ["<memory lost 1>", "news"]


def test_one_gap_stands_where_the_earliest_missing_text_of_its_source_stood() -> None:
    box = make_box(max_frames=3)
    box.state("memory", "state", source="servers")
    box.result("answer")
    box.stream("servers", "line")
    box.result("second answer")
    assert (len(box), box.dropped) == (4, 1)
    box.result("third answer")
    assert box.texts(EVERYTHING) == ["<servers lost 2>", "answer", "second answer", "third answer"]


def test_results_are_never_lost_and_by_themselves_fill_the_box_until_they_are_read() -> None:
    box = make_box(max_frames=3)
    box.state("memory", "state")
    for number in range(5):
        box.result(f"answer {number}")
        box.stream("logs", f"line {number}")
    assert box.is_full
    assert box.texts(EVERYTHING) == ["<memory lost 1>", "answer 0", "<logs lost 5>"] + [
        f"answer {number}" for number in range(1, 5)
    ]
    assert not box.is_full


def test_the_box_is_bounded_in_bytes_as_well_as_in_frames() -> None:
    box = make_box(max_frames=100, max_bytes=10)
    box.stream("logs", "1234")
    box.stream("logs", "567890")
    assert (box.dropped, box.size) == (0, 10)
    box.stream("logs", "x")
    assert (box.dropped, box.size) == (1, 7)
    box.result("a result of more than ten bytes")
    assert (box.size, box.is_full) == (31, True)
    assert box.texts(EVERYTHING) == ["<logs lost 3>", "a result of more than ten bytes"]


def test_a_text_longer_than_the_box_is_only_told_of() -> None:
    box = make_box(max_bytes=10)
    box.stream("logs", "far too long a line")
    assert (len(box), box.size, box.is_full) == (1, 0, False)
    assert box.texts(EVERYTHING) == ["<logs lost 1>"]


def test_taking_gives_no_more_than_asked_for_but_always_something() -> None:
    box = make_box(max_frames=3)
    for text in ("12345", "123", "12", "1234567"):
        box.stream("s", text)
    assert box.texts(11) == ["<s lost 1>"]
    assert box.texts(5) == ["123", "12"]
    assert box.texts(5) == ["1234567"]
    assert box.texts(5) == []


def test_a_gap_that_does_not_fit_any_more_waits_and_grows() -> None:
    box = make_box(max_frames=3)
    box.result("answer")
    for number in range(3):
        box.stream("s", f"line {number}")
    assert box.texts(8) == ["answer"]
    for number in range(3, 6):
        box.stream("s", f"line {number}")
    assert box.texts(EVERYTHING) == ["<s lost 3>", "line 3", "line 4", "line 5"]


@pytest.mark.parametrize(("text", "length"), [("", 0), ("abc", 3), ("ä€𝄞", 9)])
def test_sizes_are_bytes_and_not_characters(text: str, length: int) -> None:
    box = make_box()
    box.result(text)
    assert box.size == length


@pytest.mark.parametrize(("max_frames", "max_bytes"), [(0, 1), (1, 0), (-1, -1)])
def test_a_box_that_could_hold_nothing_is_refused(max_frames: int, max_bytes: int) -> None:
    with pytest.raises(ValueError, match="at least 1 frame and 1 byte"):
        TextBox(max_frames, max_bytes)


def test_memory_stays_flat_however_much_is_put_for_a_reader_that_reads_nothing() -> None:
    box = make_box(max_frames=256, max_bytes=1 << 20)

    def put(number: int) -> None:
        box.stream("servers", f"{number:0200}")
        box.state(f"server {number % 300}", f"{number:0200}", source="servers")

    for number in range(2_000):
        put(number)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2_000, 50_000):
            put(number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(box) == 256 + 1
    assert after - before < 400_000
    assert box.texts(EVERYTHING)[0] == f"<servers lost {box.dropped}>"


def test_a_large_box_costs_as_little_for_each_text_as_a_small_one() -> None:
    def seconds(max_frames: int) -> float:
        box = make_box(max_frames=max_frames, max_bytes=EVERYTHING)
        start = time.process_time()
        for _ in range(LARGE // max_frames):
            for number in range(max_frames):
                box.stream("logs", "line")
                box.state(f"key {number % (max_frames // 2)}", "state")
            while box:
                box.texts(64)
        return time.process_time() - start

    # Whatever looks at each waiting text, be it only to step over it, takes many times as long.
    assert min(seconds(LARGE) for _ in range(3)) < 4 * min(seconds(64) for _ in range(3))


@dataclass(frozen=True)
class Waiting:
    """A text in the model's box."""

    kind: str
    source: str
    key: str
    text: str


class AnOutboxBesideAPlainList(RuleBasedStateMachine):
    """A box and a list that says the same with loops over everything, side by side.

    The list knows nothing of gaps: it says what waits. Gaps are held against the ledger of what was put,
    given, replaced and dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Waiting] = []
        self.untold: Counter[str] = Counter()  # dropped, and no gap taken yet
        self.dropped = 0
        self.number = 0
        self.given_position: dict[str, int] = {}
        self.first_untold: dict[str, int] = {}

    @initialize(max_frames=st.integers(1, 6), max_bytes=st.integers(1, 120))
    def make(self, max_frames: int, max_bytes: int) -> None:
        self.max_frames, self.max_bytes = max_frames, max_bytes
        self.box = TextBox(max_frames, max_bytes)

    def next_text(self, filling: str) -> str:
        """A text that says by itself when it was put."""
        self.number += 1
        return f"{self.number}:{filling}"

    def put(self, item: Waiting) -> None:
        """Put into the list, and drop what the rules say."""
        self.waiting.append(item)
        while self.is_over():
            droppable = [one for one in self.waiting if one.kind == "stream"]
            droppable = droppable or [one for one in self.waiting if one.kind == "state"]
            if not droppable:
                return
            lost = droppable[0]
            self.waiting.remove(lost)
            self.untold[lost.source] += 1
            self.dropped += 1
            earliest = self.first_untold.get(lost.source, position(lost.text))
            self.first_untold[lost.source] = min(earliest, position(lost.text))

    def is_over(self) -> bool:
        """Whether the list holds more than it may."""
        return len(self.waiting) > self.max_frames or self.size() > self.max_bytes

    def size(self) -> int:
        """Bytes in the list."""
        return sum(len(item.text.encode()) for item in self.waiting)

    @rule(filling=st.text(max_size=20))
    def put_result(self, filling: str) -> None:
        text = self.next_text(filling)
        self.box.result(text)
        self.put(Waiting("result", "", "", text))

    @rule(key=st.sampled_from("kl"), source=st.sampled_from("abc"), filling=st.text(max_size=20))
    def put_state(self, key: str, source: str, filling: str) -> None:
        text = self.next_text(filling)
        self.box.state(key, text, source=source)
        self.waiting = [item for item in self.waiting if item.key != key]
        self.put(Waiting("state", source, key, text))

    @rule(source=st.sampled_from("abcd"), filling=st.text(max_size=20))
    def put_stream(self, source: str, filling: str) -> None:
        text = self.next_text(filling)
        self.box.stream(source, text)
        self.put(Waiting("stream", source, "", text))

    @precondition(lambda self: len(self.box) > 0)
    @rule(max_bytes=st.integers(0, 150))
    def take(self, max_bytes: int) -> None:
        expected = self.expected()
        texts = self.box.texts(max_bytes)
        assert texts == expected[: len(texts)]
        assert texts
        total = sum(len(text.encode()) for text in texts)
        assert len(texts) == 1 or total <= max_bytes
        if len(texts) < len(expected):
            assert total + len(expected[len(texts)].encode()) > max_bytes, "more would have fitted"
        for text in texts:
            if text.startswith("<"):
                source = text[1]
                del self.untold[source], self.first_untold[source]
            else:
                assert self.waiting.pop(0).text == text

    def expected(self) -> list[str]:
        """All that has to come: what waits, and each gap where its earliest text would be."""
        parts = [(position(item.text), item.text) for item in self.waiting]
        parts += [(self.first_untold[source], lagged(source, lost)) for source, lost in self.untold.items()]
        return [text for _, text in sorted(parts)]

    @invariant()
    def the_numbers_agree(self) -> None:
        if not hasattr(self, "box"):
            return
        assert len(self.box) == len(self.waiting) + len(self.untold)
        assert self.box.size == self.size()
        assert self.box.dropped == self.dropped
        assert self.box.is_full == self.is_over()
        if self.box.is_full:
            assert {item.kind for item in self.waiting} == {"result"}

    def teardown(self) -> None:
        """Whatever happened, all that waits comes out, and the box is empty and usable again."""
        if hasattr(self, "box"):
            expected = self.expected()
            assert self.box.texts(EVERYTHING) == expected
            assert (len(self.box), self.box.size, self.box.is_full) == (0, 0, False)


def position(text: str) -> int:
    """When a text was put."""
    return int(text.partition(":")[0])


TestAnOutboxBesideAPlainList = AnOutboxBesideAPlainList.TestCase

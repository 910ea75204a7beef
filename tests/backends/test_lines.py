"""Splitting bytes into bounded lines."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.backends.lines import LineSplitter, OversizedLine, answered_id, asked_id


@given(
    lines=st.lists(st.binary(max_size=50).filter(lambda line: b"\n" not in line), max_size=10),
    cuts=st.lists(st.integers(min_value=0, max_value=500), max_size=10),
)
def test_lines_are_the_same_however_the_chunks_fall(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    splitter = LineSplitter(100)
    found = [line for start, end in pairwise(edges) for line in splitter.feed(data[start:end])]
    assert found == lines
    assert splitter.flush() is None


@given(size=st.integers(min_value=0, max_value=20_000), chunk=st.integers(min_value=1, max_value=9_000))
def test_a_line_over_the_limit_keeps_its_ends_and_its_length(size: int, chunk: int) -> None:
    line = bytes(index % 251 + 11 if index % 251 + 11 < 256 else 0 for index in range(size)).replace(
        b"\n", b"x"
    )
    data = line + b"\nnext\n"
    splitter = LineSplitter(10_000)
    found = [
        each for start in range(0, len(data), chunk) for each in splitter.feed(data[start : start + chunk])
    ]
    assert found[1] == b"next"
    if size <= 10_000:
        assert found[0] == line
    else:
        assert found[0] == OversizedLine(line[:4096], line[-4096:], size)


def test_a_long_line_costs_linear_time_and_bounded_memory() -> None:
    splitter = LineSplitter(1024 * 1024)
    chunk = b"x" * 65_536
    began = time.process_time()
    for _ in range(4096):  # 256 MiB
        assert list(splitter.feed(chunk)) == []
    assert time.process_time() - began < 5
    assert sum(map(len, splitter._pieces)) <= 1024 * 1024 + 2 * len(chunk)
    [line] = splitter.feed(b"\n")
    assert isinstance(line, OversizedLine)
    assert line.size == 4096 * 65_536


def test_what_follows_the_last_line_feed_is_flushed_once() -> None:
    splitter = LineSplitter(10)
    assert list(splitter.feed(b"one\ntwo")) == [b"one"]
    assert splitter.flush() == b"two"
    assert splitter.flush() is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":{', 7),
        (b'{ "jsonrpc": "2.0", "id": 7, "error": {', 7),
        (b'{"id":"7","jsonrpc":"2.0","result":{', 7),
        (b'{"result":{"x":1},"jsonrpc":"2.0","id":7}', 7),
        (b'{"jsonrpc":"2.0","result":{"x":1},"id": 7 }\r', 7),
        (b'{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage"', None),
        (b'{"method":"m","params":{},"jsonrpc":"2.0","id":7}', None),
        (b'{"result":{"x":{"a":1,"id":7}}}', None),
        (b'{"result":{"x":"a\\",\\"id\\":7}"', None),
        (b"garbage", None),
    ],
)
def test_the_id_of_an_unreadable_answer_is_told_from_answers_alone(line: bytes, expected: int | None) -> None:
    assert answered_id(line, line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"message":"a\\ud800b"}}', 7),
        (b'{"method":"m","params":3,"id":"q1"}', "q1"),
        (b'{"jsonrpc":"2.0","id":7,"result":{"x":"\\ud800"}}', None),
        (b'{"method":"m","params":{}}', None),
        (b'{"method":"m","id":true}', None),
        (b'{"method":"m","id":"\\ud800"}', None),
        (b'{"method":"m","id":"' + b"x" * 200 + b'"}', None),
        (b'{"method":"m","id":7,"params":{"x":"' + b"x" * 300_000 + b'"}}', None),
        (b'{"method":"m","id":7,"params":' + b"[" * 100_000, None),
        (b'["method"]', None),
        (b"garbage", None),
    ],
)
def test_the_id_of_a_broken_request_is_told_from_requests_alone(
    line: bytes, expected: int | str | None
) -> None:
    assert asked_id(line) == expected

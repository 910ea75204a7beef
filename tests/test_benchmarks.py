"""What the benchmarks count, and what they write. How fast anything is, no test asks."""

import sys
from pathlib import Path

import pytest

from benchmarks.answers import Answers, text_of
from benchmarks.calls import Cell
from benchmarks.connections import Endpoint, LoadError
from benchmarks.load import Load
from benchmarks.report import Section, Table
from benchmarks.support import UNBOUND, gateway
from benchmarks.targets import Backend, Running

ECHO_SERVER = Path(__file__).parent.parent / "benchmarks" / "echo_server.py"

ODD_SERVER = """
import json
import sys

manner, held = sys.argv[1], []


def say(number, result):
    print(json.dumps({"jsonrpc": "2.0", "id": number, "result": result}), flush=True)


for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "initialize":
        say(message["id"], {})
    elif "id" in message:
        held.append((message["id"], message["params"]["arguments"]["text"]))
        if manner == "crosses" and len(held) == 2:
            (one, first), (other, second), held = *held, []
            say(one, {"content": [{"type": "text", "text": second}]})
            say(other, {"content": [{"type": "text", "text": first}]})
        if manner == "repeats":
            for _ in range(2):
                say(held[0][0], {"content": [{"type": "text", "text": held[0][1]}]})
            held = []
        if manner == "ends":
            sys.exit(1)
"""


def honest() -> Endpoint:
    return Endpoint("pipes", command=(sys.executable, str(ECHO_SERVER)))


def odd(folder: Path, manner: str) -> Endpoint:
    """A server that answers in an odd manner."""
    path = folder / "odd_server.py"
    path.write_text(ODD_SERVER, encoding="utf-8")
    return Endpoint("pipes", command=(sys.executable, str(path), manner))


@pytest.mark.parametrize("kind", ["pipes", "sdk"])
def test_right_answers_are_counted_with_their_latencies(kind: str) -> None:
    endpoint = Endpoint("sdk" if kind == "sdk" else "pipes", command=honest().command)
    with Load(endpoint, in_flight=4) as load:
        outcome = load.run(0.1)
    assert len(outcome.latencies) >= 4
    assert (outcome.wrong, outcome.lost, outcome.sample) == (0, 0, None)
    assert 0 < outcome.percentile(50) <= outcome.percentile(99)


def test_crossed_answers_are_wrong_though_their_ids_are_right(tmp_path: Path) -> None:
    with Load(odd(tmp_path, "crosses"), in_flight=2) as load:
        outcome = load.run(0.1)
    assert outcome.wrong >= 2
    assert not outcome.latencies
    assert outcome.sample is not None


def test_an_answer_that_comes_twice_is_wrong_the_second_time(tmp_path: Path) -> None:
    with Load(odd(tmp_path, "repeats"), in_flight=1) as load:
        outcome = load.run(0.1)
        later = load.run(0)
    assert outcome.wrong + later.wrong >= len(outcome.latencies) > 0


def test_a_call_without_an_answer_is_lost(tmp_path: Path) -> None:
    with Load(odd(tmp_path, "is silent"), in_flight=3, late=0.1) as load:
        outcome = load.run(0)
    assert (outcome.lost, outcome.wrong, len(outcome.latencies)) == (3, 0, 0)


def test_a_server_that_ends_is_told_with_words(tmp_path: Path) -> None:
    with Load(odd(tmp_path, "ends"), in_flight=1) as load, pytest.raises(LoadError, match="was closed"):
        load.run(0.1)


def test_a_wrong_answer_stands_in_the_cell_of_its_target(tmp_path: Path) -> None:
    backend = Backend(tmp_path)
    crossed = Cell("crosses", Running(odd(tmp_path, "crosses"), backend), 2, 1)
    right = Cell("honest", Running(honest(), backend), 2, 1)
    for cell in (crossed, right):
        cell.measure(0.1)
    assert crossed.wrong > 0
    assert crossed.fault == "no right answer"
    assert (right.wrong, right.fault, len(right.rounds)) == (0, "", 1)


def test_an_answer_on_the_connection_of_another_is_wrong() -> None:
    own, others = Answers(), Answers()
    own.open[7] = 1
    message = b'{"id": 7, "result": {"content": [{"type": "text", "text": "%b"}]}}' % text_of(7)
    assert others.settle(message) == (None, False)
    assert own.settle(message) == (1, True)
    assert (own.wrong, others.wrong) == (0, 1)


@pytest.mark.parametrize(
    "message",
    [
        b'{"id": "7", "type": "error", "data": {"error": "no \\"%b\\"", "x": "%b"}}',
        b'{"id": 7, "result": {"isError": true, "content": [{"text": "%b"}, {"text": "%b"}]}}',
    ],
)
def test_an_error_is_wrong_though_it_repeats_the_text(message: bytes) -> None:
    answers = Answers()
    answers.open[7] = 1
    assert answers.settle(message % (text_of(7), text_of(7))) == (1, False)
    assert answers.wrong == 1


def test_without_ids_the_text_of_another_call_is_wrong() -> None:
    answers = Answers(with_ids=False)
    answers.open[7] = 1
    assert answers.settle(b'"%b"' % text_of(8)) == (1, False)
    answers.open[9] = 2
    assert answers.settle(b'"%b"' % text_of(9)) == (2, True)


def test_calls_through_the_gateway_are_answered_rightly_on_one_socket_and_on_many() -> None:
    limits = ("calls.rate", "calls.burst", "websocket.frames_rate", "websocket.frames_burst")
    with gateway(dict.fromkeys(limits, UNBOUND), {"echo": honest().command}) as server:
        headers = tuple(
            {"Authorization": f"Bearer {server.token(f'user-{n}', 'tools:call')}"} for n in range(4)
        )
        endpoint = Endpoint("gateway", server.port, server.path, headers)
        for connections in (1, 4):
            with Load(endpoint, in_flight=4, connections=connections) as load:
                outcome = load.run(0.2)
            assert len(outcome.latencies) >= 4, outcome
            assert (outcome.wrong, outcome.lost) == (0, 0), outcome


def test_a_section_takes_the_place_of_the_one_before_it_and_of_no_other(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    for key, number in (("calls", "1"), ("idle", "2"), ("calls", "3")):
        section = Section(key, key.title(), tables=[Table(["target", "calls/s"], [["mcpgw", number]])])
        section.leave_out("a target:\n it does not start")
        section.write(page)
    text = page.read_text(encoding="utf-8")
    assert text.count("## Calls") == text.count("## Idle") == 1
    assert "| mcpgw  |       3 |" in text
    assert "|       1 |" not in text
    assert "|       2 |" in text
    assert "- a target: it does not start\n" in text

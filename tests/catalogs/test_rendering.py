"""Whose words can be references: the admin's alone."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mcpgw.catalogs.model import Argument, Input, Option, Slot
from mcpgw.catalogs.rendering import make_table
from mcpgw.references import References, UnresolvedReferenceError

ENVIRONMENT = {"HOME": "/home/ann", "A": "hush"}
PIECES = st.text(alphabet="${}AHOME:-file/", max_size=8)


def resolved(text: str) -> str:
    """`text` as a starting server gets it."""
    return References(ENVIRONMENT, Path("/")).replace(text)


def option(before: str, after: str, default: str | None = None) -> Option:
    """An option with one argument: text, a blank, text."""
    parts = tuple(part for part in (before, Slot("x"), after) if part != "")
    return Option(
        "o", "stdio", command=("c",), arguments=(Argument((parts,)),), inputs=(Input("x", default=default),)
    )


@given(before=PIECES, default=PIECES.filter(bool), after=PIECES)
def test_nothing_of_a_publisher_s_is_ever_replaced(before: str, default: str, after: str) -> None:
    (word,) = make_table(option(before, after, default), {})["args"]
    assert resolved(word) == before + default + after


@given(before=PIECES, value=st.text(alphabet="ab{}:/", min_size=1, max_size=8), after=PIECES)
def test_a_value_beside_a_publisher_s_words_makes_no_reference_of_them(
    before: str, value: str, after: str
) -> None:
    (word,) = make_table(option(before, after), {"x": value})["args"]
    assert resolved(word) == before + value + after


def test_a_value_may_be_a_reference() -> None:
    (word,) = make_table(option("--key=", "!"), {"x": "${A}"})["args"]
    assert (word, resolved(word)) == ("--key=${A}!", "--key=hush!")


@given(value=PIECES.filter(bool))
def test_a_value_alone_stays_as_it_was_written(value: str) -> None:
    (word,) = make_table(option("", ""), {"x": value})["args"]
    assert word == value


def test_a_value_that_ends_in_a_dollar_opens_nothing_of_the_publisher_s() -> None:
    (word,) = make_table(option("", "{HOME}"), {"x": "5$"})["args"]
    assert resolved(word) == "5${HOME}"
    try:
        resolved("5${nothing}")
    except UnresolvedReferenceError:
        return
    raise AssertionError("the test shows nothing")


def test_numbers_and_truths_become_text() -> None:
    for value, text in ((3, "3"), (True, "true"), (1.5, "1.5")):
        assert make_table(option("", ""), {"x": value})["args"] == [text]
    assert "args" not in make_table(option("a", ""), {"x": ""})

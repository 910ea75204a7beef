"""What guests may be called, what is too much alike, and how codes and quotas read."""

import pytest

from mcpgw.access.guest_names import (
    ALPHABET,
    LONGEST_NAME,
    Quota,
    display_name,
    folded,
    guest_user,
    new_code,
    plain_code,
    room_of,
)
from mcpgw.errors import ConfigError, InvalidParams


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("Ann", "Ann"),
        ("  Ann   B. ", "Ann B."),
        ("\uff21\uff4e\uff4e", "Ann"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("O'Neil-Smith_2", "O'Neil-Smith_2"),
        ("\u674e\u96f7", "\u674e\u96f7"),
        ("\u0418\u0432\u0430\u043d", "\u0418\u0432\u0430\u043d"),
        ("\u0e1e\u0e34\u0e21\u0e1e\u0e4c", "\u0e1e\u0e34\u0e21\u0e1e\u0e4c"),
        ("\u30b9\u30fc", "\u30b9\u30fc"),
    ],
)
def test_a_name_is_shown_in_one_way_however_it_was_typed(typed: str, shown: str) -> None:
    assert display_name(typed) == shown
    assert display_name(shown) == shown


@pytest.mark.parametrize(
    "typed",
    [
        "",
        " ",
        "\u3000",
        "...",
        "x" * (LONGEST_NAME + 1),
        "x" * 10_000,
        "a\nb",
        "a\tb",
        "a\x00b",
        "a\x1b[2Jb",
        "a\u202eb",
        "a\u200db",
        "a\u2066b",
        "a\ufeffb",
        "a\u00adb",
        "a\u034fb",
        "a\ufe0fb",
        "a\U000e0041b",
        "a\ud800",
        "\u3164",
        "\uffa0\uffa0",
        "a\u2028b",
        "<b>",
        "a:b",
        "a/b",
        "\U0001f600",
        "\ufdfa\ufdfa",
        "\u0430nn",
        "\u0391nn",
        "a" + "\u0301" * 5,
    ],
)
def test_a_name_that_hides_turns_or_deceives_is_refused(typed: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        display_name(typed)
    assert typed not in refused.value.message or not typed.strip()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ann", "ANN"),
        ("stra\u00dfe", "STRASSE"),
        ("Ann B", "annb"),
        ("Ann", "a.n-n_"),
        ("Bill", "B1ll"),
        ("Bob", "B0b"),
        ("\u0130da", "i\u0307da"),
        ("\u03a3ofia", "\u03c2ofia"),
    ],
)
def test_names_that_look_alike_are_one(one: str, other: str) -> None:
    assert folded(one) == folded(other)


def test_names_that_differ_are_two() -> None:
    names = ["Ann", "Anna", "Zoe", "Zo\u00eb", "Bob", "\u0418\u0432\u0430\u043d", "2", "22"]
    assert len({folded(name) for name in names}) == len(names)


def test_a_code_has_forty_bits_and_is_read_however_it_is_typed() -> None:
    assert len(ALPHABET) ** 8 == 2**40
    codes = {new_code() for _ in range(200)}
    assert len(codes) == 200
    for code in codes:
        plain = plain_code(code)
        assert plain == code.replace("-", "")
        assert set(plain) <= set(ALPHABET)
        assert plain_code(f" {code.lower().replace('-', ' ')} ") == plain
    assert plain_code("OIl0-1111") == "01101111"
    for wrong in ("", "ABCD", "ABCD-EFGHJ", "UUUU-UUUU", "ABCD-EFG\u00c9", "A" * 1000):
        assert plain_code(wrong) is None


@pytest.mark.parametrize(
    ("text", "calls", "seconds", "shown"),
    [
        ("60/min", 60, 60, "60/min"),
        ("10/s", 10, 1, "10/s"),
        ("500/h", 500, 3600, "500/h"),
        ("5/10s", 5, 10, "5/10s"),
        ("7/2minute", 7, 120, "7/2min"),
        ("1/m", 1, 60, "1/min"),
    ],
)
def test_a_quota_is_read_and_shown(text: str, calls: int, seconds: float, shown: str) -> None:
    quota = Quota.parse(text)
    assert (quota.calls, quota.seconds, str(quota)) == (calls, seconds, shown)


@pytest.mark.parametrize(
    "text", ["", "60", "60/", "0/min", "-1/s", "60/0s", "60/d", "1e3/s", "10001/s", "9" * 99]
)
def test_what_is_no_quota_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no quota"):
        Quota.parse(text)


def test_a_guest_s_user_name_tells_the_room() -> None:
    assert room_of(guest_user("demo", "Ann B.", "12ab34cd")) == "demo"
    assert room_of("ann") is None
    assert room_of(None) is None
    assert room_of("guest") is None

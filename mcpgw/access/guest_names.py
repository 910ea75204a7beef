"""What guests of a workshop are called, how a join code reads, and how a quota is written.

A guest's user name is ``guest:ROOM:NAME:ID``. No user of the store and no key can have such a name, since
there is a colon in it; and a token that has it without being a guest's own is refused. The id makes that two
guests of the same name in two rooms of the same name, one after the other, have nothing in common.
"""

import math
import re
import secrets
import unicodedata
from dataclasses import dataclass
from typing import Final

from mcpgw.errors import ConfigError, InvalidParams

GUEST: Final = "guest:"
"""How a guest's user name begins."""

LONGEST_NAME: Final = 32
"""Longest display name, in characters after NFKC."""

CODE_LENGTH: Final = 8
ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""The digits and letters of Crockford's Base32: without I, L, O and U, which are taken for others."""

MOST_CALLS: Final = 10_000
"""Most calls of a quota."""

_READ_AS: Final = str.maketrans("OIL", "011")
_QUOTA: Final = re.compile(r"([0-9]{1,6})/(?:([0-9]{1,5}) ?)?(s|sec|second|min|minute|m|h|hour)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
_PUNCTUATION: Final = frozenset(" -_.'")
_SEPARATING: Final = str.maketrans("", "", " -_.'")
_ALIKE: Final = str.maketrans({"0": "o", "1": "l", "i": "l", "\u0131": "l"})
_MOST_MARKS: Final = 3
_LOOKALIKE_SCRIPTS: Final = frozenset(
    {"ARMENIAN", "CHEROKEE", "COPTIC", "CYRILLIC", "GREEK", "LATIN", "LISU"}
)
"""Alphabets that share forms of letters (Unicode TS 39): two of them in one name are meant to deceive."""

_UNSEEN_LETTERS: Final = frozenset("\u115f\u1160\u3164\uffa0\u17b4\u17b5\u034f")
"""Letters and marks that show nothing (Unicode, Default_Ignorable_Code_Point); NFKC leaves these."""


def guest_user(room: str, name: str, guest_id: str) -> str:
    """The user name of a guest."""
    return f"{GUEST}{room}:{name}:{guest_id}"


def room_of(user: str | None) -> str | None:
    """The name of the room whose guest `user` is; None where it is no guest."""
    if user is None or not user.startswith(GUEST):
        return None
    return user.split(":", 2)[1]


def display_name(text: str) -> str:
    """The name that a guest chose, as it is shown: NFKC, without spaces at its ends or two in a row.

    Raises:
        InvalidParams: it is too long, or has signs that a name has not: those that show nothing, turn the
            direction of a line, stand for markup, or come from two alphabets that look alike.
    """
    if len(text) > 4 * LONGEST_NAME:
        _refuse(f"must have at most {LONGEST_NAME} characters")
    # Compatibility forms may be made of a space, so that spaces come after.
    name = " ".join(unicodedata.normalize("NFKC", text).split(" ")).strip()
    name = re.sub(" +", " ", name)
    if not 0 < len(name) <= LONGEST_NAME:
        _refuse(f"must have 1 to {LONGEST_NAME} characters")
    marks, has_letter, scripts = 0, False, set[str]()
    for sign in name:
        category = unicodedata.category(sign)
        marks = marks + 1 if category[0] == "M" else 0
        if sign in _UNSEEN_LETTERS or 0xFE00 <= ord(sign) <= 0xFE0F or ord(sign) >= 0xE0000:  # noqa: PLR2004
            _refuse("has a sign that nobody sees")
        if category[0] == "L":
            has_letter = True
            scripts.add(unicodedata.name(sign, "").partition(" ")[0])
        elif category == "Nd":
            has_letter = True
        elif category not in ("Mn", "Mc") and sign not in _PUNCTUATION:
            _refuse("has letters, digits, spaces and - _ . ' alone")
        if marks > _MOST_MARKS:
            _refuse("has too many marks on one letter")
    if not has_letter:
        _refuse("must have a letter or a digit")
    if len(scripts & _LOOKALIKE_SCRIPTS) > 1:
        _refuse("mixes alphabets that look alike")
    return name


def folded(name: str) -> str:
    """What two names may not have in common in one room: beside case and width, what looks much alike.

    Case folding as Unicode has it for compatibility caseless matching (chapter 3, D146); separators do not
    count, nor does the difference of 0 and o, or of 1, i and l.
    """
    once = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", name).casefold())
    twice = unicodedata.normalize("NFKC", once.casefold())
    return twice.translate(_SEPARATING).translate(_ALIKE)


def new_code() -> str:
    """A join code of 40 random bits, as people write it: ``XXXX-XXXX``."""
    signs = "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))
    half = CODE_LENGTH // 2
    return f"{signs[:half]}-{signs[half:]}"


def plain_code(text: str) -> str | None:
    """A join code as it is compared, however it was typed; None where `text` can be none."""
    if len(text) > 4 * CODE_LENGTH:
        return None
    code = "".join(text.split()).replace("-", "").upper().translate(_READ_AS)
    return code if len(code) == CODE_LENGTH and all(sign in ALPHABET for sign in code) else None


@dataclass(frozen=True, slots=True)
class Quota:
    """So many `calls` in any `seconds`."""

    calls: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Quota":
        """Read ``60/min``, ``10/s``, ``500/h`` or ``5/10s``.

        Raises:
            ConfigError: it is no quota.
        """
        match = _QUOTA.fullmatch(text.strip()) if len(text) <= _MOST_QUOTA else None
        if match is not None:
            quota = cls(int(match[1]), int(match[2] or 1) * _UNITS[match[3][0]])
            if 0 < quota.calls <= MOST_CALLS and 0 < quota.seconds <= _LONGEST_QUOTA:
                return quota
        raise ConfigError(
            [f"{text[:32]!r} is no quota: write 60/min, 10/s, 500/h or 5/10s, at most {MOST_CALLS} calls"]
        )

    def __str__(self) -> str:
        for seconds, unit in ((3600, "h"), (60, "min"), (1, "s")):
            if math.isclose(self.seconds % seconds, 0):
                count = round(self.seconds / seconds)
                return f"{self.calls}/{'' if count == 1 else count}{unit}"
        return f"{self.calls}/{self.seconds}s"


_MOST_QUOTA: Final = 32
_LONGEST_QUOTA: Final = 86_400


def _refuse(reason: str) -> None:
    raise InvalidParams(f"the name {reason}", details=[{"path": "/name", "reason": reason}])

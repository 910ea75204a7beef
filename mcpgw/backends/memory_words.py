"""Cutting text into words, for the full-text search of memories.

What is indexed and what is looked for is cut into words by the same `words_of`, so that both always agree
(SQLite's own tables of letters are older than Python's): case, accents and Unicode compatibility forms are
levelled, and each character of a script that writes no spaces between words becomes a word of its own, so
that any part of a Chinese, Japanese, Korean or Thai text is found.
"""

import re
import unicodedata
from typing import Final

QUERY_WORDS: Final = 64
"""Words of a query beyond these are not looked for."""

# Scripts without spaces between words: Thai and Lao, Myanmar, Khmer, Han, Kana, Hangul.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
_ACCENT: Final = re.compile("[\u0300-\u036f]")
# Normalizing takes quadratic time where combining marks pile up: long runs are done in pieces.
_PIECE: Final = re.compile(r"\S{1,1000}")


def _level(piece: re.Match[str]) -> str:
    return unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFKD", piece[0]).casefold()))


def words_of(text: str) -> list[str]:
    """The words of `text`; one of a script without spaces has a space behind each of its characters.

    Letters, digits, marks and private characters make words, as in FTS5's own tokenizer for Unicode.
    """
    kept = "".join(
        character if unicodedata.category(character).startswith(("L", "N", "M", "Co")) else " "
        for character in _PIECE.sub(_level, text)
    )
    return [_UNSPACED.sub(r" \g<0> ", word) for word in kept.split()]


def phrases_of(query: str) -> list[str]:
    """The words of `query` as FTS5 phrases (https://sqlite.org/fts5.html#fts5_phrases); the last a prefix.

    No character that means anything to FTS5 is part of a word.
    """
    phrases = [f'"{word}"' for word in dict.fromkeys(words_of(query))][:QUERY_WORDS]
    if phrases:
        phrases[-1] += " *"
    return phrases

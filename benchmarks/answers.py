"""Whether the answers to calls are right: every call carries a text of its own, which must come back to it.

The text begins with the number of its call, which no other call of any run is likely to have. An answer is
right where it comes on the connection of its call, bears its id, holds exactly its text, and is no error.
"""

import re
import secrets

_PADDING = b"x" * 44
_ERROR = re.compile(rb'"error"|"isError":\s*true')
_ANY_TEXT = re.compile(rb'"([0-9a-f]{16})' + _PADDING + rb'"')
_ID = re.compile(rb'"id":\s*"?(\d+)')
_LONGEST_SAMPLE = 300


def text_of(number: int) -> bytes:
    """The text of a call: 60 characters that JSON writes as they are."""
    return b"%016x" % number + _PADDING


def first_number() -> int:
    """Where the numbers of a process begin. They stay whole numbers in JavaScript."""
    return secrets.randbelow(2**48)


class Answers:
    """What is open on one connection, in nanoseconds of its begin by number; what came back wrong.

    `wrong` counts answers that are not the open call's own, are an error, or belong to no open call;
    `sample` is the first of them.
    """

    def __init__(self, *, with_ids: bool = True) -> None:
        self.open: dict[int, int] = {}
        self.wrong = 0
        self.sample: str | None = None
        self._with_ids = with_ids

    def settle(self, message: bytes) -> tuple[int | None, bool]:
        """When the call that `message` answers was begun (None: no call is open by that id), and whether
        the answer is right."""
        found = _ID.search(message) if self._with_ids else _ANY_TEXT.search(message)
        number = None if found is None else int(found[1], 10 if self._with_ids else 16)
        begun = None if number is None else self.open.pop(number, None)
        if begun is None and not self._with_ids and len(self.open) == 1:
            _, begun = self.open.popitem()  # the one call of this connection, with another's text or none
            number = None
        right = (
            begun is not None
            and number is not None
            and b'"%b"' % text_of(number) in message
            and _ERROR.search(message) is None
        )
        if not right:
            self.wrong += 1
            self.sample = self.sample or message[:_LONGEST_SAMPLE].decode(errors="replace")
        return begun, right

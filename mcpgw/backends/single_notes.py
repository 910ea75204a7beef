"""What workers say to each other about a server that runs in one of them alone.

Kinds of notes, with what they hold. From a worker to the owner of a server:

``want``       the server's name: tell its state
``wake``       its name: start it where nobody has used it yet
``begin``      name, run of the owner, number, what is asked (`Asked`), user, connection, data, trace
``cancel``     the number of what has begun
``answer``     number, question, action, content: the answer to what the server has asked for
``watched``    name, user, connection, URI: this is watched, as it was before the owner was started again
``unwatch``    the same: it is watched no more
``left``       connection: it is gone

From the owner:

``state``      name, run, `Snapshot` or null, tools or null, event or null: what is null is as before
``heard``      number, method of `Observer`, its arguments
``ask``        number, question, kind, message, params, key: the server asks for input
``withdrawn``  number, question
``end``        number, ``result`` and it, ``fault`` and its data, or ``refused``: it was not begun
"""

from typing import Any, Final, Literal

import msgspec

from mcpgw.backends.status import BackendStatus, Offer

TOPIC: Final = "single"
ACT: Final = "single act"
"""The question by which an operator's word goes to the owner: the name of a server, and an `Act`."""
ACT_SECONDS: Final = 60.0

Asked = Literal["call", "request", "list", "watch", "known"]
Act = Literal["start", "stop", "restart"]


class Snapshot(msgspec.Struct, array_like=True):
    """A server as its owner sees it; `why` is the error of a call that comes now, where none goes through."""

    status: BackendStatus
    is_open: bool
    is_held: bool
    why: dict[str, Any] | None
    offer: Offer | None

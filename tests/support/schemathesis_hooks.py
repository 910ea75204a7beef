"""What schemathesis leaves out: an end after a tenth of a second, which says more of the machine."""

from typing import Any

import schemathesis

_LEAST_MS, _ENOUGH_MS = 100, 10_000


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Give calls of tools enough time, where a request gives them any that is allowed."""
    given = case.body.get("timeoutMs") if isinstance(case.body, dict) else None
    if isinstance(given, int) and _LEAST_MS <= given < _ENOUGH_MS:
        case.body["timeoutMs"] = _ENOUGH_MS

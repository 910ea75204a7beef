"""Requests with JSON, for tests without an event loop."""

import json
import urllib.error
import urllib.request
from typing import Any


def ask(url: str, path: str, body: object = None, *, token: str = "", method: str = "") -> Any:
    """One request; answers the JSON, or None where there is none.

    Raises:
        AssertionError: the answer is an error.
    """
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    raw = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, raw, headers, method=method or None)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from None
    return json.loads(content) if content else None

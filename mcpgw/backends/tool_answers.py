"""The shape of a tool's answer, checked quickly where it is plain, and by the SDK where it is not.

Source: MCP, ``CallToolResult`` of each revision.
"""

from typing import Any, Final

from mcp_types.methods import validate_server_result

_METHOD: Final = "tools/call"
LATER_MEMBERS: Final = ("inputRequests", "requestState", "resultType")
"""Members that 2026-07-28 has brought; the SDK's session drops them from answers of earlier revisions."""
_CACHE_HINTS: Final = ("ttlMs", "cacheScope")
"""Members that results of other methods have, and some servers give to all; no answer is refused for them."""
_ABSENT: Final = object()


def checked(raw: dict[str, Any], version: str, *, is_modern: bool) -> dict[str, Any]:
    """A result as the SDK's session would give it.

    Raises:
        pydantic.ValidationError: it is not as the protocol has it in that version.
    """
    if _is_plain(raw, is_modern=is_modern):
        return raw
    validate_server_result(_METHOD, version, raw)
    if is_modern or not any(name in raw for name in LATER_MEMBERS):
        return raw
    return {name: value for name, value in raw.items() if name not in LATER_MEMBERS}


def _is_plain(raw: dict[str, Any], *, is_modern: bool) -> bool:
    """Whether it surely is right: blocks of text with nothing beside, and the members that all know."""
    content = raw.get("content")
    if type(content) is not list:
        return False
    for block in content:
        if type(block) is not dict or len(block) != 2 or block.get("type") != "text":  # noqa: PLR2004
            return False
        if type(block.get("text")) is not str:
            return False
    known = 1
    if (is_error := raw.get("isError", _ABSENT)) is not _ABSENT:
        if type(is_error) is not bool:
            return False
        known += 1
    if (structured := raw.get("structuredContent", _ABSENT)) is not _ABSENT:
        if type(structured) is not dict:
            return False
        known += 1
    if (meta := raw.get("_meta", _ABSENT)) is not _ABSENT:
        if type(meta) is not dict or (is_modern and meta):  # the SDK has an opinion on some of its members
            return False
        known += 1
    if is_modern:
        if raw.get("resultType") != "complete":
            return False
        known += 1 + sum(name in raw for name in _CACHE_HINTS)
    return known == len(raw)

"""Requests at /mcp, held to the credential that began them from the first moment on."""

import pytest

from mcpgw.access.authority import Authority, Known, KnownUser
from mcpgw.access.tokens import Tokens
from mcpgw.aggregate.open_requests import OpenRequests
from mcpgw.errors import PermissionDenied
from mcpgw.roles import BUILT_IN

TOKENS = Tokens(algorithm="HS256", key="a key of at least thirty-two bytes, for tests alone")


@pytest.mark.gen_test
async def test_a_request_whose_credentials_were_revoked_on_its_way_in_is_never_sent() -> None:
    authority, requests, sent = Authority(TOKENS, lambda: BUILT_IN), OpenRequests(), list[str]()
    authority.learn(Known({"ann": KnownUser("operator", disabled=False)}))
    requests.review(authority.review)
    principal = authority.verify(TOKENS.issue(user="ann", scopes=["tools:call"], ttl=60))

    async def send(word: str) -> str:
        sent.append(word)
        return word

    assert await requests.run(send("first"), principal, "one", "echo") == "first"
    authority.learn(Known({"ann": KnownUser("operator", disabled=True)}))
    requests.review(authority.review)
    with pytest.raises(PermissionDenied, match="hold no more"):
        await requests.run(send("second"), principal, "one", "echo")
    assert (sent, len(requests)) == (["first"], 0)

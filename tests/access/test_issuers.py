"""Tokens of others, held against the keys that a real provider publishes."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK

from mcpgw.access import issuers as issuers_module
from mcpgw.access.authority import Authority, Known, KnownUser
from mcpgw.access.issuers import Issuer, IssuerFault, Issuers
from mcpgw.access.permissions import decide_call
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.errors import AuthFailed, TokenExpired
from mcpgw.issuer_settings import IssuerSettings
from mcpgw.roles import BUILT_IN
from mcpgw.settings import AuthSettings
from tests.support.openid_provider import OpenIdProvider
from tests.support.waiting import until

RESOURCE = "https://gateway.example.org/mcp"
OWN = Tokens(algorithm="HS256", key="a key of at least thirty-two bytes, for tests alone")
JWKS = "/jwks"


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as started:
        yield started


def company(provider: OpenIdProvider, **changes: Any) -> IssuerSettings:
    """Settings that trust `provider`."""
    settings: dict[str, Any] = {
        "name": "company",
        "issuer": provider.url,
        "scopes": {"tools:call": frozenset({"tools:call"}), "reports": frozenset({"tools:call:reports"})},
        "role_claim": "groups",
        "roles": {"platform": "admin", "staff": "operator"},
        "client_id": "gateway",
    }
    return IssuerSettings(**{**settings, **changes})


def trusting(*issuers: IssuerSettings, **auth: Any) -> Issuers:
    """The issuers of a configuration that has these."""
    by_name = {settings.name: settings for settings in issuers}
    return Issuers(lambda: by_name, AuthSettings(**auth), public_url=lambda: RESOURCE.removesuffix("/mcp"))


def only(issuers: Issuers) -> Issuer:
    (issuer,) = issuers
    return issuer


def claims(provider: OpenIdProvider, **changes: Any) -> dict[str, Any]:
    """Those of an access token that holds; None takes one away."""
    now = int(time.time())
    good = {
        "iss": provider.url,
        "aud": RESOURCE,
        "sub": "subject-of-ann",
        "iat": now,
        "exp": now + 300,
        "client_id": "someone",
        "scope": "tools:call",
        "jti": "token-1",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def id_claims(provider: OpenIdProvider, **changes: Any) -> dict[str, Any]:
    """Those of an id token that holds."""
    return claims(provider, **{"aud": "gateway", "nonce": "n-1", "scope": None, "jti": None, **changes})


def at(seconds: float) -> int:
    return int(time.time() + seconds)


def unsigned(header: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
    parts = (json.dumps(part).encode() for part in (header, payload))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def published(provider: OpenIdProvider) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = httpx2.get(provider.url + JWKS).json()["keys"]
    return keys


@pytest.mark.gen_test(timeout=20)
async def test_an_access_token_speaks_for_a_subject_of_its_issuer_and_of_nobody_else(
    provider: OpenIdProvider,
) -> None:
    issuer = only(trusting(company(provider)))
    for algorithm in ("RS256", "ES256"):
        for kind in ("at+jwt", "JWT", None):
            token = provider.mint(claims(provider), algorithm=algorithm, type=kind)
            await issuer.key_for(token)
            principal = issuer.verify_access_token(token)
            assert (principal.user, principal.token_id) == ("company:subject-of-ann", "token-1")
            assert principal.scopes == frozenset()  # what its words are worth is said elsewhere
    assert provider.url not in repr(issuer)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "for another audience": ({"aud": "https://other.example.org/mcp"}, {}, "'aud'"),
    "for an audience that begins alike": ({"aud": RESOURCE + "x"}, {}, "'aud'"),
    "for what is behind a server": ({"aud": RESOURCE + "/memory/x"}, {}, "'aud'"),
    "for nobody": ({"aud": None}, {}, "'aud'"),
    "for what is no text": ({"aud": [1]}, {}, "'aud'"),
    "of another issuer": ({"iss": "https://other.example.org"}, {}, "'iss'"),
    "of an issuer with a slash more": ({"iss": "SLASH"}, {}, "'iss'"),
    "without a subject": ({"sub": None}, {}, "'sub'"),
    "of an unseen subject": ({"sub": "ann\u200b"}, {}, "'sub'"),
    "of a long subject": ({"sub": "a" * 250}, {}, "'sub'"),
    "without an end": ({"exp": None}, {}, "'exp'"),
    "with an end that is no time": ({"exp": "tomorrow"}, {}, "'exp'"),
    "not valid yet": ({"nbf": at(600)}, {}, "not valid yet"),
    "issued in the future": ({"iat": at(600)}, {}, "in the future"),
    "that is an id token": ({"nonce": "n-1"}, {}, "id token"),
    "that is an id token by its hash": ({"at_hash": "x"}, {}, "id token"),
    "that is a logout token": ({"events": {}}, {}, "id token"),
    "that is a refresh token": ({"typ": "Refresh"}, {}, "no access token"),
    "of another kind": ({}, {"type": "logout+jwt"}, "'typ'"),
    "bound to a key of its holder": ({"cnf": {"jkt": "x"}}, {}, "'cnf'"),
    "of another key under the same id": ({}, {"key": "foreign"}, "signature"),
    "without a signature": ({}, {"algorithm": "none"}, "not signed with one of"),
    "with a key id that is a path": ({}, {"header": {"kid": "../../etc/passwd"}}, "published no key"),
    "with a key id that is SQL": ({}, {"header": {"kid": "' OR 1=1 --"}}, "published no key"),
    "with a key id that is no text": ({}, {"header": {"kid": 7}}, "published no key"),
    "with an extension": ({}, {"header": {"crit": ["exp"]}}, "not a JSON Web Token"),
    "signed with the key of another algorithm": ({}, {"header": {"alg": "ES256"}}, "published no key"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.gen_test(timeout=20)
async def test_a_token_does_not_hold(provider: OpenIdProvider, name: str) -> None:
    changes, how, reason = WRONG[name]
    if changes.get("iss") == "SLASH":
        changes = {"iss": provider.url + "/"}
    issuer = only(trusting(company(provider)))
    await issuer.refresh()
    token = provider.mint(claims(provider, **changes), **how)
    with pytest.raises(AuthFailed) as refused:
        issuer.verify_access_token(token)
    assert reason in refused.value.message
    assert token.split(".")[1] not in refused.value.message


@pytest.mark.gen_test(timeout=20)
async def test_a_token_that_was_good_once_has_expired_ten_seconds_after_its_end(
    provider: OpenIdProvider,
) -> None:
    issuer = only(trusting(company(provider)))
    await issuer.refresh()
    issuer.verify_access_token(provider.mint(claims(provider, exp=at(-5))))
    with pytest.raises(TokenExpired):
        issuer.verify_access_token(provider.mint(claims(provider, exp=at(-11))))


@pytest.mark.gen_test(timeout=20)
async def test_a_published_key_is_no_shared_secret(provider: OpenIdProvider) -> None:
    issuer = only(trusting(company(provider)))
    await issuer.refresh()
    for key in published(provider):
        public: Any = PyJWK(key).key
        secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        text = unsigned({"alg": "HS256", "kid": key["kid"]}, claims(provider))
        signature = base64.urlsafe_b64encode(hmac.digest(secret, text.encode(), "sha256")).rstrip(b"=")
        with pytest.raises(AuthFailed, match="not signed with one of"):
            issuer.verify_access_token(f"{text}.{signature.decode()}")


@pytest.mark.gen_test(timeout=20)
async def test_a_changed_token_does_not_hold(provider: OpenIdProvider) -> None:
    issuer = only(trusting(company(provider)))
    await issuer.refresh()
    head, _, signature = provider.mint(claims(provider)).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(provider, sub="admin")).encode()).rstrip(b"=").decode()
    with pytest.raises(AuthFailed, match="signature"):
        issuer.verify_access_token(f"{head}.{body}.{signature}")


# --- what an issuer's words are worth ----------------------------------------------------------------------


async def proved(
    provider: OpenIdProvider, settings: IssuerSettings, known: Known | None = None, **changes: Any
) -> Principal:
    """Who a token with these claims speaks for."""
    issuers = trusting(settings)
    authority = Authority(OWN, lambda: BUILT_IN, issuers=issuers)
    authority.learn(known or Known())
    await only(issuers).refresh()
    principal = authority.verify(provider.mint(claims(provider, **changes)))
    assert authority.review(principal) == principal
    return principal


@pytest.mark.gen_test(timeout=20)
async def test_scopes_and_roles_are_what_the_configuration_makes_of_them(provider: OpenIdProvider) -> None:
    both = company(provider)
    bare = company(provider, scopes={}, roles={}, role_claim="")
    roles = company(provider, scopes={})
    cases: tuple[tuple[IssuerSettings, dict[str, Any], set[str], str], ...] = (
        (both, {"scope": "tools:call admin"}, {"tools:call"}, ""),  # their `admin` is no word of ours
        (both, {"scope": ["reports"]}, {"tools:call:reports"}, ""),
        (both, {"scope": None}, set[str](), ""),
        (both, {"scope": "admin", "groups": ["guests"]}, set[str](), ""),
        (both, {"groups": ["staff", "platform"]}, {"tools:call"}, "admin"),  # bounded by the scopes
        (both, {"scope": "reports", "groups": "staff"}, {"tools:call:reports"}, "operator"),
        (both, {"scope": {"a": 1}, "groups": [7, {"staff": 1}]}, set[str](), ""),
        (bare, {"scope": "tools:call admin", "groups": ["platform"]}, set[str](), ""),
        (roles, {"groups": ["staff"]}, set(BUILT_IN["operator"].scopes), "operator"),
        (roles, {"groups": ["guests"]}, set[str](), ""),
        (company(provider, scopes={}, default_role="viewer"), {}, set(BUILT_IN["viewer"].scopes), "viewer"),
    )
    for settings, given, scopes, role in cases:
        principal = await proved(provider, settings, **given)
        assert (set(principal.scopes), principal.role) == (scopes, role), given


@pytest.mark.gen_test(timeout=20)
async def test_a_claim_inside_of_others_is_named_by_the_way_to_it(provider: OpenIdProvider) -> None:
    settings = company(provider, scopes={}, role_claim="realm_access.roles")
    inside = await proved(provider, settings, realm_access={"roles": ["staff"]})
    assert inside.role == "operator"
    as_a_whole: dict[str, Any] = {"realm_access.roles": ["platform"], "realm_access": {}}
    whole = await proved(provider, settings, **as_a_whole)
    assert whole.role == "admin"
    assert (await proved(provider, settings, realm_access=["staff"])).role == ""


@pytest.mark.gen_test(timeout=20)
async def test_a_token_for_one_server_is_good_for_that_one_alone(provider: OpenIdProvider) -> None:
    principal = await proved(provider, company(provider), aud=f"{RESOURCE}/memory", groups=["platform"])
    assert principal.scopes == {"tools:call:memory"}
    assert decide_call(principal, "memory", "memory_list").is_allowed
    assert not decide_call(principal, "reports", "read").is_allowed
    named = await proved(
        provider, company(provider), aud=["x", f"{RESOURCE}/reports"], scope="reports tools:call"
    )
    assert named.scopes == {"tools:call:reports"}


@pytest.mark.gen_test(timeout=20)
async def test_a_subject_is_a_user_only_by_its_link_and_never_by_a_name(provider: OpenIdProvider) -> None:
    users = {"ann": KnownUser("viewer", False), "subject-of-ann": KnownUser("admin", False)}
    settings = company(provider, scopes={})
    stranger = await proved(provider, settings, Known(users), groups=["staff"], preferred_username="ann")
    assert (stranger.user, stranger.role) == ("company:subject-of-ann", "operator")
    link = {(provider.url, "subject-of-ann"): "ann"}
    linked = await proved(provider, settings, Known(users, identities=link), groups=["platform"])
    assert (linked.user, linked.role) == ("ann", "viewer")  # the role that the user has here
    other = {("https://other.example.org", "subject-of-ann"): "ann"}
    assert (await proved(provider, settings, Known(users, identities=other))).user != "ann"
    disabled = {"ann": KnownUser("viewer", True)}
    with pytest.raises(AuthFailed, match="disabled"):
        await proved(provider, settings, Known(disabled, identities=link), groups=["staff"])


@pytest.mark.gen_test(timeout=20)
async def test_what_changes_of_an_issuer_is_held_against_those_who_are_in(provider: OpenIdProvider) -> None:
    present = {"company": company(provider)}
    issuers = Issuers(lambda: present, AuthSettings(), public_url=lambda: RESOURCE.removesuffix("/mcp"))
    authority = Authority(OWN, lambda: BUILT_IN, issuers=issuers)
    await only(issuers).refresh()
    principal = authority.verify(provider.mint(claims(provider)))
    assert principal.scopes == {"tools:call"}
    present = {"company": company(provider, scopes={"tools:call": frozenset({"tools:call:memory"})})}
    assert authority.review(principal).scopes == {"tools:call:memory"}
    authority.learn(
        Known({"ann": KnownUser("viewer", False)}, identities={(provider.url, "subject-of-ann"): "ann"})
    )
    with pytest.raises(AuthFailed, match="another user's by now"):
        authority.review(principal)
    authority.learn(Known())
    for gone in ({}, {"company": company(provider, issuer="https://other.example.org")}):
        present = gone
        with pytest.raises(AuthFailed, match="not taken any more"):
            authority.review(principal)


@pytest.mark.gen_test(timeout=20)
async def test_a_token_of_the_gateway_s_own_cannot_name_somebody_of_another_issuer(
    provider: OpenIdProvider,
) -> None:
    authority = Authority(OWN, lambda: BUILT_IN, issuers=trusting(company(provider)))
    assert authority.verify(OWN.issue(user="other:ann", scopes=[], ttl=60)).user == "other:ann"
    with pytest.raises(AuthFailed, match="one of another issuer's"):
        authority.verify(OWN.issue(user="company:subject-of-ann", scopes=["admin"], ttl=60))


@pytest.mark.gen_test(timeout=20)
async def test_each_issuer_s_tokens_are_held_against_its_own_keys_and_algorithms(
    provider: OpenIdProvider,
) -> None:
    with OpenIdProvider() as other:
        one, two = company(provider, algorithms=("ES256",)), company(other, name="other")
        issuers = trusting(one, two)
        authority = Authority(OWN, lambda: BUILT_IN, issuers=issuers)
        for issuer in issuers:
            await issuer.refresh()
        assert authority.verify(other.mint(claims(other))).user == "other:subject-of-ann"
        mine = provider.mint(claims(provider), algorithm="ES256")
        assert authority.verify(mine).user == "company:subject-of-ann"
        for token in (
            provider.mint(claims(provider)),  # RS256, which the first may not use
            other.mint(claims(provider), algorithm="ES256"),  # says that it is the first's
            provider.mint(claims(other)),  # says that it is the other's
        ):
            with pytest.raises(AuthFailed):
                authority.verify(token)


# --- keys --------------------------------------------------------------------------------------------------


async def fetched(authority: Authority, token: str) -> None:
    """Wait for the key that is not known yet."""
    wait = authority.fetching_keys(token)
    assert wait is not None
    await wait


@pytest.mark.gen_test(timeout=20)
async def test_a_key_that_is_published_while_keys_are_fetched_is_not_missed(provider: OpenIdProvider) -> None:
    authority = Authority(OWN, lambda: BUILT_IN, issuers=trusting(company(provider)))
    old = published(provider)
    first, before = provider.mint(claims(provider)), provider.count(JWKS)
    with provider.answering(JWKS, body={"keys": old}, delayMs=300):
        waiting = asyncio.create_task(fetched(authority, first))
        async with asyncio.timeout(10):
            while provider.count(JWKS) == before:
                await asyncio.sleep(0.01)
        provider.rotate()
    new = provider.mint(claims(provider))
    await fetched(authority, new)
    assert authority.verify(new).user == "company:subject-of-ann"
    await waiting


@pytest.mark.gen_test(timeout=20)
async def test_a_rotation_costs_one_fetch_and_the_first_token_of_the_new_key_holds(
    provider: OpenIdProvider,
) -> None:
    issuers = trusting(company(provider))
    authority = Authority(OWN, lambda: BUILT_IN, issuers=issuers)
    old = provider.mint(claims(provider))
    await fetched(authority, old)
    assert authority.fetching_keys(old) is None
    provider.rotate()
    new, before = provider.mint(claims(provider)), provider.count(JWKS)

    async def come() -> str:
        await fetched(authority, new)
        return authority.verify(new).user

    assert set(await asyncio.gather(*(come() for _ in range(50)))) == {"company:subject-of-ann"}
    assert provider.count(JWKS) == before + 1
    with pytest.raises(AuthFailed, match="published no key"):
        authority.verify(old)


@pytest.mark.gen_test(timeout=20)
async def test_a_flood_of_unknown_keys_is_no_flood_of_fetches(provider: OpenIdProvider) -> None:
    issuers = trusting(company(provider), keys_wait=3600.0)
    before = provider.count(JWKS)
    good = provider.mint(claims(provider))
    for number in range(40):
        token = provider.mint(claims(provider), header={"kid": f"key-{number}"})
        wait = issuers.fetching_keys(token)
        if wait is not None:
            await wait
    assert provider.count(JWKS) - before == 5
    assert issuers.fetching_keys(good) is None  # what they fetched is there for everybody
    assert only(issuers).verify_access_token(good)


@pytest.mark.gen_test(timeout=20)
async def test_nothing_is_fetched_for_a_token_that_does_not_hold_in_any_case(
    provider: OpenIdProvider,
) -> None:
    issuers = trusting(company(provider))
    now = provider.mint(claims(provider))
    for token in (
        "",
        "mcpgw_key",
        "a.b.c",
        "a" * 9000,
        OWN.issue(user="ann", scopes=[], ttl=60),
        provider.mint(claims(provider, iss="https://other.example.org")),
        provider.mint(claims(provider), algorithm="none"),
        f"{unsigned({'alg': 'HS256', 'kid': 'x'}, claims(provider))}.x",
        now + "é",
        "[" * 3000 + "." + "[" * 3000 + ".x",
    ):
        assert issuers.fetching_keys(token) is None, token[:40]
    wait = issuers.fetching_keys(now)
    assert wait is not None
    await wait


@pytest.mark.parametrize(
    ("path", "how", "reason"),
    [
        (JWKS, {"status": 500}, "answered 500"),
        (JWKS, {"status": 302, "headers": {"Location": "/.well-known/openid-configuration"}}, "answered 302"),
        (JWKS, {"size": 600_000}, "larger than"),
        (JWKS, {"size": 10}, "no JSON"),
        (JWKS, {"body": {"keys": [{}] * 101}}, "no list of at most"),
        (JWKS, {"body": {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "x"}]}}, "keys cannot be used"),
        (JWKS, {"delayMs": 700}, "within 0.5 seconds"),
        ("/.well-known/openid-configuration", {"body": {"issuer": "https://other.example.org"}}, "another"),
        ("/.well-known/openid-configuration", {"body": [1]}, "no JSON object"),
    ],
)
@pytest.mark.gen_test(timeout=20)
async def test_an_issuer_that_answers_wrongly_is_at_fault_and_what_was_known_holds(
    provider: OpenIdProvider, path: str, how: dict[str, Any], reason: str
) -> None:
    issuer = only(trusting(company(provider), fetch_timeout=0.5 if "delayMs" in how else 5.0))
    await issuer.refresh()
    with provider.answering(path, **how), pytest.raises(IssuerFault) as fault:
        await issuer.refresh()
    assert reason in fault.value.reason
    assert issuer.verify_access_token(provider.mint(claims(provider)))


@pytest.mark.gen_test(timeout=20)
async def test_an_issuer_whose_answer_drips_is_at_fault_in_time_and_holds_no_thread() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        with suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()
        ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_server(drip, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        settings = IssuerSettings("slow", f"http://127.0.0.1:{port}", scopes={"x": frozenset({"tools:call"})})
        issuer = only(trusting(settings, fetch_timeout=0.3))
        with pytest.raises(IssuerFault, match=r"within 0\.3 seconds"):
            await issuer.refresh()
        await until(lambda: not [one for one in threading.enumerate() if one.name == "issuer"])
        async with asyncio.timeout(5):
            await ended.wait()


@pytest.mark.gen_test(timeout=20)
async def test_whatever_holds_a_fetch_up_is_a_fault_in_time_and_no_second_one_begins_behind_it(
    provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slowly(name: str, timeout: float) -> object:
        begun.append(name)
        go_on.wait(10)  # as a resolver of names does that answers nothing
        return read(name, timeout)

    begun: list[str] = []
    read = issuers_module._read
    monkeypatch.setattr(issuers_module, "_read", slowly)
    issuers = trusting(company(provider), fetch_timeout=0.4, keys_wait=1.0)
    issuer = only(issuers)
    keeping = asyncio.create_task(issuers.keep_fresh())
    with pytest.raises(IssuerFault, match="in time"):
        await issuer.refresh()
    with pytest.raises(IssuerFault, match="in time"):
        await issuer.refresh()
    assert len(begun) == 1
    assert not keeping.done()
    go_on.set()
    token = provider.mint(claims(provider))
    async with asyncio.timeout(5):
        while issuer.needs_keys(token):
            await asyncio.sleep(0.02)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize("endpoint", ["jwks_uri", "token_endpoint", "authorization_endpoint"])
@pytest.mark.gen_test(timeout=20)
async def test_an_endpoint_that_is_not_fit_is_not_asked(provider: OpenIdProvider, endpoint: str) -> None:
    document = httpx2.get(f"{provider.url}/.well-known/openid-configuration").json()
    issuer = only(trusting(company(provider)))
    for url in ("http://other.example.org/x", "file:///etc/passwd", "https://a:b@c.example.org/", "x", 7):
        body = {**document, endpoint: url}
        with (
            provider.answering("/.well-known/openid-configuration", body=body),
            pytest.raises(IssuerFault, match=f"its {endpoint} is no https"),
        ):
            await issuer.refresh()


@pytest.mark.parametrize(
    "entry",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": ["ES256"]},
        {"kid": ["x"]},
        {"kid": {}},
        {"kty": ["EC"]},
        {"crv": []},
        {"x": 7},
    ],
    ids=json.dumps,
)
@pytest.mark.gen_test(timeout=20)
async def test_an_odd_entry_among_the_keys_is_passed_over(
    provider: OpenIdProvider, entry: dict[str, Any]
) -> None:
    document = httpx2.get(f"{provider.url}{JWKS}").json()
    elliptic = next(key for key in document["keys"] if key["kty"] == "EC")
    body = {"keys": [{**elliptic, "kid": "odd", **entry}, *document["keys"]]}
    issuer = only(trusting(company(provider)))
    with provider.answering(JWKS, body=body):
        await issuer.refresh()
    assert issuer.verify_access_token(provider.mint(claims(provider)))


@pytest.mark.gen_test(timeout=20)
async def test_a_plain_oauth_server_is_found_by_its_own_document(provider: OpenIdProvider) -> None:
    document = httpx2.get(f"{provider.url}/.well-known/openid-configuration").json()
    issuer = only(trusting(company(provider)))
    with provider.answering("/.well-known/openid-configuration", status=404):
        assert (await issuer.discover()).token_endpoint == document["token_endpoint"]
    assert provider.count("/.well-known/oauth-authorization-server") == 1


@pytest.mark.gen_test(timeout=20)
async def test_an_issuer_that_is_away_refuses_its_tokens_and_nothing_else(provider: OpenIdProvider) -> None:
    away = company(provider, name="away", issuer="http://127.0.0.1:1")
    issuers = trusting(away, company(provider))
    authority = Authority(OWN, lambda: BUILT_IN, issuers=issuers)
    token = provider.mint(claims(provider, iss="http://127.0.0.1:1"))
    await fetched(authority, token)
    with pytest.raises(AuthFailed, match="'away' has published no key"):
        authority.verify(token)
    assert authority.verify(OWN.issue(user="ann", scopes=[], ttl=60)).user == "ann"


@pytest.mark.gen_test(timeout=20)
async def test_keys_are_fetched_again_and_again_so_that_a_withdrawn_one_holds_no_more(
    provider: OpenIdProvider,
) -> None:
    issuers = trusting(company(provider), keys_interval=1.0)
    keeping = asyncio.create_task(issuers.keep_fresh())
    token = provider.mint(claims(provider))
    issuer = only(issuers)
    async with asyncio.timeout(10):
        while issuer.needs_keys(token):
            await asyncio.sleep(0.02)
        assert issuer.verify_access_token(token)
        provider.rotate()
        while not issuer.needs_keys(token):
            await asyncio.sleep(0.02)
    with pytest.raises(AuthFailed, match="published no key"):
        issuer.verify_access_token(token)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


# --- id tokens ---------------------------------------------------------------------------------------------


def half_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"azp": "gateway"}, ""),
        ({"aud": ["gateway", "other"], "azp": "gateway"}, ""),
        ({"at_hash": half_hash("the access token"), "c_hash": half_hash("the code")}, ""),
        ({"at_hash": half_hash("another")}, "'at_hash'"),
        ({"c_hash": half_hash("another")}, "'c_hash'"),
        ({"nonce": "n-2"}, "'nonce'"),
        ({"nonce": None}, "'nonce'"),
        ({"nonce": 1}, "'nonce'"),
        ({"aud": "other"}, "'aud'"),
        ({"aud": RESOURCE}, "'aud'"),
        ({"aud": ["gateway", "other"]}, "'azp'"),
        ({"azp": "other"}, "'azp'"),
        ({"iss": "https://other.example.org"}, "'iss'"),
        ({"iat": None}, "'iat'"),
        ({"iat": at(600)}, "in the future"),
        ({"exp": at(-60)}, "has expired"),
        ({"sub": None}, "'sub'"),
    ],
)
@pytest.mark.gen_test(timeout=20)
async def test_an_id_token_is_the_answer_to_one_login_or_does_not_hold(
    provider: OpenIdProvider, changes: dict[str, Any], reason: str
) -> None:
    issuer = only(trusting(company(provider)))
    token = provider.mint(id_claims(provider, **changes))
    given = {"nonce": "n-1", "access_token": "the access token", "code": "the code"}
    if not reason:
        assert (await issuer.verify_id_token(token, **given))["sub"] == "subject-of-ann"
        return
    with pytest.raises(AuthFailed) as refused:
        await issuer.verify_id_token(token, **given)
    assert reason in refused.value.message


@pytest.mark.gen_test(timeout=20)
async def test_an_access_token_is_no_id_token_and_an_empty_nonce_is_none(provider: OpenIdProvider) -> None:
    issuer = only(trusting(company(provider)))
    with pytest.raises(AuthFailed, match="'typ'"):
        await issuer.verify_id_token(provider.mint(id_claims(provider), type="at+jwt"), nonce="n-1")
    with pytest.raises(AuthFailed, match="'nonce'"):
        await issuer.verify_id_token(provider.mint(id_claims(provider, nonce="")), nonce="")

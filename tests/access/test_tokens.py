"""Tokens: what holds, what does not, and that nothing of a token comes back in a message."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpgw.access.tokens import MAXIMUM_TOKEN_SIZE, Principal, Tokens
from mcpgw.errors import AuthFailed, ConfigError, TokenExpired

SECRET = "5f" * 32
NOW = 1_800_000_000.0
PRIVATE_KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public_pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def private_pem(key: Any) -> str:
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def tokens(clock: Callable[[], float] = lambda: NOW, **changes: Any) -> Tokens:
    return Tokens(**{"algorithm": "HS256", "key": SECRET, "clock": clock, **changes})


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims; a change to None takes the claim out."""
    good = {
        "iss": "mcpgw",
        "aud": "mcpgw",
        "sub": "alice",
        "iat": NOW - 60,
        "exp": NOW + 60,
        "scope": "admin",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload: bytes | str, header: dict[str, Any] | None = None, key: str = SECRET) -> str:
    """A token signed by hand: PyJWT would refuse to make most of what is needed here."""
    payload = payload.encode() if isinstance(payload, str) else payload
    start = f"{segment(json.dumps({'alg': 'HS256', **(header or {})}).encode())}.{segment(payload)}"
    return f"{start}.{segment(hmac.digest(key.encode(), start.encode(), 'sha256'))}"


def made(**changes: Any) -> str:
    return signed(json.dumps(claims(**changes)))


def refusal(token: str, reader: Tokens | None = None) -> str:
    """The message with which `token` is refused; no part of it stands there."""
    with pytest.raises(AuthFailed) as caught:
        (reader or tokens()).verify(token)
    assert caught.value.__cause__ is None
    for part in token.split("."):
        assert len(part) < 8 or part not in str(caught.value)
    return str(caught.value)


def test_a_token_that_was_issued_here_tells_who_asks() -> None:
    reader = tokens()
    token = reader.issue(user="alice", scopes=["servers:read", "tools:call:memory"], ttl=90.5)
    principal = reader.verify(token)
    assert principal == Principal(
        user="alice",
        scopes=frozenset({"servers:read", "tools:call:memory"}),
        expires_at=NOW + 91,
        token_id=principal.token_id,
        issued_at=int(NOW),
    )
    assert len(principal.token_id) == 32
    content = jwt.decode(token, options={"verify_signature": False})
    assert set(content) == {"iss", "aud", "sub", "iat", "exp", "jti", "scope"}
    assert content["scope"] == "servers:read tools:call:memory"


def test_every_issued_token_has_an_id_of_its_own() -> None:
    reader = tokens()
    assert len({reader.verify(reader.issue(user="a", scopes=[], ttl=60)).token_id for _ in range(20)}) == 20


def test_a_tool_with_a_space_in_its_name_is_granted_by_a_list() -> None:
    reader = tokens()
    scope = "tools:call:files/read one file"
    assert reader.verify(reader.issue(user="a", scopes=[scope, "events:read"], ttl=60)).scopes == {
        scope,
        "events:read",
    }


@pytest.mark.parametrize("algorithm", PRIVATE_KEYS)
def test_a_token_of_an_issuer_with_a_key_pair_is_read_and_none_is_issued(algorithm: str) -> None:
    key = PRIVATE_KEYS[algorithm]
    reader = tokens(algorithm=algorithm, key=public_pem(key), issuer="https://login.example", audience="gate")
    content = claims(iss="https://login.example", aud=["other", "gate"])
    assert reader.verify(jwt.encode(content, key, algorithm=algorithm)).user == "alice"
    with pytest.raises(ConfigError, match=r"come from the issuer 'https://login\.example'"):
        reader.issue(user="alice", scopes=[], ttl=60)


@pytest.mark.parametrize("algorithm", PRIVATE_KEYS)
def test_a_token_signed_by_another_key_of_the_same_kind_is_refused(algorithm: str) -> None:
    other: dict[str, Callable[[], Any]] = {
        "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }
    reader = tokens(algorithm=algorithm, key=public_pem(PRIVATE_KEYS[algorithm]))
    assert "signature" in refusal(jwt.encode(claims(), other[algorithm](), algorithm=algorithm), reader)


@pytest.mark.parametrize("algorithm", PRIVATE_KEYS)
def test_the_public_key_used_as_a_shared_secret_is_refused(algorithm: str) -> None:
    pem = public_pem(PRIVATE_KEYS[algorithm])
    forged = signed(json.dumps(claims()), key=pem)
    assert f"not signed with {algorithm}" in refusal(forged, tokens(algorithm=algorithm, key=pem))


def test_an_algorithm_that_is_not_the_pinned_one_is_refused() -> None:
    content = json.dumps(claims())
    for name in ("none", "None", "", "HS512", "hs256", "RS256", None, 7, ["HS256"], {"HS256": 1}):
        assert "not signed with HS256" in refusal(signed(content, {"alg": name}))
    unsigned = ".".join([segment(b'{"alg": "none"}'), segment(content.encode()), ""])
    assert "not signed with HS256" in refusal(unsigned)
    assert "not signed with RS256" in refusal(
        unsigned, tokens(algorithm="RS256", key=public_pem(PRIVATE_KEYS["RS256"]))
    )


@pytest.mark.parametrize(
    "text", ["", " ", ".", "..", "...", "abc", "a.b.c", "ü.ü.ü", "\ud800", "\x00", "eyJ"]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    assert refusal(text)


def test_a_token_over_8_kib_is_refused_before_it_is_read() -> None:
    longest = made(padding="x" * 5000)
    token = made(padding="x" * (5000 + (MAXIMUM_TOKEN_SIZE - len(longest)) * 3 // 4))
    assert MAXIMUM_TOKEN_SIZE - 4 <= len(token) <= MAXIMUM_TOKEN_SIZE
    assert tokens().verify(token).user == "alice"
    assert "longer than 8192 bytes" in refusal(token + "xxxxx")
    started = time.perf_counter()
    assert "longer than" in refusal("x" * 50_000_000)
    assert time.perf_counter() - started < 1


def test_expiry_forgives_the_leeway_and_no_more() -> None:
    assert tokens().verify(made(exp=NOW - 9.9)).expires_at == NOW - 9.9
    for late in (10, 10.1, 3600):
        with pytest.raises(TokenExpired, match="expired"):
            tokens().verify(made(exp=NOW - late))
    with pytest.raises(TokenExpired):
        tokens(leeway=0).verify(made(exp=NOW))
    assert tokens(leeway=0).verify(made(exp=NOW + 0.5)).user == "alice"


def test_an_issued_token_ends_as_the_clock_goes_on() -> None:
    now = [NOW]
    reader = tokens(lambda: now[0])
    token = reader.issue(user="alice", scopes=[], ttl=30)
    now[0] += 39
    assert reader.verify(token).user == "alice"
    now[0] += 2
    with pytest.raises(TokenExpired):
        reader.verify(token)


def test_a_token_from_the_future_is_refused_beyond_the_leeway() -> None:
    assert tokens().verify(made(iat=NOW + 10)).user == "alice"
    assert "future" in refusal(made(iat=NOW + 10.5))
    assert tokens().verify(made(nbf=NOW + 10)).user == "alice"
    assert "not valid yet" in refusal(made(nbf=NOW + 10.5))


@pytest.mark.parametrize("claim", ["exp", "iat", "sub", "iss", "aud"])
def test_each_claim_that_is_needed_is_missed_by_name(claim: str) -> None:
    assert f"lacks the claim '{claim}'" in refusal(made(**{claim: None}))
    assert f"lacks the claim '{claim}'" in refusal(signed(json.dumps({**claims(), claim: None})))


def test_a_token_for_somebody_else_is_refused() -> None:
    for audience in ("other", "mcpgw2", "MCPGW", ["other"], 7, {"mcpgw": 1}, [7], [["mcpgw"]]):
        assert "not for 'mcpgw'" in refusal(made(aud=audience))
    for issuer in ("other", "mcpgw/", ["mcpgw"], 7):
        assert "does not come from 'mcpgw'" in refusal(made(iss=issuer))


TIMES = ["NaN", "Infinity", "-Infinity", "1e400", "1e18", "-1", "true", "false", '"1900000000"', "[]", "{}"]


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", [*TIMES, "9" * 400, "9" * 5000])
def test_a_time_that_is_no_time_is_refused(claim: str, value: str) -> None:
    content = json.dumps(claims(**{claim: "@"})).replace('"@"', value)
    assert refusal(signed(content))


@pytest.mark.parametrize(
    "user",
    ["", " ", "\t", "a\nb", "a\x00", "a\x7f", "a\u2028b", "a\u202eb", "a\ud800", "x" * 257, 7, True, ["a"]],
)
def test_a_subject_that_cannot_stand_in_a_log_or_a_list_is_refused(user: object) -> None:
    assert "'sub'" in refusal(made(sub=user))
    if isinstance(user, str):
        with pytest.raises(ConfigError, match="user of a token"):
            tokens().issue(user=user, scopes=[], ttl=60)


def test_a_subject_of_256_characters_in_any_script_is_taken() -> None:
    for user in ("ü" * 256, "auth0|5f7c", "Jürgen Müller <j@example.org>", "李雷"):
        assert tokens().verify(made(sub=user)).user == user


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        ("a b", {"a", "b"}),
        ("  a   b ", {"a", "b"}),
        ("", set()),
        ([], set()),
        (["a b", "c"], {"a b", "c"}),
        (["a", ""], {"a"}),
        ("unknown:thing admin", {"unknown:thing", "admin"}),
    ],
)
def test_scopes_are_text_with_spaces_or_a_list(scope: object, found: set[str]) -> None:
    assert tokens().verify(made(scope=scope)).scopes == found


def test_no_scope_claim_means_no_scopes() -> None:
    assert tokens().verify(made(scope=None)).scopes == frozenset()


def test_scopes_of_another_kind_or_too_many_are_refused() -> None:
    for scope in (7, True, {"admin": True}, ["admin", 7], [["admin"]]):
        assert "'scope'" in refusal(made(scope=scope))
    assert "'scope'" in refusal(signed(json.dumps({**claims(), "scope": None})))
    hundred = [f"s{number}" for number in range(100)]
    assert len(tokens().verify(made(scope=hundred)).scopes) == 100
    assert "more than 100" in refusal(made(scope=[*hundred, "one"]))


def test_a_token_without_an_id_gets_one_that_stays_the_same() -> None:
    first, second = made(), made(sub="bob")
    assert tokens().verify(first).token_id == tokens().verify(first).token_id
    assert tokens().verify(first).token_id != tokens().verify(second).token_id
    assert tokens().verify(made(jti="abc")).token_id == "abc"
    for wrong in ("", "a\nb", "x" * 257, 7, ["a"]):
        assert "'jti'" in refusal(made(jti=wrong))


@pytest.mark.parametrize(
    "payload", ["[]", '"text"', "7", "null", "{", "", "[" * 5000, '{"a":' * 1000, made()]
)
def test_a_payload_that_is_no_object_is_refused(payload: str) -> None:
    assert refusal(signed(payload))


def test_a_header_that_asks_for_more_is_refused() -> None:
    content = json.dumps(claims())
    headers: list[dict[str, Any]] = [
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": True},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"crit": "b64"},
        {"b64": False},
        {"kid": 7},
        {"kid": {"a": 1}},
    ]
    for header in headers:
        assert refusal(signed(content, header))
    assert (
        tokens().verify(signed(content, {"kid": "key-1", "typ": "at+jwt", "jku": "http://evil"})).user
        == "alice"
    )


def test_a_changed_payload_or_signature_is_refused() -> None:
    header, payload, signature = made().split(".")
    forged = segment(json.dumps(claims(sub="root")).encode())
    assert "signature" in refusal(f"{header}.{forged}.{signature}")
    assert "signature" in refusal(f"{header}.{payload}.{segment(hashlib.sha256(b'x').digest())}")
    assert "signature" in refusal(f"{header}.{payload}.")
    assert refusal(f"{header}.{payload}")
    assert refusal(f"{header}.{payload}.{signature}.{signature}")


@given(text=st.text() | st.lists(st.binary(max_size=60).map(segment), max_size=5).map(".".join))
@example("a.b.c\n")
def test_random_text_is_refused_and_nothing_else_happens(text: str) -> None:
    refusal(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
claim_names = st.sampled_from(["exp", "iat", "nbf", "sub", "iss", "aud", "jti", "scope"])


@given(
    changes=st.dictionaries(claim_names, json_values, max_size=3),
    header=st.dictionaries(
        st.sampled_from(["alg", "kid", "crit", "b64", "typ", "cty"]), json_values, max_size=2
    ),
)
def test_well_signed_nonsense_is_read_or_refused_and_nothing_else_happens(
    changes: dict[str, Any], header: dict[str, Any]
) -> None:
    token = signed(json.dumps({**claims(), **changes}), header)
    try:
        principal = tokens().verify(token)
    except AuthFailed:
        return
    assert principal.user
    assert header.get("alg", "HS256") == "HS256"
    assert "crit" not in header


SIGNED = {
    "HS256": (tokens(), made()),
    **{
        name: (tokens(algorithm=name, key=public_pem(key)), jwt.encode(claims(), key, algorithm=name))
        for name, key in PRIVATE_KEYS.items()
    },
}


@pytest.mark.parametrize("algorithm", SIGNED)
@settings(max_examples=60)
@given(data=st.data())
def test_a_good_token_with_any_bit_flipped_is_refused(algorithm: str, data: st.DataObject) -> None:
    reader, token = SIGNED[algorithm]
    assert reader.verify(token).user == "alice"
    position = data.draw(st.integers(0, len(token) - 1))
    flipped = chr(ord(token[position]) ^ 1 << data.draw(st.integers(0, 6)))
    refusal(f"{token[:position]}{flipped}{token[position + 1 :]}", reader)


def test_a_scope_outside_the_grammar_is_not_issued() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tools:call:memory'"):
        tokens().issue(user="alice", scopes=["tool:call:memory"], ttl=60)
    with pytest.raises(ConfigError, match="at most 100 scopes"):
        tokens().issue(user="alice", scopes=[f"tools:call:s{number}" for number in range(101)], ttl=60)
    with pytest.raises(ConfigError, match="longer than 8192 bytes"):
        tokens().issue(
            user="alice", scopes=[f"tools:call:s{number}/{'t' * 200}" for number in range(99)], ttl=60
        )


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_lifetime_that_is_none_is_not_issued(ttl: float) -> None:
    with pytest.raises(ConfigError, match="cannot hold for"):
        tokens().issue(user="alice", scopes=[], ttl=ttl)


def test_a_key_that_does_not_fit_its_algorithm_is_refused_and_never_shown() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    other_curve = ec.generate_private_key(ec.SECP384R1())
    wrong: list[tuple[str, str, str]] = [
        ("HS256", "", "32 random bytes"),
        ("HS256", "x" * 31, "too short"),
        ("HS256", public_pem(PRIVATE_KEYS["RS256"]), "32 random bytes"),
        ("HS256", private_pem(PRIVATE_KEYS["ES256"]), "32 random bytes"),
        ("RS256", "x" * 64, "BEGIN PUBLIC KEY"),
        ("RS256", public_pem(weak), "too short"),
        ("RS256", public_pem(PRIVATE_KEYS["ES256"]), "BEGIN PUBLIC KEY"),
        ("RS256", private_pem(PRIVATE_KEYS["RS256"]), "private"),
        ("ES256", public_pem(other_curve), "BEGIN PUBLIC KEY"),
        ("ES256", public_pem(PRIVATE_KEYS["EdDSA"]), "BEGIN PUBLIC KEY"),
        ("ES256", private_pem(PRIVATE_KEYS["ES256"]), "private"),
        ("EdDSA", "", "BEGIN PUBLIC KEY"),
        ("EdDSA", public_pem(PRIVATE_KEYS["RS256"]), "BEGIN PUBLIC KEY"),
        ("EdDSA", private_pem(PRIVATE_KEYS["EdDSA"]), "private"),
        ("EdDSA", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "BEGIN PUBLIC KEY"),
    ]
    for algorithm, key, reason in wrong:
        with pytest.raises(ConfigError, match=reason) as caught:
            tokens(algorithm=algorithm, key=key)
        assert not key or key not in str(caught.value)
    for changes in (
        {"algorithm": "HS257"},
        {"algorithm": "none"},
        {"issuer": ""},
        {"audience": ""},
        {"leeway": -1},
    ):
        with pytest.raises(ConfigError):
            tokens(**changes)


def test_the_key_never_shows_in_a_representation() -> None:
    reader = tokens()
    assert repr(reader) == "Tokens(algorithm='HS256', issuer='mcpgw', audience='mcpgw')"
    assert SECRET not in f"{reader} {reader!r}"

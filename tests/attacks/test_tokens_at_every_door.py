"""Credentials that are none, at every door: refused with a code, without an effect, with one line."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mcpgw.access.signing_key import load_or_create_signing_key
from tests.attacks.conftest import Besieged, Knock, let_in, refused
from tests.attacks.doors import DOORS
from tests.attacks.foreign_issuer import AUDIENCE
from tests.attacks.forging import claims, forged, part, tampered, unsigned

pytestmark = pytest.mark.xdist_group("attacks")

FAILED: Final = "auth_failed"
_MINE: Final = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True)
class Attack:
    """What is shown, and the code with which it is refused."""

    name: str
    make: Callable[[Besieged], str | None]
    code: str = FAILED

    def __str__(self) -> str:
        return self.name


def _secret(name: str) -> Callable[[Besieged], str]:
    return lambda gateway: gateway.secrets[name]


def _signed(**changed: Any) -> Callable[[Besieged], str]:
    """A token that the gateway's own key signed, with claims that are `changed`."""
    return lambda gateway: forged(_key(gateway), claims(**changed))


def _headed(key: bytes, **header: Any) -> Callable[[Besieged], str]:
    """A token that another key signed, whose header says where the key is."""
    return lambda gateway: forged(
        key, **{name: value.format(trap=gateway.trap.url) for name, value in header.items()}
    )


def _key(gateway: Besieged) -> bytes:
    return load_or_create_signing_key(gateway.process.data_dir).encode()


NOW: Final = int(time.time())
ATTACKS: Final = (
    Attack("no token", lambda _: None, "auth_required"),
    Attack("garbage", lambda _: "garbage-that-is-no-token"),
    Attack("a long one", lambda _: "eyJ" + "A" * 9000),
    Attack("alg none", lambda _: unsigned("none")),
    Attack("alg nOnE", lambda _: unsigned("nOnE")),
    Attack("no alg", lambda _: unsigned("")),
    Attack("another key", lambda _: forged(b"0123456789abcdef" * 4)),
    Attack("an empty key", lambda _: forged(b"")),
    Attack("wrong iss", _signed(iss="https://evil.example")),
    Attack("no iss", _signed(iss=None)),
    Attack("wrong aud", _signed(aud="another-service")),
    Attack("no aud", _signed(aud=None)),
    Attack("expired", _signed(iat=NOW - 7200, exp=NOW - 3600), "token_expired"),
    Attack("no exp", _signed(exp=None)),
    Attack("exp that is text", _signed(exp="never")),
    Attack("not yet valid", _signed(nbf=NOW + 3600)),
    Attack("issued in the future", _signed(iat=NOW + 3600, exp=NOW + 7200)),
    Attack("tampered claims", lambda g: tampered(g.secrets["token of eve"], sub="root")),
    Attack("no signature", lambda g: g.secrets["token of root"].rpartition(".")[0] + "."),
    Attack("kid as a path", _headed(b"", kid="../../../../../../dev/null")),
    Attack("kid as SQL", _headed(b"known", kid="x' UNION SELECT 'known' --")),
    Attack("jku", _headed(b"known", jku="{trap}", kid="a")),
    Attack("x5u", _headed(b"known", x5u="{trap}", kid="a")),
    Attack("jwk of its own", lambda _: forged(b"known", jwk={"kty": "oct", "k": "a25vd24"})),
    Attack(
        "signed by a key pair",
        lambda g: jwt.encode(claims(), _MINE, algorithm="RS256", headers={"jku": g.trap.url, "kid": "a"}),
    ),
    Attack("crit", lambda g: forged(_key(g), crit=["exp"])),
    Attack("token of a disabled user", _secret("token of dora")),
    Attack("key of a disabled user", _secret("key of dora")),
    Attack("a revoked key", _secret("key of ann")),
    Attack("half a key", lambda g: g.secrets["key of ann"].rpartition("_")[0] + "_"),
    Attack("token of an ended login", _secret("token of an ended login")),
    Attack("refresh token as an access token", _secret("refresh of ann")),
    Attack("login link as a token", _secret("login link")),
    Attack("a guest who was removed", _secret("guest Kim of open")),
    Attack("a guest of a room that has ended", _secret("guest Gus of over")),
    Attack("a token that only names a guest", _signed(sub="guest:open:Gus")),
    Attack("an id token of a trusted issuer", lambda g: g.issuer.id_token()),
    Attack("... for the gateway's address", lambda g: g.issuer.id_token(aud=AUDIENCE)),
    Attack("a logout token of one", lambda g: g.issuer.token(typ="logout+jwt", events={})),
    Attack("a token of one for another service", lambda g: g.issuer.token(aud="https://other.example")),
    Attack("... for nobody", lambda g: g.issuer.token(aud=None)),
    Attack("... that is over", lambda g: g.issuer.token(iat=NOW - 7200, exp=NOW - 3600), "token_expired"),
    Attack("... with an unknown kid", lambda g: g.issuer.token(kid="another")),
    Attack("... in the name of the gateway", lambda g: g.issuer.token(iss="mcpgw", aud="mcpgw")),
    Attack("its name, and the gateway's key", lambda g: forged(_key(g), g.issuer.claims(), kid="first")),
    Attack("its name, and its public key", lambda g: forged(g.issuer.public_pem(), g.issuer.claims())),
    Attack("its name, and alg none", lambda g: f"{part({'alg': 'none'})}.{part(g.issuer.claims())}."),
)


@pytest.mark.gen_test
@pytest.mark.parametrize("attack", ATTACKS, ids=str)
async def test_what_is_no_credential_opens_no_door(besieged: Besieged, attack: Attack) -> None:
    credential = attack.make(besieged)
    await refused(
        besieged,
        [
            Knock(door, credential, FAILED if credential and door.takes_tickets else attack.code)
            for door in DOORS
        ],
    )


GOOD: Final[dict[str, Callable[[Besieged], str]]] = {
    "a login's token": _secret("token of root"),
    "a key": _secret("good key of ann"),
    "a token of a trusted issuer": lambda gateway: gateway.issuer.token(),
    # What the attacks change is all that is wrong with them.
    "a token like the forged ones": _signed(),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("name", GOOD)
async def test_what_is_a_credential_opens_every_door(besieged: Besieged, name: str) -> None:
    credential = GOOD[name](besieged)
    for door in DOORS:
        if not door.takes_tickets:
            await let_in(besieged, door, credential)


@pytest.mark.gen_test
@pytest.mark.parametrize("name", ["token of root", "refresh of root", "good key of ann"])
async def test_nothing_that_holds_for_long_is_taken_from_an_address(besieged: Besieged, name: str) -> None:
    credential = besieged.secrets[name]
    await refused(besieged, [Knock(door, credential, FAILED) for door in DOORS if door.takes_tickets])


@pytest.mark.gen_test
async def test_the_cookies_of_a_login_open_no_door(besieged: Besieged) -> None:
    kept = {
        "mcpgw_refresh": "refresh of root",
        "access_token": "token of root",
        "mcpgw_xsrf": "token of root",
    }
    cookies = "; ".join(f"{name}={besieged.secrets[secret]}" for name, secret in kept.items())
    own = {"Cookie": cookies, "Origin": besieged.url, "Sec-Fetch-Site": "same-origin"}
    await refused(besieged, [Knock(door, None, "auth_required", headers=own) for door in DOORS])


# --- a gateway whose key all the world has ------------------------------------------------------------------


def _public(gateway: Besieged) -> bytes:
    return gateway.secrets["public"].encode()


def _der(gateway: Besieged) -> bytes:
    return load_pem_public_key(_public(gateway)).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


CONFUSIONS: Final = (
    Attack("the public key as PEM is the secret", lambda g: forged(_public(g))),
    Attack("... without its last line end", lambda g: forged(_public(g).strip())),
    Attack("... as DER", lambda g: forged(_der(g))),
    Attack("... and the header says RS256", lambda g: forged(_public(g), name="RS256")),
    Attack("alg none", lambda _: unsigned("none")),
    Attack("a key pair of the attacker's", lambda _: jwt.encode(claims(), _MINE, algorithm="RS256")),
    Attack(
        "a PS256 of the right key", lambda g: jwt.encode(claims(), g.secrets["private"], algorithm="PS256")
    ),
)


@pytest.mark.gen_test
@pytest.mark.parametrize("attack", CONFUSIONS, ids=str)
async def test_a_public_key_is_no_secret(published: Besieged, attack: Attack) -> None:
    published.admin = jwt.encode(claims(), published.secrets["private"], algorithm="RS256")
    credential = attack.make(published)
    await refused(published, [Knock(door, credential, FAILED) for door in DOORS])

"""``[auth.issuers.NAME]``: what is read, and what is refused with its place."""

from pathlib import Path
from typing import Any

import pytest

from mcpgw.access.configured_scopes import access_faults
from mcpgw.config import Config, load_config
from mcpgw.errors import ConfigError
from mcpgw.issuer_settings import IssuerSettings, is_fit_url

GOOD = """
[server]
public_url = "https://gateway.example.org"

[auth.issuers.company]
issuer = "https://login.example.org/realms/main"
scopes = { tools = ["tools:call", "servers:read"], reports = "tools:call:reports" }
role_claim = "groups"
roles = { platform = "admin", everyone = "viewer" }
"""


def loaded(tmp_path: Path, text: str, **options: Any) -> Config:
    file = tmp_path / "mcpgw.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file=file, environment=options.pop("environment", {}), flags={}, **options)


def refused(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as fault:
        loaded(tmp_path, text)
    place = f"{tmp_path / 'mcpgw.toml'}: "
    assert all(one.startswith(place) for one in fault.value.faults)
    return [one.removeprefix(place) for one in fault.value.faults]


def test_an_issuer_is_read_with_what_its_words_stand_for(tmp_path: Path) -> None:
    issuer = loaded(tmp_path, GOOD).issuers["company"]
    assert issuer.algorithms == ("RS256", "ES256", "EdDSA")
    assert issuer.scopes_of(frozenset({"tools", "reports", "other"})) == {
        "tools:call",
        "servers:read",
        "tools:call:reports",
    }
    assert issuer.scopes_of(frozenset({"other"})) == frozenset()
    assert issuer.role_of(frozenset({"everyone", "platform"})) == "admin"  # the first of the table
    assert issuer.role_of(frozenset({"nobody"})) == ""


def test_a_secret_is_a_reference_that_the_gateway_alone_reads_and_nothing_shows(tmp_path: Path) -> None:
    text = GOOD + 'client_id = "gateway"\nclient_secret = "${env:CLIENT_SECRET}"\nlogin = true\n'
    config = loaded(tmp_path, text, environment={"CLIENT_SECRET": "between us"})
    assert config.issuers["company"].client_secret == "between us"
    assert "between us" not in repr(config)
    assert "environment variable CLIENT_SECRET is not set" in refused(tmp_path, text)[0]
    assert loaded(tmp_path, text, with_servers=False).issuers["company"].client_secret == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[auth]\nissuers = 1", "[auth] issuers: is not a table; write [auth.issuers.NAME]"),
        ("[auth.issuers]\ncompany = 1", "[auth.issuers.company]: is not a table"),
        ("[auth.issuers.Company]", "[auth.issuers.Company]: is not a name of an issuer"),
        ("[auth.issuers.guest]", "[auth.issuers.guest]: is not a name of an issuer"),
        (GOOD + "isuer = 1", "isuer: unknown key; did you mean 'issuer'?"),
        (GOOD + 'algorithms = ["HS256"]', "algorithms: 'HS256' is none of RS256"),
        (GOOD + 'algorithms = ["none"]', "algorithms: 'none' is none of RS256"),
        (GOOD + "algorithms = []", "algorithms: names none"),
        (GOOD + "audience = [1]", "audience: is neither a text nor a list of texts"),
        (GOOD + "login = true", "login: needs client_id"),
        (GOOD + "login = 1", "login: is not true or false"),
        (GOOD + "create_users = true", "create_users: needs login = true"),
        (GOOD + 'client_id = "a"\naudience = "a"', "audience: is the client_id"),
        (GOOD + 'client_id = ""', "client_id: must not be empty"),
        (GOOD + 'client_id = "a"\nlogin = true\nlogin_scopes = "email"', "login_scopes: lacks 'openid'"),
        (GOOD + 'default_role = "vewer"', "roles: there is no role 'vewer'; did you mean 'viewer'?"),
        (GOOD.replace('"admin"', "1"), "roles: 'platform' stands for no role's name"),
        (GOOD.replace('"tools:call:reports"', "1"), "scopes: 'reports' stands for neither"),
        (GOOD.replace('role_claim = "groups"\n', ""), "roles: needs role_claim"),
        (GOOD.replace("https://gateway.example.org", ""), "audience: is missing; name it"),
        (GOOD.replace("https://login", "http://login"), "issuer: is not an https:// address"),
        (GOOD.replace("/main", "/main?a=b"), "issuer: is not an https:// address"),
        (
            GOOD + GOOD[GOOD.index("[auth") :].replace("company", "other"),
            "issuer: is that of [auth.issuers.c",
        ),
        (
            GOOD + '[auth]\nissuer = "https://login.example.org/realms/main"',
            "issuer: is auth.issuer, whose tokens are the gateway's own",
        ),
        (GOOD.replace("gateway.example.org", "a:b@gateway.example.org"), "public_url: is not an address"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    assert any(fault in one for one in refused(tmp_path, text)), refused(tmp_path, text)


def test_a_scope_that_is_none_is_told_with_its_place() -> None:
    issuer = IssuerSettings(
        "a", "https://a.example.org", scopes={"x": frozenset({"tool:call"})}, source="here"
    )
    (fault,) = access_faults({}, {"a": issuer})
    assert fault.startswith("here scopes: scope 'tool:call' is not known; did you mean 'tools:call'?")


@pytest.mark.parametrize(
    ("url", "is_fit"),
    [
        ("https://login.example.org", True),
        ("https://login.example.org:8443/a/b", True),
        ("http://localhost:1", True),
        ("http://127.0.0.2:1", True),
        ("http://[::1]:1/x", True),
        ("http://login.example.org", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("https://a@login.example.org", False),
        ("https://login.example.org/#x", False),
        ("https://login.example.org:port", False),
        ("https://löwe.example.org", False),
        ("https://", False),
        ("file:///etc/passwd", False),
        ("login.example.org", False),
        ("https://login.example.org/a b", False),
        ("https://login.example.org/\n", False),
        ("https://login..example.org", False),
        (f"https://{'a' * 64}.example.org", False),
    ],
)
def test_keys_come_by_https_or_from_this_machine(url: str, is_fit: bool) -> None:
    assert is_fit_url(url) is is_fit

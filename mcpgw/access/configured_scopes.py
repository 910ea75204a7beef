"""The scopes that a configuration gives to roles and to words of issuers: none of them may be misspelt."""

from collections.abc import Mapping

from mcpgw.access.permissions import check_scope
from mcpgw.errors import ConfigError
from mcpgw.issuer_settings import IssuerSettings
from mcpgw.roles import Role


def access_faults(roles: Mapping[str, Role], issuers: Mapping[str, IssuerSettings]) -> list[str]:
    """Every scope of a role, or of an issuer's words, that is none, with its place."""
    given = [(role.source, role.scopes) for role in roles.values()]
    given += [(issuer.source, frozenset[str]().union(*issuer.scopes.values())) for issuer in issuers.values()]
    faults: list[str] = []
    for source, scopes in given:
        for scope in sorted(scopes):
            try:
                check_scope(scope)
            except ConfigError as error:
                faults.extend(f"{source} scopes: {fault}" for fault in error.faults)
    return faults

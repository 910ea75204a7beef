"""The scopes that a configuration gives to roles and to words of issuers: none of them may be misspelt."""

from collections.abc import Mapping

from mcpgw.access.permissions import scope_faults
from mcpgw.issuer_settings import IssuerSettings
from mcpgw.roles import Role


def access_faults(roles: Mapping[str, Role], issuers: Mapping[str, IssuerSettings]) -> list[str]:
    """Every scope of a role, or of an issuer's words, that is none, with its place."""
    given = [(role.source, role.scopes) for role in roles.values()]
    given += [(issuer.source, frozenset[str]().union(*issuer.scopes.values())) for issuer in issuers.values()]
    return [f"{source} scopes: {fault}" for source, scopes in given for fault in scope_faults(sorted(scopes))]

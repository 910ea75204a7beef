"""Which format a document is of, and the options of an entry of each."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from mcpgw.catalogs import client_format, docker_format, registry_format
from mcpgw.catalogs.model import CatalogFault, Option, ReadCatalog

_OPTIONS: Final[Mapping[str, Callable[[Mapping[str, Any]], list[Option]]]] = {
    registry_format.FORMAT: registry_format.registry_options,
    docker_format.FORMAT: docker_format.docker_options,
    client_format.FORMAT: client_format.client_options,
}
FORMATS: Final = tuple(_OPTIONS)


def read_catalog(text: str) -> ReadCatalog:
    """The catalog that `text` is.

    Raises:
        CatalogFault: it is none of the formats, or has no entry that can be read.
    """
    from mcpgw.catalogs.documents import parse_document  # noqa: PLC0415 - YAML, which few gateways ever need

    document = parse_document(text)
    if client_format.is_client(document):
        read = client_format.read_client(document)
    elif docker_format.is_docker(document):
        read = docker_format.read_docker(document)
    elif registry_format.is_registry(document):
        read = registry_format.read_registry(document)
    else:
        raise CatalogFault(
            "is no catalog: it is neither a server.json of the MCP registry (packages, remotes; or a list of "
            "servers), nor a catalog of Docker (registry), nor a client's file (mcpServers or servers)"
        )
    if not read.entries and read.notes:
        raise CatalogFault(f"has no entry that can be read: {read.notes[0]}")
    return read


def options_of(format_name: str, document: Mapping[str, Any]) -> list[Option]:
    """The options of an entry; each has an id of its own."""
    options: dict[str, Option] = {}
    for option in _OPTIONS[format_name](document):
        options.setdefault(option.id, option)
    return list(options.values())

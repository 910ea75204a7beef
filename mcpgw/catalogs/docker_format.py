"""Docker's MCP catalog: YAML with a ``registry`` of servers, or one server's entry (``server.yaml``).

Source: docker/mcp-gateway, ``docs/server-entry-spec.md`` and ``docs/catalog.md``; docker/mcp-registry, whose
``servers/NAME/server.yaml`` says the same in other places. An image becomes ``docker run``; the value of a
secret goes into an environment variable of that command, never onto its command line.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mcpgw.catalogs.model import (
    Argument,
    CatalogFault,
    Entry,
    Input,
    Option,
    ReadCatalog,
    Slot,
    Template,
    Transport,
    dictionaries,
    slots_of,
    text_of,
    texts,
)

FORMAT: Final = "docker"

_TYPES: Final = ("server", "remote", "poci")
_BLANK: Final = re.compile(r"\{\{\s*([^{}|]+?)\s*((?:\|[^{}|]*)*)\}\}")
_VARIABLE: Final = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_RUN: Final = ("run", "--rm", "-i", "--init", "--security-opt", "no-new-privileges")
"""As Docker's own gateway runs a server."""

_TRANSPORTS: Final[Mapping[str, Transport]] = {
    "": "http",
    "http": "http",
    "streaming": "http",
    "streamable": "http",
    "streamable-http": "http",
    "sse": "sse",
}


def is_docker(document: Any) -> bool:
    """Whether `document` is of this format."""
    if not isinstance(document, dict):
        return False
    return isinstance(document.get("registry"), dict) or (
        isinstance(document.get("name"), str)
        and (document.get("type") in _TYPES or isinstance(document.get("image"), str))
    )


def read_docker(document: Mapping[str, Any]) -> ReadCatalog:
    """The entries of a catalog, or the one entry."""
    registry = document.get("registry")
    if not isinstance(registry, dict):
        return ReadCatalog(FORMAT, (_entry(str(document["name"]), document),))
    entries, notes = [], []
    for name, server in registry.items():
        try:
            entries.append(_entry(name, server))
        except CatalogFault as fault:
            notes.append(f"{name[:128]}: {fault}")
    title = text_of(document.get("displayName"), 200) or text_of(document.get("name"), 200)
    return ReadCatalog(FORMAT, tuple(entries), title=title, notes=tuple(notes))


def _entry(name: str, server: Any) -> Entry:
    if not isinstance(server, dict):
        raise CatalogFault("is no object")
    if not name or len(name) > 256:  # noqa: PLR2004 - as many characters as the store keeps
        raise CatalogFault("has no name that can be kept")
    document = _flat(server)
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {}
    tags = [*texts(metadata.get("tags")), text_of(metadata.get("category"))]
    return Entry(
        name,
        {**document, "name": name},
        title=text_of(document.get("title"), 200),
        description=text_of(document.get("description"), 1000),
        version=text_of(document.get("image"), 255).rpartition("@")[2],
        tags=tuple(tag for tag in tags if tag),
    )


def _flat(server: Mapping[str, Any]) -> Mapping[str, Any]:
    """A ``server.yaml`` of docker/mcp-registry as the entry of a catalog that is made of it."""
    about, run, config = (server.get(key) for key in ("about", "run", "config"))
    if not isinstance(about, dict) and not isinstance(run, dict) and not isinstance(config, dict):
        return server
    flat = {key: value for key, value in server.items() if key not in ("about", "run", "config", "meta")}
    flat |= {
        key: about[key]
        for key in ("title", "description", "icon")
        if isinstance(about, dict) and key in about
    }
    flat |= {key: value for key, value in run.items() if key != "env"} if isinstance(run, dict) else {}
    if isinstance(server.get("meta"), dict):
        flat["metadata"] = server["meta"]
    environment = {}
    if isinstance(run, dict) and isinstance(run.get("env"), dict):
        environment = {name: {"name": name, "value": value} for name, value in run["env"].items()}
    if isinstance(config, dict):
        secrets = dictionaries(config.get("secrets"))
        environment |= {
            row["name"]: row for row in dictionaries(config.get("env")) if isinstance(row.get("name"), str)
        }
        for secret in secrets:
            environment.pop(text_of(secret.get("env"), 256), None)
        flat["secrets"] = secrets
        if isinstance(config.get("parameters"), dict):
            described = {"name": server.get("name"), "description": config.get("description")}
            flat["config"] = [{**described, **config["parameters"]}]
    flat["env"] = list(environment.values())
    return flat


def docker_options(document: Mapping[str, Any]) -> list[Option]:
    """The one way that an entry has: its image, or its address."""
    return [_Reading(document).option()]


class _Reading:
    """One entry while it is read: its inputs, and which environment variable holds which secret."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._name = str(document["name"])
        self._inputs: dict[str, Input] = {}
        self._secrets: dict[str, str] = {}
        for row in dictionaries(document.get("config")):
            properties = row.get("properties")
            prefix = text_of(row.get("name"), 128) or self._name
            if isinstance(properties, dict):
                self._take_settings(properties, texts(row.get("required")), prefix)
        for row in dictionaries(document.get("secrets")):
            self._take_secret(row)

    def option(self) -> Option:
        remote = self._document.get("remote")
        endpoint = text_of(self._document.get("sseEndpoint"), 4096)
        if isinstance(remote, dict) or endpoint:
            return self._remote(
                remote if isinstance(remote, dict) else {"url": endpoint, "transport_type": "sse"}
            )
        image = text_of(self._document.get("image"), 1024)
        refused = ""
        if self._document.get("type") == "poci":
            refused = "each of its tools is a container of its own, started for one call; it is no MCP server"
        elif not image:
            refused = "it names no image"
        if refused:
            return Option(f"image:{image or self._name}", "stdio", command=("docker",), refused=refused)
        environment = dict(self._environment())
        arguments = [_plain(word) for word in _RUN]
        if self._document.get("disableNetwork") is True:
            arguments += [_plain("--network"), _plain("none")]
        for name, template in environment.items():
            needs = tuple(slot.name for slot in slots_of(template))
            arguments.append(Argument((("-e",), (name,)), needs=needs))
        arguments += [
            Argument((("-v",), self._template(volume))) for volume in texts(self._document.get("volumes"))
        ]
        if user := text_of(self._document.get("user"), 256):
            arguments.append(Argument((("-u",), self._template(user))))
        arguments += [
            _plain(image),
            *(Argument((self._template(word),)) for word in texts(self._document.get("command"))),
        ]
        return Option(
            f"image:{image}",
            "stdio",
            command=("docker",),
            arguments=tuple(arguments),
            environment=environment,
            inputs=tuple(self._inputs.values()),
            notes=tuple(self._notes()),
        )

    def _remote(self, remote: Mapping[str, Any]) -> Option:
        url = text_of(remote.get("url"), 4096)
        kind = text_of(remote.get("transport_type"), 64).lower()
        headers = remote.get("headers")
        named = {
            name: self._expanded(value)
            for name, value in (headers.items() if isinstance(headers, dict) else ())
            if isinstance(value, str)
        }
        transport = _TRANSPORTS.get(kind)
        refused = f"its transport {kind!r} is not known here" if transport is None else ""
        return Option(
            f"remote:{url}",
            transport or "http",
            url=self._template(url),
            headers=named,
            inputs=tuple(self._inputs.values()),
            refused=refused if url else "it has no url",
            notes=tuple(self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        if isinstance(self._document.get("oauth"), dict):
            yield "it may want a login by OAuth, which mcpgw does not do: give a token from elsewhere"
        if self._document.get("allowHosts"):
            yield "Docker's gateway would let it reach some hosts only; docker run lets it reach any"

    def _take_settings(self, properties: Mapping[str, Any], required: list[str], prefix: str) -> None:
        for key, row in properties.items():
            if not isinstance(row, dict):
                continue
            name = f"{prefix}.{key}"
            nested = row.get("properties")
            if isinstance(nested, dict):
                inner = texts(row.get("required")) if key in required else []
                self._take_settings(nested, inner, name)
                continue
            default = row.get("default")
            self._inputs[name] = Input(
                name,
                description=text_of(row.get("description")),
                required=key in required,
                default=tuple(texts(default)) if isinstance(default, list) else _scalar(default),
                choices=tuple(filter(None, map(_scalar, row["enum"])))
                if isinstance(row.get("enum"), list)
                else (),
                repeated=row.get("type") == "array",
            )

    def _take_secret(self, row: Mapping[str, Any]) -> None:
        name, variable = text_of(row.get("name"), 256), text_of(row.get("env"), 256)
        if name and variable:
            self._secrets[variable] = name
            self._inputs[name] = Input(
                name,
                description=text_of(row.get("description")),
                secret=True,
                # Catalogs do not say which secrets a server cannot do without: often one of several.
                required=row.get("required") is True,
                placeholder=text_of(row.get("example")),
            )

    def _environment(self) -> Iterator[tuple[str, Template]]:
        for variable, secret in self._secrets.items():
            yield variable, (Slot(secret),)
        for row in dictionaries(self._document.get("env")):
            name, value = text_of(row.get("name"), 256), _scalar(row.get("value"))
            if name and value:
                yield name, self._template(value) if "{{" in value else self._expanded(value)

    def _template(self, text: str) -> Template:
        """`text` with its ``{{name|filter}}`` as blanks."""
        parts: list[str | Slot] = []
        end = 0
        for match in _BLANK.finditer(text):
            filters = [part.strip() for part in match[2].split("|") if part.strip()]
            parts.append(text[end : match.start()])
            parts.extend(self._blank(match[1], filters))
            end = match.end()
        return tuple(part for part in (*parts, text[end:]) if part != "")

    def _blank(self, name: str, filters: list[str]) -> Iterator[str | Slot]:
        self._inputs.setdefault(name, Input(name, required=not any(f.startswith("or:") for f in filters)))
        if "volume" in filters:
            yield Slot(name, "volume")
        elif "volume-target" in filters:
            yield Slot(name, "volume-target")
        else:
            yield Slot(name)
        for target in (f.removeprefix("mount_as:") for f in filters if f.startswith("mount_as:")):
            yield f":{target}"

    def _expanded(self, text: str) -> Template:
        """`text` with each ``$NAME`` and ``${NAME}`` of a secret as a blank."""
        parts: list[str | Slot] = []
        end = 0
        for match in _VARIABLE.finditer(text):
            secret = self._secrets.get(match[1] or match[2])
            if secret is not None:
                parts += [text[end : match.start()], Slot(secret)]
                end = match.end()
        return tuple(part for part in (*parts, text[end:]) if part != "")


def _scalar(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else None


def _plain(word: str) -> Argument:
    return Argument(((word,),))

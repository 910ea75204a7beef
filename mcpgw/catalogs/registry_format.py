"""The official MCP registry's ``server.json``, alone, in a list, or as the registry's API answers it.

Source: modelcontextprotocol/registry, ``docs/reference/server-json`` (schemas 2025-07-09, whose names are in
snake_case, to 2025-12-11) and ``docs/reference/api``. A package becomes the command that runs it (``npx``,
``uvx``, ``docker run``, ``dnx``), a remote its address.
"""

import re
from collections.abc import Callable, Iterator, Mapping
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
    text_of,
    texts,
)

FORMAT: Final = "registry"

_OFFICIAL: Final = "io.modelcontextprotocol.registry/official"
_CURLY: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.-]*)\}")
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_AS_GIVEN: Final = ("variables", "_meta", "meta")
"""Members whose own members are names of the publisher's."""

_TRANSPORTS: Final[Mapping[str, Transport]] = {"streamable-http": "http", "http": "http", "sse": "sse"}
_RUNTIMES: Final = {"npm": ("npx",), "pypi": ("uvx",), "oci": ("docker", "podman"), "nuget": ("dnx",)}
_DOCKER_NAMES: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
_ENVIRONMENT_FLAGS: Final = ("-e", "--env")


def is_registry(document: Any) -> bool:
    """Whether `document` is of this format."""
    if isinstance(document, list):
        return bool(document) and all(isinstance(item, dict) for item in document)
    if not isinstance(document, dict):
        return False
    schema = document.get("$schema")
    return (
        isinstance(document.get("servers"), list)
        or "packages" in document
        or "remotes" in document
        or (isinstance(schema, str) and schema.endswith("/server.schema.json"))
    )


def read_registry(document: Any) -> ReadCatalog:
    """The entries; of several versions of a server the one that is marked as the latest, else the last."""
    listed = document if isinstance(document, list) else [document]
    cursor = ""
    if isinstance(document, dict) and isinstance(document.get("servers"), list):
        listed = document["servers"]
        metadata = document.get("metadata")
        if isinstance(metadata, dict):
            cursor = text_of(metadata.get("nextCursor") or metadata.get("next_cursor"))
    entries: dict[str, Entry] = {}
    latest: set[str] = set()
    notes = []
    for place, item in enumerate(listed):
        try:
            entry, is_latest = _entry(item)
        except CatalogFault as fault:
            notes.append(f"entry {place + 1}: {fault}")
            continue
        if entry.name not in latest:
            entries[entry.name] = entry
        if is_latest:
            latest.add(entry.name)
    return ReadCatalog(FORMAT, tuple(entries.values()), notes=tuple(notes), next_cursor=cursor)


def _entry(item: Any) -> tuple[Entry, bool]:
    if not isinstance(item, dict):
        raise CatalogFault("is no object")
    server = item["server"] if isinstance(item.get("server"), dict) else item
    meta = item.get("_meta") if isinstance(item.get("_meta"), dict) else {}
    official = meta.get(_OFFICIAL) if isinstance(meta, dict) else None
    is_latest = isinstance(official, dict) and (official.get("isLatest") or official.get("is_latest")) is True
    document = _camel(server)
    name = text_of(document.get("name"), 256)
    if not name:
        raise CatalogFault("has no name")
    for key in ("packages", "remotes"):
        if not isinstance(document.get(key) or [], list):
            raise CatalogFault(f"{name}: {key} is no list")
    detail = document.get("versionDetail")
    version = document.get("version") or (detail.get("version") if isinstance(detail, dict) else "")
    return Entry(
        name,
        document,
        title=text_of(document.get("title"), 200),
        description=text_of(document.get("description"), 1000),
        version=text_of(version, 255),
    ), is_latest


def _camel(value: Any) -> Any:
    """`value` with the names of members in camelCase, as the schemas since 2025-09 have them."""
    if isinstance(value, list):
        return [_camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        _in_camel_case(name): (
            {key: _camel(part) for key, part in member.items()}
            if name in _AS_GIVEN and isinstance(member, dict)
            else _camel(member)
        )
        for name, member in value.items()
    }


def _in_camel_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])_([a-z])", lambda match: match[1].upper(), name)


def registry_options(document: Mapping[str, Any]) -> list[Option]:
    """The packages and remotes of an entry, in their order."""
    packages = [_Reading().package(package) for package in dictionaries(document.get("packages"))]
    return packages + [_Reading().remote(remote) for remote in dictionaries(document.get("remotes"))]


class _Reading:
    """One option while it is read: the inputs so far."""

    def __init__(self) -> None:
        self._inputs: dict[str, Input] = {}

    def remote(self, remote: Mapping[str, Any]) -> Option:
        url = text_of(remote.get("url"), 4096)
        kind = text_of(remote.get("type") or remote.get("transportType"), 64)
        headers = self._named(remote.get("headers"))
        address = self._template(url, _variables(remote), "url")
        transport = _TRANSPORTS.get(kind)
        refused = ""
        if transport is None:
            refused = f"its transport {kind!r} is not known here"
        elif not url:
            refused = "it has no url"
        return Option(
            f"remote:{url}",
            transport or "http",
            url=address,
            headers=headers,
            inputs=tuple(self._inputs.values()),
            refused=refused,
        )

    def package(self, package: Mapping[str, Any]) -> Option:
        kind = text_of(package.get("registryType") or package.get("registryName"), 64).lower()
        kind = {"docker": "oci"}.get(kind, kind)
        identifier = text_of(package.get("identifier") or package.get("name"), 1024)
        version = text_of(package.get("version"), 255)
        runtimes = _RUNTIMES.get(kind, ())
        hint = text_of(package.get("runtimeHint"), 64)
        option_id = f"{kind}:{identifier}"
        refused = _refusal(package, kind, identifier, hint)
        if refused:
            return Option(option_id, "stdio", command=(identifier,), refused=refused)
        environment = self._named(package.get("environmentVariables"))
        runtime = [*self._arguments(package.get("runtimeArguments"), flags=True)]
        own = [*self._arguments(package.get("packageArguments"), flags=False)]
        if kind == "oci":
            image = _image(identifier, version, text_of(package.get("registryBaseUrl"), 256))
            runtime, environment = _by_environment(runtime, environment)
            arguments = _docker(runtime, own, environment, image)
        else:
            arguments = [*_before(kind, runtime), *runtime, _plain(_pinned(identifier, version))]
            arguments += [*([_plain("--yes"), _plain("--")] if kind == "nuget" and own else []), *own]
        return Option(
            option_id,
            "stdio",
            command=(hint or runtimes[0],),
            arguments=tuple(arguments),
            environment=environment,
            inputs=tuple(self._inputs.values()),
        )

    def _named(self, rows: Any) -> dict[str, Template]:
        """Environment variables or headers."""
        found: dict[str, Template] = {}
        for row in dictionaries(rows):
            if name := text_of(row.get("name"), 256):
                found[name] = self._value(row, name)
        return found

    def _arguments(self, rows: Any, *, flags: bool) -> Iterator[Argument]:
        for place, row in enumerate(dictionaries(rows), 1):
            if row.get("type") == "positional":
                label = text_of(row.get("valueHint"), 128) or f"argument-{place}"
                yield Argument((self._value(row, label),))
                continue
            name = text_of(row.get("name"), 256)
            if not name:
                continue
            label = name.lstrip("-") or name
            if row.get("format") == "boolean":
                # A flag of a command line is there or not; "-i true" would make "true" the next word's place.
                if isinstance(row.get("value"), str):
                    if row["value"] == "true":
                        yield _plain(name)
                else:
                    yield Argument(((name,),), switch=self._ask(label, row, choices=("true", "false")))
            elif flags and not row.keys() & {"value", "default", "valueHint", "variables", "choices"}:
                yield _plain(name)
            else:
                yield Argument(((name,), self._value(row, label)))

    def _value(self, row: Mapping[str, Any], label: str) -> Template:
        """The value that stands in `row`, or a blank for one."""
        if isinstance(row.get("value"), str):
            return self._template(
                row["value"], _variables(row), label, repeated=row.get("isRepeated") is True
            )
        return (Slot(self._ask(label, row)),)

    def _template(
        self, text: str, variables: Mapping[str, Any], owner: str, *, repeated: bool = False
    ) -> Template:
        """`text` with a blank for each ``{name}`` that is one of `variables`; others stay as they are."""
        parts: list[str | Slot] = []
        end = 0
        for match in _CURLY.finditer(text):
            row = variables.get(match[1])
            if isinstance(row, dict):
                parts.append(text[end : match.start()])
                if isinstance(row.get("value"), str):
                    parts.append(row["value"])
                else:
                    parts.append(Slot(self._ask(match[1], row, owner=owner, repeated=repeated)))
                end = match.end()
        return tuple(part for part in (*parts, text[end:]) if part != "")

    def _ask(
        self,
        name: str,
        row: Mapping[str, Any],
        *,
        owner: str = "",
        repeated: bool = False,
        choices: tuple[str, ...] = (),
    ) -> str:
        """An input for `row`; its name tells of its owner where the plain one is another's."""

        def asked(label: str) -> Input:
            return Input(
                label,
                description=text_of(row.get("description")),
                required=row.get("isRequired") is True,
                secret=row.get("isSecret") is True,
                default=row["default"] if isinstance(row.get("default"), str) else None,
                choices=choices or tuple(texts(row.get("choices"))),
                repeated=repeated or row.get("isRepeated") is True,
                placeholder=text_of(row.get("placeholder")),
            )

        label, number = name, 1
        while self._inputs.get(label, asked(label)) != asked(label):
            number += 1
            label = f"{owner}.{name}" if owner and number == 2 else f"{name}-{number}"  # noqa: PLR2004
        self._inputs[label] = asked(label)
        return label


def _variables(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found = row.get("variables")
    return found if isinstance(found, dict) else {}


def _refusal(package: Mapping[str, Any], kind: str, identifier: str, hint: str) -> str:
    transport = package.get("transport")
    spoken = transport.get("type", "stdio") if isinstance(transport, dict) else "stdio"
    if not identifier:
        return "it names no package"
    if kind == "mcpb":
        return "a bundle (.mcpb) is a file to unpack; unpack it, and add its command as a server"
    if kind in ("cargo", "go"):
        return f"it must be built first ({kind} install); then add its command as a server"
    if kind not in _RUNTIMES:
        return f"packages of {kind or 'no registry type'} are not known here"
    if spoken != "stdio":
        return f"it speaks {text_of(spoken, 64)}: start it yourself, and add its address as a server"
    if hint and hint not in _RUNTIMES[kind]:
        return f"its runtime {hint!r} is not known here; add its command as a server"
    return ""


def _pinned(identifier: str, version: str) -> str:
    return f"{identifier}@{version}" if version else identifier


def _before(kind: str, runtime: list[Argument]) -> list[Argument]:
    """What the runner needs to ask no questions."""
    is_there = any(_plain(flag) in runtime for flag in ("-y", "--yes"))
    return [_plain("-y")] if kind == "npm" and not is_there else []


def _image(identifier: str, version: str, registry: str) -> str:
    host = re.sub(r"^https?://", "", registry).strip("/")
    if host and host not in _DOCKER_NAMES and not identifier.startswith(f"{host}/"):
        identifier = f"{host}/{identifier}"
    name = identifier.rpartition("/")[2]
    return identifier if not version or ":" in name or "@" in name else f"{identifier}:{version}"


def _by_environment(
    runtime: list[Argument], environment: dict[str, Template]
) -> tuple[list[Argument], dict[str, Template]]:
    """`runtime` without values behind ``-e``: every user of the machine can read a command line."""
    kept: list[Argument] = []
    moved = dict(environment)
    for argument in runtime:
        flag, *rest = argument.words
        value = rest[0] if rest else ()
        match = _ASSIGNMENT.fullmatch(value[0]) if value and isinstance(value[0], str) else None
        repeats = flag[:1] and flag[0] in _ENVIRONMENT_FLAGS
        if repeats and match is not None and match[1] not in moved:
            moved[match[1]] = tuple(part for part in (match[2], *value[1:]) if part != "")
        else:
            kept.append(argument)
    return kept, moved


def _docker(
    runtime: list[Argument], own: list[Argument], environment: Mapping[str, Template], image: str
) -> list[Argument]:
    passed = [
        Argument((("-e",), (name,)), needs=tuple(part.name for part in template if isinstance(part, Slot)))
        for name, template in environment.items()
    ]
    if not runtime or runtime[0] != _plain("run"):
        flags = [flag for flag in map(_plain, ("-i", "--rm")) if flag not in runtime]
        return [_plain("run"), *flags, *passed, *runtime, _plain(image), *own]
    # Some publishers write the whole command, with the image as a word of it, where the version is missing.
    untagged = image.partition("@")[0].rpartition(":")[0] or image
    is_image: Callable[[Argument], bool] = lambda word: word in (_plain(image), _plain(untagged))  # noqa: E731
    place = next((place for place, word in enumerate(runtime) if is_image(word)), len(runtime))
    return [*runtime[:place], *passed, _plain(image), *runtime[place + 1 :], *own]


def _plain(word: str) -> Argument:
    return Argument(((word,),))

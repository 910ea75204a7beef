"""The configuration of the gateway: read, checked as a whole, and typed.

Values come from, each stronger than the one before: the defaults, ``mcpgw.toml``, the environment, flags.
Everything that is wrong is said at once, in one ``ConfigError``, each fault with its place. Files are read in
``load_config`` alone.

``python -m mcpgw.config docs/configuration.md`` writes the table of settings into that page.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from mcpgw.client_files import read_client_file
from mcpgw.config_rules import check_rules
from mcpgw.config_texts import commented_toml, settings_markdown, write_settings_block
from mcpgw.errors import ConfigError, suggest
from mcpgw.issuer_settings import IssuerSettings, issuer_rule_faults, read_issuers
from mcpgw.references import References, UnresolvedReferenceError, read_text
from mcpgw.roles import BUILT_IN, Role, read_roles
from mcpgw.server_definitions import (
    MEMORY_SERVER,
    NAME_RULE,
    ServerDefinition,
    define_server,
    is_server_name,
)
from mcpgw.setting_values import read_value
from mcpgw.settings import (
    ENVIRONMENT_PREFIX,
    SECTIONS,
    SETTINGS,
    AuditSettings,
    AuthSettings,
    BackendSettings,
    CallSettings,
    CatalogSettings,
    DataSettings,
    EventSettings,
    LogSettings,
    McpSettings,
    MemorySettings,
    MetricsSettings,
    ReloadSettings,
    RoomSettings,
    ServerRules,
    ServerSettings,
    SessionSettings,
    Setting,
    StoreSettings,
    Value,
    WebSocketSettings,
    default_data_dir,
    expand_home,
)

__all__ = [
    "Config",
    "ServerDefinition",
    "commented_toml",
    "load_config",
    "rule_faults",
    "server_faults",
    "settings_markdown",
    "with_values",
]

DEFAULT_FILE: Final = Path("mcpgw.toml")
MAXIMUM_FILE_SIZE: Final = 4 * 1024 * 1024
OTHER_VARIABLES: Final = ("MCPGW_TOKEN", "MCPGW_URL", "MCPGW_CONFIG", "MCPGW_MEMORY_DATABASE")
"""Variables with the gateway's prefix that others read: clients, the command, the memory server."""

_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_OPTIONAL_PATHS: Final = ("server.tls_certificate", "server.tls_key")
_WITH_REFERENCES: Final = ("auth.secret", "auth.public_key", "store.url")
_RULED: Final = ("server", "auth", "websocket", "calls", "backends")
"""The sections that `check_rules` looks at."""
_WHOLE_REFERENCE: Final = re.compile(r"\$\{[^{}]+\}")
_TOML_PLACE: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True)
class Config:
    """All of the gateway's configuration; secrets are in no repr.

    `sources` maps the name of each setting that is not at its default to the place it came from; a server
    definition has its own `source`. `notes` are sentences about what was read and has no effect. `rules` is
    what ``[servers]`` says of all servers, `roles` are those there are, `issuers` those whose tokens are
    trusted. `files` are those that were read;
    `read_again` reads everything anew, and raises ConfigError as `load_config` does;
    `environment` is what references are replaced from.
    """

    server: ServerSettings = field(default_factory=ServerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    log: LogSettings = field(default_factory=LogSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    calls: CallSettings = field(default_factory=CallSettings)
    rooms: RoomSettings = field(default_factory=RoomSettings)
    backends: BackendSettings = field(default_factory=BackendSettings)
    events: EventSettings = field(default_factory=EventSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    catalogs: CatalogSettings = field(default_factory=CatalogSettings)
    mcp: McpSettings = field(default_factory=McpSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    reload: ReloadSettings = field(default_factory=ReloadSettings)
    rules: ServerRules = field(default_factory=ServerRules)
    roles: Mapping[str, Role] = field(default_factory=lambda: BUILT_IN)
    issuers: Mapping[str, IssuerSettings] = field(default_factory=dict)
    servers: Mapping[str, ServerDefinition] = field(default_factory=dict)
    file: Path | None = None
    files: tuple[Path, ...] = field(default=(), compare=False)
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    read_again: "Callable[[], Config] | None" = field(default=None, repr=False, compare=False)

    def value(self, setting: Setting) -> Value:
        """The value of a setting."""
        value: Value = getattr(getattr(self, _attribute(setting.section)), setting.key)
        return value

    def describe(self) -> Iterator[tuple[Setting, str, str]]:
        """Each setting with its value as text (a secret only as ``(set)``) and its source."""
        for setting in SETTINGS:
            value = self.value(setting)
            if setting.secret:
                shown = "(set)" if value else ""
            elif isinstance(value, bool):
                shown = str(value).lower()
            else:
                shown = ", ".join(value) if isinstance(value, tuple) else str(value)
            yield setting, shown, self.sources.get(setting.name, "default")


def load_config(
    *,
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, object],
    servers_files: Sequence[Path] = (),
    with_servers: bool = True,
) -> Config:
    """The configuration from `file`, `environment` and `flags`, with the backends of `servers_files`.

    `with_servers` is false for those who speak to a gateway and run none: what the definitions of servers
    and the secrets of issuers refer to (variables, files) is there for the gateway alone.

    Without `file`, ``mcpgw.toml`` in the current folder is read where there is one. `flags` maps names of
    settings (``server.port``) to what was given on the command line, text or typed; None is a flag that was
    not given. A servers file is TOML with ``[servers.NAME]`` tables, or the JSON that desktop clients keep.

    Raises ConfigError, which lists every fault.
    """
    loading = _Loading(environment)
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    document = {} if file is None else loading.read_toml(file)
    if file is not None:
        loading.take_document(document, file)
    loading.take_environment()
    loading.take_flags(flags)
    sections = loading.sections()
    loading.faults.extend(check_rules(**{name: sections[name] for name in _RULED}, place=loading.place))
    if file is not None and with_servers:
        loading.take_servers(document.get("servers", {}), file)
    for servers_file in servers_files:
        loading.take_servers_file(servers_file)
    read_again = partial(
        load_config,
        file=file,
        environment=environment,
        flags=flags,
        servers_files=servers_files,
        with_servers=with_servers,
    )
    roles = BUILT_IN if file is None else read_roles(document.get("roles", {}), f"{file}", loading.report)
    issuers: Mapping[str, IssuerSettings] = {}
    if file is not None:
        issuers = loading.issuers(document.get("auth"), file, with_secrets=with_servers)
        given = {"own_issuer": sections["auth"].issuer, "public_url": sections["server"].public_url}
        loading.faults.extend(issuer_rule_faults(issuers, roles=roles, **given))
    config = Config(
        **{_attribute(section): values for section, values in sections.items()},
        servers=MappingProxyType(loading.servers),
        roles=MappingProxyType(dict(roles)),
        issuers=issuers,
        file=file,
        files=(*(() if file is None else (file,)), *servers_files),
        sources=MappingProxyType(loading.sources),
        notes=tuple(loading.notes),
        environment=environment,
        read_again=read_again,
    )
    if with_servers:
        loading.check_servers(config)
    if loading.faults:
        raise ConfigError(loading.faults)
    return config


def with_values(config: Config, values: Mapping[str, Value], sources: Mapping[str, str]) -> Config:
    """`config` with other `values` of some settings (by name), which come from `sources`.

    Nothing is checked: `rule_faults` does that.
    """
    changed: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        changed.setdefault(section, {})[key] = value
    members: dict[str, Any] = {
        _attribute(section): replace(getattr(config, _attribute(section)), **keys)
        for section, keys in changed.items()
    }
    return replace(config, **members, sources=MappingProxyType({**config.sources, **sources}))


def rule_faults(config: Config) -> Iterator[str]:
    """Every rule between settings, and between settings and servers, that is broken."""

    def place(name: str) -> str:
        return config.sources.get(name, name)

    yield from check_rules(**{name: getattr(config, name) for name in _RULED}, place=place)
    for definition in config.servers.values():
        yield from server_faults(config, definition)


def server_faults(config: Config, definition: ServerDefinition) -> Iterator[str]:
    """What keeps `definition` from being one of the gateway's servers, whoever adds it."""
    place = definition.source
    if definition.name == MEMORY_SERVER and config.memory.enabled:
        yield (
            f"{place}: the name {MEMORY_SERVER!r} is the embedded memory server's; "
            "choose another name, or set memory.enabled to false"
        )
    if definition.transport == "stdio" and not config.rules.stdio:
        yield (
            f"{place} command: programs may not be servers here, for servers.stdio is false "
            f"({config.sources.get('servers.stdio', 'default')})"
        )
    if definition.timeout is not None and definition.timeout > config.calls.max_timeout:
        yield f"{place} timeout: is above calls.max_timeout ({config.calls.max_timeout:g} seconds)"


def _attribute(section: str) -> str:
    """Where a `Config` has a section: its `servers` are the definitions."""
    return "rules" if section == "servers" else section


class _Loading:
    """One run of ``load_config``: what was read so far, and every fault."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.values: dict[str, Value] = {"data.dir": default_data_dir(environment)}
        self.sources: dict[str, str] = {}
        self.servers: dict[str, ServerDefinition] = {}

    def report(self, fault: str) -> None:
        """Keep a fault."""
        self.faults.append(fault)

    def place(self, name: str) -> str:
        """Where the value of the setting `name` came from, or just its name where it is a default."""
        return self.sources.get(name, name)

    def read_toml(self, file: Path) -> dict[str, Any]:
        """The TOML document `file`; empty where it cannot be read, which is a fault."""
        try:
            text = read_text(file, MAXIMUM_FILE_SIZE)
        except ValueError as error:
            self.faults.append(f"{file}: {error}")
            return {}
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message = str(error)
            found = _TOML_PLACE.search(message)
            line, column = (found[1], found[2]) if found and found[1] else _end(text)
            self.faults.append(f"{file}: line {line}, column {column}: {_TOML_PLACE.sub('', message)}")
        except (ValueError, RecursionError) as error:
            # tomllib lets through what Python says of a number too long or of nesting too deep.
            self.faults.append(f"{file}: cannot be read as TOML: {error}")
        return {}

    def take_document(self, document: Mapping[str, Any], file: Path) -> None:
        for section, table in document.items():
            if section == "servers" and isinstance(table, dict):
                for key in [key for key in table if f"servers.{key}" in _BY_NAME]:
                    if not isinstance(table[key], dict):  # else it is a server of that name
                        self._take_key(section, key, table.pop(key), file)
                continue
            if section in ("servers", "roles"):
                continue  # said where the servers and the roles are read
            if not isinstance(table, dict):
                self.faults.append(f"{file}: {section}: {_stray(section)}")
            elif section not in SECTIONS:
                self.faults.append(f"{file}: [{section}]: unknown section{suggest(section, SECTIONS)}")
            else:
                for key, given in table.items():
                    if (section, key) != ("auth", "issuers"):  # said where the issuers are read
                        self._take_key(section, key, given, file)

    def _take_key(self, section: str, key: str, given: object, file: Path) -> None:
        place = f"{file}: [{section}] {key}"
        setting = _BY_NAME.get(f"{section}.{key}")
        if setting is None:
            known = [other.key for other in SETTINGS if other.section == section]
            self.faults.append(f"{place}: unknown key{suggest(key, known)}")
        else:
            self._take(setting, given, place, folder=file.parent, text=False)

    def take_environment(self) -> None:
        known = {setting.environment_name: setting for setting in SETTINGS}
        for name, given in sorted(self.environment.items()):
            if name in known:
                self._take(known[name], given, f"environment {name}", folder=Path(), text=True)
            elif name.startswith(ENVIRONMENT_PREFIX) and name not in OTHER_VARIABLES:
                self.faults.append(
                    f"environment {name}: unknown variable{suggest(name, (*known, *OTHER_VARIABLES))}"
                )

    def take_flags(self, flags: Mapping[str, object]) -> None:
        for name, given in flags.items():
            if given is None:
                continue
            setting = _BY_NAME.get(name)
            if setting is None:
                self.faults.append(f"flag for {name}: no such setting{suggest(name, _BY_NAME)}")
            elif setting.secret and not (isinstance(given, str) and _names_a_secret(given)):
                self.faults.append(
                    f"flag {setting.flag_name}: every user of the machine can read a secret on a command "
                    f"line; give ${{file:PATH}} or ${{env:NAME}}, or set {setting.environment_name}"
                )
            else:
                self._take(setting, given, f"flag {setting.flag_name}", folder=Path(), text=True)

    def _take(self, setting: Setting, given: object, place: str, *, folder: Path, text: bool) -> None:
        """Keep `given` as the value of `setting`; `folder` is where its relative paths begin."""
        try:
            value = read_value(setting, given, text=text)
            if setting.name in _WITH_REFERENCES:
                value = References(self.environment, folder).replace(str(value))
        except UnresolvedReferenceError as error:
            self.faults.extend(f"{place}: {sentence}" for sentence in error.sentences)
            return
        except ValueError as error:
            self.faults.append(f"{place}: {error}")
            return
        if isinstance(value, Path):
            value = folder / expand_home(value, self.environment)
        elif setting.name in _OPTIONAL_PATHS and value:
            value = str(folder / expand_home(Path(str(value)), self.environment))
        self.values[setting.name] = value
        self.sources[setting.name] = place

    def sections(self) -> dict[str, Any]:
        """Each section's settings; one that had a fault is at its default."""
        return {
            section: cls(
                **{
                    name.partition(".")[2]: value
                    for name, value in self.values.items()
                    if name.partition(".")[0] == section
                }
            )
            for section, cls in SECTIONS.items()
        }

    def issuers(self, auth: object, file: Path, *, with_secrets: bool) -> Mapping[str, IssuerSettings]:
        """The issuers of ``[auth.issuers]`` in `file`."""
        tables = auth.get("issuers", {}) if isinstance(auth, dict) else {}
        references = References(self.environment, file.parent) if with_secrets else None
        return MappingProxyType(read_issuers(tables, f"{file}", references, self.report))

    def take_servers(self, tables: object, file: Path) -> None:
        if not isinstance(tables, dict):
            self.faults.append(f"{file}: servers: is not a table; write [servers.NAME]")
            return
        references = References(self.environment, file.parent)
        for name, table in tables.items():
            place = f"{file}: [servers.{name if is_server_name(name) else repr(name)}]"
            if not is_server_name(name):
                self.faults.append(f"{place}: is not a name of a server ({NAME_RULE})")
            if not isinstance(table, dict) and f"server.{name}" in _BY_NAME:
                self.faults.append(f"{file}: [servers] {name}: stands in [server], without an s")
                continue
            definition = define_server(
                name, table, place=place, references=references, report=self.faults.append
            )
            if definition is not None:
                self._keep(definition)

    def take_servers_file(self, file: Path) -> None:
        if file.suffix == ".toml":
            document = self.read_toml(file)
            self.faults.extend(
                f"{file}: {key}: only [servers.NAME] tables stand in a file of servers"
                for key in document
                if key != "servers"
            )
            self.take_servers(document.get("servers", {}), file)
            return
        definitions = read_client_file(
            file, environment=self.environment, report=self.faults.append, note=self.notes.append
        )
        for definition in definitions:
            self._keep(definition)

    def _keep(self, definition: ServerDefinition) -> None:
        if other := self.servers.get(definition.name):
            self.faults.append(
                f"{definition.source}: the name {definition.name!r} is taken by {other.source}"
            )
        else:
            self.servers[definition.name] = definition

    def check_servers(self, config: Config) -> None:
        for definition in self.servers.values():
            self.faults.extend(server_faults(config, definition))


def _end(text: str) -> tuple[str, str]:
    lines = text.split("\n")
    return str(len(lines)), str(len(lines[-1]) + 1)


def _stray(key: str) -> str:
    """What to say of a key that stands before every section."""
    if key in SECTIONS:
        return f"is a section; write [{key}]"
    homes = [f"[{setting.section}]" for setting in SETTINGS if setting.key == key]
    return (
        f"stands in no section; did you mean {key!r} in {' or '.join(homes)}?"
        if homes
        else (f"unknown key{suggest(key, SECTIONS)}")
    )


def _names_a_secret(given: str) -> bool:
    return _WHOLE_REFERENCE.fullmatch(given) is not None and ":-" not in given


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and the page
        sys.exit("usage: python -m mcpgw.config docs/configuration.md")
    write_settings_block(Path(sys.argv[1]))

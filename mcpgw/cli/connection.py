"""Which gateway a client command speaks to, and with which token."""

import getpass
import os
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mcpgw.cli.output import NoGatewayFault, UsageFault
from mcpgw.cli.program import program
from mcpgw.cli.settings_options import config_option, data_dir_option

if TYPE_CHECKING:
    from mcpgw.client import GatewayAddress
    from mcpgw.config import Config

_TOKEN_SECONDS = 300.0
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Connection:
    """A gateway's URL, the token to show there, and whose certificates are believed (None: the system's)."""

    url: str
    token: str = field(repr=False)
    tls: SSLContext | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ConnectionOptions:
    """What was given on the command line."""

    url: str | None
    data_dir: Path | None
    config_file: Path | None
    ca_file: Path | None = None

    def find(self, *scopes: str, token: str | None = None) -> Connection:
        """The gateway that runs here or was named, with `token`, MCPGW_TOKEN or a short token of `scopes`.

        The token is made here where MCPGW_TOKEN is not set: with the key of the data folder, for a gateway of
        this machine alone, so that no other machine is ever handed what opens this one.

        Raises:
            ConfigError: the configuration has faults.
            UsageFault: the URL is none, or there is no way to a token.
            NoGatewayFault: no gateway runs on the data folder that was named.
            NotReachable: there is no key, and no gateway either.
        """
        token = token or os.environ.get("MCPGW_TOKEN") or None
        address, certificate = self._locate()
        if self.ca_file is not None and not address.is_encrypted:
            raise UsageFault(
                f"--ca-file is for https, and the gateway {address.base} would be sent the token in clear"
            )
        tls = self._trusted(certificate)
        if token is not None:
            return _checked(Connection(address.base, token, tls))
        return Connection(address.base, _mint(self._config(), address, scopes), tls)

    def address(self) -> "GatewayAddress":
        """The gateway that runs here or was named.

        Raises:
            ConfigError, UsageFault, NoGatewayFault: see `find`.
        """
        return self._locate()[0]

    def _locate(self) -> tuple["GatewayAddress", str]:
        """The gateway, and the file of its certificate where it runs here and has one."""
        from mcpgw.client import GatewayAddress  # noqa: PLC0415 - after --help

        if self.url is None:
            # Whoever names a folder means the gateway there, and none that happens to have the usual port.
            url, certificate = _running_url(self._config(), on_folder=self.data_dir is not None)
            return GatewayAddress.parse(url), certificate
        try:
            return GatewayAddress.parse(self.url), ""
        except ValueError as error:
            raise UsageFault(str(error)) from None

    def _trusted(self, certificate: str) -> SSLContext | None:
        if self.ca_file is None and not certificate:
            return None
        from mcpgw.client import trusting, trusting_only  # noqa: PLC0415 - after --help

        try:
            return trusting_only(certificate) if self.ca_file is None else trusting(self.ca_file)
        except ValueError as error:
            raise UsageFault(f"the certificate cannot be used: {error}") from None

    def words(self) -> list[str]:
        """The options that name the same gateway from any folder, and without this environment.

        Raises:
            ConfigError, UsageFault: see `find`.
        """
        words = [] if self.ca_file is None else ["--ca-file", str(self.ca_file.absolute())]
        if self.url is not None:
            return ["--url", self.address().base, *words]
        config = self._config()
        if config.file is not None:
            words += ["--config", str(config.file.absolute())]
        folder = config.data.dir.absolute()
        is_said_by_file = config.file is not None and config.sources.get("data.dir", "").startswith(
            f"{config.file}:"
        )
        if self.data_dir is not None or not (is_said_by_file or folder == _usual_data_dir()):
            words += ["--data-dir", str(folder)]
        return words

    def _config(self) -> "Config":
        from mcpgw.config import load_config  # noqa: PLC0415

        return load_config(
            file=self.config_file,
            environment=os.environ,
            flags={"data.dir": self.data_dir},
            with_servers=False,
        )


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options that name a gateway; it is called with ``connection``."""

    @wraps(command)
    def with_connection(
        *,
        url: str | None,
        data_dir: Path | None,
        config_file: Path | None,
        ca_file: Path | None,
        **given: Any,
    ) -> None:
        context = click.get_current_context()
        if data_dir is not None and context.get_parameter_source("url") is ParameterSource.ENVIRONMENT:
            url = None  # what is said on the command line goes over what the environment has
        command(connection=ConnectionOptions(url or None, data_dir, config_file, ca_file), **given)

    decorated = config_option(data_dir_option(with_connection))
    decorated = click.option(
        "--ca-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="PEM file of the authorities that are believed for https; the system's where it is left out "
        "(SSL_CERT_FILE names others).",
    )(decorated)
    return click.option(
        "--url",
        envvar="MCPGW_URL",
        metavar="URL",
        help="The gateway (MCPGW_URL, unless --data-dir is given); the one that runs on the data folder "
        "where it is left out.",
    )(decorated)


def _usual_data_dir() -> Path:
    """The data folder of a command that is started without the variables of this environment."""
    from mcpgw.settings import default_data_dir  # noqa: PLC0415 - after --help

    return default_data_dir({name: value for name, value in os.environ.items() if name == "HOME"})


def _checked(connection: Connection) -> Connection:
    from mcpgw.client.address import authorization  # noqa: PLC0415

    try:
        authorization(connection.token)
    except ValueError as error:
        raise UsageFault(f"MCPGW_TOKEN: {error}") from None
    return connection


def _running_url(config: "Config", *, on_folder: bool) -> tuple[str, str]:
    """The gateway that has left its note in the data folder, else the one that the configuration means.

    And the file of its certificate; empty without TLS.

    With `on_folder` only the first will do.
    """
    from mcpgw.running import find_running  # noqa: PLC0415

    running = find_running(config.data.dir)
    if running is not None:
        return running.url, running.certificate
    host, port = config.server.host, config.server.port
    if on_folder or port == 0:
        folder = config.data.dir
        start = f"{program()} serve" + (f" --data-dir {shlex.quote(str(folder))}" if on_folder else "")
        raise NoGatewayFault(f"no gateway runs on {folder}: start one with {start}")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where to connect
    shown = f"[{host}]" if ":" in host else host
    certificate = config.server.tls_certificate
    return f"{'https' if certificate else 'http'}://{shown}:{port}", certificate


def _mint(config: "Config", address: "GatewayAddress", scopes: tuple[str, ...]) -> str:
    """A token of five minutes with `scopes` and nothing more, signed with the key of the configuration."""
    if not is_here(address.host):
        raise UsageFault(
            f"MCPGW_TOKEN is not set: the gateway {address.base} is not on this machine, and wants a token "
            f"from whoever runs it ({program()} token create --user NAME)"
        )
    if config.auth.algorithm != "HS256":
        raise UsageFault(
            f"MCPGW_TOKEN is not set: tokens signed with {config.auth.algorithm} come from the issuer "
            f"{config.auth.issuer!r}; set MCPGW_TOKEN to one of them"
        )
    from mcpgw.access.configured import SigningKeyMissingError, configured_tokens  # noqa: PLC0415

    try:
        tokens = configured_tokens(config, create_key=False)
    except SigningKeyMissingError as fault:
        _require_answer(address)
        raise UsageFault(f"MCPGW_TOKEN is not set, and {fault}") from None
    return tokens.issue(user=login_name(), scopes=scopes, ttl=_TOKEN_SECONDS)


def _require_answer(address: "GatewayAddress") -> None:
    from mcpgw.client import NotReachable  # noqa: PLC0415

    try:
        socket.create_connection((address.host, address.port), _PROBE_SECONDS).close()
    except OSError as error:
        raise NotReachable(address.base, error.strerror or str(error)) from None


def is_here(host: str) -> bool:
    """Whether `host` is this machine, and no other whatever its names mean elsewhere."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def login_name() -> str:
    """The name of whoever runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # an account without a name, as in some containers
        return f"uid-{os.getuid()}"

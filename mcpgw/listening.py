"""Where the gateway listens: sockets, bound before anything is started, and the note that tells of them."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tornado.netutil import bind_sockets

from mcpgw.config import Config
from mcpgw.errors import ConfigError
from mcpgw.running import RunningGateway, forget_running, remember_running


@contextmanager
def bound_sockets(config: Config) -> Iterator[list[socket.socket]]:
    """The sockets to listen on; closed when the block is left.

    Raises:
        ConfigError: the address cannot be bound.
    """
    host, port = config.server.host, config.server.port
    try:
        sockets = bind_sockets(port, host)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            [f"cannot listen on {host}:{port}: {reason}; choose another with --host or --port"]
        ) from None
    try:
        yield sockets
    finally:
        for listening in sockets:
            listening.close()


def url_of(sockets: Sequence[socket.socket], config: Config) -> str:
    """The gateway's URL, as this machine sees it."""
    host, bound = config.server.host, sockets[0].getsockname()[1]
    shown = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    scheme = "https" if config.server.tls_certificate else "http"
    return f"{scheme}://{f'[{shown}]' if ':' in shown else shown}:{bound}"


@contextmanager
def noted_in_folder(url: str, config: Config) -> Iterator[None]:
    """Have commands on this machine find the gateway, inside the block.

    Raises:
        ConfigError: the data folder cannot be written to.
    """
    certificate = config.server.tls_certificate
    running = RunningGateway.here(url, str(Path(certificate).absolute()) if certificate else "")
    try:
        remember_running(config.data.dir, running)
    except OSError as error:
        raise ConfigError(
            [f"cannot write to the data folder {config.data.dir}: {error.strerror or error}"]
        ) from None
    try:
        yield
    finally:
        forget_running(config.data.dir, running)

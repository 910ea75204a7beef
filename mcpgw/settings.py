"""Every setting of the gateway, said once: its type, default, unit, bounds and help.

The section classes below are the typed configuration (``config.server.port``), and ``SETTINGS`` is the table
that is read from them. From a name such as ``server.port`` follow its place in ``mcpgw.toml``
(``[server] port``), its environment variable (``MCPGW_SERVER_PORT``) and its flag (``--server-port``, or the
shorter one that stands here).
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

Value: TypeAlias = str | int | float | bool | Path | tuple[str, ...]
T = TypeVar("T")

ENVIRONMENT_PREFIX: Final = "MCPGW_"
MEBIBYTE: Final = 1024 * 1024
DAY: Final = 86_400
_LOG_FILE: Final = Path("logs/gateway.log")
_AUDIT_FILE: Final = Path("logs/audit.jsonl")


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """The folder for the gateway's own data.

    XDG Base Directory Specification: a relative ``XDG_DATA_HOME`` is ignored.
    """
    given = environment.get("XDG_DATA_HOME", "")
    if given.startswith("/"):
        return Path(given) / "mcpgw"
    return expand_home(Path("~/.local/share/mcpgw"), environment)


def expand_home(path: Path, environment: Mapping[str, str]) -> Path:
    """`path` with a leading ``~`` replaced by ``HOME`` of `environment`, else by the account's folder."""
    if path.parts[:1] != ("~",):
        return path
    home = environment.get("HOME", "")
    return Path(home or Path.home()).joinpath(*path.parts[1:])


def _setting(
    default: T,
    help_text: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
    flag: str | None = None,
) -> T:
    """A field of a section class; its metadata becomes a row of ``SETTINGS``."""
    metadata = {
        "unit": unit,
        "help": help_text,
        "minimum": minimum,
        "maximum": maximum,
        "secret": secret,
        "flag": flag,
    }
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True)
class ServerSettings:
    """``[server]`` of the configuration."""

    host: str = _setting(
        "127.0.0.1", "Address to listen on; 0.0.0.0 is every IPv4 address.", minimum=1, flag="--host"
    )
    port: int = _setting(
        3000,
        "TCP port to listen on; 0 takes any free one.",
        unit="port",
        minimum=0,
        maximum=65535,
        flag="--port",
    )
    workers: int = _setting(
        1,
        "Processes that serve clients together; each user is at home in one of them. As many as there are "
        "processors make use of all.",
        unit="processes",
        minimum=1,
        maximum=64,
        flag="--workers",
    )
    allowed_origins: tuple[str, ...] = _setting(
        (),
        'Origins of browser pages that may connect besides the gateway\'s own, as "https://example.org"; '
        '"https://*.example.org" is every name below that one.',
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        "Names accepted in the Host header besides localhost, IP addresses and server.host; "
        '"*.example.org" is every name below that one.',
    )
    public_url: str = _setting(
        "",
        "Address under which clients reach the gateway, as https://gateway.example.org, a path behind it "
        "where a proxy has one. Empty takes what a request names.",
    )
    tls_certificate: str = _setting(
        "",
        "PEM file with the certificate, and those between it and the root behind it; with it the gateway "
        "speaks https and wss alone (TLS 1.2 or later). Empty speaks http and ws.",
    )
    tls_key: str = _setting(
        "",
        "PEM file with the key of that certificate, without a passphrase; others must not be able to read "
        "it.",
    )
    hsts_time: float = _setting(
        365.0 * DAY,
        "How long browsers that came by https refuse http to this host (RFC 6797); 0 does not say so.",
        unit="seconds",
        minimum=0,
        maximum=1000 * DAY,
    )
    trusted_proxies: tuple[str, ...] = _setting(
        (),
        "Addresses and networks (CIDR) of proxies that are believed what they say of the client: its "
        "address, scheme and host.",
    )
    proxy_headers: Literal["x-forwarded", "forwarded"] = _setting(
        "x-forwarded",
        "How they say it: X-Forwarded-For, -Proto and -Host, or Forwarded (RFC 7239). The other is never "
        "looked at, since a proxy that does not know it passes on what a client has made up.",
    )
    handshake_timeout: float = _setting(
        10.0,
        "Time that a connection has to send the headers and the body of a request.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    drain_timeout: float = _setting(
        10.0,
        "Time that open calls have to end after SIGTERM.",
        unit="seconds",
        minimum=0,
        maximum=DAY,
    )
    max_body_size: int = _setting(
        MEBIBYTE,
        "Largest body of an HTTP request.",
        unit="bytes",
        minimum=1024,
        maximum=1024 * MEBIBYTE,
    )
    max_connections: int = _setting(
        1000,
        "Most WebSockets and event streams open at once; one more is told so and closed with 3504.",
        unit="connections",
        minimum=1,
        maximum=1_000_000,
    )
    max_connections_per_user: int = _setting(
        10,
        "Most WebSockets and event streams of one user; one more waits for `place_timeout`, then is told so "
        "and closed with 3504.",
        unit="connections",
        minimum=1,
        maximum=1_000_000,
    )
    place_timeout: float = _setting(
        3.0,
        "Time that a connection above its user's limit has to resume a session of one of the others, or "
        "waits for the place of one that is found dead.",
        unit="seconds",
        minimum=0.1,
        maximum=60,
    )
    probe_timeout: float = _setting(
        2.0,
        "Time that a user's other connections then have to give a sign of life; at most place_timeout.",
        unit="seconds",
        minimum=0.1,
        maximum=60,
    )
    max_unidentified: int = _setting(
        100,
        "Most of them that have not proved a user: strangers cannot take every place.",
        unit="connections",
        minimum=1,
        maximum=1_000_000,
    )
    max_echo: int = _setting(
        10,
        "Most sockets of `/ws/echo`, which ask for no credentials.",
        unit="connections",
        minimum=1,
        maximum=1_000_000,
    )
    sweep_interval: float = _setting(
        300.0,
        "Time between two sweeps of what nobody needs any more.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )


@dataclass(frozen=True)
class DataSettings:
    """``[data]`` of the configuration."""

    dir: Path = field(
        default_factory=lambda: default_data_dir(os.environ),
        metadata={
            "help": "Folder for the signing key, the store and the memory database. "
            "Where XDG_DATA_HOME is set, the default is $XDG_DATA_HOME/mcpgw.",
            "flag": "--data-dir",
            "shown_default": Path("~/.local/share/mcpgw"),
        },
    )


@dataclass(frozen=True)
class LogSettings:
    """``[log]`` of the configuration."""

    # ``_setting`` makes a field, as ``dataclasses.field`` does, and is no shared default.
    file: Path = _setting(_LOG_FILE, "File that the log is written to.", flag="--log-file")  # noqa: RUF009
    format: Literal["text", "json"] = _setting(
        "text", "Lines for people (text) or one JSON object a line (json).", flag="--log-format"
    )
    level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "Least level that is written.", flag="--log-level"
    )
    max_size: int = _setting(
        10 * MEBIBYTE,
        "Size at which the file is put aside and a new one begun.",
        unit="bytes",
        minimum=1024,
        maximum=10 * 1024 * MEBIBYTE,
    )
    backups: int = _setting(5, "How many files put aside are kept.", unit="files", minimum=1, maximum=1000)


@dataclass(frozen=True)
class AuthSettings:
    """``[auth]`` of the configuration."""

    secret: str = _setting(
        "",
        "Key of HS256 tokens, at least 32 bytes; empty takes the key in the data folder. "
        "${env:NAME} and ${file:PATH} are replaced.",
        secret=True,
    )
    algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"] = _setting(
        "HS256", "The one algorithm that a token may be signed with (RFC 7518, RFC 8037)."
    )
    public_key: str = _setting(
        "",
        "PEM text of the issuer's public key, as ${file:PATH}; needed for every algorithm but HS256.",
    )
    issuer: str = _setting("mcpgw", "Claim `iss` that a token must carry.", minimum=1)
    audience: str = _setting("mcpgw", "Claim `aud` that a token must carry.", minimum=1)
    leeway: float = _setting(
        10.0,
        "How far the clocks of issuer and gateway may differ.",
        unit="seconds",
        minimum=0,
        maximum=600,
    )
    timeout: float = _setting(
        30.0,
        "Time that a socket without credentials has to send `auth`; then it is closed with 3502.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    max_attempts: int = _setting(
        10,
        "Failed `auth` frames on one socket before it is closed with 3500.",
        unit="frames",
        minimum=1,
        maximum=1000,
    )
    warning: float = _setting(
        60.0,
        "How long before the end of its token a socket is told so by a `status`.",
        unit="seconds",
        minimum=0,
        maximum=DAY,
    )
    passwords: bool = _setting(
        True,
        "Whether users log in with passwords that the gateway keeps. Where they do not, the login page leads "
        "to the identity provider, and a one-use link lets in without one.",
    )
    access_time: float = _setting(
        600.0,
        "How long the access token of a login holds; then it is refreshed.",
        unit="seconds",
        minimum=10,
        maximum=DAY,
    )
    login_time: float = _setting(
        14.0 * DAY,
        "How long a login can be refreshed; then one logs in again.",
        unit="seconds",
        minimum=60,
        maximum=366 * DAY,
    )
    issuer_login_time: float = _setting(
        DAY / 2,
        "The same for logins at an identity provider: then one is sent there again, and it says anew who may "
        "come in, and as what.",
        unit="seconds",
        minimum=60,
        maximum=366 * DAY,
    )
    refresh_grace: float = _setting(
        10.0,
        "How long a page may show its refresh token once more, from the same address, as a second tab does; "
        "it gets the same answer. Programs have no such time.",
        unit="seconds",
        minimum=0,
        maximum=60,
    )
    ticket_time: float = _setting(
        30.0,
        "How long a ticket for one connection can be used.",
        unit="seconds",
        minimum=1,
        maximum=300,
    )
    rate: float = _setting(
        2.0,
        "Requests to log in, refresh, log out and join from one address, and for tickets of one user, over a "
        "while; those above it get rate_limited.",
        unit="requests per second",
        minimum=0.01,
        maximum=10_000,
    )
    burst: int = _setting(30, "Such requests at once.", unit="requests", minimum=1, maximum=100_000)
    fetch_timeout: float = _setting(
        5.0,
        "Time that an issuer of others' tokens has to send its discovery document, and its keys.",
        unit="seconds",
        minimum=0.1,
        maximum=60,
    )
    keys_interval: float = _setting(
        300.0,
        "Time after which they are fetched again: a key that is gone from there holds no more.",
        unit="seconds",
        minimum=1,
        maximum=3600,
    )
    keys_wait: float = _setting(
        30.0,
        "Time between two fetches because of a key that is not known, when there have been five of them.",
        unit="seconds",
        minimum=0.1,
        maximum=3600,
    )
    watch_interval: float = _setting(
        0.5,
        "Time between two looks for what commands and other gateways have changed of users, logins and keys.",
        unit="seconds",
        minimum=0.05,
        maximum=60,
    )


@dataclass(frozen=True)
class WebSocketSettings:
    """``[websocket]`` of the configuration."""

    ping_interval: float = _setting(
        30.0,
        "Time between two pings.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    pong_timeout: float = _setting(
        10.0,
        "Time that a client has to answer a ping; at most ping_interval.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    max_message_size: int = _setting(
        1_048_576,
        "Largest message of a client, after decompression too.",
        unit="bytes",
        minimum=1024,
        maximum=1024 * MEBIBYTE,
    )
    max_batch: int = _setting(
        100, "Most frames in one batch (a JSON array of frames).", unit="frames", minimum=1, maximum=10_000
    )
    max_depth: int = _setting(
        64, "Deepest nesting of JSON in a frame.", unit="levels", minimum=4, maximum=128
    )
    max_calls: int = _setting(
        16, "Most calls at once on one socket.", unit="calls", minimum=1, maximum=10_000
    )
    frames_rate: float = _setting(
        2000.0,
        "Frames that one user may send on and on, over all sockets; those above it get rate_limited.",
        unit="frames per second",
        minimum=0.1,
        maximum=1_000_000,
    )
    frames_burst: int = _setting(
        4000, "Frames that one user may send at once.", unit="frames", minimum=1, maximum=1_000_000
    )
    max_refusals: int = _setting(
        100,
        "Frames refused with rate_limited, beyond those let through, before a socket is closed with 3013.",
        unit="frames",
        minimum=1,
        maximum=1_000_000,
    )
    max_errors: int = _setting(
        100,
        "Frames refused in a row, rate_limited and other passing refusals aside, before a socket is closed "
        "with 3509.",
        unit="frames",
        minimum=1,
        maximum=1_000_000,
    )
    read_timeout: float = _setting(
        60.0,
        "Silence of a client, pongs counting as life signs, after which its socket is closed with 3012.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    write_timeout: float = _setting(
        10.0,
        "Time that a reader may take nothing while something waits for it; then it is closed with 3008.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    echo: bool = _setting(
        False, "Whether `/ws/echo` answers, for suites that test the wire; it asks for no credentials."
    )
    compression_minimum: int = _setting(
        512,
        "Size below which a message is sent as it is.",
        unit="bytes",
        minimum=0,
        maximum=1024 * MEBIBYTE,
    )
    compression: bool = _setting(True, "Whether permessage-deflate is offered (RFC 7692).")


@dataclass(frozen=True)
class RoomSettings:
    """``[rooms]`` of the configuration."""

    max_open: int = _setting(
        100, "Rooms that may be open to guests at once.", unit="rooms", minimum=1, maximum=10_000
    )
    max_connections_per_guest: int = _setting(
        3,
        "Connections (sockets and event streams) that one guest may have.",
        unit="connections",
        minimum=1,
        maximum=1000,
    )


@dataclass(frozen=True)
class CallSettings:
    """``[calls]`` of the configuration."""

    timeout: float = _setting(
        60.0,
        "Time that a call whose client and server definition name none may be silent; its progress begins "
        "that time anew.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    max_timeout: float = _setting(
        3600.0,
        "Longest time of a call, whatever its progress, and the longest that a client may ask for.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    input_timeout: float = _setting(
        120.0,
        "Time that a caller has to answer what a server asks in mid-call; then it is declined.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    approval_timeout: float = _setting(
        120.0,
        "Time that a call which needs an approval waits for it; then it is refused.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    approve_own: bool = _setting(False, "Whether who may approve calls may approve their own, too.")
    max_approvals: int = _setting(
        100,
        "Calls that may wait for an approval at once; one user's may be a quarter of them.",
        unit="calls",
        minimum=1,
        maximum=100_000,
    )
    retry_wait: float = _setting(
        1.5,
        "Time that a call may wait for its server to come back before it ends with an error.",
        unit="seconds",
        minimum=0,
        maximum=DAY,
    )
    rate: float = _setting(
        1000.0,
        "Calls that one user may make on and on; those above it get rate_limited.",
        unit="calls per second",
        minimum=0.01,
        maximum=1_000_000,
    )
    burst: int = _setting(
        2000, "Calls that one user may make at once.", unit="calls", minimum=1, maximum=1_000_000
    )


@dataclass(frozen=True)
class BackendSettings:
    """``[backends]`` of the configuration."""

    connect_timeout: float = _setting(
        30.0,
        "Time for the start, the handshake and the first list of tools.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    retry_initial: float = _setting(
        0.5,
        "First pause before a backend that failed is tried again; it grows with each failure.",
        unit="seconds",
        minimum=0.01,
        maximum=DAY,
    )
    retry_maximum: float = _setting(
        30.0,
        "Longest pause before a backend that failed is tried again.",
        unit="seconds",
        minimum=0.01,
        maximum=DAY,
    )
    failed_after: int = _setting(
        5,
        "Tries in a row that fail before a backend is called failed; it is tried on, every retry_maximum.",
        unit="tries",
        minimum=1,
        maximum=1000,
    )
    health_interval: float = _setting(
        30.0,
        "Time between two probes of a backend that is silent (ping, or server/discover); 0 sends none.",
        unit="seconds",
        minimum=0,
        maximum=DAY,
    )
    health_timeout: float = _setting(
        10.0,
        "Time that a backend has to answer a probe; then it is degraded.",
        unit="seconds",
        minimum=0.05,
        maximum=DAY,
    )
    health_failures: int = _setting(
        3,
        "Probes in a row without an answer before a backend is started again; a call that it may still be "
        "working on is waited for.",
        unit="probes",
        minimum=1,
        maximum=1000,
    )
    stop_timeout: float = _setting(
        2.0,
        "Time after closing stdin before SIGTERM, and again before SIGKILL.",
        unit="seconds",
        minimum=0.1,
        maximum=600,
    )
    max_message_size: int = _setting(
        8 * MEBIBYTE,
        "Largest message of a backend; a longer one ends its call with too_large.",
        unit="bytes",
        minimum=1024,
        maximum=1024 * MEBIBYTE,
    )
    log_lines_per_second: int = _setting(
        100,
        "Lines of one backend's stderr that are written to the log.",
        unit="lines per second",
        minimum=0,
        maximum=100_000,
    )
    notifications_per_second: int = _setting(
        1000,
        "Notifications (progress, logs) of one backend that are read; those above it are dropped.",
        unit="notifications per second",
        minimum=1,
        maximum=100_000,
    )
    max_calls: int = _setting(
        64,
        "Most calls at once on one backend; more wait in line, the users by turns.",
        unit="calls",
        minimum=1,
        maximum=100_000,
    )
    max_waiting: int = _setting(
        1000,
        "Most calls that wait in line for one backend; one more ends with queue_full.",
        unit="calls",
        minimum=0,
        maximum=100_000,
    )
    http_connections: int = _setting(
        256,
        "Most connections that calls of one backend over Streamable HTTP have open at once, one for each; "
        "more calls wait for one.",
        unit="connections",
        minimum=1,
        maximum=100_000,
    )


@dataclass(frozen=True)
class EventSettings:
    """``[events]`` of the configuration."""

    heartbeat: float = _setting(
        15.0, "Time between two heartbeats of a stream.", unit="seconds", minimum=0.1, maximum=DAY
    )
    retry: float = _setting(
        3.0,
        "What SSE clients are told to wait before they connect again.",
        unit="seconds",
        minimum=0,
        maximum=DAY,
    )
    log_size: int = _setting(
        10_000,
        "Events of each kind of channel that the log holds for readers who come back.",
        unit="events",
        minimum=1,
        maximum=1_000_000,
    )
    log_age: float = _setting(
        300.0, "Age beyond which an event leaves the log.", unit="seconds", minimum=1, maximum=DAY
    )
    log_bytes: int = _setting(
        64 * MEBIBYTE,
        "Bytes of all events that the log holds; of the kind that has most the oldest leave first.",
        unit="bytes",
        minimum=1024,
        maximum=64 * 1024 * MEBIBYTE,
    )
    max_waiting: int = _setting(
        256,
        "Events, progress and results that may wait for one reader.",
        unit="frames",
        minimum=1,
        maximum=100_000,
    )
    max_waiting_size: int = _setting(
        MEBIBYTE, "Bytes that may wait for one reader.", unit="bytes", minimum=1024, maximum=1024 * MEBIBYTE
    )


@dataclass(frozen=True)
class SessionSettings:
    """``[sessions]`` of the configuration."""

    resume_time: float = _setting(
        120.0,
        "Time that a client whose connection broke has to come back; then its calls are cancelled.",
        unit="seconds",
        minimum=0,
        maximum=DAY,
    )
    max_results: int = _setting(
        256,
        "Ends of calls that one session keeps for its client.",
        unit="results",
        minimum=1,
        maximum=100_000,
    )
    max_result_bytes: int = _setting(
        16 * MEBIBYTE,
        "Size of the ends of calls that one session keeps for its client.",
        unit="bytes",
        minimum=1024,
        maximum=1024 * MEBIBYTE,
    )
    max_total_result_bytes: int = _setting(
        256 * MEBIBYTE,
        "Memory for the ends of calls that all sessions keep; then the session that keeps most gives way.",
        unit="bytes",
        minimum=1024,
        maximum=1024 * 1024 * MEBIBYTE,
    )
    max_sessions: int = _setting(
        10_000,
        "Sessions that wait for their clients to come back.",
        unit="sessions",
        minimum=1,
        maximum=1_000_000,
    )


@dataclass(frozen=True)
class AuditSettings:
    """``[audit]`` of the configuration."""

    file: Path = _setting(_AUDIT_FILE, "File that the audit log is written to, one JSON object a line.")  # noqa: RUF009
    max_size: int = _setting(
        10 * MEBIBYTE,
        "Size at which the file is put aside and a new one begun.",
        unit="bytes",
        minimum=1024,
        maximum=10 * 1024 * MEBIBYTE,
    )
    backups: int = _setting(10, "How many files put aside are kept.", unit="files", minimum=1, maximum=1000)
    arguments: bool = _setting(False, "Whether the arguments of calls are written; they may hold secrets.")


@dataclass(frozen=True)
class MetricsSettings:
    """``[metrics]`` of the configuration."""

    public: bool = _setting(
        False,
        "Whether anybody may read /metrics; else only clients on this machine, and tokens with the scope "
        "`admin`.",
    )


@dataclass(frozen=True)
class StoreSettings:
    """``[store]`` of the configuration."""

    url: str = _setting(
        "",
        "Database for users, servers added at run time and catalogs, as sqlite:////PATH or "
        "postgresql://USER:PASSWORD@HOST/NAME; empty takes the file mcpgw.db in the data folder. ${env:NAME} "
        "and ${file:PATH} are replaced.",
        secret=True,
    )
    busy_timeout: float = _setting(
        5.0,
        "Time that a lock of another program on the database is waited for.",
        unit="seconds",
        minimum=0,
        maximum=600,
    )


@dataclass(frozen=True)
class CatalogSettings:
    """``[catalogs]`` of the configuration."""

    timeout: float = _setting(
        30.0,
        "Time that reading a catalog from its address may take, all pages together.",
        unit="seconds",
        minimum=0.1,
        maximum=3600,
    )
    max_size: int = _setting(
        16 * MEBIBYTE,
        "Largest catalog, all pages together.",
        unit="bytes",
        minimum=1024,
        maximum=1024 * MEBIBYTE,
    )
    max_entries: int = _setting(
        20_000, "Most entries of one catalog.", unit="entries", minimum=1, maximum=1_000_000
    )


@dataclass(frozen=True)
class McpSettings:
    """``[mcp]`` of the configuration."""

    enabled: bool = _setting(True, "Whether /mcp and /mcp/SERVER answer MCP clients.")
    separator: str = _setting(
        "__",
        "What stands between the name of a server and that of its tool or prompt in /mcp.",
        minimum=1,
        maximum=8,
    )
    session_idle: float = _setting(
        1800.0,
        "Time without any request after which a session is ended.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    max_sessions: int = _setting(
        1000, "Most sessions open at once.", unit="sessions", minimum=1, maximum=1_000_000
    )
    max_sessions_per_user: int = _setting(
        50, "Most sessions of one user.", unit="sessions", minimum=1, maximum=1_000_000
    )
    max_requests_per_user: int = _setting(
        200,
        "Most requests of one user that are open at once, streams aside.",
        unit="requests",
        minimum=1,
        maximum=1_000_000,
    )
    suspend_time: float = _setting(
        300.0,
        "Time that a request which has asked its caller for something waits for the caller to come back "
        "(revision 2026-07-28); then it is cancelled.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    max_suspended: int = _setting(
        1000, "Most requests that wait for their callers so.", unit="requests", minimum=1, maximum=1_000_000
    )
    max_suspended_per_user: int = _setting(
        16, "Most of them of one user.", unit="requests", minimum=1, maximum=1_000_000
    )


@dataclass(frozen=True)
class MemorySettings:
    """``[memory]`` of the configuration."""

    enabled: bool = _setting(True, "Whether the embedded memory server runs, as the server `memory`.")


@dataclass(frozen=True)
class ReloadSettings:
    """``[reload]`` of the configuration."""

    watch: bool = _setting(
        True, "Whether a change of the configuration's files is taken over while the gateway runs."
    )
    interval: float = _setting(
        5.0,
        "Time after which they are looked at in any case: not every file system tells of a change.",
        unit="seconds",
        minimum=0.1,
        maximum=3600,
    )


@dataclass(frozen=True)
class ServerRules:
    """``[servers]`` of the configuration, the definitions of the servers aside."""

    stdio: bool = _setting(
        True,
        "Whether programs may be servers (stdio); false forbids all of them, whoever adds them, but for the "
        "embedded memory server.",
    )


SECTIONS: Final[Mapping[str, type[Any]]] = {
    "server": ServerSettings,
    "data": DataSettings,
    "log": LogSettings,
    "auth": AuthSettings,
    "websocket": WebSocketSettings,
    "calls": CallSettings,
    "rooms": RoomSettings,
    "backends": BackendSettings,
    "events": EventSettings,
    "sessions": SessionSettings,
    "audit": AuditSettings,
    "metrics": MetricsSettings,
    "store": StoreSettings,
    "catalogs": CatalogSettings,
    "mcp": McpSettings,
    "memory": MemorySettings,
    "reload": ReloadSettings,
    "servers": ServerRules,
}

SECTION_HELP: Final[Mapping[str, str]] = {
    "server": "Where the gateway listens, and for whom.",
    "data": "Where the gateway keeps what must outlive it.",
    "log": "The log file.",
    "auth": "How a client's token is checked.",
    "sessions": "What outlives a connection that broke.",
    "websocket": "Limits of one socket.",
    "rooms": "Rooms that are opened to guests, such as for a workshop.",
    "calls": "How long a tool call may take, and how many a user may make.",
    "backends": "How backend servers are started, watched and stopped.",
    "events": "Server-Sent Events (HTML Living Standard, section 9.2).",
    "audit": "The audit log: who did what, from where, and what came of it.",
    "metrics": "What the gateway tells Prometheus.",
    "store": "What is changed while the gateway runs, and must outlive it.",
    "catalogs": "Lists of servers that others publish.",
    "mcp": "MCP clients: every server as one at /mcp, and each alone at /mcp/SERVER.",
    "memory": "The embedded memory server.",
    "reload": "Changes of the configuration while the gateway runs.",
    "servers": "What holds for every backend server; the servers themselves are [servers.NAME].",
}


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    `type` is one of str, int, float, bool, Path and tuple (a tuple of str). `minimum` and `maximum` bound
    numbers, and the length of a str. The `default` of a path may begin with ``~``.
    """

    name: str
    type: type[Any]
    default: Value
    unit: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] | None = None
    secret: bool = False
    flag: str | None = None

    @property
    def section(self) -> str:
        """The TOML table that it stands in."""
        return self.name.partition(".")[0]

    @property
    def key(self) -> str:
        """Its name inside the section."""
        return self.name.partition(".")[2]

    @property
    def environment_name(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.name.replace(".", "_").upper()

    @property
    def flag_name(self) -> str:
        """The command line flag that sets it."""
        return self.flag or "--" + self.name.replace(".", "-").replace("_", "-")


def _rows() -> Iterator[Setting]:
    for section, cls in SECTIONS.items():
        hints = get_type_hints(cls)
        for row in fields(cls):
            hint = hints[row.name]
            literal = get_origin(hint) is Literal
            default = row.default if row.default is not MISSING else row.metadata["shown_default"]
            yield Setting(
                name=f"{section}.{row.name}",
                type=str if literal else get_origin(hint) or hint,
                default=default,
                unit=row.metadata.get("unit", ""),
                help=row.metadata["help"],
                minimum=row.metadata.get("minimum"),
                maximum=row.metadata.get("maximum"),
                choices=get_args(hint) if literal else None,
                secret=row.metadata.get("secret", False),
                flag=row.metadata.get("flag"),
            )


SETTINGS: Final[tuple[Setting, ...]] = tuple(_rows())

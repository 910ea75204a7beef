"""TLS: a certificate and its key in files, and what happens when they change."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mcpgw.cli.connection import ConnectionOptions
from mcpgw.cli.output import UsageFault
from mcpgw.client import Gateway, NotReachable, ask, events, trusting, trusting_only
from mcpgw.errors import ConfigError
from mcpgw.settings import ServerSettings
from mcpgw.tls import load_certificate
from tests.support.certificates import Authority
from tests.support.command_line import run
from tests.support.gateway_process import GatewayProcess, wait_until
from tests.support.raw_socket import TEXT, frame_bytes

SMALL_CURVE = """
-----BEGIN CERTIFICATE-----
MIIBITCB7KADAgECAhRE013ZLg46ON9FhXu5+58zIaYItjAKBggqhkjOPQQDAjAM
MQowCAYDVQQDDAF4MB4XDTI2MTEyMjA0MjEwOFoXDTI2MTEyNTA0MjEwOFowDDEK
MAgGA1UEAwwBeDAyMBAGByqGSM49AgEGBSuBBAAGAx4ABJgToTMD0avt6S8cUvVh
oz5PsCtqevy/ATwIEBWjUzBRMB0GA1UdDgQWBBQ7lr71PwWKgOG4C2VWsvBO70go
RTAfBgNVHSMEGDAWgBQ7lr71PwWKgOG4C2VWsvBO70goRTAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCAyQAMCECDwDPT8jB8alSp5CKKTiuXAIOYWg6s/X/fTyF
tWNRwSE=
-----END CERTIFICATE-----
"""
"""A certificate of a key on secp112r1, which only OpenSSL still makes."""


class Pair:
    """Files of a certificate, renewed in place."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.certificate, self.key = folder / "gateway.pem", folder / "gateway.key"

    @property
    def settings(self) -> ServerSettings:
        """What names them."""
        return ServerSettings(tls_certificate=str(self.certificate), tls_key=str(self.key))

    def renew(self, **how: Any) -> int:
        """Make another one; answers its serial number."""
        return self.authority.issue(self.certificate, self.key, **how)


class Encrypted:
    """A gateway process that speaks TLS, with its files; `serial` is of the certificate it began with."""

    def __init__(self, folder: Path) -> None:
        self.pair = Pair(folder)
        self.serial = self.pair.renew()
        configuration = (
            f'[server]\ntls_certificate = "{self.pair.certificate}"\ntls_key = "{self.pair.key}"\n'
            "handshake_timeout = 1\n[reload]\nwatch = false\n"
        )
        (folder / "gateway").mkdir()
        self.process = GatewayProcess(folder / "gateway", configuration=configuration).wait_listening()
        self.tls = trusting(self.pair.authority.file)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.process.url.rpartition(":")[2])

    def connect(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """A connection that has shaken hands."""
        raw = socket.create_connection(("127.0.0.1", self.port), 10)
        return (context or self.tls).wrap_socket(raw, server_hostname="localhost")

    def shown_serial(self) -> int:
        """The serial number of the certificate that a new connection is shown."""
        with self.connect() as connection:
            shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """One for all tests; each leaves it with a pair that can be used."""
    gateway = Encrypted(tmp_path_factory.mktemp("tls"))
    yield gateway
    assert gateway.process.terminate() == 0


def get(connection: socket.socket, path: str) -> bytes:
    """The head of an answer; the connection stays open."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    return answer


def test_addresses_are_shown_as_https_and_answers_tell_browsers_to_stay_there(encrypted: Encrypted) -> None:
    printed = encrypted.process.printed()
    assert encrypted.process.url.startswith("https://127.0.0.1:")
    assert f"wss://127.0.0.1:{encrypted.port}/ws" in printed
    assert f"{encrypted.process.url}/api/v1/auth/login#" in printed
    assert "http://" not in printed
    with encrypted.connect() as connection:
        head = get(connection, "/api/v1/auth/login").decode()
    assert head.startswith("HTTP/1.1 200")
    cookie = next(line for line in head.split("\r\n") if line.startswith("Set-Cookie: mcpgw_login_xsrf="))
    assert "Secure" in cookie.split("; ")


def test_nothing_older_than_tls_1_2_and_nothing_plain_is_spoken(encrypted: Encrypted) -> None:
    with socket.create_connection(("127.0.0.1", encrypted.port), 10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"200" not in plain.recv(4096)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(encrypted.pair.authority.file)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        encrypted.connect(old)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = trusting(encrypted.pair.authority.file)
        context.minimum_version = context.maximum_version = version
        with encrypted.connect(context) as connection:
            assert get(connection, "/healthz").startswith(b"HTTP/1.1 200")
            assert "ECDHE" in str(connection.cipher()) or "TLS_" in str(connection.cipher())
    wait_until(lambda: "encryption failed" in encrypted.process.log(), what="a line of the log")
    assert "SSL Error" not in encrypted.process.printed(), "anybody could fill the terminal with it"


def test_who_does_not_finish_a_handshake_is_dropped_in_time(encrypted: Encrypted) -> None:
    with socket.create_connection(("127.0.0.1", encrypted.port), 10) as silent:
        silent.sendall(b"\x16\x03\x01")
        began = time.monotonic()
        assert silent.recv(100) == b""
        assert time.monotonic() - began < 8


def test_a_fault_on_an_encrypted_socket_still_gets_its_close_code(encrypted: Encrypted) -> None:
    asked = (
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with encrypted.connect() as connection:
        connection.sendall(asked.encode())
        said = b""
        while b"requiresAuth" not in said:
            said += connection.recv(65536)
        # A frame without a mask, and more behind it that nobody reads (RFC 6455, section 5.1).
        connection.sendall(frame_bytes(TEXT, b"{}", masked=False) + bytes(100_000))
        said = b""
        with suppress(ssl.SSLEOFError, ConnectionResetError):
            while chunk := connection.recv(65536):
                said += chunk
    assert said[:1] == b"\x88", "a close frame"
    assert int.from_bytes(said[2:4], "big") == 1002


@pytest.mark.gen_test
async def test_the_client_calls_and_follows_events_and_believes_whom_it_is_told_to(
    encrypted: Encrypted,
) -> None:
    token, port = encrypted.process.token(), encrypted.port
    for url in (f"wss://localhost:{port}/ws", f"https://127.0.0.1:{port}"):
        async with Gateway(url, token, tls=encrypted.tls) as gateway:
            # Large answers go in many records, more than the kernel takes at once.
            await gateway.call("memory", "memory_save", {"project": "tls", "content": "x" * 60_000})
            found = [gateway.call("memory", "memory_search", {"project": "tls"}) for _ in range(16)]
            for answer in await asyncio.gather(*found):
                assert "x" * 60_000 in str(answer.result)
        stream = events(url, token, tls=encrypted.tls)
        assert (await anext(stream)).type == "connected"
        await stream.aclose()
    servers = await ask(f"https://localhost:{port}", token, "GET", "/api/v1/servers", tls=encrypted.tls)
    assert servers["servers"][0]["id"] == "memory"
    with pytest.raises(NotReachable):
        await ask(f"https://localhost:{port}", token, "GET", "/api/v1/servers")
    with pytest.raises(NotReachable):
        async with Gateway(f"wss://localhost:{port}", token, give_up_after=0):
            pass
    pinned = trusting_only(encrypted.pair.certificate)
    assert await ask(f"https://127.0.0.1:{port}", token, "GET", "/api/v1/servers", tls=pinned)


def test_commands_find_the_gateway_of_this_machine_and_believe_its_own_certificate(
    encrypted: Encrypted, tmp_path: Path
) -> None:
    data_dir = ("--data-dir", str(encrypted.process.data_dir))
    token = {"MCPGW_TOKEN": encrypted.process.token()}
    found = run("servers", *data_dir, environment=token, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "memory" in found.stdout
    url = ("--url", f"https://localhost:{encrypted.port}")
    refused = run("servers", *url, environment=token, folder=tmp_path)
    assert refused.returncode != 0
    assert "certificate" in refused.stderr
    given = run(
        "tools", *url, "--ca-file", str(encrypted.pair.authority.file), environment=token, folder=tmp_path
    )
    assert given.returncode == 0, given.stderr
    assert "memory_search" in given.stdout
    by_variable = {**token, "SSL_CERT_FILE": str(encrypted.pair.authority.file)}
    assert run("servers", *url, environment=by_variable, folder=tmp_path).returncode == 0


def test_an_authority_is_not_believed_where_nothing_is_encrypted() -> None:
    options = ConnectionOptions("http://127.0.0.1:1", None, None, Path("authority.pem"))
    with pytest.raises(UsageFault, match="would be sent the token in clear"):
        options.find(token="a-token")


def test_a_renewed_certificate_is_taken_over_and_open_connections_stay(encrypted: Encrypted) -> None:
    with encrypted.connect() as open_before:
        assert get(open_before, "/healthz").startswith(b"HTTP/1.1 200")
        serial = encrypted.pair.renew()
        wait_until(lambda: encrypted.shown_serial() == serial, what="the new certificate")
        assert get(open_before, "/healthz").startswith(b"HTTP/1.1 200")
    # As certbot and Kubernetes do it: a link is swapped.
    elsewhere = encrypted.pair.certificate.parent / "live"
    elsewhere.mkdir()
    serial = encrypted.pair.authority.issue(elsewhere / "c.pem", elsewhere / "k.pem")
    for link, target in ((encrypted.pair.certificate, "c.pem"), (encrypted.pair.key, "k.pem")):
        draft = link.with_suffix(".new")
        draft.symlink_to(elsewhere / target)
        draft.replace(link)
    wait_until(lambda: encrypted.shown_serial() == serial, what="the certificate behind the links")


def test_a_new_pair_that_cannot_be_used_is_refused_and_the_old_one_stays(encrypted: Encrypted) -> None:
    serial = encrypted.shown_serial()
    key = encrypted.pair.key.read_bytes()

    def refused() -> int:
        return encrypted.process.log().count("certificate refused")

    async def follow(what: Callable[[], object]) -> list[str]:
        stream = events(
            encrypted.process.url, encrypted.process.token(), channels=("config",), tls=encrypted.tls
        )
        async with asyncio.timeout(15):
            assert (await anext(stream)).type == "connected"
            what()
            async for event in stream:
                if event.type == "config.error":
                    await stream.aclose()
                    return list(event.data["data"]["faults"])
        raise AssertionError

    faults = asyncio.run(follow(lambda: encrypted.pair.key.write_text("no key")))
    assert faults
    assert str(encrypted.pair.key) in faults[0]
    assert encrypted.shown_serial() == serial
    wait_until(lambda: refused() == 1, what="a line of the log")
    encrypted.pair.key.write_bytes(key)
    wait_until(lambda: encrypted.process.log().count("certificate in force") > 1, what="the old pair again")
    assert encrypted.shown_serial() == serial


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Files of a certificate that can be used."""
    pair = Pair(tmp_path)
    pair.renew()
    return pair


def faults_of(settings: ServerSettings) -> str:
    """Why a pair cannot be used."""
    with pytest.raises(ConfigError) as caught:
        load_certificate(settings)
    return "\n".join(caught.value.faults)


def test_a_pair_that_can_be_used_tells_its_names_and_its_end(pair: Pair) -> None:
    certificate = load_certificate(pair.settings)
    assert certificate.names == ("localhost", "127.0.0.1")
    assert certificate.warning() == ""
    assert "holds until" in certificate.warning(certificate.ends - timedelta(days=3))
    assert "clients refuse it" in certificate.warning(certificate.ends)
    assert "does not hold before" in certificate.warning(datetime(2000, 1, 1, tzinfo=UTC))


def test_every_fault_of_a_pair_is_told_and_no_part_of_the_key_is(pair: Pair) -> None:
    certificate, key = pair.certificate.read_bytes(), pair.key.read_bytes()
    secret = key.decode().splitlines()[1]

    def fault(what: str) -> None:
        told = faults_of(pair.settings)
        assert what in told
        assert secret not in told
        pair.certificate.unlink(missing_ok=True)
        pair.key.unlink(missing_ok=True)
        pair.certificate.write_bytes(certificate)
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(key)

    pair.certificate.unlink()
    fault("No such file")
    pair.key.unlink()
    fault("No such file")
    pair.certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    fault("holds no certificate")
    pair.certificate.write_bytes(key)
    fault("holds no certificate")
    pair.key.write_text("nothing")
    fault("cannot be used")
    pair.authority.issue(pair.certificate, pair.certificate.with_name("another.key"))
    fault("is not the key of")
    pair.renew(passphrase="a passphrase")
    fault("without a passphrase")
    for mode in (0o644, 0o640, 0o620, 0o604):
        pair.key.chmod(mode)
        fault("chmod 600")
    pair.key.unlink()
    os.mkfifo(pair.key, 0o600)
    fault("not a regular file")
    pair.certificate.unlink()
    os.mkfifo(pair.certificate)
    fault("not a regular file")
    # Names that no library reads, and a curve that is too small (RFC 5280 section 4.2.1.6, RFC 8422).
    pair.renew(unreadable=True)
    fault("cannot be used")
    pair.certificate.write_text(SMALL_CURVE)
    fault("Curve 1.3.132.0.6 is not supported")
    assert load_certificate(pair.settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_group_may_read_the_key_that_root_has_given_it(pair: Pair) -> None:
    code = (
        "import os, sys; from mcpgw.tls import load_certificate; from mcpgw.settings import ServerSettings\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "load_certificate(ServerSettings(tls_certificate=sys.argv[1], tls_key=sys.argv[2])); print('good')"
    )
    for folder in (pair.key.parent, *pair.key.parent.parents):
        if folder.name.startswith(("pytest-", "popen-")) or folder == pair.key.parent:
            folder.chmod(0o755)
    os.chown(pair.key, 0, 65534)
    for mode, good in ((0o640, True), (0o660, False), (0o644, False)):
        pair.key.chmod(mode)
        command = [sys.executable, "-c", code, str(pair.certificate), str(pair.key)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert ("good" in ran.stdout) is good, ran.stderr


def test_check_says_whether_the_pair_can_be_used(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "mcpgw.toml").write_text(
        '[server]\ntls_certificate = "gateway.pem"\ntls_key = "gateway.key"\n', encoding="utf-8"
    )
    pair.renew(lasts=timedelta(days=3))
    good = run("check", folder=tmp_path)
    assert good.returncode == 0
    assert "Certificate: for localhost, 127.0.0.1, until" in good.stdout
    assert "note: the certificate holds until" in good.stderr
    pair.key.chmod(0o644)
    bad = run("check", folder=tmp_path)
    assert bad.returncode != 0
    assert "chmod 600" in bad.stderr
    alone = run("check", "--server-tls-key", "", folder=tmp_path)
    assert alone.returncode != 0
    assert "needs server.tls_key" in alone.stderr

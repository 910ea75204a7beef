"""Catalogs from addresses and files: bounded, and never led astray."""

import gzip
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpgw.catalogs.addresses import check_url, shown_url
from mcpgw.catalogs.fetching import (
    fetch_catalog,
    is_public_address,
    read_file,
    request_address,
    request_extensions,
    request_headers,
)
from mcpgw.catalogs.model import CatalogFault, ReadCatalog
from tests.catalogs.web import Answer, Web, web_server

PUBLISHED = Path(__file__).parent / "published"
CATALOG = (PUBLISHED / "docker-mcp.yaml").read_bytes()


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        yield running


async def fetch(url: str, *, max_size: int = 100_000, timeout: float = 10) -> ReadCatalog:
    return await fetch_catalog(url, max_size=max_size, timeout=timeout, user_agent="tests")


async def refusal(url: str, *, max_size: int = 100_000, timeout: float = 10) -> str:
    with pytest.raises(CatalogFault) as refused:
        await fetch(url, max_size=max_size, timeout=timeout)
    return str(refused.value)


@pytest.mark.gen_test
async def test_a_catalog_is_read_from_its_address(web: Web) -> None:
    web.answers["/catalog.yaml"] = Answer(CATALOG)
    assert len((await fetch(f"{web.url}/catalog.yaml?key=1")).entries) == 7
    assert web.asked == ["/catalog.yaml?key=1"]


@pytest.mark.gen_test
async def test_all_pages_of_a_registry_are_read_within_one_bound(web: Web) -> None:
    def page(path: str) -> bytes:
        number = int(path.partition("cursor=")[2] or 0)
        server = {"server": {"name": f"a/s{number}", "description": "x" * 1000, "version": "1"}}
        metadata = {"nextCursor": str(number + 1)} if number < 4 else {}
        return json.dumps({"servers": [server], "metadata": metadata}).encode()

    web.answers["/v0/servers"] = Answer(page)
    read = await fetch(f"{web.url}/v0/servers?limit=1")
    assert [entry.name for entry in read.entries] == [f"a/s{number}" for number in range(5)]
    assert web.asked[-1] == "/v0/servers?limit=1&cursor=4"
    assert "larger than 3000 bytes" in await refusal(f"{web.url}/v0/servers", max_size=3000)
    web.answers["/v0/servers"] = Answer(lambda _: page("cursor=0"))
    assert [entry.name for entry in (await fetch(f"{web.url}/v0/servers")).entries] == ["a/s0"]


@pytest.mark.gen_test
async def test_what_is_too_large_too_slow_or_compressed_is_refused(web: Web) -> None:
    web.answers["/large"] = Answer(b"x" * 5000)
    assert (
        await refusal(f"{web.url}/large", max_size=4999) == "is larger than 4999 bytes: see catalogs.max_size"
    )
    web.answers["/zip"] = Answer(gzip.compress(CATALOG), headers={"Content-Encoding": "gzip"})
    assert "is compressed" in await refusal(f"{web.url}/zip")
    going = threading.Event()
    web.answers["/slow"] = Answer(lambda _: str(going.wait(10)).encode())
    assert await refusal(f"{web.url}/slow", timeout=0.2) == "could not be read within 0.2 seconds"
    going.set()
    web.answers["/wrong"] = Answer(b"\xff\xfe")
    assert await refusal(f"{web.url}/wrong") == "is not UTF-8"
    assert await refusal(f"{web.url}/none?token=hush") == "could not be read: the answer was 404"


@pytest.mark.gen_test
async def test_a_port_without_a_server_is_told_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert (
        await refusal(f"http://127.0.0.1:{port}/?key=hush") == "could not be read: no connection can be made"
    )


@pytest.mark.gen_test
async def test_a_redirect_on_the_same_host_is_followed_a_few_times(web: Web) -> None:
    web.answers["/old"] = Answer(status=302, headers={"Location": "/new"})
    web.answers["/new"] = Answer(CATALOG)
    assert len((await fetch(f"{web.url}/old")).entries) == 7
    web.answers["/round"] = Answer(status=307, headers={"Location": "/round"})
    assert await refusal(f"{web.url}/round") == "redirects more than 5 times"


@pytest.mark.gen_test
async def test_a_redirect_leads_to_no_private_host_and_to_nothing_but_the_web(web: Web) -> None:
    with web_server() as inner:
        inner.answers["/secret"] = Answer(CATALOG)
        for target in (
            f"{inner.url}/secret",
            f"{inner.url}/secret".replace("127.0.0.1", "localhost"),
            "http://169.254.169.254/latest/meta-data",
            "http://10.0.0.1/",
            "http://[::1]:1/",
            "http://0.0.0.0:1/",
            "http://[::ffff:127.0.0.1]:1/",
        ):
            web.answers["/"] = Answer(status=302, headers={"Location": target})
            assert "not on the public internet" in await refusal(f"{web.url}/"), target
        assert inner.asked == []
    for target in ("file:///etc/passwd", "ftp://x/y", ""):
        web.answers["/"] = Answer(status=302, headers={"Location": target})
        assert "redirects" in await refusal(f"{web.url}/"), target
    web.answers["/"] = Answer(status=302, headers={"Location": "http://ann:hush@example.org/"})
    assert "hush" not in await refusal(f"{web.url}/")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://x/y", "http:// or https://"),
        ("x", "http:// or https://"),
        ("https://", "http:// or https://"),
        ("http://x:y/", "not a complete address"),
        ("https://ann:hush@x/", "holds credentials"),
        ("https://ann@x/", "holds credentials"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, reason: str) -> None:
    with pytest.raises(CatalogFault, match=reason) as refused:
        check_url(url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("checked", "shown"), [("93.184.216.34", "93.184.216.34"), ("2606:2800:21f::1", "[2606:2800:21f::1]")]
)
def test_a_redirected_request_goes_to_the_checked_address_in_the_name_of_its_host(
    checked: str, shown: str
) -> None:
    url = "https://example.org:8443/catalog.yaml?page=2"
    assert str(request_address(url, checked)) == f"https://{shown}:8443/catalog.yaml?page=2"
    assert request_headers(url)["Host"] == "example.org:8443"
    assert request_extensions(url, checked) == {"sni_hostname": "example.org"}
    assert (str(request_address(url, "")), request_extensions(url, "")) == (url, {})


def test_an_address_is_shown_without_its_query() -> None:
    assert shown_url("https://x/y?key=hush#z") == "https://x/y?…"


@pytest.mark.gen_test
async def test_a_catalog_is_read_from_a_file_and_nothing_else_is(tmp_path: Path) -> None:
    assert len((await read_file(PUBLISHED / "docker-mcp.yaml", max_size=100_000)).entries) == 7
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "nothing", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "pipe", "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (PUBLISHED / "docker-mcp.yaml", "is larger than 100 bytes"),
    ):
        with pytest.raises(CatalogFault, match=reason):
            await read_file(path, max_size=100)


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("64:ff9b::5db8:d822", True),
        ("::ffff:93.184.216.34", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("239.1.1.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::10.0.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2002:0a00:0001::1", False),
        ("2001:0:4136:e378::1", False),
        ("fec0::1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
    ],
)
def test_an_address_inside_another_one_is_looked_at_too(address: str, is_public: bool) -> None:
    assert is_public_address(address) is is_public

"""The ways to a server: past the SDK's streams, and through them. What they do must be the same."""

from collections.abc import Iterator

import pytest

from mcpgw.backends import sdk_seam
from tests.support import backends

_WITHOUT_PIPES = {
    "test_child",
    "test_direct_http",
    "test_direct_stdio",
    "test_legacy_sse",
    "test_lines",
    "test_memory",
    "test_memory_store",
    "test_reaper",
    "test_rounds",
    "test_slots",
}
"""Tests that start no backend over stdio, or choose the way themselves."""
_OF_SERVERS = {"test_offers", "test_server", "test_watching"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of backends on both ways, those of servers also by calls without a task."""
    module = metafunc.definition.path.stem
    if module not in _WITHOUT_PIPES:
        ways = ["direct", "streams", "begun"] if module in _OF_SERVERS else ["direct", "streams"]
        metafunc.parametrize("pipes", ways, indirect=True)


@pytest.fixture(autouse=True)  # pytest drops the parameters of a fixture that a test does not ask for
def pipes(request: pytest.FixtureRequest) -> Iterator[str]:
    """The way that is taken: ``direct``, ``streams``, or ``begun``: direct, and without a task."""
    way: str = getattr(request, "param", "direct")
    before = sdk_seam.uses_direct_pipes, backends.calls_are_begun
    sdk_seam.uses_direct_pipes, backends.calls_are_begun = way != "streams", way == "begun"
    yield way
    sdk_seam.uses_direct_pipes, backends.calls_are_begun = before

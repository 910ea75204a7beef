"""Both ways to a child: past the SDK's streams, and through them. What they do must be the same."""

import pytest

from mcpgw.backends import sdk_seam

_BOTH_WAYS = {
    "test_backend",
    "test_eras",
    "test_offers",
    "test_rounds",
    "test_server",
    "test_stdio",
    "test_supervision",
    "test_through_gateway",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of stdio backends on both ways."""
    if metafunc.definition.path.stem in _BOTH_WAYS:
        metafunc.fixturenames.append("pipes")
        metafunc.parametrize("pipes", ["direct", "streams"], indirect=True)


@pytest.fixture
def pipes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that is taken: ``direct`` or ``streams``."""
    way: str = request.param
    monkeypatch.setattr(sdk_seam, "uses_direct_pipes", way == "direct")
    return way

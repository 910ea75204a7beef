"""A configuration file that is replaced by a broken one while the gateway is at work."""

from collections.abc import Callable

import pytest

from tests.support.administered import toml
from tests.support.chaos import ALONE, connected, ends_of, pid_of, servers_of, text_of, watching
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import tool_call
from tests.support.waiting import until

StartProcess = Callable[..., GatewayProcess]
BROKEN = {
    "half a file": "[servers.one]\ncommand = 'pyth",
    "wrong members": "[servers.one]\ncomand = 'x'\nargs = 'no list'\n[no_such_table]\na = 1\n",
    "bytes": "\ufffd\x00\x01",
    "nothing to start": "[servers.one]\n",
}


@pytest.mark.gen_test(timeout=40)
async def test_a_broken_file_is_told_and_changes_nothing_until_it_is_whole_again(
    gateway_process: StartProcess,
) -> None:
    whole = ALONE + toml("one") + toml("two")
    gateway = gateway_process(configuration=whole)
    file = gateway.folder / "mcpgw.toml"
    async with watching(gateway, "config", "servers") as watch, connected(gateway) as client:
        pids = [await pid_of(client, name) for name in ("one", "two")]
        await client.send(tool_call("one", "hold", call_id="held"))
        for number, (what, text) in enumerate(BROKEN.items()):
            file.write_text(text, "utf-8", errors="replace")
            told = await watch.told("config.error", times=number + 1)
            assert told["data"], what
            assert await text_of(client, "two", "echo", call_id=f"meanwhile-{number}") == "{}"
        # An editor that replaces the file, as most do.
        other = file.with_suffix(".new")
        other.write_text(ALONE + toml("one") + toml("three"))
        other.replace(file)
        await watch.told("config.applied")
        await watch.until("started", "three")
        assert await text_of(client, "three", "echo", call_id="three") == "{}"
        await until(lambda: "stopped" in watch.names("two"))
        assert (await servers_of(gateway)).keys() == {"one", "three"}
        # It was never touched, nor was its call.
        assert watch.names("one") == []
        await client.send(tool_call("one", "release", call_id="release"))
        ends = await ends_of(client, "held", "release")
        assert all(end["type"] == "tool_response" for end in ends.values())
        assert await pid_of(client, "one") == pids[0]

"""``mcpgw connect``: entries for desktop clients, in files that are theirs."""

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from mcpgw.cli.desktop_clients import CLIENTS
from mcpgw.cli.output import UsageFault
from mcpgw.cli.safe_files import read_file, replace_file
from mcpgw.commented_json import parse_commented_json
from tests.support.command_line import clean_environment, on
from tests.support.command_line import run as run_command
from tests.support.gateway_process import GatewayProcess

SETTINGS = """\
// my settings
{
    "theme": "dark", // do not touch
    "context_servers": {
        /* the other one */
        "other": {"command": "other"},
    },
}
"""
TOKEN = "header.payload.signature"


def run(home: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """The command of somebody whose home folder is `home`."""
    return run_command(
        "connect", *arguments, folder=home, environment={"HOME": str(home), "XDG_CONFIG_HOME": "", **more}
    )


def entry(home: Path, *arguments: object, **more: str) -> dict[str, Any]:
    """What it would write, and where."""
    done = run(home, *arguments, "--json", **more)
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("client", "platform", "file"),
    [
        ("claude-desktop", "linux", ".config/Claude/claude_desktop_config.json"),
        ("claude-desktop", "darwin", "Library/Application Support/Claude/claude_desktop_config.json"),
        ("claude-code", "darwin", ".claude.json"),
        ("cursor", "linux", ".cursor/mcp.json"),
        ("vscode", "linux", ".config/Code/User/mcp.json"),
        ("vscode", "darwin", "Library/Application Support/Code/User/mcp.json"),
        ("vscode-insiders", "linux", ".config/Code - Insiders/User/mcp.json"),
        ("windsurf", "linux", ".codeium/windsurf/mcp_config.json"),
        ("zed", "darwin", ".config/zed/settings.json"),
        ("gemini-cli", "linux", ".gemini/settings.json"),
        ("codex", "linux", ".codex/config.toml"),
        ("lm-studio", "linux", ".lmstudio/mcp.json"),
    ],
)
def test_each_client_has_its_file(client: str, platform: str, file: str) -> None:
    assert CLIENTS[client].file({"HOME": "/home/ann"}, platform) == Path("/home/ann") / file


def test_a_folder_of_configurations_that_was_moved_is_found() -> None:
    moved = {"HOME": "/home/ann", "XDG_CONFIG_HOME": "/srv/config"}
    assert CLIENTS["vscode"].file(moved, "linux") == Path("/srv/config/Code/User/mcp.json")
    assert CLIENTS["vscode"].file({**moved, "XDG_CONFIG_HOME": "here"}, "linux").is_relative_to("/home/ann")


def test_the_entry_of_each_client_is_written_where_it_is_looked_for(tmp_path: Path) -> None:
    written = {name: entry(tmp_path, name, "--write") for name in CLIENTS if name not in ("other", "zed")}
    for done in written.values():
        assert (done["written"], done["backup"]) == (True, None)
        file = Path(done["file"])
        assert file.stat().st_mode & 0o777 == 0o600
        text = file.read_text(encoding="utf-8")
        document: Any = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
        for name in done["path"]:
            document = document[name]
        assert document == done["entry"]
        assert Path(document["command"]).is_absolute()
        assert document["args"][-1] == "stdio"
    states = {row["client"]: row["state"] for row in json.loads(run(tmp_path, "--json").stdout)["clients"]}
    assert states == dict.fromkeys(written, "connected") | {"zed": "not found"}


@pytest.mark.gen_test(timeout=60)
async def test_what_is_written_starts_and_reaches_the_gateway(
    shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    done = run(tmp_path, "claude-desktop", "--write", "--server", "memory", *on(shared_gateway))
    assert done.returncode == 0, done.stderr
    file = tmp_path / ".config" / "Claude" / "claude_desktop_config.json"
    written = json.loads(file.read_text(encoding="utf-8"))["mcpServers"]["mcpgw-memory"]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = clean_environment()["PYTHONPATH"]
    parameters = StdioServerParameters(**written, cwd=folder, env=environment)
    with (tmp_path / "stderr").open("w") as errors:
        async with Client(stdio_client(parameters, errlog=errors), cache=None) as client:
            assert "memory_search" in {tool.name for tool in (await client.list_tools()).tools}


def test_without_write_the_entry_is_printed_and_nothing_is_touched(tmp_path: Path) -> None:
    for more in ((), ("--print",)):
        done = run(tmp_path, "vscode", *more)
        assert done.returncode == 0
        assert json.loads(done.stdout)["servers"]["mcpgw"]["type"] == "stdio"
        assert f"Put this into {tmp_path}/.config/Code/User/mcp.json, or let --write do it." in done.stderr
    assert tomllib.loads(run(tmp_path, "codex").stdout)["mcp_servers"]["mcpgw"]["args"][-1] == "stdio"
    assert list(tmp_path.iterdir()) == []
    assert run(tmp_path, "vscode", "--print", "--write").returncode == 2


def test_the_rest_of_a_file_stays_and_its_old_state_is_kept(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "zed.json"
    real.parent.mkdir()
    real.write_text(SETTINGS, encoding="utf-8")
    real.chmod(0o640)
    file = tmp_path / ".config" / "zed" / "settings.json"
    file.parent.mkdir(parents=True)
    file.symlink_to(real)
    done = run(tmp_path, "zed", "--write")
    assert done.returncode == 0, done.stderr
    assert file.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    text = real.read_text(encoding="utf-8")
    assert text.startswith('// my settings\n{\n    "theme": "dark", // do not touch\n')
    assert '        /* the other one */\n        "other": {"command": "other"},\n        "mcpgw": {\n' in text
    assert parse_commented_json(text)["context_servers"].keys() == {"other", "mcpgw"}
    (backup,) = real.parent.glob("zed.json.*.backup")
    assert backup.read_text(encoding="utf-8") == SETTINGS
    assert str(backup) in done.stdout
    again = run(tmp_path, "zed", "--write")
    assert again.stdout.startswith("Nothing to do: ")
    assert len(list(real.parent.iterdir())) == 2
    changed = entry(tmp_path, "zed", "--write", "--server", "memory", "--name", "mcpgw")
    assert changed["entry"]["args"][-2:] == ["--server", "memory"]
    assert Path(changed["backup"]).read_text(encoding="utf-8") == text


def test_other_members_of_an_entry_stay(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    mine = {
        "disabled": True,
        "command": "old",
        "env": {"A": "1"},
        "args": [],
        "headers": {},
        "alwaysAllow": [],
    }
    file.write_text(json.dumps({"mcpServers": {"mcpgw": mine}}), encoding="utf-8")
    assert run(tmp_path, "cursor", "--write", "--file", file).returncode == 0
    found = json.loads(file.read_text(encoding="utf-8"))["mcpServers"]["mcpgw"]
    assert found.keys() == {"disabled", "command", "env", "args", "alwaysAllow"}
    assert (found["disabled"], found["env"], found["args"][-1]) == (True, {"A": "1"}, "stdio")
    url = ("--http", "--url", "http://127.0.0.1:3000")
    assert run(tmp_path, "cursor", "--write", "--file", file, *url).returncode == 0
    found = json.loads(file.read_text(encoding="utf-8"))["mcpServers"]["mcpgw"]
    assert found.keys() == {"disabled", "env", "alwaysAllow", "url", "headers"}

    codex = tmp_path / "config.toml"
    codex.write_text(
        '[mcp_servers.mcpgw]\ncommand = "old"\nenabled = false\nenv_vars = ["B"]\ntimeout = 2.5\n'
        'limits = {a = 1, "b c" = [true]}\n\n[mcp_servers.mcpgw.env]\nA = "1" # mine\n[x]\n',
        encoding="utf-8",
    )
    assert run(tmp_path, "codex", "--write", "--file", codex).returncode == 0
    text = codex.read_text(encoding="utf-8")
    table = tomllib.loads(text)["mcp_servers"]["mcpgw"]
    assert table.pop("args")[-1] == "stdio"
    assert table.pop("command") != "old"
    assert table == {
        "enabled": False,
        "env_vars": ["B"],
        "timeout": 2.5,
        "limits": {"a": 1, "b c": [True]},
        "env": {"A": "1"},
    }
    assert '[mcp_servers.mcpgw.env]\nA = "1" # mine\n[x]\n' in text
    assert run(tmp_path, "codex", "--write", "--file", codex).stdout.startswith("Nothing to do")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_stays_its_owner_s(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text("{}", encoding="utf-8")
    os.chown(file, 12_345, 23_456)
    backup = replace_file(read_file(file), '{"a": 1}')
    assert backup is not None
    for one in (file, backup):
        status = one.stat()
        assert (status.st_uid, status.st_gid) == (12_345, 23_456)


def test_a_byte_order_mark_and_windows_line_ends_stay(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_bytes(b'\xef\xbb\xbf{\r\n\t"mcpServers": {}\r\n}\r\n')
    assert run(tmp_path, "cursor", "--write", "--file", file).returncode == 0
    content = file.read_bytes()
    assert content.startswith(b'\xef\xbb\xbf{\r\n\t"mcpServers": {\r\n\t\t"mcpgw": {\r\n')
    assert content.count(b"\n") == content.count(b"\r\n")


def test_a_table_of_codex_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    file = tmp_path / ".codex" / "config.toml"
    file.parent.mkdir()
    before = (
        'model = "x" # mine\n\n[mcp_servers.mcpgw]\ncommand = "old"\n\n[mcp_servers.mcpgw.env]\nA = "1"\n\n'
        "# the profiles\n[profiles.a]\nmodel = '''\n[mcp_servers.mcpgw]\n'''\n"
    )
    file.write_text(before.replace("'''\n[mcp_servers.mcpgw]\n'''", "'y'"), encoding="utf-8")
    assert run(tmp_path, "codex", "--write", "--http", "--url", "http://127.0.0.1:3000").returncode == 0
    assert file.read_text(encoding="utf-8") == (
        'model = "x" # mine\n\n[mcp_servers.mcpgw]\nurl = "http://127.0.0.1:3000/mcp"\n'
        'bearer_token_env_var = "MCPGW_TOKEN"\n\n[mcp_servers.mcpgw.env]\nA = "1"\n\n'
        "# the profiles\n[profiles.a]\nmodel = 'y'\n"
    )
    file.write_text(before, encoding="utf-8")
    refused = run(tmp_path, "codex", "--write")
    assert refused.returncode == 2
    assert "has a table mcp_servers.mcpgw that cannot be replaced safely" in refused.stderr
    assert file.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"mcpServers": ', "line 1, column 16"),
        ('{"mcpServers": []}', "mcpServers is no object"),
        ('{"a": 1, "a": 2}', "the member 'a' stands twice"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_edited_is_left_as_it_is(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mcp.json"
    content = text.encode("utf-8", "surrogateescape")
    file.write_bytes(content)
    done = run(tmp_path, "cursor", "--write", "--file", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{file}: {said}" in done.stderr
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / ".cursor").write_text("no folder", encoding="utf-8")
    done = run(tmp_path, "cursor", "--write")
    assert done.returncode == 2
    assert "cannot be" in done.stderr


def test_a_file_that_another_program_writes_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    for before in (None, "{}"):
        if before is not None:
            file.write_text(before, encoding="utf-8")
        found = read_file(file)
        file.write_text('{"theirs": 1}', encoding="utf-8")
        with pytest.raises(UsageFault, match="was changed by another program just now"):
            replace_file(found, "{}")
        assert file.read_text(encoding="utf-8") == '{"theirs": 1}'
        assert list(tmp_path.iterdir()) == [file]
        file.unlink()


def test_the_entry_names_the_gateway_wherever_the_client_starts_it(tmp_path: Path) -> None:
    (tmp_path / "mcpgw.toml").write_text("[server]\nport = 3111\n", encoding="utf-8")
    here = entry(tmp_path, "cursor")["entry"]["args"]
    assert here[-3:] == ["stdio", "--config", str(tmp_path / "mcpgw.toml")]
    (tmp_path / "mcpgw.toml").write_text("[data]\ndir = 'data'\n", encoding="utf-8")
    assert entry(tmp_path, "cursor")["entry"]["args"][-2:] == ["--config", str(tmp_path / "mcpgw.toml")]
    moved = entry(tmp_path, "cursor", MCPGW_DATA_DIR="elsewhere")["entry"]["args"]
    assert moved[-2:] == ["--data-dir", str(tmp_path / "elsewhere")]
    (tmp_path / "mcpgw.toml").unlink()
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    far = ("--url", "wss://gateway.example/ws")
    assert "on another machine: give --token-file" in run(tmp_path, "cursor", *far).stderr
    options = (*far, "--token-file", "token")
    assert entry(tmp_path, "cursor", *options)["entry"]["args"][-4:] == [
        *("--url", "https://gateway.example"),
        *("--token-file", str(tmp_path / "token")),
    ]


def test_by_url_the_token_stays_out_of_the_file_where_the_client_can_refer_to_it(tmp_path: Path) -> None:
    url = ("--http", "--url", "http://127.0.0.1:3000")
    expected = {
        "claude-code": {"type": "http", "url": "http://127.0.0.1:3000/mcp"},
        "vscode": {"type": "http", "url": "http://127.0.0.1:3000/mcp"},
        "cursor": {"url": "http://127.0.0.1:3000/mcp"},
        "windsurf": {"serverUrl": "http://127.0.0.1:3000/mcp"},
        "gemini-cli": {"httpUrl": "http://127.0.0.1:3000/mcp"},
    }
    for client, members in expected.items():
        found = entry(tmp_path, client, *url)["entry"]
        header = found.pop("headers")["Authorization"]
        assert found == members
        assert header in ("Bearer ${MCPGW_TOKEN}", "Bearer ${env:MCPGW_TOKEN}")
    said = run(tmp_path, "cursor", *url).stderr
    assert "Set MCPGW_TOKEN in the environment of Cursor" in said
    one = entry(tmp_path, "cursor", *url, "--server", "memory")
    assert one["entry"]["url"] == "http://127.0.0.1:3000/mcp/memory"
    assert one["path"] == ["mcpServers", "mcpgw-memory"]


def test_a_token_is_copied_where_nothing_else_will_do_and_the_file_is_for_its_owner(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    url = ("--http", "--url", "http://127.0.0.1:3000")
    without = run(tmp_path, "zed", *url)
    assert without.returncode == 2
    assert "leave out --http, or give --token-file" in without.stderr
    done = run(tmp_path, "zed", *url, "--token-file", "token", "--write")
    assert done.returncode == 0, done.stderr
    file = tmp_path / ".config" / "zed" / "settings.json"
    headers = json.loads(file.read_text(encoding="utf-8"))["context_servers"]["mcpgw"]["headers"]
    assert headers == {"Authorization": f"Bearer {TOKEN}"}
    assert file.stat().st_mode & 0o077 == 0
    file.write_text("{}", encoding="utf-8")
    file.chmod(0o644)
    written = run(tmp_path, "zed", *url, "--token-file", "token", "--write", "--json")
    assert TOKEN not in written.stdout
    told = json.loads(written.stdout)
    assert told["entry"]["headers"] == {"Authorization": "[redacted]"}
    assert TOKEN in file.read_text(encoding="utf-8")
    for one in (file, Path(told["backup"])):
        assert one.stat().st_mode & 0o777 == 0o600, one
    file.chmod(0o644)  # what stands in it is right already
    run(tmp_path, "zed", *url, "--token-file", "token", "--write")
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(tmp_path, "zed", *url, "--token-file", "token", "--write").stdout.startswith("Nothing to do")
    in_project = run(tmp_path, "zed", *url, "--token-file", "token", "--write", "--project")
    assert "keep it out of version control" in in_project.stderr
    (tmp_path / "token").write_text("s3cret s3cret", encoding="utf-8")
    refused = run(tmp_path, "zed", *url, "--token-file", "token")
    assert refused.returncode == 2
    assert "s3cret" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["claude-desktop", "--http", "--url", "http://127.0.0.1:1"], "takes no URL: leave out --http"),
        (["codex", "--http", "--url", "http://127.0.0.1:1", "--token-file", "t"], "leave out --token-file"),
        (["windsurf", "--project"], "Windsurf has no file in projects"),
        (["other", "--write"], "--file says which file to write"),
        (["cursor", "--name", "a b"], "'a b' is no name"),
        (["cursor", "--server", "../x"], "'../x' is no server's name"),
        (["emacs"], "'emacs' is not one of 'claude-desktop'"),
        (["cursor", "--http", "--data-dir", "nowhere"], "no gateway runs on nowhere"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode in (2, 3)
    assert said in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_project_has_a_file_of_its_own(tmp_path: Path) -> None:
    files = {
        "claude-code": ".mcp.json",
        "cursor": ".cursor/mcp.json",
        "vscode": ".vscode/mcp.json",
        "zed": ".zed/settings.json",
        "gemini-cli": ".gemini/settings.json",
        "codex": ".codex/config.toml",
    }
    for client, file in files.items():
        assert entry(tmp_path, client, "--project")["file"] == str(tmp_path / file)


def test_an_unknown_client_gets_what_most_of_them_read(tmp_path: Path) -> None:
    done = run(tmp_path, "other")
    assert list(json.loads(done.stdout)["mcpServers"]) == ["mcpgw"]
    assert done.stderr == "Put this where your client keeps its servers.\n"
    file = tmp_path / "theirs.json"
    assert run(tmp_path, "other", "--write", "--file", file).returncode == 0
    assert "mcpgw" in json.loads(file.read_text(encoding="utf-8"))["mcpServers"]


def test_the_clients_are_listed_with_what_is_found(tmp_path: Path) -> None:
    (tmp_path / ".cursor").mkdir()
    (tmp_path / ".cursor" / "mcp.json").write_text("{}", encoding="utf-8")
    (tmp_path / ".gemini").mkdir()
    (tmp_path / ".gemini" / "settings.json").write_text("{", encoding="utf-8")
    rows = [line.split("\t") for line in run(tmp_path).stdout.splitlines()]
    assert rows[0] == ["client", "state", "file"]
    states = {row[0]: row[1] for row in rows[1:]}
    assert (states["cursor"], states["gemini-cli"], states["zed"]) == ("found", "unreadable", "not found")

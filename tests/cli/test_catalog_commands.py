"""``mcpgw catalog``: published lists of servers, imported into a gateway that runs, and installed from."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import PROGRESS_SERVER, ROOT, ended, on, run
from tests.support.forked import server_command
from tests.support.gateway_process import GatewayProcess

PUBLISHED = ROOT / "tests" / "catalogs" / "published"
CONTEXT7 = "io.github.upstash/context7"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with the catalogs `docker` and `registry`."""
    folder = tmp_path_factory.mktemp("catalogs")
    process = GatewayProcess(folder, arguments=["--memory-enabled", "false"]).wait_listening()
    with ended(process.process):
        for name, file in (("docker", "docker-mcp.yaml"), ("registry", "registry-context7.json")):
            done = run("catalog", "import", PUBLISHED / file, "--id", name, *on(process))
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith(f"Imported {name}: ")
        yield process
        assert process.terminate() == 0


def test_catalogs_are_listed_and_searched(gateway: GatewayProcess) -> None:
    listed = run("catalog", *on(gateway))
    assert listed.stdout == run("catalog", "list", *on(gateway)).stdout
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert rows[0] == ["catalog", "format", "entries", "read", "from"]
    assert {tuple(row[:3]) for row in rows[1:]} >= {("docker", "docker", "7"), ("registry", "registry", "1")}
    found = run("catalog", "list", "--search", "git repository", *on(gateway)).stdout.splitlines()
    assert [line.split("\t")[:2] for line in found[1:]] == [["docker", "git"]]
    assert json.loads(run("catalog", "list", "--search", "zzz", "--json", *on(gateway)).stdout)["total"] == 0


def test_show_has_the_entries_of_one_or_what_an_entry_runs_and_needs(gateway: GatewayProcess) -> None:
    entries = run("catalog", "show", "docker", "--search", "duck", *on(gateway)).stdout.splitlines()
    assert [line.split("\t")[1] for line in entries[1:]] == ["duckduckgo"]
    lines = run("catalog", "show", "registry", CONTEXT7, *on(gateway)).stdout.splitlines()
    assert "option: npm:@upstash/context7-mcp" in lines
    assert "command: npx -y @upstash/context7-mcp@1.0.26" in lines
    assert "  CONTEXT7_API_KEY (secret): API key for authentication" in lines
    entry = json.loads(run("catalog", "show", "registry", CONTEXT7, "--json", *on(gateway)).stdout)
    assert entry["options"][0]["id"] == "npm:@upstash/context7-mcp"
    wrong = run("catalog", "show", "registry", "io.github.upstash/contex7", *on(gateway))
    assert wrong.returncode == 5
    assert f"did you mean '{CONTEXT7}'?" in wrong.stderr


def test_an_entry_becomes_a_server_with_the_values_that_are_given(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    values = tmp_path / "values.json"
    values.write_text('{"CONTEXT7_API_KEY": "from the file"}', encoding="utf-8")
    done = run(
        *("catalog", "install", "registry", CONTEXT7, "--as", "docs", "--values", values),
        *("--value", "CONTEXT7_API_KEY=0123456789.10", "--set", "enabled=false", "--set", "env.X=1"),
        *on(gateway),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Installed {CONTEXT7} as docs: see ")
    server = json.loads(run("servers", "show", "docs", "--json", *on(gateway)).stdout)
    assert (server["state"], server["definition"]["command"]) == ("disabled", "npx")
    assert server["definition"]["env"].keys() == {"CONTEXT7_API_KEY", "X"}
    assert "0123456789" not in json.dumps(server)
    again = run("catalog", "install", "registry", CONTEXT7, "--as", "docs", *on(gateway))
    assert again.returncode == 5
    assert "there is a server 'docs' already" in again.stderr
    assert run("servers", "remove", "docs", *on(gateway)).returncode == 0


def test_what_an_entry_lacks_is_said_and_no_value_is_repeated(gateway: GatewayProcess) -> None:
    missing = run("catalog", "install", "docker", "atlassian", "--value", "no.such=1", *on(gateway))
    assert missing.returncode == 5
    assert "/values/no.such" in missing.stderr
    unwritten = run("catalog", "install", "docker", "git", "--value", "s3cret", *on(gateway))
    assert (unwritten.returncode, unwritten.stderr) == (2, "an input is written INPUT=VALUE\n")


def test_a_client_s_file_is_installed_and_runs(gateway: GatewayProcess) -> None:
    command, *arguments = server_command(PROGRESS_SERVER, str(gateway.folder))
    entry = {"command": command, "args": arguments}
    document = json.dumps({"mcpServers": {"progress": entry}})
    imported = run("catalog", "import", "-", "--id", "mine", *on(gateway), stdin=document)
    assert imported.stdout == "Imported mine: 1 entry.\n"
    installed = run("catalog", "install", "mine", "progress", "--json", *on(gateway))
    assert json.loads(installed.stdout) == {"server": "progress"}
    started = run("servers", "restart", "progress", *on(gateway))
    assert started.stdout == "Restarted progress: ready, 5 tools.\n"
    assert run("call", "progress", "echo", "value=5", *on(gateway)).stdout == "int 5\n"
    assert run("servers", "remove", "progress", *on(gateway)).returncode == 0
    assert run("catalog", "remove", "mine", *on(gateway)).stdout == "Removed mine.\n"


def test_files_that_are_sent_without_an_id_have_that_of_their_name(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    document = json.dumps({"mcpServers": {"same": {"url": "http://127.0.0.1:9/mcp"}}})
    for name, catalog in (("Ann's file.json", "ann-s-file"), ("cursor.json", "cursor")):
        (tmp_path / name).write_text(document, "utf-8")
        imported = run("catalog", "import", tmp_path / name, *on(gateway))
        assert imported.stdout == f"Imported {catalog}: 1 entry.\n"
        assert run("catalog", "remove", catalog, *on(gateway)).returncode == 0


def test_a_catalog_is_read_again_from_its_path_or_from_a_file(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    file = tmp_path / "servers.json"
    file.write_text('{"mcpServers": {"one": {"command": "true"}}}', encoding="utf-8")
    by_path = run("catalog", "import", file, "--by-path", "--id", "linked", *on(gateway))
    assert by_path.returncode == 0, by_path.stderr
    assert run("catalog", "import", file, "--id", "sent", *on(gateway)).returncode == 0
    file.write_text('{"mcpServers": {"one": {"command": "true"}, "two": {"command": "true"}}}', "utf-8")
    for arguments in (["linked"], ["sent", file]):
        done = run("catalog", "sync", *arguments, *on(gateway))
        assert done.stdout == f"Read {arguments[0]} again: 1 added, 0 changed, 0 removed.\n", done.stderr
    refused = run("catalog", "sync", "sent", *on(gateway))
    assert (refused.returncode, refused.stderr) == (5, "the catalog was uploaded: send its new content\n")


def test_what_is_no_catalog_is_refused_with_the_reason(gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    done = run("catalog", "import", tmp_path / "no.json", *on(gateway))
    assert done.returncode == 5
    assert "is no catalog" in done.stderr
    absent = run("catalog", "import", tmp_path / "absent.json", *on(gateway))
    assert absent.returncode == 2
    assert "absent.json: cannot be read: No such file" in absent.stderr
    twice = run("catalog", "import", PUBLISHED / "docker-mcp.yaml", "--id", "docker", "--json", *on(gateway))
    assert json.loads(twice.stdout)["error"]["code"] == "duplicate_id"

"""The three formats, each with files as they are published."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpgw.catalogs.formats import options_of, read_catalog
from mcpgw.catalogs.model import CatalogFault, Option, ReadCatalog
from mcpgw.catalogs.rendering import make_table
from mcpgw.errors import InvalidParams
from mcpgw.references import References
from mcpgw.server_definitions import ServerDefinition, define_server

PUBLISHED = Path(__file__).parent / "published"
RUN = ["run", "--rm", "-i", "--init", "--security-opt", "no-new-privileges"]


def read(name: str) -> ReadCatalog:
    """A published file."""
    return read_catalog((PUBLISHED / name).read_text("utf-8"))


def options(name: str, entry: str = "") -> list[Option]:
    """The options of an entry of a published file; of its only one where none is named."""
    catalog = read(name)
    (found,) = [e for e in catalog.entries if entry in ("", e.name)]
    return options_of(catalog.format, found.document)


def define(table: dict[str, Any]) -> ServerDefinition:
    """The definition that a table makes."""
    faults: list[str] = []
    references = References({"TOKEN": "hush"}, Path("/"))
    definition = define_server("x", table, place="here", references=references, report=faults.append)
    assert definition is not None, faults
    return definition


def needs(option: Option) -> dict[str, tuple[bool, bool]]:
    """Of each input: is it required, is it secret?"""
    return {row.name: (row.required, row.secret) for row in option.inputs}


@pytest.mark.parametrize("file", sorted(PUBLISHED.glob("*.*[!d]")), ids=lambda file: file.name)
def test_every_published_file_is_read_and_every_option_makes_a_definition(file: Path) -> None:
    catalog = read(file.name)
    assert catalog.format == file.name.partition("-")[0]
    assert catalog.notes == ()
    made = 0
    for entry in catalog.entries:
        for option in options_of(catalog.format, entry.document):
            if not option.refused:
                values = {
                    row.name: row.choices[0] if row.choices else "${env:TOKEN}" for row in option.inputs
                }
                assert define(make_table(option, values)).transport == option.transport
                made += 1
    assert made or file.name == "registry-answer.json"


def test_an_npm_package_becomes_npx_with_its_version() -> None:
    (option,) = options("registry-context7.json")
    assert needs(option) == {"CONTEXT7_API_KEY": (False, True)}
    command = {"command": "npx", "args": ["-y", "@upstash/context7-mcp@1.0.26"], "transport": "stdio"}
    assert make_table(option, {}) == command
    given = make_table(option, {"CONTEXT7_API_KEY": "${env:TOKEN}"})
    assert given == {**command, "env": {"CONTEXT7_API_KEY": "${env:TOKEN}"}}
    assert define(given).env == {"CONTEXT7_API_KEY": "hush"}


def test_a_package_with_a_repeated_argument_takes_a_list() -> None:
    npm, image = options("registry-filesystem.json")
    table = make_table(npm, {"target_dir": ["/a", "/b"]})
    assert table["args"] == ["-y", "@modelcontextprotocol/server-filesystem@1.0.2", "/a", "/b"]
    assert table["env"] == {"LOG_LEVEL": "info"}
    table = make_table(image, {"source_path": ["/a", "/b"], "target_path": ["/project/a", "/project/b"]})
    assert table["args"] == [
        *("run", "-i", "--rm", "-e", "LOG_LEVEL"),
        *("--mount", "type=bind,src=/a,dst=/project/a", "--mount", "type=bind,src=/b,dst=/project/b"),
        *("docker.io/mcp/filesystem:1.0.2", "/project"),
    ]
    with pytest.raises(InvalidParams) as refused:
        make_table(image, {"source": "/a"})
    assert refused.value.details == [
        {"path": "/values/source", "reason": "is not known; did you mean 'source_path'?"},
        {"path": "/values/source_path", "reason": "is required"},
    ]


def test_a_secret_of_a_whole_docker_command_leaves_the_command_line() -> None:
    (option,) = options("registry-github.json")
    assert needs(option) == {"token": (True, True)}
    table = make_table(option, {"token": "ghp_x"})
    assert table["args"] == [
        *(
            "run",
            "-i",
            "--rm",
            "-e",
            "GITHUB_PERSONAL_ACCESS_TOKEN",
            "ghcr.io/github/github-mcp-server:0.20.1",
        )
    ]
    assert table["env"] == {"GITHUB_PERSONAL_ACCESS_TOKEN": "ghp_x"}


def test_what_a_publisher_writes_is_no_reference() -> None:
    (option,) = options("registry-template.json")
    table = make_table(option, {"token": "x"})
    assert define(table).args[-1] == "ghcr.io/github/github-mcp-server:${VERSION}"


def test_the_older_schema_of_the_registry_is_read_too_and_remotes_are_options() -> None:
    package, sse, http = options("registry-hybrid-2025-07.json")
    assert read("registry-hybrid-2025-07.json").entries[0].version == "1.5.0"
    assert make_table(package, {"mode": "proxy"})["args"] == [
        "-y",
        "@example/hybrid-mcp-server@1.5.0",
        "--mode",
        "proxy",
    ]
    with pytest.raises(InvalidParams, match="/values/mode must be one of local, cached, proxy"):
        make_table(package, {"mode": "fast"})
    assert (sse.transport, http.transport) == ("sse", "http")
    assert make_table(sse, {"X-API-Key": "${env:TOKEN}"}) == {
        "url": "https://mcp.anonymous.modelcontextprotocol.io/sse",
        "headers": {"X-API-Key": "${env:TOKEN}", "X-Region": "us-east-1"},
        "transport": "sse",
    }


def test_an_answer_of_the_registry_s_api_names_its_next_page() -> None:
    catalog = read("registry-answer.json")
    assert [(entry.name, entry.version) for entry in catalog.entries] == [
        ("io.modelcontextprotocol/filesystem", "1.0.2")
    ]
    assert catalog.next_cursor == "eyJ..."


def test_of_several_versions_the_latest_stays() -> None:
    def version(number: str, latest: bool) -> str:
        meta = f'{{"io.modelcontextprotocol.registry/official": {{"isLatest": {str(latest).lower()}}}}}'
        return f'{{"server": {{"name": "a/b", "version": "{number}"}}, "_meta": {meta}}}'

    text = f'{{"servers": [{version("1", False)}, {version("3", True)}, {version("2", False)}]}}'
    (entry,) = read_catalog(text).entries
    assert entry.version == "3"


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ({"registryType": "pypi", "identifier": "w"}, ["uvx", "w@1"]),
        (
            {
                "registryType": "nuget",
                "identifier": "W",
                "packageArguments": [{"type": "positional", "value": "mcp"}],
            },
            ["dnx", "W@1", "--yes", "--", "mcp"],
        ),
        (
            {"registryType": "npm", "identifier": "w", "runtimeArguments": [{"type": "named", "name": "-y"}]},
            ["npx", "-y", "w@1"],
        ),
        (
            {"registry_type": "oci", "registry_base_url": "https://ghcr.io", "identifier": "a/w"},
            ["docker", "run", "-i", "--rm", "ghcr.io/a/w:1"],
        ),
        (
            {"registryType": "oci", "registryBaseUrl": "https://docker.io", "identifier": "a/w@sha256:00"},
            ["docker", "run", "-i", "--rm", "a/w@sha256:00"],
        ),
    ],
)
def test_each_registry_of_packages_has_its_command(package: dict[str, Any], expected: list[str]) -> None:
    (option,) = options_of("registry", read_catalog(_server(package)).entries[0].document)
    table = make_table(option, {})
    assert [table["command"], *table["args"]] == expected


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ({"registryType": "mcpb", "identifier": "https://x/y.mcpb"}, "a bundle"),
        ({"registryType": "cargo", "identifier": "w"}, "cargo install"),
        ({"registryType": "new", "identifier": "w"}, "packages of new are not known"),
        ({"registryType": "npm"}, "names no package"),
        ({"registryType": "npm", "identifier": "w", "runtimeHint": "sh"}, "its runtime 'sh' is not known"),
        (
            {
                "registryType": "npm",
                "identifier": "w",
                "transport": {"type": "streamable-http", "url": "http://x"},
            },
            "it speaks streamable-http",
        ),
    ],
)
def test_what_cannot_be_installed_says_why(package: dict[str, Any], reason: str) -> None:
    (option,) = options_of("registry", read_catalog(_server(package)).entries[0].document)
    assert reason in option.refused
    with pytest.raises(InvalidParams, match="cannot be installed"):
        make_table(option, {})


def _server(package: dict[str, Any]) -> str:
    return json.dumps({"name": "a/b", "packages": [{"version": "1", **package}]})


def test_a_catalog_of_docker_has_titles_settings_and_secrets() -> None:
    catalog = read("docker-mcp.yaml")
    assert catalog.title == "Docker MCP Catalog"
    assert [entry.title for entry in catalog.entries][:2] == ["Atlassian", "Docker Hub"]
    assert catalog.entries[0].tags == ("atlassian", "confluence", "jira", "productivity")
    (option,) = options("docker-mcp.yaml", "atlassian")
    assert needs(option)["atlassian.jira.url"] == (False, False)
    assert needs(option)["atlassian.jira.api_token"] == (False, True)
    table = make_table(
        option, {"atlassian.jira.url": "https://j", "atlassian.jira.api_token": "${env:TOKEN}"}
    )
    assert table["args"] == [*RUN, "-e", "JIRA_API_TOKEN", "-e", "JIRA_URL", "mcp/atlassian"]
    assert table["env"] == {"JIRA_API_TOKEN": "${env:TOKEN}", "JIRA_URL": "https://j"}


def test_folders_of_a_docker_server_are_mounted_each() -> None:
    (option,) = options("docker-mcp.yaml", "git")
    table = make_table(option, {"git.paths": ["/a", "/b"]})
    assert table["args"] == [*RUN, "-v", "/a:/a", "-v", "/b:/b", "mcp/git"]
    with pytest.raises(InvalidParams, match=r"/values/git\.paths is required"):
        make_table(option, {})
    (option,) = options("docker-filesystem.yaml")
    table = make_table(option, {"filesystem.paths": ["/a", "/b:/data/b"]})
    assert table["args"] == [
        *(*RUN, "--network", "none", "-v", "/a:/a", "-v", "/b:/data/b"),
        *("dhi.io/filesystem-mcp", "/a", "/data/b"),
    ]


def test_an_argument_of_docker_without_its_setting_is_left_out() -> None:
    (option,) = options("docker-mcp.yaml", "aks")
    table = make_table(option, {"aks.access_level": "readonly", "aks.kubeconfig": "/k"})
    assert table["args"] == [
        *(*RUN, "-v", "/k:/home/mcp/.kube/config", "mcp/aks", "--transport=stdio", "--access-level=readonly")
    ]


def test_a_variable_of_docker_stands_for_its_secret() -> None:
    (option,) = options("docker-mcp.yaml", "notion")
    table = make_table(option, {"notion.internal_integration_token": "${env:TOKEN}"})
    assert define(table).env["OPENAPI_MCP_HEADERS"] == (
        '{"Authorization": "Bearer hush", "Notion-Version": "2022-06-28"}'
    )


def test_a_remote_of_docker_is_an_address_and_a_login_is_noted() -> None:
    (option,) = options("docker-remote.yaml", "notion-remote")
    assert make_table(option, {}) == {"url": "https://mcp.notion.com/mcp", "transport": "http"}
    assert "OAuth" in option.notes[0]
    text = (
        "registry:\n  a:\n    type: remote\n"
        "    remote:\n      url: https://x/sse\n      transport_type: sse\n"
        "      headers:\n        Authorization: Bearer ${KEY}\n        X: ${HOME}\n"
        "    secrets:\n      - {name: a.key, env: KEY}\n"
    )
    (entry,) = read_catalog(text).entries
    (option,) = options_of("docker", entry.document)
    table = make_table(option, {"a.key": "${env:TOKEN}"})
    assert (table["transport"], define(table).headers) == (
        "sse",
        {"Authorization": "Bearer hush", "X": "${HOME}"},
    )


def test_a_server_of_docker_that_is_none_says_so() -> None:
    (option,) = options("docker-poci.yaml", "docker")
    assert "container of its own" in option.refused


def test_a_secret_of_the_registry_s_sources_is_no_plain_variable() -> None:
    (option,) = options("docker-brave.yaml")
    table = make_table(option, {"brave.api_key": "k"})
    assert table["env"] == {"BRAVE_API_KEY": "k", "BRAVE_MCP_TRANSPORT": "stdio"}
    assert read("docker-brave.yaml").entries[0].title == "Brave Search"


def test_a_client_s_references_become_inputs() -> None:
    (option,) = options("client-claude.json")
    assert needs(option) == {"GITHUB_PERSONAL_ACCESS_TOKEN": (True, True)}
    table = make_table(option, {"GITHUB_PERSONAL_ACCESS_TOKEN": "${env:TOKEN}"})
    assert table["args"][-1] == "Authorization: Bearer ${env:TOKEN}"
    assert "YOUR_GITHUB_PAT" not in str(option.to_json())
    for name in ("client-vscode.json", "client-vscode-settings.json"):
        (option,) = options(name)
        (asked,) = option.inputs
        assert (asked.description, asked.secret) == ("GitHub Personal Access Token", True)
    assert option.transport == "stdio"


def test_a_client_s_entry_that_is_wrong_is_refused_in_words() -> None:
    text = (
        '{"mcpServers": {"a": {"command": "x", "args": "y"}, "b": {"type": "ws", "url": "http://h"}, "c": 1}}'
    )
    catalog = read_catalog(text)
    assert catalog.notes == ("c: is no object",)
    first, second = (options_of("client", entry.document)[0] for entry in catalog.entries)
    assert first.refused == "args: is not a list"
    assert "type: is none of stdio" in second.refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no catalog"),
        ("{}", "is no catalog"),
        ('{"a": [}', "is no JSON: line 1, column"),
        ("a: [", "is neither JSON nor YAML: line"),
        ("registry: {a: 1}", "has no entry that can be read: a: is no object"),
        ('[{"a": 1}]', "has no entry that can be read: entry 1: has no name"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("registry: {a: {image: x}, a: {image: y}}", "the member 'a' stands twice"),
        ('{"registry": {}, "registry": {}}', "stands twice"),
        ("registry: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("registry: {a: !!binary aGk=}", "holds a value that JSON has not (bytes)"),
        ("registry: {a: .nan}", "holds a number that JSON has not"),
        ('{"registry": {"a": "\\ud800"}}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deep"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 64"),
    ],
)
def test_what_is_no_catalog_is_refused_in_words(text: str, reason: str) -> None:
    with pytest.raises(CatalogFault) as refused:
        read_catalog(text)
    assert reason in str(refused.value)


def test_dates_and_names_of_yaml_stay_text() -> None:
    (entry,) = read_catalog("registry: {a: {image: x, dateAdded: 2025-05-05, on: 1}}").entries
    assert entry.document["dateAdded"] == "2025-05-05"

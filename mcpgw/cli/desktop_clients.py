"""MCP clients that people have on their machines: where each keeps its servers, and how an entry looks there.

Every path and every form is the one that the client's own documentation gives; a client that is not here can
be told of the gateway with the form of ``other``, which most of them read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

TOKEN_VARIABLE: Final = "MCPGW_TOKEN"  # noqa: S105 - the name of a variable


@dataclass(frozen=True)
class DesktopClient:
    """One client.

    `user_file` is the file of its servers: below the home folder, or below the folder of configurations
    where it begins with ``{config}`` (``~/Library/Application Support`` on a Mac, else ``~/.config``).
    `project_file` is the one inside a project. `members` lead to the servers in it. `typed` clients want the
    transport's name in an entry; `url_member` is the member that holds an address, empty where the client
    takes none. `reference` is how a text names an environment variable there, empty where none can.
    """

    name: str
    title: str
    user_file: str
    members: tuple[str, ...] = ("mcpServers",)
    project_file: str = ""
    typed: bool = False
    url_member: str = "url"
    reference: str = ""
    format: Literal["json", "toml"] = "json"

    def file(self, environment: Mapping[str, str], platform: str) -> Path:
        """The user's own file; `platform` is that of ``sys.platform``."""
        home = Path(environment.get("HOME") or Path.home())
        if not self.user_file.startswith("{config}"):
            return home / self.user_file
        configurations = home / ".config"
        if platform == "darwin":
            configurations = home / "Library" / "Application Support"
        elif environment.get("XDG_CONFIG_HOME", "").startswith("/"):
            configurations = Path(environment["XDG_CONFIG_HOME"])
        return configurations / self.user_file.removeprefix("{config}/")

    def by_command(self, words: Sequence[str]) -> dict[str, Any]:
        """The entry of a server that the client starts."""
        first, *rest = words
        return ({"type": "stdio"} if self.typed else {}) | {"command": first, "args": rest}

    def by_url(self, url: str, token: str | None) -> dict[str, Any]:
        """The entry of a server at `url`; without `token` it is in the environment (`TOKEN_VARIABLE`)."""
        entry = ({"type": "http"} if self.typed else {}) | {self.url_member: url}
        if self.format == "toml":
            return entry | {"bearer_token_env_var": TOKEN_VARIABLE}
        return entry | {"headers": {"Authorization": f"Bearer {token or self.reference}"}}


CLIENTS: Final = {
    client.name: client
    for client in (
        DesktopClient(
            "claude-desktop", "Claude Desktop", "{config}/Claude/claude_desktop_config.json", url_member=""
        ),
        DesktopClient(
            "claude-code",
            "Claude Code",
            ".claude.json",
            project_file=".mcp.json",
            typed=True,
            reference=f"${{{TOKEN_VARIABLE}}}",
        ),
        DesktopClient(
            "cursor",
            "Cursor",
            ".cursor/mcp.json",
            project_file=".cursor/mcp.json",
            reference=f"${{env:{TOKEN_VARIABLE}}}",
        ),
        DesktopClient(
            "vscode",
            "VS Code",
            "{config}/Code/User/mcp.json",
            members=("servers",),
            project_file=".vscode/mcp.json",
            typed=True,
            reference=f"${{env:{TOKEN_VARIABLE}}}",
        ),
        DesktopClient(
            "vscode-insiders",
            "VS Code Insiders",
            "{config}/Code - Insiders/User/mcp.json",
            members=("servers",),
            project_file=".vscode/mcp.json",
            typed=True,
            reference=f"${{env:{TOKEN_VARIABLE}}}",
        ),
        DesktopClient(
            "windsurf",
            "Windsurf",
            ".codeium/windsurf/mcp_config.json",
            url_member="serverUrl",
            reference=f"${{env:{TOKEN_VARIABLE}}}",
        ),
        DesktopClient(
            "zed",
            "Zed",
            ".config/zed/settings.json",
            members=("context_servers",),
            project_file=".zed/settings.json",
        ),
        DesktopClient(
            "gemini-cli",
            "Gemini CLI",
            ".gemini/settings.json",
            project_file=".gemini/settings.json",
            url_member="httpUrl",
            reference=f"${{{TOKEN_VARIABLE}}}",
        ),
        DesktopClient(
            "codex",
            "Codex",
            ".codex/config.toml",
            members=("mcp_servers",),
            project_file=".codex/config.toml",
            format="toml",
        ),
        DesktopClient("lm-studio", "LM Studio", ".lmstudio/mcp.json"),
        DesktopClient("other", "another client", "", typed=True, reference=f"${{{TOKEN_VARIABLE}}}"),
    )
}
"""All that are known, by name."""

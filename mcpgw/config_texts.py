"""The settings as texts for people: a commented ``mcpgw.toml``, and the table of the documentation."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpgw.setting_values import kind
from mcpgw.settings import SECTION_HELP, SETTINGS, Setting, Value

BEGIN_MARK: Final = "<!-- settings: written by `python -m mcpgw.config docs/configuration.md` -->"
END_MARK: Final = "<!-- end of settings -->"
_WIDTH: Final = 100

_HEAD: Final = """\
# Configuration of mcpgw.
#
# A line that begins with "# " explains; a line that begins with "#" alone is a setting at its default:
# take the "#" away and change it. The environment (MCPGW_SERVER_PORT) and flags (--port) are stronger than
# this file. Relative paths begin at the folder of this file.
"""

_SERVERS: Final = """
# Backend servers, one table each: [servers.NAME].
#
# A program that speaks MCP over stdio. Texts may hold ${NAME} or ${env:NAME} (an environment variable) and
# ${file:PATH} (the text of a file), so that no secret stands here; $${ is a plain ${.
#[servers.time]
#command = "uvx"
#args = ["mcp-server-time"]
#env = { TZ = "UTC" }
#cwd = "."
#timeout = 30

# A server reached over HTTP (Streamable HTTP); transport = "sse" is for servers of the older HTTP with SSE.
# A token goes into a header: Authorization = "Bearer ${env:NAME}".
#[servers.remote]
#url = "https://mcp.example.org/mcp"
#transport = "http"
#headers = { X-Project = "demo" }
#enabled = false
"""


def commented_toml() -> str:
    """A ``mcpgw.toml`` with every setting, its help, unit and default, all commented out."""
    parts = [_HEAD]
    for section, about in SECTION_HELP.items():
        parts.append(f"\n# {about}\n[{section}]\n")
        parts.extend(
            "".join(f"# {line}\n" for line in textwrap.wrap(_explained(setting), _WIDTH))
            + f"#{setting.key} = {_toml(setting.default)}\n"
            for setting in SETTINGS
            if setting.section == section
        )
    return "".join(parts) + _SERVERS


def _explained(setting: Setting) -> str:
    return f"{setting.help} ({', '.join(_facts(setting))})"


def _facts(setting: Setting) -> Iterator[str]:
    if setting.choices:
        yield "one of " + ", ".join(setting.choices)
    else:
        yield kind(setting)
    if setting.unit:
        yield f"unit: {setting.unit}"
    if isinstance(setting.default, int | float) and setting.minimum is not None:
        yield f"from {setting.minimum:g} to {setting.maximum:.12g}"


def _toml(value: Value) -> str:
    """`value` in TOML; JSON writes texts, numbers, truths and lists of texts in the same way."""
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False)


def settings_markdown() -> str:
    """The settings as Markdown: a heading and a table for each section."""
    lines: list[str] = []
    for section, about in SECTION_HELP.items():
        lines += [f"### [{section}]", "", about, ""]
        lines += ["| key | default | what | environment | flag |", "|---|---|---|---|---|"]
        lines += [
            f"| `{setting.key}` | `{_toml(setting.default)}` | {_explained(setting)} "
            f"| `{setting.environment_name}` | `{setting.flag_name}` |".replace("\n", " ")
            for setting in SETTINGS
            if setting.section == section
        ]
        lines.append("")
    return "\n".join(lines)


def with_settings_block(page: str) -> str:
    """`page` (Markdown) with the text between the two marks replaced by the settings.

    Raises ValueError where the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN_MARK!r} or {END_MARK!r}")
    return f"{before}{begin}\n\n{settings_markdown()}\n{end}{after}"


def write_settings_block(file: Path) -> None:
    """Write the settings between the marks of the page `file`."""
    file.write_text(with_settings_block(file.read_text("utf-8")), "utf-8")

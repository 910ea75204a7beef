"""Tables on stdout, and in `docs/performance.md`, where each kind of measurement has a section of its own."""

import datetime
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.installations import ROOT

PAGE = ROOT / "docs" / "performance.md"
_LONGEST_REASON = 300
_BEGINNING = """# Performance

Written by `make bench ARGS=--write`; each section says when, where and how. The sides of a table take turns
in one run on one machine: quote the ratios, and the machine beside any other number. How the numbers are to
be read is in [benchmarks/README.md](../benchmarks/README.md).
"""


@dataclass(frozen=True)
class Table:
    """Rows of texts. The first column is aligned to the left, the numbers after it to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def lines(self) -> list[str]:
        """The table in Markdown, readable as it is."""
        widths = [max(3, *map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        rules = [
            ("-" * width) if place == 0 else ("-" * (width - 1) + ":") for place, width in enumerate(widths)
        ]
        return [_line(self.columns, widths), _line(rules, widths), *(_line(row, widths) for row in self.rows)]


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (text.rjust(width) for text, width in zip(texts, widths, strict=True))
    return f"| {' | '.join([first.strip().ljust(widths[0]), *others])} |"


@dataclass
class Section:
    """One kind of measurement; `key` names it in the page.

    `notes` are sentences before the tables, `limits` what the numbers do not show, `left_out` what could not
    be measured and why. `wrong` counts wrong answers.
    """

    key: str
    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    wrong: int = 0

    def leave_out(self, reason: str) -> None:
        """Say, once and in a line, that something could not be measured."""
        reason = " ".join(reason.split())[:_LONGEST_REASON]
        if reason not in self.left_out:
            self.left_out.append(reason)
            print(f"left out: {reason}", flush=True)

    def text(self, *, with_tables: bool = True) -> str:
        """The section in Markdown."""
        parts = [f"## {self.title}", *self.notes]
        for table in self.tables if with_tables else ():
            if table.title:
                parts.append(f"### {table.title}")
            parts.append("\n".join(table.lines()))
        for heading, lines in (
            ("Versions", self.versions),
            ("Left out", self.left_out),
            ("What this does not show", self.limits),
        ):
            if lines:
                parts.append(f"{heading}:\n\n" + "\n".join(f"- {line}" for line in lines))
        parts.append(f"Measured {machine()}, with `{command()}`.")
        return "\n\n".join(parts) + "\n"

    def write(self, page: Path = PAGE) -> None:
        """Put the section in the place of the one before it, or at the end."""
        text = page.read_text() if page.exists() else _BEGINNING
        begin, end = f"<!-- {self.key} -->", f"<!-- end of {self.key} -->"
        block = f"{begin}\n{self.text()}{end}\n"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end) + "\n", re.DOTALL)
        text, replaced = pattern.subn(lambda _: block, text)
        page.write_text(text if replaced else f"{text.rstrip()}\n\n{block}")


def show(table: Table) -> None:
    """Print it."""
    print("", table.title, "", *table.lines(), sep="\n", flush=True)


def machine() -> str:
    """When and where: date, processors, memory, system, Python, and how busy the machine is."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return (
        f"{today} on {os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB of memory, {system}, "
        f"{python}, "
        f"load average {load:.1f} at the end"
    )


def command() -> str:
    """How this run was begun, without what it writes."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--write"]
    return shlex.join(["python", "-m", "benchmarks", *arguments])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return platform.processor() or platform.machine()

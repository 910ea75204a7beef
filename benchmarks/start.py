"""How soon a gateway is there, and what it costs while nobody asks anything of it. Linux only.

Every start is a fresh process. `--version` is measured until the process has ended; the first call from the
start of `mcpgw serve` until a call of the embedded memory server has its answer; memory of a gateway without
servers once it has settled. Both in a new data folder, and in one of before.
Processor time is that of the gateway's process alone: on a busy machine it is what can be compared.
"""

import argparse
import compileall
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.installations import MCPGW
from benchmarks.processes import processor_seconds, settled_memory
from benchmarks.report import Section, Table, show
from benchmarks.support import GatewayProcess, gateway, versions

_KIB = 1024


def measure_start(options: argparse.Namespace) -> Section:
    """The version, the first call, the memory without servers."""
    section = Section(
        "start",
        "Start, and memory without servers",
        notes=[
            (
                f"Medians of {options.rounds} rounds. CPU is the processor time of the gateway's process. "
                "A gateway whose first call has come has loaded what clients need; one that nobody has asked "
                "has not."
            )
        ],
        versions=versions()[:1],
        limits=["The memory server's own process, which starts beside the gateway."],
    )
    _compile_checkout()
    rounds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        rounds.setdefault("version", []).append(_version())
        for fresh, name in ((True, "new"), (False, "kept")):
            call, processor = _first_call(is_new=fresh)
            rounds.setdefault(f"call {name}", []).append(call)
            rounds.setdefault(f"processor {name}", []).append(processor)
            rounds.setdefault(f"memory {name}", []).append(_memory(is_new=fresh))
    medians = {name: statistics.median(each) for name, each in rounds.items()}
    rows = [["mcpgw --version", f"{medians['version']:.2f}", "", ""]]
    for name, folder in (("new", "new data folder"), ("kept", "data folder of before")):
        seconds, processor = medians[f"call {name}"], medians[f"processor {name}"]
        rows.append([f"serve until the first call, {folder}", f"{seconds:.2f}", f"{processor:.2f}", ""])
    for name, folder in (("new", "new data folder"), ("kept", "data folder of before")):
        rows.append([f"serve without servers, {folder}", "", "", f"{medians[f'memory {name}']:.1f}"])
    section.tables.append(Table(["what", "s", "CPU s", "MiB"], rows))
    show(section.tables[-1])
    return section


def _compile_checkout() -> None:
    """Leave it as pip leaves an installation: compiling at each start costs time, and memory for good.

    What stands in ``.bench/`` is the checkout too.
    """
    for package in ("mcpgw", "handlers"):
        compileall.compile_dir(Path(__file__).resolve().parent.parent / package, quiet=1)


def _version() -> float:
    python = MCPGW.python if MCPGW.is_there else sys.executable
    began = time.perf_counter()
    subprocess.run([python, "-m", "mcpgw", "--version"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _first_call(*, is_new: bool) -> tuple[float, float]:
    """Seconds until the answer, and of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        if not is_new:
            with gateway(folder=Path(folder)):
                pass
        began = time.perf_counter()
        with gateway(folder=Path(folder)) as server:
            _call(server)
            return time.perf_counter() - began, processor_seconds(server.pid)


def _memory(*, is_new: bool) -> float:
    """MiB of a gateway without servers."""
    settings = {"memory.enabled": "false"}
    with tempfile.TemporaryDirectory() as folder:
        if not is_new:
            with gateway(settings, folder=Path(folder)):
                pass
        with gateway(settings, folder=Path(folder)) as server:
            return settled_memory(server.pid) / _KIB


def _call(server: GatewayProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(
            "POST",
            "/api/v1/servers/memory/tools/memory_search",
            body=json.dumps({"params": {"project": "none"}}),
            headers={
                "Authorization": f"Bearer {server.token('user', 'tools:call')}",
                "Content-Type": "application/json",
            },
        )
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status != http.client.OK or json.loads(text).get("success") is not True:
        raise SystemExit(f"the first call was answered with {answer.status}: {text[:200]!r}")

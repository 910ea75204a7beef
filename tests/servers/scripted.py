"""A small MCP server over stdio that behaves well or badly, as its tools and options are told to.

It speaks the handshake revisions of the protocol alone and is written without the SDK, so that it starts
quickly and can send what no library would. Every message that it reads is added to the file ``--record``.

    python scripted.py [--record FILE] [--name NAME] [--at-start BEHAVIOUR] [--stubborn] [--grandchild FILE]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

STUBBORN = "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; time.sleep(1000)"

Json = dict[str, Any]
HINTS = {"die_once_reading": "readOnlyHint", "die_once_idempotent": "idempotentHint"}
ODD_TOOLS: list[Json] = [
    {"name": "odd", "inputSchema": {"type": "banana"}, "outputSchema": 3, "x-kept": 1},
    {"name": "none", "inputSchema": None},
    {"inputSchema": {"type": "object"}},
]


def write(data: bytes) -> None:
    """Write bytes to stdout as they are."""
    while data:
        data = data[os.write(1, data) :]


def send(message: object) -> None:
    """Send one JSON value as a line."""
    write(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def answer(request_id: object, result: object) -> None:
    """Answer one request."""
    send({"jsonrpc": "2.0", "id": request_id, "result": result})


def text(value: object) -> Json:
    """A tool result with one text block."""
    return {"content": [{"type": "text", "text": str(value)}]}


def notify(method: str, **params: object) -> None:
    """Send one notification."""
    send({"jsonrpc": "2.0", "method": method, "params": params})


def sleep_forever() -> NoReturn:
    """Live on, doing nothing."""
    while True:
        time.sleep(1000)


class Server:
    """The tools; each method `tool_NAME` takes the request's id, its arguments and its progress token."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: list[object] = []
        self.extra_tools: list[str] = []
        self.refuse_listing = False
        self.has_odd_tools = False
        self.value: object = None
        self.deaths: Path | None = None

    def tools(self) -> list[Json]:
        """What tools/list answers."""
        own = [name.removeprefix("tool_") for name in dir(self) if name.startswith("tool_")]
        tools: list[Json] = [
            {"name": name, "inputSchema": {"type": "object"}} for name in [*own, *self.extra_tools]
        ]
        for tool in tools:
            if tool["name"] in HINTS:
                tool["annotations"] = {HINTS[tool["name"]]: True}
        return tools + (ODD_TOOLS if self.has_odd_tools else [])

    def handle(self, message: Json) -> None:  # noqa: PLR0912 - one branch a method of the protocol
        """Do what one message asks."""
        method, request_id = message.get("method"), message.get("id")
        if method == "initialize":
            info = {"name": self.name, "version": "1.0"}
            capabilities = {"tools": {"listChanged": True}, "logging": {}, "resources": {"subscribe": True}}
            version = message["params"]["protocolVersion"]
            answer(request_id, {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info})
        elif method == "tools/list":
            if self.refuse_listing:
                send({"jsonrpc": "2.0", "id": request_id, "error": {"code": -32603, "message": "not now"}})
            else:
                answer(request_id, {"tools": self.tools()})
        elif method == "logging/setLevel":
            send({"jsonrpc": "2.0", "id": request_id, "error": {"code": -32601, "message": "no levels"}})
        elif method == "tools/call":
            params = message["params"]
            run: Callable[[object, Json, object], None] = getattr(self, f"tool_{params['name']}")
            run(request_id, params.get("arguments", {}), params.get("_meta", {}).get("progressToken"))
        elif method == "resources/list":
            answer(request_id, {"resources": []})
        elif method == "resources/templates/list":
            answer(request_id, {"resourceTemplates": []})
        elif method in ("resources/subscribe", "resources/unsubscribe"):
            if message["params"]["uri"].startswith("no:"):
                error = {"code": -32602, "message": "no such resource"}
                send({"jsonrpc": "2.0", "id": request_id, "error": error})
            else:
                answer(request_id, {})
        elif method is None:
            self.value = message.get("result", message.get("error"))
        elif request_id is not None:
            send({"jsonrpc": "2.0", "id": request_id, "error": {"code": -32601, "message": "no such method"}})

    def tool_echo(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer with the arguments."""
        answer(request_id, {**text(json.dumps(arguments)), "structuredContent": arguments})

    def tool_pid(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer with the process id."""
        answer(request_id, text(os.getpid()))

    def tool_remember(self, request_id: object, arguments: Json, token: object) -> None:
        """Keep a value in this process."""
        self.value = arguments["value"]
        answer(request_id, text("done"))

    def tool_recall(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer with the value that was kept."""
        answer(request_id, text(json.dumps([os.getpid(), self.value])))

    def tool_die_once(self, request_id: object, arguments: Json, token: object) -> None:
        """Die with the first call of a key, and answer the second; ``--deaths FILE`` counts them."""
        assert self.deaths is not None
        key = arguments.get("key", "")
        seen = self.deaths.read_text().split() if self.deaths.exists() else []
        with self.deaths.open("a") as deaths:
            deaths.write(f"{key}\n")
        if key not in seen or arguments.get("always"):
            os._exit(9)
        answer(request_id, text("lives"))

    tool_die_once_reading = tool_die_once
    tool_die_once_idempotent = tool_die_once

    def tool_tick(self, request_id: object, arguments: Json, token: object) -> None:
        """Report progress `times` times, `pause` seconds apart, then answer."""
        for step in range(arguments["times"]):
            time.sleep(arguments["pause"])
            notify("notifications/progress", progressToken=token, progress=step)
        answer(request_id, text("done"))

    def tool_elicit(self, request_id: object, arguments: Json, token: object) -> None:
        """Ask the user, and never answer; `asked` tells what was answered."""
        params = {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}}
        send({"jsonrpc": "2.0", "id": "question", "method": "elicitation/create", "params": params})

    def tool_asked(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer with the last answer of a user."""
        answer(request_id, text(json.dumps(self.value)))

    def tool_never(self, request_id: object, arguments: Json, token: object) -> None:
        """Give no answer."""

    def tool_hold(self, request_id: object, arguments: Json, token: object) -> None:
        """Give the answer when `release` is called."""
        self.waiting.append(request_id)

    def tool_release(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer every held call with its own number and then this one; `order` "crossed" goes backwards."""
        waiting, self.waiting = self.waiting, []
        for held in reversed(waiting) if arguments.get("order") == "crossed" else waiting:
            answer(held, text(held))
        answer(request_id, text(waiting))

    def tool_raw(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer with the result that stands in `result`."""
        answer(request_id, arguments["result"])

    def tool_refuse(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer with the protocol error that stands in `error`."""
        send({"jsonrpc": "2.0", "id": request_id, "error": arguments["error"]})

    def tool_bytes(self, request_id: object, arguments: Json, token: object) -> None:
        """Write `lines` (Latin-1, %ID is the request's id), then answer unless `silent`."""
        for line in arguments["lines"]:
            write(line.replace("%ID", str(request_id)).encode("latin-1"))
        if not arguments.get("silent"):
            answer(request_id, text("done"))

    def tool_huge(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer with a line of `size` bytes, the id at its `id` ("first" or "last")."""
        filler = "x" * arguments["size"]
        if arguments["id"] == "first":
            answer(request_id, text(filler))
        else:
            send({"result": text(filler), "jsonrpc": "2.0", "id": request_id})

    def tool_ask(self, request_id: object, arguments: Json, token: object) -> None:
        """Send a request of the server's own, with the call's id and `size` bytes, then answer."""
        params = {"filler": "x" * arguments["size"]}
        send({"jsonrpc": "2.0", "id": request_id, "method": "sampling/createMessage", "params": params})
        answer(request_id, text("done"))

    def tool_progress(self, request_id: object, arguments: Json, token: object) -> None:
        """Send `steps` progress notifications, then answer."""
        steps = arguments["steps"]
        for step in range(1, steps + 1):
            notify(
                "notifications/progress", progressToken=token, progress=step, total=steps, message=f"{step}"
            )
        answer(request_id, text("done"))

    def tool_log(self, request_id: object, arguments: Json, token: object) -> None:
        """Send one log message, then answer."""
        notify("notifications/message", level="warning", logger="scripted", data={"line": 1, "none": None})
        answer(request_id, text("done"))

    def tool_flood(self, request_id: object, arguments: Json, token: object) -> None:
        """Send `count` messages with the method `method`, as requests where `ask`, then answer."""
        line: Json = {"jsonrpc": "2.0", "method": arguments["method"], "params": arguments.get("params", {})}
        if arguments.get("ask"):
            line["id"] = "asked"
        encoded = json.dumps(line).encode() + b"\n"
        for _ in range(arguments["count"] // 100):
            write(encoded * 100)
        answer(request_id, text("done"))

    def tool_complain(self, request_id: object, arguments: Json, token: object) -> None:
        """Write `text` to stderr `times` times, then answer."""
        data = (arguments["text"] * arguments["times"]).encode()
        while data:
            data = data[os.write(2, data) :]
        answer(request_id, text("done"))

    def tool_grow(self, request_id: object, arguments: Json, token: object) -> None:
        """Have one more tool, `name`, and say that the list has changed; `refuse` then refuses to list it."""
        self.extra_tools.append(arguments["name"])
        self.refuse_listing = arguments.get("refuse", False)
        notify("notifications/tools/list_changed")
        answer(request_id, text("done"))

    def tool_touch(self, request_id: object, arguments: Json, token: object) -> None:
        """Say that a resource has changed."""
        notify("notifications/resources/updated", uri=arguments["uri"])
        answer(request_id, text("done"))

    def tool_close(self, request_id: object, arguments: Json, token: object) -> None:
        """Close `fd` and live on."""
        os.close(arguments["fd"])
        sleep_forever()

    def tool_exit(self, request_id: object, arguments: Json, token: object) -> None:
        """End without an answer."""
        os._exit(arguments["code"])

    def tool_deaf(self, request_id: object, arguments: Json, token: object) -> None:
        """Answer, and never read again."""
        answer(request_id, text("done"))
        sleep_forever()


def detach(note: Path) -> None:
    """Leave a stubborn process behind whose parent is gone, and that is in no group of this one's."""
    starting = os.fork()
    if not starting:
        daemon = subprocess.Popen([sys.executable, "-S", "-c", STUBBORN], start_new_session=True)
        note.write_text(str(daemon.pid))
        os._exit(0)
    os.waitpid(starting, 0)


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path)
    parser.add_argument("--name", default="scripted")
    parser.add_argument("--at-start", choices=["die", "die-unless", "hang", "no-answers"])
    parser.add_argument("--unless", type=Path)
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--grandchild", type=Path)
    parser.add_argument("--own-session", action="store_true")
    parser.add_argument("--daemon", type=Path)
    parser.add_argument("--odd-tools", action="store_true")
    parser.add_argument("--deaths", type=Path)
    options = parser.parse_args()
    if options.stubborn:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if options.grandchild is not None:
        grandchild = subprocess.Popen(
            [sys.executable, "-S", "-c", STUBBORN], start_new_session=options.own_session
        )
        options.grandchild.write_text(str(grandchild.pid))
    if options.daemon is not None:
        detach(options.daemon)
    if options.at_start == "die" or (options.at_start == "die-unless" and not options.unless.exists()):
        sys.stderr.write(f"{options.name} cannot start\n")
        sys.exit(3)
    if options.at_start == "hang":
        sleep_forever()
    server = Server(options.name)
    server.has_odd_tools, server.deaths = options.odd_tools, options.deaths
    for line in sys.stdin.buffer:
        if options.record is not None:
            with options.record.open("ab") as record:
                record.write(line)
        if options.at_start != "no-answers" or (options.unless is not None and options.unless.exists()):
            server.handle(json.loads(line))
    if options.stubborn:
        sleep_forever()


if __name__ == "__main__":
    main()

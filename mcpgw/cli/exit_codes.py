"""What the exit code of a command says; `docs/cli.md` has the same list."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every ``mcpgw`` command; 130 is 128 + SIGINT, as shells count."""

    OK = 0
    TOOL_ERROR = 1
    USAGE = 2
    NOT_REACHABLE = 3
    REFUSED = 4
    CALL_FAILED = 5
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "all is well",
    ExitCode.TOOL_ERROR: "the tool answered with an error of its own",
    ExitCode.USAGE: "wrong usage, or a configuration that cannot be used",
    ExitCode.NOT_REACHABLE: "no gateway answers, or the connection to it was lost",
    ExitCode.REFUSED: "refused: the credentials do not hold, or do not allow it",
    ExitCode.CALL_FAILED: "the gateway answered with an error of another kind",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}

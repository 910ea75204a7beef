"""Runs a command and passes its stdin and stdout on, with every line of its stdin kept in a file.

python recorder.py FILE COMMAND...
"""

import subprocess
import sys
import threading
from typing import IO


def copy(source: IO[bytes], target: IO[bytes], record: IO[bytes] | None) -> None:
    """Pass lines on as they come."""
    for line in iter(source.readline, b""):
        if record is not None:
            record.write(line)
            record.flush()
        target.write(line)
        target.flush()
    target.close()


def main() -> int:
    """Run the command to its end."""
    child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    with open(sys.argv[1], "ab") as record:  # noqa: PTH123 - pathlib would be one more import at each start
        arguments = (sys.stdin.buffer, child.stdin, record)
        threading.Thread(target=copy, args=arguments, daemon=True).start()
        copy(child.stdout, sys.stdout.buffer, None)
        return child.wait()


if __name__ == "__main__":
    sys.exit(main())

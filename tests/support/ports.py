"""Ports for servers that must be told theirs before they start."""

import random
import socket

# Systems give 32768 and above (Linux) or 49152 and above (IANA) to whoever asks for any port: the connections
# of other tests could take one from there between the choice and the server's start.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that no connection is given by chance.

    Raises:
        OSError: a hundred ports in a row were taken.
    """
    for _ in range(100):
        port = random.choice(_PORTS)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise OSError("no port is free")

"""Ports of loopback for what the network itself listens on, apart from those that clusters take."""

import random
import socket

HOST = "127.0.0.1"
PORTS = range(32_600, 32_768)
"""The last below those that outgoing connections take, and above those that a bed takes."""


class NoPort(RuntimeError):
    """Every port is in use by somebody."""


def free_port() -> int:
    """Nobody has it now. Raises NoPort."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise NoPort(f"no free port between {PORTS.start} and {PORTS.stop - 1}")

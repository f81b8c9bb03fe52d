"""What the kernel says of this machine's TCP connections: how many bytes each end sent and received, and whose it is.

A proxy says what it was told; only this says what passes. No privilege is needed.
"""

import os
import socket
import struct
from collections.abc import Iterator

from msgspec import Struct

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_INFO = 2
ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10
ALL_STATES = (1 << ESTABLISHED) | (1 << CLOSE_WAIT) | (1 << LISTEN)
REQUEST = struct.Struct("=IHHII BBBxI 48s")
HEADER = struct.Struct("=IHHII")
MESSAGE = struct.Struct("=BBBB 2s2s 16s16s 4x8x 4xIIII")
"""inet_diag_msg: family, state, timer, retransmits, ports, addresses, queues, uid and inode."""
ATTRIBUTE = struct.Struct("=HH")
BYTES_RECEIVED_AT, BYTES_SENT_AT = 128, 200
"""Places in the kernel's tcp_info, which only ever grows at its end."""
RECEIVE_BYTES = 1 << 18


class Connection(Struct, frozen=True):
    """One end of one connection, IPv4.

    unread_bytes: arrived, and not taken by the process. unsent_bytes: taken from the process, and not acknowledged.
    """

    local: tuple[str, int]
    remote: tuple[str, int]
    state: int
    inode: int
    sent_bytes: int
    received_bytes: int
    unread_bytes: int
    unsent_bytes: int


def connections() -> Iterator[Connection]:
    """Those that are established, half closed by the other side, or listen. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as link:
        info = 1 << (INET_DIAG_INFO - 1)
        request = (socket.AF_INET, socket.IPPROTO_TCP, info, ALL_STATES, b"")
        link.sendto(REQUEST.pack(REQUEST.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0, *request), (0, 0))
        while True:
            data = link.recv(RECEIVE_BYTES)
            while data:
                size, kind, *_ = HEADER.unpack_from(data)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    raise OSError("the kernel does not tell of its connections")
                yield _read(data[HEADER.size : size])
                data = data[(size + 3) & ~3 :]


def _read(message: bytes) -> Connection:
    _, state, _, _, source, target, near, far, unread, unsent, _, inode = MESSAGE.unpack_from(message)
    sent = received = 0
    at = MESSAGE.size
    while at + ATTRIBUTE.size <= len(message):
        size, kind = ATTRIBUTE.unpack_from(message, at)
        if kind == INET_DIAG_INFO and size >= ATTRIBUTE.size + BYTES_SENT_AT + 8:
            received = int.from_bytes(message[at + 4 + BYTES_RECEIVED_AT :][:8], "little")
            sent = int.from_bytes(message[at + 4 + BYTES_SENT_AT :][:8], "little")
        at += max((size + 3) & ~3, 4)
    return Connection(_address(near, source), _address(far, target), state, inode, sent, received, unread, unsent)


def _address(host: bytes, port: bytes) -> tuple[str, int]:
    return socket.inet_ntoa(host[:4]), int.from_bytes(port, "big")


def inodes(pid: int) -> set[int]:
    """Of the sockets that a process has, one of ours. Empty: it is gone."""
    found: set[int] = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for name in names:
        try:
            place = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if place.startswith("socket:["):
            found.add(int(place[8:-1]))
    return found

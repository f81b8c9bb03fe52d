"""Where a member is dialed: it accepts, runs the TLS handshake within bounds, and counts whom it refuses."""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from cluster.consensus.rates import Handshakes
from cluster.consensus.refusals import of_handshake

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 3.0
ACCEPT_PAUSE_SECONDS = 0.1


def no_delay(connected: socket.socket) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Listener:
    """Accepts strangers and hands them on once their certificate is known to be good.

    welcome: the context of the next handshake, and what takes the stream after it.
    room: how many may be in a handshake at once. rate: how often one may begin.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        welcome: Callable[[], tuple[ssl.SSLContext, asyncio.Protocol]],
        room: Callable[[], int],
        rate: Handshakes,
        counters: Counter[str],
    ) -> None:
        self._address = address
        self._welcome = welcome
        self._room = room
        self._rate = rate
        self._counters = counters
        self._sockets: set[socket.socket] = set()  # accepted, not yet through the handshake
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._stopping = False

    def start(self) -> None:
        """Raises OSError when the address is taken."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind(self._address)
            listener.listen(128)
        except OSError as error:
            listener.close()
            host, port = self._address
            raise OSError(error.errno, f"{error.strerror}: members are to be heard at {host}:{port}") from error
        self._socket = listener
        self._listen_again()

    async def stop(self) -> None:
        self._stopping = True
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for accepted in self._sockets:
            accepted.close()
        if self._socket is not None:
            self._socket.close()

    def _listen_again(self) -> None:
        # Not sock_accept: cancelled at the wrong moment, it loses the socket that it has just accepted.
        if not self._stopping and self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, (host, *_) = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, say. The listener stays.
            self._counters["accept_failed"] += 1
            log.warning("accept failed: %s", error)
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen_again)
            return
        if len(self._sockets) >= self._room():
            self._counters["refused_crowd"] += 1
            accepted.close()
            return
        if not self._rate.allow(host):
            self._counters["refused_rate"] += 1
            accepted.close()
            return
        accepted.setblocking(False)
        self._sockets.add(accepted)
        task = loop.create_task(self._handshake(accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handshake(self, accepted: socket.socket) -> None:
        try:
            no_delay(accepted)
            tls, protocol = self._welcome()
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, accepted, ssl=tls)
        except Exception as error:
            # Whatever a stranger does to the handshake, it is a refusal and nothing more.
            counter = of_handshake(error)
            self._counters[counter] += 1
            log.warning("handshake refused: %s (%s)", str(error) or type(error).__name__, counter)
            accepted.close()
        except BaseException:
            accepted.close()
            raise
        finally:
            self._sockets.discard(accepted)

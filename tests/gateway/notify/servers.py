"""A small SMTP server and an HTTP server on loopback that say what a test tells them to, and keep what they got."""

import asyncio
import ssl
from types import TracebackType

from aiohttp import web

from tests.cluster.engines import free_port

HOST = "127.0.0.1"


class Mailbox:
    """SMTP, as far as our client speaks it. replies: what is answered to a verb, once each, before all goes well."""

    def __init__(self, *, starttls: ssl.SSLContext | None = None) -> None:
        self.replies: dict[str, list[str]] = {}
        self.letters: list[tuple[str, str]] = []
        self.logins: list[str] = []
        self.in_the_clear: list[str] = []
        self._starttls = starttls
        self.port = 0
        self._server: asyncio.Server

    async def __aenter__(self) -> "Mailbox":
        self.port = free_port()
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure = False
        to = ""
        writer.write(b"220 mailbox\r\n")
        while line := (await reader.readline()).decode().strip():
            verb, _, rest = line.partition(" ")
            verb = verb.upper()
            if not secure:
                self.in_the_clear.append(verb)
            told = self.replies.get(verb, [])
            if told:
                writer.write(told.pop(0).encode() + b"\r\n")
            elif verb == "EHLO":
                extra = b"250-STARTTLS\r\n" if self._starttls and not secure else b""
                writer.write(b"250-mailbox\r\n" + extra + b"250 AUTH PLAIN\r\n")
            elif verb == "STARTTLS" and self._starttls:
                writer.write(b"220 go\r\n")
                await writer.drain()
                await writer.start_tls(self._starttls)
                secure = True
            elif verb == "AUTH":
                self.logins.append(rest)
                writer.write(b"235 ok\r\n")
            elif verb == "RCPT":
                to = rest.partition("<")[2].partition(">")[0]
                writer.write(b"250 ok\r\n")
            elif verb == "DATA":
                writer.write(b"354 go\r\n")
                text = await reader.readuntil(b"\r\n.\r\n")
                if late := self.replies.get("END"):
                    writer.write(late.pop(0).encode() + b"\r\n")
                else:
                    self.letters.append((to, text[:-5].decode()))
                    writer.write(b"250 ok\r\n")
            elif verb == "QUIT":
                writer.write(b"221 bye\r\n")
                break
            else:
                writer.write(b"250 ok\r\n")
        writer.close()


class Hook:
    """HTTP: answers each POST with the next of `statuses`, then 200. got: (path, headers, body)."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.delay_s = 0.0
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.most_at_once = 0
        self._at_once = 0
        self.port = 0
        self._runner: web.AppRunner

    async def __aenter__(self) -> "Hook":
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        self.port = free_port()
        await web.TCPSite(self._runner, HOST, self.port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def url(self, path: str = "hook") -> str:
        return f"http://{HOST}:{self.port}/{path}"

    async def _answer(self, request: web.Request) -> web.Response:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.got.append((request.path, dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 200
        await asyncio.sleep(self.delay_s)
        self._at_once -= 1
        return web.Response(status=status, headers=self.headers)

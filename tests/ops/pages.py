"""The /metrics pages of a real member and a real gateway, and what is on them."""

import re
from pathlib import Path

import aiohttp
from msgspec import Struct

from bench.running import free_base_port
from cluster import folder as cluster_folder
from gateway.app import App
from gateway.config import read_gateway
from node.auth import issue_token
from tests.node.solo import Solo

SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
_TYPE = re.compile(r"# TYPE (\S+) (\S+)")
_SAMPLE = re.compile(r"([a-z_0-9]+)(?:\{(.*)\})? \S+$")
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


class Page(Struct):
    """names: of all samples that there may be. labels: by name, of those that there are: their labels and values."""

    names: set[str] = set()
    labels: dict[str, dict[str, set[str]]] = {}

    def read(self, text: str) -> None:
        for line in text.splitlines():
            if found := _TYPE.match(line):
                self.names |= {found[1] + suffix for suffix in SUFFIXES.get(found[2], ("",))}
            elif found := _SAMPLE.match(line):
                labels = self.labels.setdefault(found[1], {})
                for label, value in _LABEL.findall(found[2] or ""):
                    labels.setdefault(label, set()).add(value)


async def pages(folder: Path) -> Page:
    """Both pages together. The gateway follows nobody: no member of its cluster runs."""
    page = Page()
    async with Solo(folder / "solo") as solo, solo.client.get("/metrics") as answer:
        page.read(await answer.text())
    root = folder / "c"
    cluster_folder.create(root, shape="1+1+1", base_port=free_base_port(3))
    files = cluster_folder.ClusterFolder(root)
    key = files.token_key.read_text("utf-8")
    app = App(read_gateway(files.config(files.gateway_names()[0])))
    await app.start()
    try:
        listen = app.config.listen
        async with aiohttp.ClientSession(f"http://{listen.host}:{listen.port}") as session:
            bearer = {"Authorization": f"Bearer {issue_token(key, subject='anna', role='trader', accounts=['anna'])}"}
            for path in ("/healthz", "/v1/market/quotes?symbol=NONE"):
                (await session.get(path, headers=bearer)).release()
            async with session.get("/metrics") as answer:
                page.read(await answer.text())
    finally:
        await app.stop()
    return page

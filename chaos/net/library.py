"""The toxiproxy-python library with its defects shut out: what one server is told, and what it answered.

The library keeps host and port in class attributes, never ends a wait, takes 500 and 503 for success, honours proxies
of the environment and forgets what it added. So each server gets a copy of its modules, and in each copy the two names
that do the talking are ours.
"""

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import msgspec
import requests

from chaos.net.ports import HOST
from chaos.net.told import Proxy, Refused, Toxic, Wedged

TIMEOUT_S = 3.0
LIBRARY = "toxiproxy"
_copies = itertools.count(1)


class Api:
    """One server, for one thread. Every call blocks, for some 3 s at most, and raises Wedged or Refused."""

    def __init__(self, port: int) -> None:
        self._at = f"http://{HOST}:{port}"
        self._talker = _Requests()
        self._library: Any = _copy(self._talker)
        self._server = self._library.Toxiproxy()
        self._server.update_api_consumer(HOST, port)

    def create(self, name: str, listen: str, upstream: str) -> None:
        """Make a proxy that is not on yet."""
        self._server.create(upstream=upstream, name=name, listen=listen, enabled=False)
        proxy = self.proxy(name)
        if (proxy.listen, proxy.upstream, proxy.enabled) != (listen, upstream, False):
            raise Refused(f"asked for {listen} to {upstream}, got {proxy}")

    def put(self, name: str, toxics: Sequence[Toxic]) -> None:
        """Add toxics, or change those of these names. Raises Refused: one does not read back as it was meant."""
        proxy = self.proxy(name)
        standing = {one.name: one for one in proxy.toxics}
        try:
            for toxic in toxics:
                self._put(proxy, toxic, standing.get(toxic.name))
            found = self.proxy(name).toxics
            if wrong := [toxic for toxic in toxics if toxic not in found]:
                raise Refused(
                    f"asked for {wrong[0]}, reads back as {[one for one in found if one.name == wrong[0].name]}"
                )
        except Refused:
            self.remove(name, [toxic.name for toxic in toxics if toxic.name not in standing])
            raise

    def _put(self, proxy: Proxy, toxic: Toxic, standing: Toxic | None) -> None:
        if standing == toxic:
            return  # told again, it would let go of what it holds
        if standing is None:
            self._thing(proxy).add_toxic(**msgspec.to_builtins(toxic))
        elif (standing.type, standing.stream) == (toxic.type, toxic.stream):
            body = {"attributes": toxic.attributes, "toxicity": toxic.toxicity}
            self._patch(f"/proxies/{proxy.name}/toxics/{toxic.name}", body)
        else:
            raise Refused(f"{toxic.name} is a {standing.type} of {standing.stream} already")

    def remove(self, name: str, toxics: Iterable[str]) -> None:
        """Those that are not there are no error."""
        proxy = self.proxy(name)
        there = {one.name for one in proxy.toxics} & set(toxics)
        for toxic in sorted(there):
            self._thing(proxy).destroy_toxic(toxic)
        if there and (left := there & {one.name for one in self.proxy(name).toxics}):
            raise Refused(f"{', '.join(sorted(left))} was removed and is still there")

    def enable(self, name: str, enabled: bool) -> None:
        """Off: connections end, the port is closed. Raises Refused: the port is in use."""
        if self.proxy(name).enabled == enabled:
            return
        # The library has this by a POST that the server deprecates.
        self._patch(f"/proxies/{name}", {"enabled": enabled})
        if self.proxy(name).enabled != enabled:
            raise Refused(f"{name} stays {'off' if enabled else 'on'}")

    def proxy(self, name: str) -> Proxy:
        """As the server sees it now."""
        answer = _checked(self._talker.get(f"{self._at}/proxies/{name}"))
        try:
            return msgspec.json.decode(answer.content, type=Proxy)
        except msgspec.DecodeError as error:
            raise Wedged(f"no proxy, but {answer.content[:200]!r}") from error

    def _thing(self, proxy: Proxy) -> Any:
        """The library's object. It goes stale, so that it is made anew each time."""
        return self._library.Proxy(name=proxy.name, upstream=proxy.upstream, enabled=proxy.enabled, listen=proxy.listen)

    def _patch(self, path: str, body: dict[str, Any]) -> None:
        _checked(self._talker.patch(self._at + path, json=body))


class _Requests:
    """Stands where the library expects the module `requests`."""

    def __init__(self) -> None:
        self._session = requests.Session()
        self._session.trust_env = False
        # One that the server closed meanwhile would look like a server that hangs.
        self._session.headers["Connection"] = "close"

    def get(self, url: str, **more: Any) -> requests.Response:
        return self._send("GET", url, **more)

    def post(self, url: str, **more: Any) -> requests.Response:
        return self._send("POST", url, **more)

    def patch(self, url: str, **more: Any) -> requests.Response:
        return self._send("PATCH", url, **more)

    def delete(self, url: str, **more: Any) -> requests.Response:
        return self._send("DELETE", url, **more)

    def _send(self, method: str, url: str, **more: Any) -> requests.Response:
        try:
            return self._session.request(method, url, timeout=TIMEOUT_S, **more)
        except requests.RequestException as error:
            raise Wedged(f"{method} {url}: {type(error).__name__} within {TIMEOUT_S:g} s") from error


def _checked(response: requests.Response) -> requests.Response:
    """Stands where the library checks statuses."""
    said = response.text.strip()[:200]
    if response.status_code == requests.codes.service_unavailable:
        raise Wedged(f"{response.request.method} {response.url}: 503 {said}")
    if not response.ok:
        raise Refused(f"{response.status_code} {said}")
    return response


def _copy(talker: _Requests) -> ModuleType:
    """The library's package under a name of its own, so that its class attributes are nobody else's."""
    found = importlib.util.find_spec(LIBRARY)
    if found is None or found.origin is None:
        raise Refused("toxiproxy-python is not installed: make toxiproxy")
    name = f"_{LIBRARY}_{next(_copies)}"
    spec = importlib.util.spec_from_file_location(
        name, found.origin, submodule_search_locations=found.submodule_search_locations
    )
    if spec is None or spec.loader is None:
        raise Refused(f"{found.origin} can't be loaded")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    api: Any = importlib.import_module(f"{name}.api")
    api.requests, api.validate_response = talker, _checked
    return module

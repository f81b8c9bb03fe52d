"""/v1/gateway/keys: which keys seal contacts and secrets here, and sealing anew under the newest; for operators."""

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from gateway.api import context
from gateway.api.context import CORE
from gateway.api.errors import KeyNotInUse
from gateway.core import Core
from gateway.prefs.seal import KeyFileRefused


class SealAnew(Struct, frozen=True, forbid_unknown_fields=True):
    """key: the number of the key that is to seal; what is sealed under another one is sealed anew."""

    key: Annotated[int, Meta(ge=1, lt=2**32)]


_decode = msgspec.json.Decoder(SealAnew).decode


async def keys(request: web.Request) -> web.Response:
    """Numbers only: which keys are known, which one seals, and how many documents are under each."""
    context.only(request)
    context.allow(request, "operator")
    return context.respond(request, await _shown(request.app[CORE]), context.now())


async def seal_anew(request: web.Request) -> web.Response:
    """Read the key file anew and put every document under that key; again, it finds nothing left to do."""
    context.only(request)
    context.allow(request, "operator")
    wanted = await context.read_body(request, _decode)
    core = request.app[CORE]
    try:
        await core.seal_keys.look()
    except KeyFileRefused as error:
        raise KeyNotInUse(str(error), field="key") from error
    if core.seal_keys.keyring.newest != wanted.key:
        raise KeyNotInUse(
            f"this gateway seals with key {core.seal_keys.keyring.newest}: bring it the key file", field="key"
        )
    sealed = await core.seal_keys.seal_anew()
    return context.respond(request, {"sealed": sealed, **await _shown(core)}, context.now())


async def _shown(core: Core) -> dict[str, object]:
    keyring = core.seal_keys.keyring
    found = await core.prefs.sealed_under()
    return {
        "gateway": core.config.name,
        "seals_with": keyring.newest,
        "known": keyring.numbers,
        "documents": {str(number): count for number, count in found.items()},
    }


ROUTES = [web.get("/v1/gateway/keys", keys), web.post("/v1/gateway/keys/seal-anew", seal_anew)]

"""The API's description: it names every route, it is valid, and a node answers as it says whatever it is asked."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import schemathesis
import uvloop
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from cluster import wire
from node import openapi
from node.openapi_words import MEANS
from tests.node.solo import Solo, bearer, list_market, order, run

DOCUMENT = msgspec.json.decode(openapi.document())


def test_it_names_every_route_of_the_node_and_no_other(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            runner = solo.app._runner
            assert runner is not None
            app = runner.app
            assert isinstance(app, web.Application)
            routes = {
                (route.method.lower(), route.resource.canonical)
                for route in app.router.routes()
                if route.resource is not None and route.method != "HEAD"
            }
            told = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
            assert told == {route for route in routes if route[1] not in openapi.NOT_LISTED}
            assert {path for _, path in routes} >= openapi.NOT_LISTED

    run(talk())


def test_references_resolve_and_names_are_of_the_wire() -> None:
    text = openapi.document().decode()
    names = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert names <= set(DOCUMENT["components"]["schemas"])
    for kind in (wire.PlaceOrder, wire.OrderView, wire.ErrorBody, wire.Answer):
        fields = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert fields <= set(DOCUMENT["components"]["schemas"][kind.__name__]["properties"])
    assert "do" not in DOCUMENT["components"]["schemas"]["PlaceOrder"].get("required", [])


def test_every_field_is_explained_and_nothing_else() -> None:
    schemas = DOCUMENT["components"]["schemas"].values()
    fields = {name: field for schema in schemas for name, field in schema.get("properties", {}).items()}
    assert [name for name, field in fields.items() if not field.get("description")] == []
    assert set(MEANS) == set(fields)


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            async with solo.client.get("/docs") as response:
                text = await response.text()
                assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert not re.findall(r"(?:src|href)=[\"'](?!openapi\.json|#)[^\"']*", text)
            assert "//" not in text
            assert set(re.findall(r'href="#(\w+)"', text)) <= set(re.findall(r'id="(\w+)"', text))
            for word in ("outcome_unknown", "insufficient_funds", "cancel_on_disconnect", "order_updates"):
                assert word in text
            for operation in openapi.TABLE:
                assert operation.path in text
            async with solo.client.get("/openapi.json") as response:
                assert await response.read() == openapi.document()

    run(talk())


@contextmanager
def live(folder: Path) -> Iterator[Solo]:
    """A node on a thread of its own, for a client that knows no loop."""
    started = threading.Event()
    box: dict[str, Any] = {}

    async def serve() -> None:
        async with Solo(folder, rate_per_s=10**8, rate_burst=10**8) as solo:
            await list_market(solo, "alice")
            trader = await solo.stream("trader", "alice")
            await trader.submit(order("sell", 1, "9.00"), order("sell", 2, "9.50"))
            await trader.close()
            box["leave"] = asyncio.Event()
            box["loop"] = asyncio.get_running_loop()
            box["solo"] = solo
            started.set()
            await box["leave"].wait()

    def work() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=work)
    thread.start()
    if not started.wait(20):
        raise RuntimeError("the node did not start")
    try:
        yield box["solo"]
    finally:
        box["loop"].call_soon_threadsafe(box["leave"].set)
        thread.join(20)


ACCOUNTS = {"trader": ("alice",), "custodian": ("*",), "operator": (), "feed": (), "auditor": ()}
EXAMPLES_PER_OPERATION = 20


def cases(operation: Any) -> st.SearchStrategy[Any]:
    """What the document allows and, where it can be broken at all, what it forbids."""
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not operation.body and not operation.query and not operation.path_parameters:
        return good  # type: ignore[no-any-return]
    return good | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)  # type: ignore[no-any-return]


def test_whatever_the_description_allows_is_answered_as_it_says(tmp_path: Path) -> None:
    """Schemathesis makes requests from the document, good and bad; no answer may be a server error, another status
    than the document names, or of another shape."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    asked: dict[str, dict[int, int]] = {}
    with live(tmp_path) as solo:
        url = f"http://127.0.0.1:{solo.port}"
        for result in schema.get_all_operations():
            operation = result.ok()
            entry = next(one for one in openapi.TABLE if (one.method, one.path) == (operation.method, operation.path))
            roles = st.sampled_from(entry.roles or ("trader",))

            @settings(
                max_examples=EXAMPLES_PER_OPERATION, deadline=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.generate], derandomize=True, database=None,
            )  # fmt: skip
            @given(case=cases(operation), role=roles)
            def ask(case: Any, role: str) -> None:
                if case.path == "/v1/feed":
                    case.query = {**(case.query or {}), "wait_ms": "0"}
                if case.path == "/v1/cluster/transfer" and isinstance(case.body, dict):
                    case.body["from"] = "dc-b"  # the only member has nobody to hand over to
                response = case.call(base_url=url, headers=bearer(role, *ACCOUNTS[role]), timeout=10)
                case.validate_response(
                    response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
                )
                seen = asked.setdefault(case.operation.label, {})
                seen[response.status_code] = seen.get(response.status_code, 0) + 1

            ask()
        assert not solo.failures
    assert len(asked) == len(openapi.TABLE)
    assert sum(200 in statuses for statuses in asked.values()) >= 14, asked

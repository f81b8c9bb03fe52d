"""What of a node's API this address answers by asking a node, and what it does not, with the reason: one table.

tests/gateway/api/test_one_address.py holds it against every line of the node's own document.
"""

import re

PATHS = (
    "orders", "orders:by_client_order_id", "orders/{tail:.*}", "accounts", "accounts/{tail:.*}", "transfers",
    "transfers/{tail:.*}", "ledger", "commands/{tail:.*}", "assets", "instruments", "instruments/{tail:.*}",
    "references", "book/{tail:.*}", "trades", "status", "feed", "feed/snapshot", "cluster/members",
)  # fmt: skip
"""Behind /v1/. All methods, but of `cluster/members` GET alone."""

SOCKETS = {"/v1/orders/stream": "/v1/stream", "/v1/feed": "/v1/feed"}
"""WebSockets that end at a node: the path here and there. Nodes serve `/v1/orders/stream` too, so that a program has
one path for both; `/v1/stream` of a gateway is its own stream of prices and updates."""

CHANGES = "members and leadership are changed at a node, by whoever runs the cluster; this address is for its clients"

NOT_RELAYED = {
    ("get", "/healthz"): "asks whether this process answers, not another one",
    ("get", "/readyz"): "asks whether this gateway takes traffic; /v1/status shows a node",
    ("get", "/metrics"): "each process has its own; Prometheus asks nodes itself",
    ("post", "/v1/cluster/members"): CHANGES,
    ("post", "/v1/cluster/members/{name}/promote"): CHANGES,
    ("post", "/v1/cluster/members/{name}/demote"): CHANGES,
    ("delete", "/v1/cluster/members/{name}"): CHANGES,
    ("post", "/v1/cluster/transfer"): CHANGES,
}
"""By method and path as the node's document has them."""

COUNTED_THERE = re.compile(
    r"/v1/(" + "|".join(sorted({re.split(r"[/:]", path)[0] for path in PATHS} - {"cluster"})) + r")(?![^/:])"
)
"""Nodes count these requests themselves, and their headers say so."""

"""`tiebreak status` against gateways that run: what it asks is what they answer."""

import re
from pathlib import Path

from cluster.folder import ClusterFolder, create
from node.cli.status_gateways import ask_all, judge_gateways
from tests.gateway.api.sites import Site, market, until
from tests.node.solo import token


def at_ports_of(made: list[Site], root: Path) -> ClusterFolder:
    """A cluster's folder whose gateways are these."""
    create(root, base_port=20_000)
    folder = ClusterFolder(root)
    for site in made:
        path = folder.config(f"gateway-{site.config.site}")
        path.write_text(re.sub(r"(?m)^port = 2\d+$", f"port = {site.config.listen.port}", path.read_text(), count=1))
    return folder


async def test_gateways_are_seen_as_they_are(tmp_path: Path) -> None:
    async with market(tmp_path / "node", count=2) as (_, made):
        folder = at_ports_of(made, tmp_path / "c")
        await until(lambda: all(one["linked"] for site in made for one in site.core.sites.status().values()))
        made[0].quote("AAPL", "189.98", "190.02")
        bearer = token("auditor")
        found = await ask_all(folder, bearer)
        assert [(one.name, one.error) for one in found] == [("gateway-dc-a", ""), ("gateway-dc-b", "")]
        views = [one.view for one in found if one.view is not None]
        assert [view.site for view in views] == ["dc-a", "dc-b"]
        assert all(view.ready and view.index > 0 and view.sites and view.follows for view in views)
        assert 0 <= views[0].market_age_ms < 60_000 and views[1].market_age_ms == -1
        assert [row.lag for row in judge_gateways(found, views[0].index + 7)] == [
            7,
            7 + views[0].index - views[1].index,
        ]
        await made[1].app.stop()
        found = await ask_all(folder, bearer)
        assert [row.health for row in judge_gateways(found, 0)][1] == "unreachable" and found[1].error
        refused = await ask_all(folder, "not a token")
        assert refused[0].view is None and "HTTP 401" in refused[0].error

"""Holds what the answers said against what the accounts own: nothing answered is lost, nothing is done twice."""

from bench.market import SHARES_EACH
from bench.running import Running
from bench.sweep.trades import Flow
from bench.timeline.watched import Watched


async def lots_bought(cluster: Running, flow: Flow) -> int:
    """What all buyers have beyond what they were given. Each fill of one lot adds one: nobody buys and sells.

    Asked linearizably. Raises ClientError.
    """
    lots = 0
    async with cluster.client("auditor", ("*",)) as auditor:
        for group in flow.groups:
            for account in group[: len(group) // 2]:
                view = await auditor.account(account)
                for balance in view.balances:
                    if balance.asset in flow.symbols:
                        lots += int(balance.available) + int(balance.held) - SHARES_EACH
    return lots


def unaccounted(lots: int, found: Watched) -> int:
    """Fills that were answered and are in no account, or that are there and nobody answered for.

    lots: bought during the run. What is unknown to its client may have filled, and counts for neither.
    """
    return max(found.fills - lots, lots - found.fills - found.unknown, 0)

"""A gateway that fires alerts as fast as it can, and says which were told, until it is killed."""

import asyncio
import sys
import time
from pathlib import Path

from gateway.alerts.service import Alerts
from gateway.notify.notice import Notice
from gateway.prefs.alert import Condition, Terms
from gateway.prefs.seal import Keyring
from gateway.prefs.service import Prefs
from gateway.prefs.store import Store

RING = Keyring({1: b"k" * 32})
TERMS = Terms("AAPL", Condition.above, price_e9=200)


def told(notice: Notice) -> None:
    print("told", notice.user, notice.details["alert_id"], flush=True)


async def main(folder: Path) -> None:
    store = Store(folder, cluster_id="c", site="dc-a", free_bytes_min=0)
    prefs = Prefs(store, RING)
    alerts = Alerts(store, RING, show=told, queued=lambda _items: None)
    await alerts.start()
    print("open", flush=True)
    for number in range(10_000):
        user = f"user-{number}"
        await prefs.change(user, {"alert_channels": ["email"], "email": "ann@example.com"})
        await asyncio.gather(*(prefs.put_alert(user, f"x{n}", TERMS) for n in range(10)))
        alerts.tick("AAPL", 201, time.time_ns() // 1_000)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

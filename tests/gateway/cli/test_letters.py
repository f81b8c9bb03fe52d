"""`tiebreak gateway dead-letters` and `renew-token`: letters of a real gateway, the file of a token."""

import os
import time
from pathlib import Path

from cluster.folder import ClusterFolder, create, token_life_s
from node.auth import Authenticator, public_keys
from tests.gateway.api.sites import Site, market, until
from tests.gateway.cli.test_commands import Said, tiebreak
from tests.node.solo import token

ALERT = {"symbol": "AAPL", "condition": "above", "price": "100"}


async def undelivered(site: Site, *accounts: str) -> None:
    """Alerts that fire for each, by e-mail, which this gateway can't send."""
    site.quote("AAPL", "1", "2")
    for account in accounts:
        reach = {"email": f"{account}@example.com", "alert_channels": ["email"]}
        mine = {"accounts": (account,)}
        assert (await site.ask("/v1/preferences", method="PATCH", body=reach, **mine)).status == 200  # type: ignore[arg-type]
        assert (await site.ask("/v1/alerts/a", method="PUT", body=ALERT, **mine)).status == 200  # type: ignore[arg-type]
    site.trade("AAPL", "101")
    await until(lambda: len(site.core.dispatcher.dead_letters()) == len(accounts))


async def does(site: Site, *words: str, role: str = "operator") -> Said:
    return await tiebreak("gateway", "dead-letters", *words, site=site, bearer=token(role))


async def test_letters_are_listed_sent_again_and_thrown_away(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        found = await does(site, "list")
        assert found.code == 0 and "nothing is undelivered" in found.out + found.err
        await undelivered(site, "anna", "bert")
        found = await does(site, "list", "--json")
        rows = {row["account"]: row for row in found.body["items"]}
        assert found.code == 0 and rows.keys() == {"anna", "bert"}
        anna, bert = rows["anna"]["letter_id"], rows["bert"]["letter_id"]
        found = await does(site, "list", "--account", "anna")
        (line,) = [line for line in found.out.splitlines() if anna in line]
        assert all(word in line for word in ("anna", "email", "price_alert")) and bert not in found.out
        assert "example.com" not in found.out  # where it should have gone is nobody else's to know
        assert len((await does(site, "list", "--limit", "1", "--json")).body["items"]) == 1

        found = await does(site, "forget", bert, "00" * 16)
        assert (found.code, found.out.strip()) == (0, "forgotten: 1")
        left = [letter.letter_id for letter in site.core.dispatcher.dead_letters()]
        assert left == [anna]
        tried = site.core.dispatcher.counters.total()
        found = await does(site, "redrive", anna, "--json")
        assert (found.code, found.body) == (0, {"redriven": 1})
        # It is tried once more, and dies of the same.
        await until(lambda: site.core.dispatcher.counters.total() > tried)
        await until(lambda: [one.letter_id != anna for one in site.core.dispatcher.dead_letters()] == [True])
        found = await does(site, "redrive", anna)
        assert (found.code, found.out.strip()) == (0, "redriven: 0")


async def test_only_operators_may_and_a_letter_must_be_named(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        await undelivered(site, "anna")
        (letter,) = site.core.dispatcher.dead_letters()
        for words in (("list",), ("redrive", letter.letter_id), ("forget", letter.letter_id)):
            refused = await does(site, *words, role="trader")
            assert refused.code == 1 and "forbidden" in refused.err, words
        for what in ("redrive", "forget"):
            assert (await does(site, what)).code == 2
        found = await does(site, "forget", "not-a-letter")
        assert (found.code, found.out.strip()) == (0, "forgotten: 0")
        assert site.core.dispatcher.dead_letters() == [letter]


async def test_a_token_is_renewed_for_the_days_that_are_asked_for(tmp_path: Path) -> None:
    create(tmp_path / "c", base_port=20_000)
    folder = ClusterFolder(tmp_path / "c")
    before = folder.gateway_token.read_text()
    where = ("--cluster", str(folder.root))
    found = await tiebreak("gateway", "renew-token", "--days", "30", "--json", *where)
    assert found.code == 0 and found.body["file"] == str(folder.gateway_token)
    life = token_life_s(folder.gateway_token)
    assert life is not None and abs(life[1] - time.time() - 30 * 86_400) < 120
    assert found.body["ends_at"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(life[1]))
    assert folder.gateway_token.read_text() != before and os.stat(folder.gateway_token).st_mode & 0o077 == 0
    authenticator = Authenticator(public_keys(folder.token_public_key.read_bytes()))
    said = authenticator.verify(folder.gateway_token.read_text().strip())
    assert (said.role, said.subject, said.all_accounts) == ("auditor", "gateway", True)
    found = await tiebreak("gateway", "renew-token", *where)
    life = token_life_s(folder.gateway_token)
    assert life is not None and abs(life[1] - time.time() - 90 * 86_400) < 120
    assert found.code == 0 and time.strftime("until %Y-%m-%d %H:%M", time.gmtime(life[1])) in found.out


async def test_a_token_is_not_renewed_without_the_key_or_for_no_time(tmp_path: Path) -> None:
    create(tmp_path / "c", base_port=20_000)
    folder = ClusterFolder(tmp_path / "c")
    before = folder.gateway_token.read_bytes()
    where = ("--cluster", str(folder.root))
    assert (await tiebreak("gateway", "renew-token", "--days", "0", *where)).code == 2
    folder.token_key.rename(tmp_path / "away.key")
    found = await tiebreak("gateway", "renew-token", *where)
    assert found.code == 1 and "run this where it is kept" in found.err and "Traceback" not in found.err
    found = await tiebreak("gateway", "renew-token", "--cluster", str(tmp_path / "none"))
    assert found.code == 1 and "Traceback" not in found.err
    assert folder.gateway_token.read_bytes() == before

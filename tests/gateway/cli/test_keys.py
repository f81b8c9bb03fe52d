"""`tiebreak gateway keys` on two gateways that run: each step, a step too early, a step twice."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster.folder import ClusterFolder, create
from gateway.cli.keys import add, list_keys, seal_anew
from gateway.prefs.keys import SealKeys
from gateway.prefs.seal import KeyFileRefused, add_key, read_keys, use_newest
from node.cli.session import CliError
from tests.gateway.api.sites import Site, market, until
from tests.gateway.cli.test_status import at_ports_of
from tests.node.solo import token


class Operator:
    """Runs the commands as a person would; gives what they print as JSON."""

    def __init__(self, folder: ClusterFolder, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capfd = folder, capfd

    async def does(self, command: Callable[..., None], **options: Any) -> Any:
        if command is not add:
            options["token"] = token("operator")
        self.capfd.readouterr()
        await asyncio.to_thread(command, as_json=True, cluster=self.folder.root, **options)
        said = self.capfd.readouterr().out  # the gateways of this process log there too
        return json.JSONDecoder().raw_decode(said, said.index("{\n"))[0]


def with_keys_of(made: list[Site], root: Path) -> ClusterFolder:
    """A cluster's folder whose gateways and sealing keys are theirs."""
    folder = at_ports_of(made, root)
    keys = made[0].config.seal_keys.parent
    shutil.rmtree(folder.root / "keys")
    (folder.root / "keys").symlink_to(keys)
    return folder


async def test_the_key_is_changed_step_by_step_and_each_step_may_be_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.prefs.keys.LOOK_S", 0.05)
    async with market(tmp_path / "node", count=2) as (_, made):
        operator = Operator(with_keys_of(made, tmp_path / "c"), capfd)
        one, other = made
        await until(lambda: all(len(site.core.sites.live_sites()) == 2 for site in made))
        await one.ask("/v1/preferences", method="PATCH", body={"email": "anna@example.com"})
        await until(lambda: other.core.prefs.preferences("anna").email == "anna@example.com")

        assert [await operator.does(add) for _ in range(2)] == [
            {"key": 2, "made": made_now, "file": str(operator.folder.seal_keys)} for made_now in (True, False)
        ]
        await until(lambda: all(site.core.seal_keys.keyring.numbers == [1, 2] for site in made))
        found = (await operator.does(list_keys))["gateways"]
        assert [(row["seals_with"], row["known"], row["documents"]) for row in found] == [(1, [1, 2], {"1": 1})] * 2
        # Between the steps users go on as before.
        await other.ask("/v1/preferences", method="PATCH", body={"email": "anna@example.org"})
        await until(lambda: one.core.prefs.preferences("anna").email == "anna@example.org")

        ran = await operator.does(seal_anew)
        assert ran["key"] == 2 and ran["dropped"] == [] and sum(row["sealed"] for row in ran["gateways"]) >= 1
        again = await operator.does(seal_anew)
        assert [row["sealed"] for row in again["gateways"]] == [0, 0]
        ran = await operator.does(seal_anew, drop=True)
        assert ran["dropped"] == [1] and list(read_keys(operator.folder.seal_keys)[0]) == [2]
        await until(lambda: all(site.core.seal_keys.keyring.numbers == [2] for site in made))
        for site in made:
            assert site.core.prefs.preferences("anna").email == "anna@example.org"


async def test_a_step_too_early_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.keys.TAKEN_S", 0.2)
    async with market(tmp_path / "node", count=2) as (_, made):
        operator = Operator(with_keys_of(made, tmp_path / "c"), capfd)
        monkeypatch.setattr(made[1].core.seal_keys, "_used", None)
        monkeypatch.setattr(made[1].core.seal_keys, "_stamp", lambda: None)  # the file was not copied to it
        add_key(operator.folder.seal_keys)
        await made[0].core.seal_keys.look()
        before = operator.folder.seal_keys.read_bytes()
        with pytest.raises(CliError, match="gateway-dc-b does not know key 2 yet"):
            await operator.does(seal_anew)
        assert operator.folder.seal_keys.read_bytes() == before
        answer = await made[1].ask("/v1/gateway/keys/seal-anew", method="POST", role="operator", body={"key": 2})
        assert (answer.status, answer.body["error"]) == (409, "key_not_in_use")
        assert (await made[1].ask("/v1/gateway/keys", role="trader")).status == 403
        answer = await made[1].ask("/v1/gateway/keys/seal-anew", method="POST", role="operator", body={"key": 0})
        assert (answer.status, answer.body["error"]) == (400, "malformed")
        await made[1].app.stop()
        with pytest.raises(typer.Exit):
            await operator.does(seal_anew)
        assert operator.folder.seal_keys.read_bytes() == before


async def test_a_key_file_that_lacks_a_key_in_use_is_not_taken(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        await site.ask("/v1/preferences", method="PATCH", body={"email": "anna@example.com"})
        keys: SealKeys = site.core.seal_keys
        path = site.config.seal_keys
        before = path.read_text()
        add_key(path)
        use_newest(path)
        await keys.look()
        assert (keys.keyring.newest, keys.keyring.numbers) == (2, [1, 2])
        only_2 = [line for line in path.read_text().splitlines() if not line.startswith("1 ")]
        path.write_text("\n".join(only_2))
        with pytest.raises(KeyFileRefused, match="lacks key 1"):
            await keys.look()
        await keys.look()  # said once
        assert keys.keyring.numbers == [1, 2]
        assert site.core.prefs.preferences("anna").email == "anna@example.com"
        path.write_text(before + "\n".join(only_2))
        await keys.look()
        assert await keys.seal_anew() == 1
        path.write_text("\n".join(only_2))
        await keys.look()
        assert keys.keyring.numbers == [2]


def test_adding_a_key_needs_a_cluster(tmp_path: Path) -> None:
    create(tmp_path / "c", base_port=20_000)
    folder = ClusterFolder(tmp_path / "c")
    folder.seal_keys.chmod(0o644)
    with pytest.raises(CliError, match="chmod 600"):
        add(cluster=folder.root)

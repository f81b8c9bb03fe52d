"""`tiebreak cluster rotate-certificates`: new certificates, or a new authority, under a cluster that goes on."""

import ipaddress
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.folder import ClusterFolder
from cluster.launcher import Launcher
from cluster.topology import GATEWAY_PREFIX, Member
from node.cli.output import print_json, say
from node.cli.session import DEFAULT_CLUSTER, CliError, Cluster, Json

if TYPE_CHECKING:
    from cluster.rotation import Seen

ADOPTED_TIMEOUT_S = 30.0
"""Members look at their files every two seconds, and take what they found twice."""
POLL_S = 0.5
DAYS = 3650


class Rotation:
    """One run of the command. Members on this machine read the folder itself; for others files are to be copied."""

    def __init__(self, folder: ClusterFolder, *, without: list[str], days: int) -> None:
        self.certs = folder.certs
        self.topology = folder.topology()
        self.days = days
        self._launcher = Launcher(folder)
        self._without = without
        members = [member.name for member in self.topology.members]
        # Gateways' ones, and what else was signed here, for the API say.
        others = {path.stem for path in self.certs.glob("*.crt")} - {"ca", "ca-next", *members}
        self.names = [*members, *sorted(others, key=lambda name: (not name.startswith(GATEWAY_PREFIX), name))]
        self.here = all(_is_loopback(member.peer_host) for member in self.topology.members)
        if unknown := set(without) - {*members, *self._launcher.gateways}:
            raise CliError(f"--without {', '.join(sorted(unknown))}: the members are {', '.join(members)}")

    def members(self, names: list[str]) -> list[str]:
        """New certificates of the authority that there is. Returns what is to be copied where members are elsewhere."""
        from cluster.certificates import make_certificate  # noqa: PLC0415 - 60 ms of import that only this needs

        if unknown := set(names) - set(self.names):
            raise CliError(f"no certificate of {', '.join(sorted(unknown))} here; there are {', '.join(self.names)}")
        for name in names or self.names:
            make_certificate(self.certs, name, days=self.days)
        return [f"{name}.{kind}" for name in names or self.names for kind in ("crt", "key")]

    def authority(self) -> tuple[list[str], list[str]]:
        """The next step, or all that are left where all members are on this machine: (steps done, files to copy)."""
        from cluster import rotation  # noqa: PLC0415

        done: list[str] = []
        while True:
            step = rotation.next_step(self.certs)
            copies = ["ca.crt"]
            if step is rotation.Step.trust:
                rotation.trust(self.certs, self.topology.cluster_id)
            elif step is rotation.Step.sign:
                self.must_be_in_use("trust the new authority")
                rotation.sign(self.certs, self.names, days=self.days)
                copies = [f"{name}.{kind}" for name in self.names for kind in ("crt", "key")]
            else:
                self.must_be_in_use("use the new certificates")
                rotation.drop(self.certs, self.names)
            done.append(step.value)
            say(f"{step.value:<6} {MEANING[step.value]}")
            if step is rotation.Step.drop or not self.here:
                return done, copies

    def must_be_in_use(self, what: str) -> None:
        """Raises CliError: a member that answers does not use the files of this folder, or one does not answer."""
        late = self.wait()
        if late:
            why = "; ".join(f"{name} {state}" for name, state in late.items())
            raise CliError(
                f"not all members {what} yet: {why}. Nothing was changed by this step. Bring them the files of "
                f"{self.certs}, see their logs, and run this again; name one that is away with --without"
            )

    def wait(self) -> dict[str, str]:
        """Members and gateways that do not use the files of this folder, and why we think so; empty: none of them."""
        until = time.monotonic() + (ADOPTED_TIMEOUT_S if self.here else 0)
        asked = [*self.topology.members, *self._launcher.gateways.values()]
        while True:
            late = {member.name: state for member in asked if (state := self._state(member))}
            if not late or time.monotonic() > until:
                return late
            time.sleep(POLL_S)

    def _state(self, member: Member) -> str:
        from cluster.rotation import look  # noqa: PLC0415

        if member.name in self._without:
            return ""
        seen = look(self.certs, member.name, (member.peer_host, member.peer_port))
        # Who does not run reads its files when it is started. Elsewhere a gateway may be away without being named: it
        # decides nothing, and one that was forgotten says so by not linking.
        is_gateway = member.name in self._launcher.gateways
        if not seen.answered and (is_gateway or self.here) and self._launcher.running(member.name) is None:
            return ""
        return _wrong(seen, member)


MEANING = {
    "trust": "a new authority is made; members trust both",
    "sign": "all certificates are by the new authority, which alone signs from now on",
    "drop": "the old authority is worth nothing any more, and what it signed",
}
AFTER = {
    "trust": "copy it to every member and gateway, then run this again for the next step: sign",
    "sign": "copy each pair to its member or gateway, then run this again for the last step: drop",
    "drop": "copy it to every member and gateway: from then on they refuse what the old authority signed",
}


def _wrong(seen: "Seen", member: Member) -> str:
    if not seen.answered:
        return f"does not answer at {member.peer_host}:{member.peer_port}"
    if not seen.current:
        return "shows another certificate than the folder's"
    return "" if seen.trusts else "does not trust the newest authority"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def rotate_certificates(
    authority: Annotated[
        bool, typer.Option("--authority", help="A new authority too: the next of its three steps.")
    ] = False,
    member: Annotated[
        list[str] | None, typer.Option("--member", metavar="NAME", help="Only this member or gateway; may be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=DAYS, help="How long the new certificates are good for.")] = DAYS,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="MEMBER", help="One that is away, and gets its files before it starts."),
    ] = None,
    as_json: Json = False,
    where: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Make new certificates; running members and gateways take them within seconds, link by link, and nothing stops.

    Run it where DIR/certs/ca.key is kept. Members and gateways on this machine read DIR/certs themselves, and the
    command waits until they use the new files; for members elsewhere it says which files to copy.

    A new authority comes in three steps: trust (members trust the old and the new one), sign (all certificates are made
    anew by the new one), drop (the old one is worth nothing). With all members on this machine all steps are done at
    once; otherwise each run does the next one, and refuses when a member is not ready for it. After a stolen member's
    key, or the authority's, do all three: the thief is cut off by the last.

    Example: tiebreak cluster rotate-certificates --days 90

    Example: tiebreak cluster rotate-certificates --authority
    """
    if authority and member:
        raise CliError("--authority makes all certificates anew: leave --member out")
    rotation = Rotation(ClusterFolder(where), without=list(without or []), days=days)
    if not (rotation.certs / "ca.key").is_file():
        raise CliError(f"there is no {rotation.certs / 'ca.key'}, which signs: run this where it is kept")
    if authority:
        done, copies = rotation.authority()
        advice = AFTER[done[-1]]
    else:
        done, copies = [], rotation.members(list(member or []))
        advice = "copy each pair to its member or gateway, which takes it by itself"
    late = rotation.wait() if rotation.here else {}
    if as_json:
        print_json({"steps": done, "files": [str(rotation.certs / name) for name in copies], "late": late})
    elif rotation.here and not late:
        say("in use by all members and gateways that run")
    elif not rotation.here:
        for name in copies:
            typer.echo(str(rotation.certs / name))
        say(advice)
    if late:
        raise CliError("; ".join(f"{name} {state}" for name, state in late.items()) + ". Its log says why")

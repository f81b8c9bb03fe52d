"""New certificates for a cluster that runs, and a new authority in three steps, each good to stay in for any time.

trust: ca.crt holds the old and the new authority. sign: members' certificates are by the new one. drop: ca.crt holds
the new one alone. Members read their files anew by themselves; what each of them uses now is asked of it: see `look`.
"""

import contextlib
import os
import socket
import ssl
import tempfile
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from cluster.certificates import (
    CA_CERTIFICATE,
    CA_KEY,
    TlsFiles,
    authority_of,
    client_context,
    issued_by,
    make_authority,
    make_certificate,
    pem,
    read_certificates,
    write_file,
)

NEXT_CERTIFICATE = "ca-next.crt"
NEXT_KEY = "ca-next.key"
PROBE = "gateway-probe"
"""The name under which members are looked at: one that they never take for a member's."""
LOOK_TIMEOUT_S = 3.0


class Step(StrEnum):
    trust = "trust"
    sign = "sign"
    drop = "drop"


def next_step(certs: Path) -> Step:
    """Told from the files alone, so that a step that was cut short is simply done again."""
    authorities = read_certificates(certs / CA_CERTIFICATE)
    if (certs / NEXT_KEY).exists():
        known = (certs / NEXT_CERTIFICATE).exists() and read_certificates(certs / NEXT_CERTIFICATE)[0] in authorities
        return Step.sign if known else Step.trust
    return Step.drop if len(authorities) > 1 else Step.trust


def trust(certs: Path, cluster_id: str) -> None:
    """Make a new authority and trust both from now on. Nothing is signed by it yet."""
    make_authority(certs, cluster_id, certificate=NEXT_CERTIFICATE, key=NEXT_KEY)
    both = [authority_of(certs), *read_certificates(certs / NEXT_CERTIFICATE)]
    write_file(certs / CA_CERTIFICATE, pem(*both), mode=0o644)


def sign(certs: Path, names: list[str], *, days: int) -> None:
    """Make certificates by the new authority, which is the only one that signs from now on."""
    for name in names:
        make_certificate(certs, name, days=days, authority_key=NEXT_KEY)
    os.replace(certs / NEXT_KEY, certs / CA_KEY)
    (certs / NEXT_CERTIFICATE).unlink()


def drop(certs: Path, names: list[str]) -> None:
    """Trust the new authority alone. Raises ValueError: the old one signed a certificate that is still in use."""
    authority = authority_of(certs)
    if old := [name for name in names if not issued_by(read_certificates(certs / f"{name}.crt")[0], authority)]:
        raise ValueError(f"the certificates of {', '.join(old)} are by the old authority; nothing was changed")
    write_file(certs / CA_CERTIFICATE, pem(authority), mode=0o644)


class Seen(Struct, frozen=True):
    """What one member's port showed. answered: somebody spoke TLS there.

    current: the member shows the certificate that the folder has. trusts: it took one that the newest authority signed.
    """

    answered: bool = False
    current: bool = False
    trusts: bool = False


def look(certs: Path, member: str, address: tuple[str, int]) -> Seen:
    """Dial a member as somebody who is no member, and see which certificates it shows and takes; it counts that."""
    newest = NEXT_KEY if (certs / NEXT_KEY).exists() else CA_KEY
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder)
        for name in (newest, CA_CERTIFICATE):
            write_file(probe / name, (certs / name).read_bytes(), mode=0o600)
        make_certificate(probe, PROBE, days=1, authority_key=newest)
        context = client_context(TlsFiles(probe / CA_CERTIFICATE, probe / f"{PROBE}.crt", probe / f"{PROBE}.key"))
    # It is looked at, and not believed: also when it shows what nobody trusts any more.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    ours = read_certificates(certs / f"{member}.crt")[0].public_bytes(Encoding.DER)
    try:
        with (
            socket.create_connection(address, timeout=LOOK_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=member, suppress_ragged_eofs=False) as stream,
        ):
            current = stream.getpeercert(binary_form=True) == ours
            trusts = False
            with contextlib.suppress(OSError):
                # Whoever took our certificate ends the stream in order; whoever did not, with an error.
                trusts = stream.recv(1) == b""
            return Seen(True, current, trusts)
    except OSError:
        return Seen()

"""A certificate authority per cluster and a certificate per member: a member's identity is its certificate's name."""

import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
VALID_DAYS = 3650


def make_authority(folder: Path, cluster_id: str, *, certificate: str = CA_CERTIFICATE, key: str = CA_KEY) -> None:
    """Write the authority's certificate and key. The key is needed only to sign; keep it away from the members."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tiebreak {cluster_id}"[:64])])
    signed = (
        _builder(name, name, private, days=VALID_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / key, _key_bytes(private), mode=0o600)
    write_file(folder / certificate, pem(signed), mode=0o644)


def make_certificate(
    folder: Path,
    member: str,
    *,
    days: int = VALID_DAYS,
    authority_key: str = CA_KEY,
    hosts: Sequence[str] | None = None,
) -> None:
    """Write <member>.crt and <member>.key, signed by the authority in the same folder. Each is replaced in one step.

    hosts: host names and addresses that clients find it under, besides its name; None: those of the certificate that it
    replaces, if there is one.

    Raises ValueError when no certificate of ca.crt belongs to the authority's key.
    """
    names = _host_names(hosts) if hosts is not None else _names_now(folder / f"{member}.crt", member)
    signer = _authority_key(folder / authority_key)
    authority = authority_of(folder, authority_key)
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, member)]), authority.subject, key, days=days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(member), *names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    write_file(folder / f"{member}.key", _key_bytes(key), mode=0o600)
    write_file(folder / f"{member}.crt", pem(certificate), mode=0o644)


def _host_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in hosts:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found


def _names_now(certificate: Path, member: str) -> list[x509.GeneralName]:
    """What the certificate that is there names besides the member; nothing, if it is another's."""
    try:
        found = read_certificates(certificate)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    own = x509.DNSName(member)
    return [name for name in found if name != own] if own in found else []


def make_all(folder: Path, cluster_id: str, members: list[str]) -> None:
    make_authority(folder, cluster_id)
    for member in members:
        make_certificate(folder, member)


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file: while an authority is changed, ca.crt holds the old and the new one."""
    return x509.load_pem_x509_certificates(path.read_bytes())


def authority_of(folder: Path, authority_key: str = CA_KEY) -> x509.Certificate:
    """The certificate of ca.crt that belongs to the key. Raises ValueError: none does."""
    public = _public(_authority_key(folder / authority_key).public_key())
    for certificate in read_certificates(folder / CA_CERTIFICATE):
        if _public(certificate.public_key()) == public:
            return certificate
    raise ValueError(f"no certificate in {folder / CA_CERTIFICATE} belongs to {folder / authority_key}")


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _authority_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is not an elliptic curve key")
    return key


class TlsFiles(Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files of one member: who is trusted, and who it is."""

    ca: Path
    certificate: Path
    key: Path


def tls_files(folder: Path, member: str) -> TlsFiles:
    """Where make_all puts them."""
    return TlsFiles(folder / CA_CERTIFICATE, folder / f"{member}.crt", folder / f"{member}.key")


def check_identity(files: TlsFiles, member: str) -> None:
    """Raises ValueError, naming both sides, when the others would not take this member for who it is, or not yet."""
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        named = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        named = []
    if named != [member]:
        raise ValueError(f"{files.certificate} names {named}, the member is {member!r}: they must be the same")
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    if _public(key.public_key()) != _public(certificate.public_key()):
        raise ValueError(f"{files.key} is not the key of {files.certificate}")
    authorities = read_certificates(files.ca)
    if not any(issued_by(certificate, authority) for authority in authorities):
        known = " and ".join(f"{one.subject.rfc4514_string()!r} ({_key_id(one)})" for one in authorities)
        raise ValueError(
            f"{files.certificate} was issued by {certificate.issuer.rfc4514_string()!r} ({_issuer_id(certificate)}), "
            f"{files.ca} is {known}"
        )
    now, until = datetime.datetime.now(datetime.UTC), certificate.not_valid_after_utc
    if now > until:
        raise ValueError(f"{files.certificate} is good until {until:%Y-%m-%d %H:%M:%S}, now is {now:%Y-%m-%d %H:%M:%S}")


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def expiries(files: TlsFiles) -> dict[str, datetime.datetime]:
    """When the member's certificate and the first of its authorities end. Raises OSError, ValueError."""
    return {
        "member": min(one.not_valid_after_utc for one in read_certificates(files.certificate)),
        "authority": min(one.not_valid_after_utc for one in read_certificates(files.ca)),
    }


Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp(files: TlsFiles) -> Stamp:
    """Differs when one of the files was replaced or written to."""
    return tuple(_stamp(path) for path in (files.ca, files.certificate, files.key))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


class MemberContext(ssl.SSLContext):
    """A context that knows the files it was made of, and how they were, so that it can be made anew in time."""

    files: TlsFiles
    stamp: Stamp


def server_context(files: TlsFiles) -> MemberContext:
    """TLS 1.3 only; whoever dials must show a certificate of our authority. Raises OSError, ssl.SSLError."""
    context = _harden(MemberContext(ssl.PROTOCOL_TLS_SERVER), files)
    # Nobody resumes: each connection shows a certificate that is checked now.
    context.num_tickets = 0
    return context


def client_context(files: TlsFiles) -> MemberContext:
    """TLS 1.3 only; the dialed member must show the name that was dialed, wherever it was found."""
    return _harden(MemberContext(ssl.PROTOCOL_TLS_CLIENT), files)


def _harden(context: MemberContext, files: TlsFiles) -> MemberContext:
    context.files, context.stamp = files, stamp(files)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int
) -> x509.CertificateBuilder:
    # An hour back: members' clocks need not agree to the second on the first day.
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def write_file(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a file in one step: whoever reads it meanwhile has the old or the new one, whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # readable by us alone
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            os.fchmod(descriptor, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _key_id(certificate: x509.Certificate) -> str:
    """Authorities of one cluster have the same name; this tells them apart."""
    digest = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest
    return f"key {digest.hex()[:8]}"


def _issuer_id(certificate: x509.Certificate) -> str:
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        found = None
    return f"key {found.hex()[:8]}" if found is not None else "key unknown"

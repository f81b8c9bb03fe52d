"""A certificate authority per cluster and a certificate per member: a member's identity is its certificate's name."""

import datetime
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
VALID_DAYS = 3650


def make_authority(folder: Path, cluster_id: str) -> None:
    """Write ca.crt and ca.key. The key is needed only to add members; keep it away from them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tiebreak {cluster_id}"[:64])])
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / CA_KEY, _key_bytes(key), mode=0o600)
    _write(folder / CA_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def make_certificate(folder: Path, member: str) -> None:
    """Write <member>.crt and <member>.key, signed by the authority in the same folder."""
    authority_key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), password=None)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{folder / CA_KEY} is not an elliptic curve key")
    authority = x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, member)]), authority.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(member)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder / f"{member}.key", _key_bytes(key), mode=0o600)
    _write(folder / f"{member}.crt", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def make_all(folder: Path, cluster_id: str, members: list[str]) -> None:
    make_authority(folder, cluster_id)
    for member in members:
        make_certificate(folder, member)


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
    authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    if certificate.issuer != authority.subject:
        raise ValueError(
            f"{files.certificate} was issued by {certificate.issuer.rfc4514_string()!r}, "
            f"{files.ca} is {authority.subject.rfc4514_string()!r}"
        )
    now, until = datetime.datetime.now(datetime.UTC), certificate.not_valid_after_utc
    if now > until:
        raise ValueError(f"{files.certificate} is good until {until:%Y-%m-%d %H:%M:%S}, now is {now:%Y-%m-%d %H:%M:%S}")


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 only; whoever dials must show a certificate of our authority. Raises OSError, ssl.SSLError."""
    return _harden(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 only; the dialed member must show the name that was dialed, wherever it was found."""
    return _harden(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)


def _harden(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    # An hour back: members' clocks need not agree to the second on the first day.
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=VALID_DAYS))
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


def _write(path: Path, content: bytes, *, mode: int) -> None:
    # Created with its mode: a key must not be readable by others even for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)

"""Tokens: what is believed, what is refused, and that no token can make a node do more than say no."""

import base64
import json
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from node.auth import ACCOUNTS_MAX, KEYS_MAX, TOKEN_BYTES_MAX, Authenticator, AuthError, Role, issue_token, public_keys


@cache
def keys(_: int = 0) -> tuple[str, str]:
    """(private, public) PEM of a key made for this run."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


def signed(claims: dict[str, Any], *, key: str = "", algorithm: str = "EdDSA") -> str:
    far = {"iss": "tiebreak", "sub": "s", "role": "trader", "accounts": ["alice"], "exp": 4_000_000_000}
    merged = {name: value for name, value in {**far, **claims}.items() if value is not None}
    return jwt.encode(merged, key or keys()[0], algorithm=algorithm)


def authenticator() -> Authenticator:
    return Authenticator([keys()[1]])


def test_an_issued_token_is_believed() -> None:
    token = issue_token(keys()[0], subject="desk-7", role="trader", accounts=["alice", "bob"])
    principal = authenticator().verify(token)
    assert (principal.subject, principal.role) == ("desk-7", Role.trader)
    assert principal.may_touch("alice") and principal.may_touch("bob") and not principal.may_touch("carol")
    assert principal.only_account == ""


@pytest.mark.parametrize(
    ("role", "accounts", "touches_any"),
    [("trader", ["alice"], False), ("custodian", ["*"], True), ("custodian", [], False), ("auditor", [], True)],
)
def test_who_may_touch_all_accounts(role: str, accounts: list[str], touches_any: bool) -> None:
    principal = authenticator().verify(signed({"role": role, "accounts": accounts}))
    assert principal.may_touch("any-account") is touches_any


REFUSED = [
    # claims, algorithm, a word of the answer
    ({"exp": 1}, "expired"),
    ({"exp": None}, "'exp'"),
    ({"sub": None}, "'sub'"),
    ({"sub": ""}, "'sub'"),
    ({"sub": "x" * 65}, "'sub'"),
    ({"iss": "another"}, "issuer"),
    ({"iss": None}, "'iss'"),
    ({"role": "god"}, "'role'"),
    ({"role": None}, "'role'"),
    ({"role": ["trader"]}, "'role'"),
    ({"accounts": "alice"}, "'accounts'"),
    ({"accounts": ["alice", 7]}, "'accounts'"),
    ({"accounts": ["alice", "alice"]}, "'accounts'"),
    ({"accounts": ["*"]}, "trader"),
    ({"accounts": [f"a{i}" for i in range(ACCOUNTS_MAX + 1)]}, "'accounts'"),
]


@pytest.mark.parametrize(("claims", "word"), REFUSED)
def test_claims_that_are_refused(claims: dict[str, Any], word: str) -> None:
    with pytest.raises(AuthError, match=word):
        authenticator().verify(signed(claims))


def unsigned(header: dict[str, str], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.filterwarnings("ignore:The HMAC key")
def test_the_tokens_own_algorithm_decides_nothing() -> None:
    claims = {"iss": "tiebreak", "sub": "s", "role": "operator", "exp": 4_000_000_000}
    for token in (
        unsigned({"alg": "none"}, claims),
        unsigned({"alg": "NONE"}, claims),
        signed(claims, key="a" * 32, algorithm="HS256"),
        unsigned({"alg": "EdDSA"}, claims),
        unsigned({"alg": "EdDSA"}, claims, b"\0" * 64),
    ):
        with pytest.raises(AuthError):
            authenticator().verify(token)


def test_another_key_is_refused_until_it_is_configured() -> None:
    token = signed({}, key=keys(1)[0])
    with pytest.raises(AuthError, match="does not know"):
        authenticator().verify(token)
    both = Authenticator([keys()[1], keys(1)[1]])
    assert both.verify(token).subject == "s"
    assert both.verify(signed({})).subject == "s"


def test_a_file_may_hold_the_old_and_the_new_key() -> None:
    file = (keys()[1] + "\nthe new one:\n" + keys(1)[1]).encode()
    both = Authenticator(public_keys(file))
    assert both.verify(signed({}, key=keys(1)[0])).subject == "s"
    assert both.verify(signed({})).subject == "s"
    for wrong in (b"", b"no key", keys()[1].encode() * (KEYS_MAX + 1)):
        with pytest.raises(ValueError, match="public keys in PEM"):
            public_keys(wrong)


def test_an_oversized_token_is_refused_before_it_is_read() -> None:
    with pytest.raises(AuthError, match=str(TOKEN_BYTES_MAX)):
        authenticator().verify("a" * (TOKEN_BYTES_MAX + 1))


def test_a_cached_token_still_expires_and_the_cache_is_bounded() -> None:
    now = [0.0]
    cached = Authenticator([keys()[1]], cache_max=2, clock=lambda: now[0])
    token = signed({"exp": 4_000_000_000})
    assert cached.verify(token) is cached.verify(token)
    now[0] = 4_000_000_000.0
    with pytest.raises(AuthError, match="expired"):
        cached.verify(token)
    now[0] = 0.0
    for number in range(5):
        cached.verify(signed({"sub": f"s{number}"}))
    assert len(cached._cache) == 2


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer\u00a0x", "Bearer a.b.c"])
def test_headers_that_are_refused(header: str | None) -> None:
    with pytest.raises(AuthError):
        authenticator().verify_header(header)


@pytest.mark.parametrize(
    "wrong",
    [{"role": "god"}, {"accounts": ["*"]}, {"lifetime_s": 0}, {"subject": ""}, {"accounts": ["a" * 60] * 2}],
)
def test_a_token_that_no_node_would_take_is_not_made(wrong: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"subject": "s", "role": "trader", "accounts": ["alice"], **wrong}
    with pytest.raises(ValueError, match=r"."):
        issue_token(keys()[0], **asked)


@given(
    st.one_of(st.text(max_size=200), st.from_regex(r"[A-Za-z0-9_-]{1,40}(\.[A-Za-z0-9_-]{0,60}){2}", fullmatch=True))
)
def test_no_text_is_believed_or_breaks_it(token: str) -> None:
    with pytest.raises(AuthError):
        authenticator().verify(token)


ANY_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)


@given(st.dictionaries(st.sampled_from(["sub", "role", "accounts", "exp", "iss", "nbf", "iat", "aud"]), ANY_JSON))
def test_signed_nonsense_is_refused_or_read_but_never_breaks_it(claims: dict[str, Any]) -> None:
    raw = json.dumps({"iss": "tiebreak", "sub": "s", "role": "feed", "exp": 4_000_000_000, **claims}).encode()
    token = jwt.api_jws.encode(raw, keys()[0], algorithm="EdDSA")
    try:
        principal = authenticator().verify(token)
    except AuthError:
        return
    assert principal.role in Role

"""Who asks: Ed25519 JWT bearer tokens in, principals out; and the same tokens made for the command line.

A token says who (`sub`), as what (`role`), for which accounts (`accounts`) and until when (`exp`).
No secret is on a node: it holds public keys only.
"""

import re
import time
from collections.abc import Callable, Sequence
from enum import StrEnum

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from msgspec import Struct

from node.errors import Unauthenticated

ISSUER = "tiebreak"
TOKEN_BYTES_MAX = 4_096
ACCOUNTS_MAX = 64
"""Accounts that one token may name; more than these need a role that may touch all."""
ALL = "*"
KEYS_MAX = 8
_PEM_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\s*", re.DOTALL)


class Role(StrEnum):
    trader = "trader"
    """Orders and reads of its own accounts."""
    custodian = "custodian"
    """Opens accounts, deposits, withdraws, transfers; reads accounts."""
    operator = "operator"
    """Assets, instruments, modes, mass cancels."""
    feed = "feed"
    """Reference prices."""
    auditor = "auditor"
    """Reads everything, changes nothing; follows the feed."""


class Principal(Struct, frozen=True, kw_only=True):
    """An authenticated caller. all_accounts is never true for a trader. expires_at_s: seconds since 1970."""

    subject: str
    role: Role
    accounts: frozenset[str] = frozenset()
    all_accounts: bool = False
    expires_at_s: float = 0.0

    def may_touch(self, account: str) -> bool:
        """Whether the account is within reach; one that is not is answered like one that does not exist."""
        return self.all_accounts or account in self.accounts

    @property
    def only_account(self) -> str:
        """The account that a request may leave out, or an empty string when there is not exactly one."""
        return next(iter(self.accounts)) if len(self.accounts) == 1 and not self.all_accounts else ""


class AuthError(Unauthenticated):
    """No token, or one that can't be believed; the message says what to fix, never what the token held."""


class Authenticator:
    """Verifies tokens against one or more public keys (more than one while a key is being changed).

    A verified token is remembered until it expires, cache_max of them at most: a signature check costs
    about 100 us, a look-up less than 1. Refused tokens are not remembered.
    """

    def __init__(
        self, public_keys_pem: Sequence[str | bytes], *, cache_max: int = 10_000, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises ValueError: a key is not an Ed25519 public key in PEM."""
        self._keys = [_public_key(pem) for pem in public_keys_pem]
        self._cache: dict[str, Principal] = {}
        self._cache_max = cache_max
        self._clock = clock

    def verify(self, token: str) -> Principal:
        """The principal of a token. Raises AuthError."""
        principal = self._cache.get(token)
        if principal is not None:
            if self._clock() < principal.expires_at_s:
                return principal
            del self._cache[token]
            raise AuthError("the token has expired")
        if len(token) > TOKEN_BYTES_MAX:
            raise AuthError(f"the token is longer than {TOKEN_BYTES_MAX} bytes")
        principal = self._principal(self._claims(token))
        if len(self._cache) >= self._cache_max:
            # Oldest first: a dict keeps the order of insertion.
            del self._cache[next(iter(self._cache))]
        self._cache[token] = principal
        return principal

    def verify_header(self, header: str | None) -> Principal:
        """The principal of an `Authorization: Bearer` header. Raises AuthError."""
        if not header:
            raise AuthError("this needs the header `Authorization: Bearer TOKEN`; `tiebreak token` makes one")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise AuthError("the Authorization header must be `Bearer TOKEN`")
        return self.verify(token.strip())

    def _claims(self, token: str) -> dict[str, object]:
        failure: Exception = jwt.InvalidSignatureError()
        for key in self._keys:
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=["EdDSA"],  # the token's own `alg` decides nothing: `none` and HS256 end here
                    issuer=ISSUER,
                    # iat is not judged: a clock a second ahead would refuse fresh tokens and protect nothing.
                    options={"require": ["exp", "sub", "iss"], "verify_iat": False, "verify_aud": False},
                )
            except jwt.InvalidSignatureError as error:
                failure = error
            except jwt.ExpiredSignatureError as error:
                raise AuthError("the token has expired") from error
            except jwt.InvalidAlgorithmError as error:
                raise AuthError("tokens must be signed with EdDSA (Ed25519)") from error
            except jwt.InvalidIssuerError as error:
                raise AuthError(f"the token's issuer is not {ISSUER!r}") from error
            except jwt.MissingRequiredClaimError as error:
                raise AuthError(f"the token lacks the claim {error.claim!r}") from error
            # Whatever a hostile token makes the parser raise, the token is to blame for it.
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError) as error:
                raise AuthError("this is not a readable token") from error
        raise AuthError("the token's signature is by a key that this cluster does not know") from failure

    def _principal(self, claims: dict[str, object]) -> Principal:
        subject, role, accounts, expires_at_s = (claims.get(name) for name in ("sub", "role", "accounts", "exp"))
        if not isinstance(subject, str) or not 0 < len(subject) <= 64:
            raise AuthError("the claim 'sub' must be 1 to 64 characters")
        if not isinstance(role, str) or role not in Role.__members__:
            raise AuthError(f"the claim 'role' must be one of {', '.join(Role)}")
        if accounts is None:
            accounts = []
        if not isinstance(accounts, list) or len(accounts) > ACCOUNTS_MAX:
            raise AuthError(f"the claim 'accounts' must be a list of at most {ACCOUNTS_MAX}")
        names = frozenset(name for name in accounts if isinstance(name, str) and len(name) <= 64)
        if len(names) != len(accounts):
            raise AuthError("the claim 'accounts' must name each account once, as a text")
        if ALL in names and role == Role.trader:
            raise AuthError("a trader's token must name its accounts")
        return Principal(
            subject=subject,
            role=Role(role),
            accounts=names - {ALL},
            all_accounts=ALL in names or role == Role.auditor,
            expires_at_s=float(str(expires_at_s)),
        )


def issue_token(
    private_key_pem: str,
    *,
    subject: str,
    role: str,
    accounts: Sequence[str] = (),
    lifetime_s: int = 24 * 3600,
    now_s: float | None = None,
) -> str:
    """A signed token. Raises ValueError: a bad key, role, account list or lifetime, said as a node would say it."""
    key = load_pem_private_key(private_key_pem.encode(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("tokens are signed with an Ed25519 private key in PEM")
    if lifetime_s <= 0:
        raise ValueError(f"lifetime_s {lifetime_s}: must be above 0")
    issued_at_s = int(time.time() if now_s is None else now_s)
    claims = {
        "iss": ISSUER,
        "sub": subject,
        "role": role,
        "accounts": list(accounts),
        "iat": issued_at_s,
        "exp": issued_at_s + lifetime_s,
    }
    try:
        Authenticator([])._principal(dict(claims))  # what a node would refuse is not made
    except AuthError as error:
        raise ValueError(error.message) from error
    token = jwt.encode(claims, key, algorithm="EdDSA")
    if len(token) > TOKEN_BYTES_MAX:
        raise ValueError(
            f"the token would be {len(token)} bytes; at most {TOKEN_BYTES_MAX} are taken: name fewer accounts"
        )
    return token


def public_keys(pem: bytes) -> list[bytes]:
    """The keys of one file: more than one while a key is being changed. Raises ValueError: none, or too many."""
    keys = _PEM_KEY.findall(pem)
    if not 0 < len(keys) <= KEYS_MAX:
        raise ValueError(f"{len(keys)} public keys in PEM; between 1 and {KEYS_MAX} are taken")
    return keys


def _public_key(pem: str | bytes) -> Ed25519PublicKey:
    try:
        key: object = load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
    except ValueError as error:
        raise ValueError("this is not a public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"this key is {type(key).__name__.strip('_')}; tokens are signed with Ed25519")
    return key

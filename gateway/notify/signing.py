"""The signature on a webhook: HMAC-SHA256 over the time and the body, so it can't be forged or sent again later."""

import hmac

SIGNATURE_HEADER = "Tiebreak-Signature"
ID_HEADER = "Tiebreak-Notice-Id"
TOLERANCE_S = 300


def sign(secret: str, body: bytes, now_s: int) -> str:
    """The header's value: `t=<seconds since 1970>,v1=<hexadecimal>`."""
    return f"t={now_s},v1={_mac(secret, body, now_s)}"


def verify(secret: str, header: str, body: bytes, now_s: int, *, tolerance_s: int = TOLERANCE_S) -> bool:
    """What a receiver does."""
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    at = parts.get("t", "")
    if not at.isascii() or not at.isdigit() or len(at) > 12 or abs(now_s - int(at)) > tolerance_s:
        return False
    return hmac.compare_digest(_mac(secret, body, int(at)), parts.get("v1", ""))


def _mac(secret: str, body: bytes, now_s: int) -> str:
    return hmac.new(secret.encode(), f"{now_s}.".encode() + body, "sha256").hexdigest()

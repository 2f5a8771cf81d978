"""Who may see results: the researcher, who opened the sign-in link that the server printed."""

import hashlib
import hmac

from fastapi import Request
from itsdangerous import BadSignature, TimestampSigner

from app.participation import Refusal

COOKIE = "researcher"
SIGNED_IN_FOR_S = 14 * 24 * 3600


def sign_in_key(secret: str) -> str:
    """What the sign-in link carries; it changes when the secret does."""
    return hmac.new(secret.encode(), b"sign-in", hashlib.sha256).hexdigest()


def is_sign_in_key(secret: str, key: str) -> bool:
    return hmac.compare_digest(sign_in_key(secret).encode(), key.encode())


def cookie(secret: str) -> str:
    return TimestampSigner(secret, salt=COOKIE).sign("yes").decode()


def signed_in(request: Request) -> bool:
    value = request.cookies.get(COOKIE, "")
    try:
        TimestampSigner(request.app.state.settings.secret, salt=COOKIE).unsign(value, max_age=SIGNED_IN_FOR_S)
    except BadSignature:
        return False
    return True


def require_researcher(request: Request) -> None:
    """A dependency: refuses whoever is not signed in."""
    if not signed_in(request):
        raise Refusal(
            401,
            "Results are for the researcher: open the Dashboard link that the server printed when it started.",
        )

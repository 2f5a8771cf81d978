"""What every response promises the browser, HEAD for every GET, and what one address may do only so often."""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Nothing but our own scripts, styles and images. All the rest (fonts, media, frames, workers, a manifest, ...) is
# 'none' by default-src, because no page has any: the typefaces are the system's, the icon is an image.
# <script type="application/json"> is data, which a browser neither runs nor asks the policy about.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",  # these three do not fall back to default-src
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    # A session's address is its secret: it goes to no other site, not even as a referrer.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Names that browsers know; an unknown one is a warning in everybody's console.
    "Permissions-Policy": ", ".join(
        f"{feature}=()"
        for feature in (
            "accelerometer",
            "camera",
            "display-capture",
            "geolocation",
            "gyroscope",
            "magnetometer",
            "microphone",
            "midi",
            "payment",
            "usb",
        )
    ),
    "X-Frame-Options": "DENY",  # for browsers older than frame-ancestors
}
# Subdomains are left out: they may be somebody else's.
STRICT_TRANSPORT_SECURITY = "max-age=31536000"

# A class of 200 behind one address may all begin at once, and each again after a reload or a lost connection; a
# second class an hour later finds the bucket full again. Only a script gets past 500.
CAPACITY = 500
REFILL_PER_S = 1.0
# Withdrawal codes typed: 60 bits each, so that no number of tries finds one; this keeps scripts from trying.
GUESSES = (100, 0.1)
MOST_ADDRESSES = 10_000  # a few MB; beyond it the least recently seen address is forgotten


class Guard:
    """ASGI middleware around the whole app, its error pages included: security headers, and HEAD as GET.

    It wraps the finished stack rather than being added with `add_middleware`, because Starlette puts the handler of
    unexpected errors outside of every added middleware: a 500 would go out without the headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _set_headers(MutableHeaders(scope=message), https=scope["scheme"] == "https")
            elif head and message["type"] == "http.response.body":
                if not message.get("more_body", False):
                    await send({"type": "http.response.body", "body": b""})
                return
            await send(message)

        asked = scope
        if head:
            # The answer to HEAD is that to GET, Content-Length included, without its body (RFC 9110, 9.3.2). No
            # extensions: with some, servers send bodies in other ways.
            scope = {**scope, "method": "GET", "extensions": {}}
        try:
            await self.app(scope, receive, guarded)
        finally:
            asked.setdefault("route", scope.get("route"))  # for telemetry


def _set_headers(headers: MutableHeaders, https: bool) -> None:
    for name, value in HEADERS.items():
        headers[name] = value
    if https:
        headers["Strict-Transport-Security"] = STRICT_TRANSPORT_SECURITY
    headers.setdefault("Cache-Control", "no-store")
    if "://" in headers.get("Location", ""):
        # Made by Starlette from the Host header, for a slash too many; every redirect of ours stays on this server.
        to = urlsplit(headers["Location"])
        headers["Location"] = urlunsplit(("", "", "/" + to.path.lstrip("/"), to.query, ""))
    allowed = headers.get("Allow", "").split(", ")
    if "GET" in allowed and "HEAD" not in allowed:
        headers["Allow"] = ", ".join([*allowed, "HEAD"])


class AddressLimit:
    """How often one address may do something: a token bucket for each, in the memory of this process alone.

    Sessions that it begins, withdrawal codes that it types, links that lead nowhere, tries to sign in. Requests as
    such are not counted: a class of 200 behind one address makes hundreds a second, and is right to.

    Addresses are neither stored nor logged; one is forgotten as soon as its bucket is full again. Every server
    process counts for itself, so that n processes let through up to n times as many; app/password.py divides its
    limits among them.

    Thread-safe. `clock` gives seconds that never go backwards.
    """

    def __init__(
        self,
        capacity: int = CAPACITY,
        refill_per_s: float = REFILL_PER_S,
        most_addresses: int = MOST_ADDRESSES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._refill_per_s = refill_per_s
        self._most_addresses = most_addresses
        self._clock = clock
        self._lock = threading.Lock()
        # Address -> (tokens missing, when that was); the least recently seen first.
        self._missing: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> float:
        """Take a token: 0 if there was one, else the seconds until there will be, nothing taken."""
        key = _household(address)
        with self._lock:
            now = self._clock()
            missing, since = self._missing.pop(key, (0.0, now))
            missing = max(0.0, missing - (now - since) * self._refill_per_s)
            wait = max(0.0, (missing + 1 - self._capacity) / self._refill_per_s)
            self._missing[key] = (missing if wait else missing + 1, now)
            self._forget(now)
        return wait

    def __len__(self) -> int:
        """How many addresses are remembered."""
        with self._lock:
            return len(self._missing)

    def _forget(self, now: float) -> None:
        """Drop the buckets that have had the time to fill up, and the oldest ones of too many."""
        refilled = now - self._capacity / self._refill_per_s
        while self._missing:
            key, (_, since) = next(iter(self._missing.items()))
            if since > refilled and len(self._missing) <= self._most_addresses:
                return
            del self._missing[key]


def client_address(request: Request) -> str:
    """The address that a request came from; empty where the server has none, as on a Unix socket.

    Behind a reverse proxy this is the participant's only if uvicorn believes the proxy's X-Forwarded-For (and
    X-Forwarded-Proto, without which https goes unnoticed). It believes proxies on 127.0.0.1; any other must be
    named in FORWARDED_ALLOW_IPS, or all participants share the proxy's address and one limit. Never set it to `*`
    where the server can be reached around the proxy: everybody could then make up addresses.
    """
    return request.client.host if request.client else ""


def _household(address: str) -> str:
    """What shares one bucket: an IPv4 address, or the /64 that an IPv6 network hands to one customer."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:50]  # no address at all, for example a test's client
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.IPv6Address(int(ip) >> 64 << 64))
    return str(ip)

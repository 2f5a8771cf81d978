"""Whether a request that changes something was sent from a page of this server, or by a program, or by a page of
another site in somebody's browser."""

from urllib.parse import urlsplit

from fastapi import Request

from app.bounds import MOST_FIELDS, MOST_FILES
from app.i18n import N_

SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")
ELSEWHERE = N_("This did not come from a page of this study; please agree here to take part.")
FIELD = "csrf"  # of the researcher's forms


def from_browser(request: Request) -> bool:
    """Whether a browser sent it, which says so with everything that it posts."""
    return "origin" in request.headers or "sec-fetch-site" in request.headers


def from_elsewhere(request: Request) -> bool:
    """Whether a browser sent it for another site's page; what a browser says of that, no page can change."""
    if site := request.headers.get("sec-fetch-site"):  # sent to https and to this machine
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    if origin is None:
        return False
    # A proxy may speak https to the browser and http to us, or ask under a name of its own.
    named = urlsplit(request.app.state.settings.public_url or "").netloc
    return urlsplit(origin).netloc not in {request.headers.get("host", ""), named} - {""}


async def form_of(request: Request) -> dict[str, str]:
    """A dependency: the fields of a posted form; none where the request is none."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if request.method in SAFE or kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return {}
    form = await request.form(max_fields=MOST_FIELDS, max_files=MOST_FILES)
    return {key: value for key, value in form.items() if isinstance(value, str)}

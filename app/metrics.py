"""Numbers for Prometheus: requests, counted in memory by route and status; the study's, counted in the database.

With several server processes each writes its counts to files of a folder that PROMETHEUS_MULTIPROC_DIR names, which
`serve` makes; whichever of them is asked sums up all. Nothing of a person is in them.
"""

import hmac
import logging
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Engine, case, func, select

from app import logs
from app.bounds import is_ours
from app.exposures import ABANDONED_AFTER
from app.i18n import N_
from app.models import Judgment, Participant, Study
from app.models import Response as Answer
from app.participation import Refusal
from app.probe import Probe
from app.settings import is_loopback

router = APIRouter(include_in_schema=False)

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAIT_S = 2.0  # for the database; what is not there by then is left out
PASSED_ON = frozenset({"forwarded", "via", "x-real-ip"})

log = logging.getLogger("app.metrics")


class Metrics:
    """What one server process counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "From a request's first byte to its answer's last.",
            ("method", "route"),
            registry=self._registry,
            buckets=BUCKETS_S,
        )
        self.database_errors = Counter(
            "database_errors",
            "Requests that the database could not serve: locked, full or away.",
            registry=self._registry,
        )
        self._several = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if not self._several:
            ProcessCollector(registry=self._registry)

    def count(self, method: str, route: str, status: int | None, seconds: float) -> None:
        """One request; status None where nobody was left to answer."""
        self._requests.labels(method, route, str(status or "none")).inc()
        self._seconds.labels(method, route).observe(seconds)

    def written(self) -> bytes:
        """As Prometheus reads it, of all processes."""
        registry = self._registry
        if self._several:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class _Given(Collector):
    """Numbers that were counted elsewhere."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For whoever has METRICS_TOKEN; where there is none, for this machine alone, by a name of its own."""
    if not _allowed(request):
        raise Refusal(404, N_("There is nothing at this address."))
    registry = CollectorRegistry()
    registry.register(_Given([_about(), *await _of_study(request.app.state.study_counts)]))
    counted: Metrics = request.app.state.metrics
    return Response(generate_latest(registry) + counted.written(), media_type=CONTENT_TYPE_LATEST)


def _allowed(request: Request) -> bool:
    token = request.app.state.settings.metrics_token
    if token is not None:
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
    # What a proxy passes on comes from this machine too; it says so.
    if any(name.startswith("x-forwarded") or name in PASSED_ON for name in request.headers):
        return False
    # So may another website by a name of its own that leads here, in a browser on this machine (DNS rebinding).
    names = request.app.state.settings.allowed_hosts or frozenset({"localhost"})
    ours = is_ours(request.headers.get("host", "").encode("latin-1"), names)
    return ours and request.client is not None and is_loopback(request.client.host)


def _about() -> Metric:
    about = GaugeMetricFamily("study_build_info", "Which program this is.", labels=("version", "python"))
    about.add_metric((version("reasonable-mistakes"), platform.python_version()), 1)
    return about


async def _of_study(probe: "Probe[Sequence[Metric]]") -> Sequence[Metric]:
    up = GaugeMetricFamily("study_database_up", "Whether the database answered just now.")
    try:
        found = await probe.answer(WAIT_S)
    except Exception as error:  # TimeoutError, and whatever a database raises
        log.warning("the study's numbers are left out: %s", logs.reason(error))
        up.add_metric((), 0)
        return [up]
    up.add_metric((), 1)
    return [up, *found]


def study_counts(engine: Engine) -> Sequence[Metric]:
    """Sessions and answers that are in the database, of all studies together with their versions."""
    sessions = GaugeMetricFamily(
        "study_sessions",
        "Sessions in the database; active: unfinished, and answered in the last half hour.",
        labels=("study", "data", "state"),
    )
    answers = GaugeMetricFamily("study_answers", "Answers in the database.", labels=("question",))
    recently = datetime.now(UTC) - ABANDONED_AFTER
    state = case(
        (Participant.withdrawn_at.is_not(None), "withdrawn"),
        (Participant.finished_at.is_not(None), "finished"),
        (Participant.last_seen_at > recently, "active"),
        else_="left",
    )
    people = (
        select(Study.slug, Participant.simulated, state.label("state"))
        .join(Study, Study.id == Participant.study_id)
        .subquery()
    )
    with engine.connect() as connection:
        rows = connection.execute(
            select(people.c.slug, people.c.simulated, people.c.state, func.count())
            .group_by(people.c.slug, people.c.simulated, people.c.state)
            .order_by(people.c.slug, people.c.simulated, people.c.state)
        )
        for slug, simulated, here, count in rows:
            sessions.add_metric((slug, "simulated" if simulated else "real", here), count)
        for question, table in (("label", Answer), ("plausibility", Judgment)):
            answers.add_metric((question,), connection.scalar(select(func.count()).select_from(table)) or 0)
    return [sessions, answers]

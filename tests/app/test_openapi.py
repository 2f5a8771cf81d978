"""Requests of all kinds that /openapi.json admits, and of kinds that it does not, at a real server.

Nothing is answered with a fault, and every reply is one that the description tells: status, content type and body.
More of them, for example before a release:
OPENAPI_EXAMPLES=1000 .venv/bin/python -m pytest tests/app/test_openapi.py
"""

import os
import re
from collections import Counter
from typing import Any

import httpx2
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.main import create_app
from app.openapi import REPLIES
from app.settings import Settings
from tests.app.conftest import Server, begin
from tests.app.small import prepared, settings, small, study

__all__ = ["prepared", "settings", "small", "study"]  # fixtures

EXAMPLES = int(
    os.environ.get("OPENAPI_EXAMPLES", "5")
)  # of each operation, for each kind of visitor and data
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.mark.only("sqlite")
def test_every_operation_is_described(settings: Settings) -> None:
    document = create_app(settings).openapi()
    operations = {(method, path) for path, each in document["paths"].items() for method in each}
    assert operations == set(REPLIES)
    assert "HTTPValidationError" not in str(document)


SENSIBLE = {"study": ["test"], "label": ["3", "none"], "runner_up": ["1", "none"]}


def ask(
    operation: Any,
    mode: GenerationMode,
    checks: list[Any],
    known: dict[str, list[Any]],
    visitors: tuple[requests.Session, ...],
    statuses: Counter[tuple[str, int]],
) -> None:
    """Send what the description admits, or what it does not, always the same; count what comes back."""

    @effort(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), drawn=st.data())
    def send(case: Case[Any], drawn: st.DataObject) -> None:
        # What leads nowhere comes by itself; most links lead somewhere, and some answers are sensible.
        for name in sorted(case.path_parameters.keys() & known.keys()):
            if drawn.draw(st.integers(0, 3)):
                case.path_parameters[name] = drawn.draw(st.sampled_from(known[name]))
        body: Any = case.body
        for name in sorted(body.keys() & SENSIBLE.keys()) if isinstance(body, dict) else ():
            if drawn.draw(st.booleans()):
                body[name] = drawn.draw(st.sampled_from(SENSIBLE[name]))
        for session in visitors:
            reply = case.call(session=session, timeout=60, allow_redirects=False)
            statuses[f"{case.method} {case.operation.path}", reply.status_code] += 1
            case.validate_response(reply, checks=checks)

    send()


@pytest.mark.only("postgresql")  # the stricter one; test_fuzz.py has both
def test_no_request_is_answered_with_a_fault_or_an_unknown_reply(prepared: str, server: Server) -> None:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        labelling, judging, commenting, finished = (begin(client) for _ in range(4))
        judging.answer(until="judging")
        commenting.answer(until="commenting")
        finished.answer()
        tokens = [player.token for player in (labelling, judging, commenting, finished)]
        images = [trial["image"][9:73] for trial in labelling.session()["trials"]]
        document: dict[str, Any] = client.get("/openapi.json").json()
    known = {"token": tokens, "sha256": images, "slug": ["test"], "position": [1, 2, 3, 14]}
    schema: Any = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    statuses: Counter[tuple[str, int]] = Counter()
    with requests.Session() as stranger, requests.Session() as researcher:
        researcher.get(server.dashboard, timeout=60)
        assert researcher.get(f"{server.url}/results", timeout=60).status_code == 200
        for operation in schema.get_all_operations():
            found = operation.ok()
            ask(found, GenerationMode.POSITIVE, CHECKS, known, (stranger, researcher), statuses)
            if found.body or found.query:
                rejected = [*CHECKS, negative_data_rejection]
                ask(found, GenerationMode.NEGATIVE, rejected, known, (stranger, researcher), statuses)
    assert max(status for _, status in statuses) < 500
    succeeded = {name for name, status in statuses if status < 400}
    assert len(succeeded) > len(REPLIES) / 2, succeeded


@pytest.mark.only("sqlite")  # replies are written without the database
def test_a_session_from_its_beginning_to_its_withdrawal_is_as_described(
    prepared: str, server: Server
) -> None:
    document: dict[str, Any] = httpx2.get(f"{server.url}/openapi.json").json()
    schema: Any = schemathesis.openapi.from_dict(document)
    patterns = {
        (method, path): re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))) for method, path in REPLIES
    }
    seen: Counter[tuple[str, str]] = Counter()

    def check(reply: httpx2.Response) -> None:
        reply.read()
        method = reply.request.method.lower()
        (path,) = (
            p for (m, p), known in patterns.items() if m == method and known.fullmatch(reply.request.url.path)
        )
        schema[path][method].validate_response(reply)
        assert reply.status_code < 300
        seen[method, path] += 1

    with httpx2.Client(base_url=server.url, timeout=60, event_hooks={"response": [check]}) as client:
        player = begin(client, PROLIFIC_PID="x")
        player.answer()
        assert client.get(player.session()["trials"][0]["image"]).status_code == 200
        client.post(f"{player.base}/withdraw")
        assert player.session()["state"] == "withdrawn"
    participants = {operation for operation in REPLIES if operation[1].startswith(("/api/", "/stimuli/"))}
    assert set(seen) == participants

"""What /openapi.json says of the replies: their statuses and bodies, which the handlers' types do not tell.

Kept apart from the handlers, as it describes and does nothing: no reply is checked against it while serving. That
it is true is tested, with requests of all kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from app.participation import State
from app.web import for_programs


class Refused(BaseModel):
    """One sentence, and with some refusals what helps a program on: `next_position`, `state`, `retry_after`."""

    model_config = ConfigDict(extra="allow")
    detail: str


class Begun(BaseModel):
    token: str
    url: str


class Trial(BaseModel):
    position: int
    image: str
    answered: bool
    prediction: str | None
    practice: bool


class Session(BaseModel):
    study: str
    state: State
    labels: list[str]
    questions: list[str]
    trials_total: int
    next_position: int | None
    order: list[int]
    trials: list[Trial]


class Stored(BaseModel):
    stored: Literal[True]
    state: State
    next_position: int | None


class Commented(BaseModel):
    stored: Literal[True]
    state: State


class Finished(BaseModel):
    state: Literal["finished"]
    completion_code: str
    redirect_url: str | None


class Withdrawn(BaseModel):
    state: Literal["withdrawn"]
    deleted: Literal[True]
    rows_deleted: dict[str, int]
    rows_left: int


class Alive(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    status: Literal["ready", "not ready", "stopping"]
    checks: dict[str, str]


class Results(BaseModel):
    """The whole of it is in the design's contract; what every study has."""

    model_config = ConfigDict(extra="allow")
    study: str
    version: str
    masked: bool
    responses: int
    packs: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An operation's success, and with which statuses it may refuse besides EVERYWHERE."""

    status: int
    content: str | None  # media type
    body: type[BaseModel] | None
    refuses: tuple[int, ...] = ()


JSON = "application/json"
# Too much, for another host, too fast, of a database that is away; and our own faults.
EVERYWHERE = (400, 413, 414, 429, 431, 500, 503)
IN_A_SESSION = (404, 409, 422)
SIGNED_IN = (401, 403, 404, 422)
REPLIES: Mapping[tuple[str, str], Reply] = {
    ("post", "/api/sessions"): Reply(201, JSON, Begun, (403, *IN_A_SESSION)),
    ("get", "/api/sessions/{token}"): Reply(200, JSON, Session, (404,)),
    ("put", "/api/sessions/{token}/trials/{position}/label"): Reply(200, JSON, Stored, IN_A_SESSION),
    ("put", "/api/sessions/{token}/trials/{position}/plausibility"): Reply(200, JSON, Stored, IN_A_SESSION),
    ("post", "/api/sessions/{token}/comments"): Reply(200, JSON, Commented, IN_A_SESSION),
    ("post", "/api/sessions/{token}/finish"): Reply(200, JSON, Finished, (404, 409)),
    ("post", "/api/sessions/{token}/withdraw"): Reply(200, JSON, Withdrawn, (404,)),
    ("get", "/stimuli/{sha256}.png"): Reply(200, "image/png", None, (404,)),
    ("get", "/healthz"): Reply(200, JSON, Alive),
    ("get", "/readyz"): Reply(200, JSON, Readiness),
    ("get", "/results/{slug}.json"): Reply(200, JSON, Results, SIGNED_IN),
    ("get", "/results/{slug}/responses.csv"): Reply(200, "text/csv", None, SIGNED_IN),
    ("get", "/results/{slug}/export.zip"): Reply(200, "application/zip", None, SIGNED_IN),
    ("get", "/results/{slug}/report.html"): Reply(200, "text/html", None, SIGNED_IN),
    ("post", "/results/{slug}/unmask"): Reply(303, None, None, SIGNED_IN),
}


def described(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document with the replies as they are."""
    bodies = [reply.body for reply in REPLIES.values() if reply.body is not None]
    models: list[Any] = [(body, "serialization") for body in (Refused, *dict.fromkeys(bodies))]
    refs, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    schemas = document["components"]["schemas"]
    schemas |= definitions["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's, which no handler of ours sends
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            reply = REPLIES.get((method, path))
            if reply is not None:
                schema = refs[reply.body, "serialization"] if reply.body is not None else {"type": "string"}
                content = {reply.content: {"schema": schema}} if reply.content else {}
                operation["responses"] = {str(reply.status): {"description": "Done"} | _content(content)}
            refuses = (*EVERYWHERE, *(reply.refuses if reply else ()))
            kind = JSON if for_programs(path) else "text/html"
            schema = refs[Refused, "serialization"] if kind == JSON else {"type": "string"}
            for status in sorted(refuses):
                operation["responses"][str(status)] = {
                    "description": "Refused",
                    "content": {kind: {"schema": schema}},
                }
    # The one whose failure says more than a sentence.
    unready = {"application/json": {"schema": refs[Readiness, "serialization"]}}
    document["paths"]["/readyz"]["get"]["responses"]["503"] |= {"content": unready}
    return document


def _content(content: dict[str, Any]) -> dict[str, Any]:
    return {"content": content} if content else {}

"""Whether the service lives, whether it can answer, and its figures."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from records.tables import SCOPES
from web.access import Client, allowed
from web.errors import problems
from web.metrics import CONTENT_TYPE, Metrics
from web.predictor import Predictor

router = APIRouter(tags=["service"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """A version answers. problem: why it is not the one that the deployment log wants, or null."""

    version: int = Field(examples=[7])
    problem: str | None = None


@router.get("/healthz")
async def healthz() -> Alive:
    """Whether the process lives."""
    return Alive()


@router.get("/readyz", responses=problems(503))
async def readyz(request: Request) -> Ready:
    """Whether pictures can be answered, and by which version."""
    predictor: Predictor = request.app.state.predictor
    return Ready(version=predictor.follower.now().version_id, problem=predictor.follower.behind)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problems(401, 403)},
)
async def metrics(
    request: Request, _: Annotated[Client, Depends(allowed(*SCOPES))]
) -> Response:
    """The service's figures for Prometheus; a key of any scope may read them."""
    found: Metrics = request.app.state.metrics
    return Response(found.told(), media_type=CONTENT_TYPE)

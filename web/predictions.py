"""`POST /v1/predictions`: what the version that serves says of pictures."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, Field

from web.access import Client, allowed
from web.bodies import FIELD, PLAIN, Keys, pictures
from web.bounds import PICTURES
from web.errors import problems
from web.predictor import Answered, Predictor

router = APIRouter(tags=["predictions"])

MOST_CLASSES = 100
KINDS = ("image/jpeg", "image/png", "image/webp", "image/bmp", PLAIN)


class Guess(BaseModel):
    """One class that it may be."""

    label: str = Field(examples=["okapi"])
    confidence: float = Field(ge=0, le=1, examples=[0.973])


class Explanation(BaseModel):
    """Where the version looked for its label (Grad-CAM)."""

    image: str = Field(
        description="The map over the picture, a JPEG as a `data:` address.",
        examples=["data:image/jpeg;base64,/9j/4AAQ…"],
    )
    positive: bool = Field(description="Whether anything in the picture speaks for the label.")


class Prediction(BaseModel):
    """What one version says of one picture."""

    id: uuid.UUID = Field(description="The transaction, as the log and reviews name it.")
    name: str | None = Field(description="The file or key that the client named, if it did.")
    sha256: str = Field(description="Digest of the picture's bytes.")
    width: int = Field(description="Pixels, upright.")
    height: int
    label: str = Field(examples=["okapi"])
    confidence: float = Field(ge=0, le=1, examples=[0.973])
    show: bool | None = Field(
        description="Whether the version's threshold lets this be shown; null: it has none."
    )
    top: list[Guess] = Field(description="The best classes, best first.")
    explanation: Explanation | None = None


class Predictions(BaseModel):
    """What one version says of the pictures of one request, in their order."""

    version: int = Field(examples=[7])
    request_id: str | None = Field(description="The request's own name, if it had one.")
    predictions: list[Prediction]


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One picture, several in a form, or keys of S3.",
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "additionalProperties": False,
                    "properties": {
                        FIELD: {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
            "application/json": {
                "schema": Keys.model_json_schema(),
                "example": {"keys": ["pools/gate-camera/0001.jpg"]},
            },
        },
    }
}


@router.post(
    PICTURES,
    response_model=Predictions,
    responses=problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 503),
    openapi_extra=BODY,
)
async def predict(
    request: Request,
    client: Annotated[Client, Depends(allowed("predict"))],
    top_k: Annotated[
        int, Query(ge=1, le=MOST_CLASSES, description="How many classes are told.")
    ] = 5,
    explain: Annotated[
        bool, Query(description="Show where the version looked; takes seconds at first.")
    ] = False,
    request_id: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=r"^[\x21-\x7e]{1,200}$",
            description="Your own name of this request: sent again, it gets the same answer and "
            "is logged once.",
        ),
    ] = None,
) -> Response:
    """Answer pictures by the version that serves now.

    Send one picture as the body, several as a form, or keys of S3 as JSON. All are answered by one
    version, or none is.
    """
    predictor: Predictor = request.app.state.predictor
    predictor.refuse_at_the_door()
    named = await pictures(request, predictor.rules)
    answered = await predictor.answer(client, named, top_k, explain, request_id)
    body = Predictions(
        version=answered[0].row.version,
        request_id=request_id,
        predictions=[_told(one, top_k) for one in answered],
    )
    return Response(body.model_dump_json(), media_type="application/json")


def _told(answered: Answered, top_k: int) -> Prediction:
    row, why = answered.row, answered.explained
    return Prediction(
        id=row.id,
        name=answered.name,
        sha256=row.sha256,
        width=row.width,
        height=row.height,
        label=row.top_labels[0],
        confidence=row.top_confidences[0],
        show=row.shown,
        top=[
            Guess(label=label, confidence=confidence)
            for label, confidence in zip(row.top_labels, row.top_confidences, strict=True)
        ][:top_k],
        explanation=Explanation(image=why.image, positive=why.positive) if why else None,
    )

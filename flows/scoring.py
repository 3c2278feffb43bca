"""The whole library scored by what serves: weekly, to find wrong labels and what has drifted."""

from __future__ import annotations

from typing import cast

from prefect import flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

from flows import diagrams
from infra import database
from records import deployments
from tasks.evaluation import evaluate_whole_library

WEEKLY = "0 12 * * 6"  # Saturdays at noon, when no night runs


class NothingServes(LookupError):
    """There is no champion to score with; the message is one line with the mend."""


@flow(name="scoring", retries=0, result_serializer="json")
def scoring(version_id: int | None = None) -> int:
    """Answer every usable image of the library by the champion, or by the version named.

    Answers how many images there were. It takes no lock and changes nothing that trains or serves.
    Training images are in-sample: how right the answers on them are proves nothing.
    """
    if version_id is None:
        with database.connect().transaction() as session:
            champion = deployments.champion(session)
        if champion is None:
            raise NothingServes(
                "nothing serves yet: name a version, or run `regraft nightly` until one passes"
            )
        version_id = champion.version_id
    images = evaluate_whole_library(version_id)
    diagrams.keep(version_id)
    return images


def weekly(timezone: str) -> RunnerDeployment:
    """The deployment that `regraft serve` registers beside the night."""
    deployment = scoring.to_deployment(
        name=scoring.name,
        schedule=Schedule(cron=WEEKLY, timezone=timezone, slug=scoring.name),
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        description="Score the whole library, for cleaning labels.",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast("RunnerDeployment", deployment)  # a coroutine only in an event loop

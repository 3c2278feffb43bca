"""The report of a night: its page in Prefect says what happened, and obeys nobody's labels."""

import json
from pathlib import Path
from uuid import UUID

import nights
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import Artifact
from prefect.states import State

from flows import report
from flows.nightly import nightly
from flows.run import Outcome
from infra.database import Database
from infra.storage import Storage
from records import deployments, runs


def artifacts(flow_run_id: UUID) -> dict[str, Artifact]:
    """Give what a flow run put on its page, by key."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter.model_validate(
                {"flow_run_id": {"any_": [str(flow_run_id)]}}
            )
        )
    return {str(one.key): one for one in found}


def night() -> tuple[UUID, Outcome]:
    """Run one night; give the flow run's id and how it ended."""
    state: State[Outcome] = nightly(plan=nights.TINY_PLAN, return_state=True)
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id, state.result()


def test_a_night_is_told_on_its_page(
    database: Database, storage: Storage, prefect_server: str, tmp_path: Path
) -> None:
    """Name, report, table of checks and progress bars are there, and our row has the run's id."""
    nights.tiny_library(tmp_path)
    flow_run_id, outcome = night()

    assert outcome.state == "deployed", outcome
    with database.transaction() as session:
        row = runs.by_flow_run(session, str(flow_run_id))
        judged = deployments.verdict(session, outcome.version_id)
        checks = deployments.checks(session, judged.id)
    assert (row.id, row.state, row.version_id) == (outcome.run_id, "completed", outcome.version_id)
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(flow_run_id).name
    assert name == f"nightly {row.started_at:%Y-%m-%d %H:%M} · version {row.version_id}"

    shown = artifacts(flow_run_id)
    text = shown["nightly-report"].data
    assert text.startswith(f"# Run {row.id}: deployed")
    for part in ("24 objects listed: 24 accepted", f"## Version {row.version_id}", "| train |"):
        assert part in text
    table = json.loads(shown["gate-checks"].data)
    assert [line["check"] for line in table] == [check.name for check in checks]
    assert {line["verdict"] for line in table} <= {"passed", "failed", "undecidable"}
    bars = {key: one.data for key, one in shown.items() if one.type == "progress"}
    assert {"train-in-steps"} <= set(bars)
    assert set(bars.values()) == {100.0}

    again_id, again = night()
    assert again.state == "skipped"
    assert "nothing new" in artifacts(again_id)["nightly-report"].data
    assert "gate-checks" not in artifacts(again_id)


def test_labels_are_shown_and_not_obeyed() -> None:
    """A class name or key cannot break the table, load a picture or hide behind a link."""
    assert report.inert("![x](http://a)|<img src=y>\r\n#`z` \\") == (
        r"\!\[x\](http://a)\|\<img src=y\> \#\`z\` \\"
    )

"""Data Docs: Great Expectations' page on a batch, whole in one file, one click from the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_link_artifact
from prefect.context import FlowRunContext

from infra import database, storage
from infra.storage import StorageError
from records import batches
from tasks.expectations import rendered
from tasks.progress import courtesy, log

LINK_DAYS = 7  # S3 signs no link for longer

# The page takes style, signs and scripts from five other hosts, and without them does not even
# show which expectation failed. What it needs of them is this.
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1rem; }
h4 { font-size: 1.4rem; margin: 0; } h5, .h5 { font-size: 1.1rem; margin: 0; }
h6, .h6 { font-size: .95rem; font-weight: 600; margin: 0; }
ol.breadcrumb { display: none; }
a { color: inherit; }
.row { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
.col-lg-2 { flex: 0 0 190px; } .col-lg-10 { flex: 1; min-width: 0; }
.ge-section { border-top: 1px solid #8886; margin-top: .8rem; padding-top: .8rem; }
.ge-section .row { display: block; }
.alert { background: #8882; border-radius: 4px; padding: .3rem .6rem; }
.card-header { font-weight: 600; }
.nav { list-style: none; padding: 0; }
table { border-collapse: collapse; margin: .5rem 0; }
td, th { border: 1px solid #8886; padding: .25rem .6rem; text-align: left; vertical-align: top; }
.badge { background: #8883; border-radius: 4px; font-family: ui-monospace, monospace;
         padding: 0 .3rem; }
.fa-check-circle::before { content: "\\2713"; color: #1a7f37; font-weight: 700; }
.fa-times::before { content: "\\2717"; color: #cf222e; font-weight: 700; }
.text-danger { color: #cf222e; }
.fas { font-style: normal; }
"""
_ELSEWHERE = re.compile(
    r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|<footer\b.*?</footer>"
    r"|<nav class=\"navbar\b.*?</nav>\s*</div>\s*</nav>",
    re.DOTALL,
)
# buttons and filters that need the scripts, and links into a site of many pages that is not there
_DEAD = re.compile(
    r"<div class=\"card mb-3\">\s*<div class=\"card-header p-2\">\s*<strong>Actions</strong>"
    r".*?(?=<div class=\"card d-md-block)"
    r"|<a [^>]*data-toggle=\"collapse\".*?</a>"
    r"|(?<=<a )href=\"\.\./[^\"]*\"",
    re.DOTALL,
)


def page(suite: str, results: Mapping[str, Any]) -> str:
    """Great Expectations' page on a suite's stored results, in one file that needs no other."""
    whole = _DEAD.sub("", _ELSEWHERE.sub("", rendered(results)))
    title = f"<title>{suite} · regraft</title>"
    whole = re.sub(r"<title>.*?</title>", title, whole, flags=re.DOTALL)
    return whole.replace("</head>", f"<style>{STYLE}</style></head>", 1)


def publish(batch_id: int) -> None:
    """Put the pages of a batch into S3 and a link to each onto Prefect's page of the run."""
    with database.connect().transaction() as session:
        stored = batches.validations(session, batch_id)
    store = storage.connect()
    for suite, results in stored:
        key = f"data-docs/batch-{batch_id}-{suite}.html"
        try:
            store.write(key, page(suite, results).encode(), content_type="text/html; charset=utf-8")
        except StorageError as error:
            # Results are in Postgres; `regraft intake show BATCH --docs` makes the page again.
            log.warning("no Data Docs of batch %d: %s", batch_id, error)
            return
        if FlowRunContext.get() is None:
            continue
        with courtesy("show Data Docs"):
            create_link_artifact(
                store.link(key, LINK_DAYS),
                f"what {suite} were expected to be, and were",
                key=f"data-docs-{suite}",
                description=f"Data Docs of batch {batch_id}, {suite} (for {LINK_DAYS} days; "
                f"`regraft intake show {batch_id} --docs FOLDER` makes them again)",
            )

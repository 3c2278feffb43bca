"""Data Docs: kept with the batch, and one link away."""

import httpx
from intakes import picture, put, take_in

from infra.database import Database
from infra.storage import Storage


def test_a_batch_leaves_pages_that_a_link_opens(database: Database, storage: Storage) -> None:
    """Without credentials the link shows the page as HTML; without its signature nothing."""
    put(storage, "labelled/ring/good.png", picture(1))
    put(storage, "labelled/ring/bad.png", b"no picture")
    batch = take_in(database).intake.batch_id
    for suite in ("images", "batch"):
        link = storage.link(f"data-docs/batch-{batch}-{suite}.html", days=1)
        page = httpx.get(link)
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert httpx.get(link.split("?")[0]).status_code == 403
    assert "labelled/ring/bad.png" in httpx.get(
        storage.link(f"data-docs/batch-{batch}-images.html", days=1)
    ).text

"""Postgres, S3 and Prefect for one benchmark or story alone, gone with it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def services(prefect: bool = True) -> Iterator[None]:
    """Services in a folder of their own for the block, Prefect where asked for."""
    state = Path(tempfile.mkdtemp(prefix="regraft-benchmark-", dir="/tmp"))
    state.chmod(0o755)  # Postgres runs as another user when we are root
    os.environ["REGRAFT_STATE_DIR"] = str(state)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from infra import embedded, settings

    try:
        found = embedded.up(settings.load(), prefect=prefect)
        if found.prefect_api_url:
            os.environ["PREFECT_API_URL"] = found.prefect_api_url
        yield
    finally:
        embedded.down(settings.load())
        shutil.rmtree(state)

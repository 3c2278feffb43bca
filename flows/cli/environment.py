"""What libraries read from the environment, set before they are loaded."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Keep libraries from calling home, from talking over our lines and from spinning."""
    # Read when torch is loaded. OpenMP's threads wait by spinning, by default so long that two
    # processes on one machine train at a quarter of their speed (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    # The page of a run has the whole traceback; here an error is one line.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # What the steps tell stands on the Prefect page of the run, too.
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "regraft,vision")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")


def start_prefect() -> None:
    """Have a Prefect server, and say where it is before Prefect is imported."""
    from infra import embedded, settings

    found = embedded.up(settings.load())
    if found.prefect_api_url:
        os.environ["PREFECT_API_URL"] = found.prefect_api_url

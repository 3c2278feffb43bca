"""Light starts: what each verb loads, and the straight way that questions take."""

import json
import subprocess
import sys
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text

from infra import reading, settings
from infra.database import Database, alembic_config, migration_state
from infra.storage import Storage

HEAVY = (
    "torch", "timm", "prefect", "great_expectations", "pandas", "boto3", "botocore", "sklearn",
    "matplotlib", "pyarrow", "PIL",
)  # fmt: skip
# What a question that takes the straight way does not need either.
SLOW = ("sqlalchemy", "alembic", "numpy")


def loaded(*words: str) -> set[str]:
    """The modules that a command has loaded when it ends; it must end well or say one line."""
    script = (
        "import json, sys; sys.argv = ['regraft', *sys.argv[1:]]\n"
        "from flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True,
        timeout=120,
    )  # fmt: skip
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize(
    "words",
    [("status",), ("show", "1"), ("failures", "1"), ("intake", "show", "1"), ("find", "junk")],
    ids=str,
)
def test_questions_load_nothing_heavy(
    words: tuple[str, ...], database: Database, storage: Storage
) -> None:
    """Whoever only asks waits for no training, orchestration, S3 or data frame library."""
    assert not loaded(*words) & set(HEAVY)


@pytest.mark.parametrize(
    "words",
    [("--help",), ("versions",), ("versions", "--json"), ("history", "usage")],
    ids=str,
)
def test_the_straight_way_loads_the_driver_alone(
    words: tuple[str, ...], database: Database, storage: Storage
) -> None:
    """Help, the list of versions and history start without SQLAlchemy and Alembic too."""
    assert not loaded(*words) & {*HEAVY, *SLOW}


def test_help_loads_no_rich() -> None:
    """Help needs no terminal art."""
    assert "rich" not in loaded("--help")


def test_straight_questions_know_every_setting() -> None:
    """A setting that is added is added there too, or questions would take the long way."""
    assert {f"REGRAFT_{name.upper()}" for name in settings.Settings.model_fields} == reading.NAMES


def test_straight_questions_want_the_newest_tables(database: Database) -> None:
    """The straight way and Alembic agree on the revision; of other tables the long way tells."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert reading.newest_migration() == head
    assert migration_state(database.url) == (head, head)
    assert reading.rows("SELECT %(one)s + 1", {"one": 1}) == [(2,)]
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'older'"))
    assert reading._straight() is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("REGRAFT_WROKERS", "3", "did you mean REGRAFT_WORKERS?"),
        ("REGRAFT_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x", "regraft up"),
        ("REGRAFT_DATABASE_URL", "mysql://here/x", "this is not a Postgres address"),
    ],
)
def test_what_is_wrong_is_still_said(
    name: str, value: str, said: str, database: Database, monkeypatch: Any
) -> None:
    """The straight way hides no mistake: each goes the long way, which names the mend."""
    monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "versions"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("regraft: ")

"""The command line: help, exit codes, JSON, one-line errors, and light starts."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli import SECTIONS, app
from infra.database import Database
from infra.storage import Storage
from vision.plan import Augmentation, Plan

HEAVY = ("torch", "timm", "prefect", "great_expectations", "sklearn", "matplotlib")


def regraft(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as people do."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def verbs(command: object = None, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every verb there is, those of groups included."""
    command = command or get_command(app)
    children = getattr(command, "commands", None)
    if not children:
        yield name
        return
    for child, its in sorted(children.items()):
        yield from verbs(its, (*name, child))


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_each_verb_has_help_with_an_example(verb: tuple[str, ...]) -> None:
    """Whoever asks a verb for help sees how it is called."""
    command = get_command(app)
    for name in verb:
        command = command.commands[name]  # type: ignore[attr-defined]
    assert command.help is not None
    assert f"Example: regraft {' '.join(verb)}" in command.help


def test_help_lists_each_verb_once_under_a_heading() -> None:
    """Whoever looks for a verb finds it among its like, and none is left out."""
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert re.findall(r"^(\w+):$", shown, re.M) == ["Options", *SECTIONS]
    listed = re.findall(r"^  ([a-z]+) {2,}\S", shown, re.M)
    assert sorted(listed) == sorted({name for name, *_ in verbs()})


def test_verbs_that_write_pictures_are_alike(tmp_path: Path) -> None:
    """All take `--pictures FOLDER`, show it in their example, and refuse a file."""
    found = {}
    for verb in verbs():
        command = get_command(app)
        for name in verb:
            command = command.commands[name]  # type: ignore[attr-defined]
        for option in command.params:
            if str(option.name).startswith("picture"):
                found[verb] = option
                assert re.search(r"Example: regraft .* --pictures \./", command.help or "")
    assert set(found) == {("bakeoff",), ("failures",), ("show",)}
    assert {(*one.opts, one.metavar) for one in found.values()} == {("--pictures", "FOLDER")}
    (tmp_path / "a.png").touch()
    done = CliRunner().invoke(app, ["failures", "3", "--pictures", str(tmp_path / "a.png")])
    assert done.exit_code == 2
    assert "is a file" in done.output


@pytest.mark.parametrize(
    "words",
    [("--help",), ("versions", "--json"), ("status", "--json"), ("log", "--json"),
     ("benchmark", "list", "--json"), ("class", "list", "--json"), ("plan", "--set", "epochs=3")],
    ids=" ".join,
)  # fmt: skip
def test_light_verbs_import_nothing_heavy(
    words: tuple[str, ...], database: Database, storage: Storage
) -> None:
    """Help and questions start without torch, Prefect or Great Expectations."""
    script = (
        "import sys; sys.argv = ['regraft', *sys.argv[1:]]\n"
        "from flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_questions_answer_in_json_and_for_people(database: Database, storage: Storage) -> None:
    """An empty service answers every question instead of failing."""
    assert json.loads(regraft("versions", "--json").stdout) == []
    assert "there are no versions yet" in regraft("versions").stderr
    facts = json.loads(regraft("status", "--json").stdout)
    assert facts["champion"] is None
    assert facts["objects"] == {"pending": 0, "accepted": 0, "quarantined": 0}
    assert "nothing serves yet" in regraft("status").stdout


def test_a_plan_is_checked_and_explained() -> None:
    """Every field stands there with its value and meaning; as JSON it is a plan again."""
    words = ("plan", "--set", "recipe=inherit", "--set", "augmentation.blur=0.5")
    plan = Plan(recipe="inherit", augmentation=Augmentation(blur=0.5))
    assert Plan.from_dict(json.loads(regraft(*words, "--json").stdout)) == plan
    shown = regraft(*words)
    assert all(one.name in shown.stdout for one in fields(Plan))
    assert plan.digest() in shown.stderr


def test_doctor_names_what_is_wrong(
    database: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doctor is content with what works, and says in one line what does not."""
    well = regraft("doctor", "--json")
    assert well.returncode == 0, well.stdout
    assert {one["what"]: one["state"] for one in json.loads(well.stdout)}["tables"] == "right"
    monkeypatch.setenv("REGRAFT_S3_BUCKET", "not-there-at-all")
    ill = regraft("doctor", "--json")
    assert ill.returncode == 1
    wrong = [one for one in json.loads(ill.stdout) if one["state"] == "wrong"]
    assert [one["what"] for one in wrong] == ["bucket"]
    assert "not-there-at-all" in wrong[0]["found"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "77"), "there is no version 77"),
        (("reject", "9", "--why", "x"), "there is no version 9"),
        (("benchmark", "show"), "no benchmark is frozen"),
        (("failures", "77"), "there is no version 77"),
        (("intake", "revert", "9", "--why", "x"), "there is no batch 9"),
        (("intake", "accept", "9", "--why", "x"), "batch 9 is not a refused batch"),
        (("nightly", "--set", "epochs=-1"), "epochs=-1"),
        (("nightly", "--set", "epoch=3"), "epochs"),
        (("plan", "--set", "shrink=0.5", "--set", "recipe=scratch"), "shrink=0.5: recipe="),
        (("plan", "--set", "unfreeze=9"), "unfreeze=9: recipe='all' has one phase"),
        (("nightly", "--set", "epochs"), "write FIELD=VALUE"),
        (("load", "/nowhere"), "/nowhere is not a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_are_one_line_that_names_the_thing(
    words: tuple[str, ...], said: str, database: Database, storage: Storage
) -> None:
    """A mistake gives one line on standard error, exit code 1, and no traceback."""
    done = regraft(*words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("regraft: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting stops the program instead of being ignored."""
    monkeypatch.setenv("REGRAFT_S3_BUKET", "x")
    done = regraft("status")
    assert done.returncode == 1
    assert "REGRAFT_S3_BUKET" in done.stderr

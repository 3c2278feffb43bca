"""What the command line shows fits a terminal and tells what was stored."""

import json
from pathlib import Path

import pytest
import worlds
from PIL import Image
from worlds import Story

from flows import diagrams
from flows.cli import printing, screens
from infra.embedded import Addresses


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


def test_a_version_shows_where_its_night_went(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every step stands in one line of 80 columns, with its time, share, count and rate."""
    with worlds.inside(story.done):
        screens.show_version(2)
    shown = capsys.readouterr().out
    assert shown.startswith("version 2 · nightly · trained · test_resnet · 4 classes")
    assert max(len(line) for line in shown.splitlines()) <= 80
    told = shown[shown.index("Where the ") :].splitlines()
    lines = {line.strip().split("  ")[0]: line for line in told}
    for name in ("list", "fetch and decode", "train", "evaluate", "benchmark", "deploy"):
        assert name in lines, told
        assert "%" in lines[name]
    assert "images, " in lines["gradient steps"]
    assert "images, " in lines["validation"]
    assert "Prefect, loading code" in lines["everything else"]


def test_facts_of_a_version_are_json(story: Story) -> None:
    """Scripts get the same profile as people, beside the steps as they were stored."""
    with worlds.inside(story.done):
        facts = json.loads(json.dumps(screens.version_facts(2), default=printing.plain))
    assert facts["profile"]["seconds"] > 0
    assert {one["name"] for one in facts["steps"]} < {
        one["name"] for one in facts["profile"]["stretches"]
    }


def test_pictures_of_a_version_hold_its_profile(story: Story, tmp_path: Path) -> None:
    """The night's profile and the pictures of its figures lie beside the Grad-CAM overlays."""
    with worlds.inside(story.done):
        count = screens.write_pictures(2, tmp_path / "new")
        gradcams = screens.version_facts(2)["gradcams"]
    written = {one.name for one in (tmp_path / "new").iterdir()}
    flips = sum(name.startswith("flip ") for name in written)
    assert len(written) == count == gradcams + 3 + flips
    for name in ("profile.png", "reliability.png", "confusion.png"):
        assert name in written
        Image.open(tmp_path / "new" / name).load()
    for name in ("reliability", "confusion"):
        kept = story.done.storage.read(diagrams.key(2, name))
        assert kept == (tmp_path / "new" / f"{name}.png").read_bytes()


def test_a_batch_is_shown_with_what_it_refused(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    """The headline counts, the table names each refused file."""
    with worlds.inside(story.done):
        screens.show_batch(2)
    shown = capsys.readouterr().out
    assert shown.startswith("batch 2 · accepted · ")
    assert "broken.png" in shown

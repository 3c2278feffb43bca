"""Where a night's time went: every second is told once, and a picture of it is kept."""

from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest
import worlds
from PIL import Image
from worlds import Story

from flows import timeline
from flows.timeline import Profile, Stretch
from infra.embedded import Addresses
from records.runs import RunRow, StepRow
from records.versions import EpochRow

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


def run(seconds: float | None) -> RunRow:
    """A run that began at noon and lasted this long, or has not ended."""
    ended = None if seconds is None else NOON + timedelta(seconds=seconds)
    return RunRow(1, "nightly", "completed", None, None, 1, None, None, None, NOON, ended)


def step(name: str, begin: float, seconds: float, **facts: int) -> StepRow:
    """A step that began so many seconds after noon."""
    return StepRow(name, NOON + timedelta(seconds=begin), seconds, facts)


def epochs(count: int, seconds: float, rate: float) -> list[EpochRow]:
    """Epochs that are all alike."""
    return [EpochRow(one, "all", 1, 0, 1, 0, 0, seconds, rate) for one in range(1, count + 1)]


def named(stretches: tuple[Stretch, ...]) -> dict[str, Stretch]:
    """The stretches by their names."""
    return {one.name: one for one in stretches}


def test_the_parts_of_a_night_add_up_to_it() -> None:
    """What no step timed is told as the rest, with the moments at which it passed."""
    steps = [step("list", 1, 2, listed=50), step("validate", 3, 1, images=50), step("judge", 8, 1)]
    seconds, found = timeline.measured(run(10), steps, [], 0)
    assert seconds == 10
    assert [(one.name, one.seconds) for one in found] == [
        ("list", 2), ("validate", 1), ("judge", 1), (timeline.REST, 6)
    ]  # fmt: skip
    assert found[-1].spans == ((0.0, 1.0), (4.0, 4.0), (9.0, 1.0))
    assert [one.told for one in found] == [
        "50 objects, 25/s", "50 images, 50/s", "", timeline.REST_IS
    ]  # fmt: skip


def test_steps_at_the_same_time_leave_no_negative_rest() -> None:
    """Two steps that overlap, a run that has not ended and a clock that is off do no harm."""
    steps = [step("fetch", -3, 4), step("decode", 0, 4), step("judge", 2, 1)]
    seconds, found = timeline.measured(run(None), steps, [], 0)
    assert seconds == 4
    assert named(found)[timeline.REST].seconds == 0
    assert all(begin >= 0 for one in found for begin, _ in one.spans)


def test_training_is_told_in_its_parts() -> None:
    """Gradient steps, validation and the rest add up to the step, each with its own rate."""
    steps = [step("train", 0, 100, images=200, epochs=4)]
    _, found = timeline.measured(run(100), steps, epochs(4, seconds=20, rate=20), 30)
    parts = named(found)
    inside = [one for one in found if one.inside == "train"]
    assert {one.name: one.seconds for one in inside} == {
        "gradient steps": 40, "validation": 40, "start and saving": 20
    }  # fmt: skip
    assert parts["gradient steps"].told == "800 images, 20/s"
    assert parts["validation"].told == "120 images, 3/s"
    assert parts["train"].told == "800 images, 8/s"
    assert parts[timeline.REST].seconds == 0


def test_epochs_of_a_killed_night_are_not_counted_again() -> None:
    """A resumed training tells of the epochs that fit into it, which are the last ones."""
    steps = [step("train", 0, 50, images=200, epochs=4)]
    _, found = timeline.measured(run(50), steps, epochs(4, seconds=20, rate=20), 30)
    assert named(found)["gradient steps"].told == "400 images, 20/s"
    assert min(one.seconds for one in found) >= 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.254, "0.25 s"), (12.34, "12.3 s"), (119.7, "2 min 00 s"), (7500, "2 h 05 min")],
)
def test_durations_are_told_in_words(seconds: float, told: str) -> None:
    """Nobody has to divide by 60."""
    assert timeline.lasting(seconds) == told


@pytest.mark.parametrize("seconds", [0.0, 3.0, 500.0, 40_000.0])
def test_a_night_of_any_length_can_be_drawn(seconds: float) -> None:
    """A picture comes out, whether the night took no time or half a day."""
    train = Stretch("train", ((0.0, seconds),), 10, "images")
    rows = (train, Stretch(timeline.REST, ((0.0, 0.0),)))
    body = timeline.draw(Profile(3, "test_resnet", 7, NOON, seconds, rows, ()))
    with Image.open(BytesIO(body)) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_a_night_keeps_its_profile_with_the_version(story: Story) -> None:
    """Each version of a night has its picture in S3, and its figures name every step."""
    with worlds.inside(story.done) as world:
        for version_id in (1, 2):
            kept = world.storage.read(timeline.key(version_id))
            assert kept == timeline.picture(version_id)
            with Image.open(BytesIO(kept)) as picture:
                assert picture.format == "PNG"
        night = timeline.of_version(2)
    names = [one.name for one in night.stretches]
    assert (night.run_id, night.earlier) == (2, ())
    assert names[0] == "list"
    assert {"fetch and decode", "train", "gradient steps", "evaluate", "deploy"} <= set(names)
    assert sum(one.seconds for one in night.stretches if not one.inside) == pytest.approx(
        night.seconds
    )


def test_a_picture_that_cannot_be_kept_is_said_and_no_more(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    """A bucket that is gone, or any other fault of the drawing, fails no night."""
    with worlds.rows_of(story.done) as rows, worlds.inside(rows) as world:
        world.act("DELETE FROM run_steps")
        body = timeline.picture(2)  # the one that was kept
        timeline.keep(99)
    assert body[1:4] == b"PNG"
    assert "the profile of version 99 was not kept: there is no version 99" in caplog.text

"""What a night costs, in counts and not in seconds: a slip fails on any machine.

Observed from outside, on real parts: SQLAlchemy tells each statement, botocore's connections each
request, torch each pass through a network, Pillow each picture that it decodes. Every count is
given to the step in which it happened. To pin new counts: run this file, and copy what the failure
prints.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import nights
import pytest
import torch
import worlds
from botocore.httpsession import URLLib3Session
from PIL import ImageFile
from sqlalchemy import event
from sqlalchemy.engine import Engine
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from worlds import World

from flows.nightly import nightly
from flows.run import Outcome
from infra.embedded import Addresses
from records.objects import LABELLED
from tasks import benchmark, pixels
from tasks.benchmark import BENCHMARK
from tasks.failures import NIGHTLY_SHARE
from tasks.loading import load_folder
from vision.augmentation import centre
from vision.plan import Plan

SMALL = nights.IMAGES

# The most that the nights below may ask for. Fewer is fine: pin that then.
STATEMENTS = {"first": 313, "second": 337, "third": 48}
REQUESTS = {
    "first": {
        "GET benchmark-images": 24,  # each once, for the pixels of this geometry
        "GET checkpoints": 1,
        "GET labelled": 36,  # each once
        "GET snapshots": 1,  # whatever steps want to know
        "HEAD the bucket": 1,
        "HEAD snapshots": 1,
        "LIST labelled": 1,
        "LIST manifests": 1,
        "PUT checkpoints": 1,
        "PUT data-docs": 2,
        "PUT exports": 1,
        "PUT failures": 1,
        "PUT figures": 2,
        "PUT profiles": 1,
        "PUT snapshots": 1,
    },
    "second": {
        "GET checkpoints": 1,
        "GET labelled": 48,  # the new ones, each once
        "GET snapshots": 1,  # whatever steps want to know
        "HEAD snapshots": 1,
        "LIST labelled": 1,
        "LIST manifests": 1,
        "PUT checkpoints": 1,
        "PUT data-docs": 2,
        "PUT exports": 1,
        "PUT failures": 1,
        "PUT figures": 2,
        "PUT profiles": 1,
        "PUT snapshots": 1,
    },
    "third": {
        "HEAD snapshots": 1,
        "LIST labelled": 1,  # a page of 1,000
        "LIST manifests": 1,
    },
}

# Steps that answer images more than once, each bound by a test of its own.
OWN_TESTS = ("explain", "analyse failures")
BETWEEN = "between steps"
Seen = tuple[datetime, Any]


@dataclass
class Night:
    """One observed night: what happened, each with its moment."""

    outcome: Outcome
    statements: list[Seen] = field(default_factory=list)  # the SQL
    requests: list[Seen] = field(default_factory=list)  # method and key, as they go out
    decoded: list[Seen] = field(default_factory=list)  # nothing more to tell
    passes: list[Seen] = field(default_factory=list)  # training?, classes, images [n, 3, S, S]
    steps: list[tuple[str, datetime, datetime]] = field(default_factory=list)

    def step_of(self, moment: datetime) -> str:
        """The step in which something happened."""
        return next((name for name, a, b in self.steps if a <= moment <= b), BETWEEN)

    def by_step(self, seen: list[Seen]) -> dict[str, int]:
        """How often something happened in each step."""
        return dict(sorted(Counter(self.step_of(moment) for moment, _ in seen).items()))

    def stated(self) -> dict[str, int]:
        """SQL statements by step; without those that depend on how much the version errs."""
        counted = self.by_step(self.statements)
        for step in ("explain", "analyse failures"):
            counted.pop(step, None)
        return counted

    def asked_of_s3(self) -> dict[str, int]:
        """How many requests went out, by method and prefix."""
        told = (f"{method} {key.split('/')[0]}" for _, (method, key) in self.requests)
        return dict(sorted(Counter(told).items()))

    def fetched(self, prefix: str) -> Counter[str]:
        """How often each object below a prefix was fetched."""
        return Counter(
            key for _, (method, key) in self.requests
            if method == "GET" and key.startswith(prefix)
        )  # fmt: skip


@contextmanager
def _observing(world: World) -> Iterator[Night]:
    night = Night(Outcome(0, "", ""))
    lock = threading.Lock()  # images are read and decoded by several threads

    def note(seen: list[Seen], what: Any) -> None:
        with lock:
            seen.append((datetime.now(UTC), what))

    def statement(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        if connection.engine.url.database == world.bucket:
            note(night.statements, text)

    def passed(module: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
        if torch.compiler.is_exporting():
            return  # it is being written down for serving: nothing is computed
        if hasattr(module, "get_classifier"):  # the network itself, not one of its layers
            images = given[0].detach().float().cpu()
            note(night.passes, (module.training, answer.shape[-1], images))

    send: Callable[..., Any] = URLLib3Session.send

    def counted_send(session: URLLib3Session, request: Any) -> Any:
        url = urlsplit(request.url)
        key = unquote(url.path).removeprefix(f"/{world.bucket}").removeprefix("/")
        asked = parse_qs(url.query)
        listing = "list-type" in asked
        method = "LIST" if listing else request.method
        note(night.requests, (method, asked["prefix"][0] if listing else key or "the bucket"))
        return send(session, request)

    load: Callable[..., Any] = ImageFile.ImageFile.load

    def counted_load(image: ImageFile.ImageFile) -> Any:
        # Without tiles its pixels are there already; failure analysis saves JPEGs of its own, and
        # every picture of these nights is a PNG.
        if image.tile and image.format == "PNG":
            note(night.decoded, image.format)
        return load(image)

    event.listen(Engine, "before_cursor_execute", statement)
    hook = register_module_forward_hook(passed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", counted_load)
        patch.setattr(URLLib3Session, "send", counted_send)
        try:
            yield night
        finally:
            hook.remove()
            event.remove(Engine, "before_cursor_execute", statement)


def observed(world: World, plan: Plan) -> Night:
    """Play a night and tell what it did."""
    with _observing(world) as night:
        night.outcome = nightly(plan=plan, limits=worlds.LIMITS)
    night.steps = [
        tuple(row)
        for row in world.ask(
            "SELECT name, started_at, started_at + seconds * interval '1 second'"
            " FROM run_steps WHERE run_id = :run ORDER BY id",
            run=night.outcome.run_id,
        )
    ]
    return night


def splits(world: World) -> dict[str, str]:
    """Where each image belongs: train, validation, test or benchmark."""
    return dict(
        world.ask(
            "SELECT sha256, split FROM images UNION ALL"
            " SELECT sha256, 'benchmark' FROM benchmark_images"
        )
    )


def answered(world: World, night: Night, plan: Plan) -> dict[tuple[str, int, str], list[int]]:
    """How often each image passed through a network in evaluation mode, fewest and most.

    By step, number of the network's classes and split; an image that is in no split (a made-up
    one, for latency) is `made up`. Counts only images that passed at all.
    """
    split = splits(world)
    names = sorted(split)
    with worlds.inside(world):
        held = pixels.cache().open(plan.geometry)
        known = centre(torch.from_numpy(held.gather(names)), plan.image_size).flatten(1)
    known = (known - known.mean(1, keepdim=True)) / known.std(1, keepdim=True)
    times: dict[tuple[str, int, str], Counter[Any]] = {}
    for moment, (training, classes, images) in night.passes:
        if training:
            continue
        flat = images.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
        apart, place = torch.cdist(flat, known).div(known.shape[1] ** 0.5).min(1)
        for distance, index in zip(apart.tolist(), place.tolist(), strict=True):
            sha256 = names[index] if distance < 0.2 else "made up"
            where = (night.step_of(moment), classes, split.get(sha256, sha256))
            times.setdefault(where, Counter())[sha256] += 1
    return {
        where: [len(counter), min(counter.values()), max(counter.values())]
        for where, counter in sorted(times.items())
    }


# --- the nights -----------------------------------------------------------------------------


@dataclass
class Nights:
    """Three observed nights of one world: all is new, some is new, nothing is new."""

    world: World
    first: Night
    second: Night
    third: Night


def played(services: Addresses, template: str, scratch: Path, images: int) -> Nights:
    """Begin with so many images of each class; the second night is the same for all worlds."""
    world = worlds.make(services, template)
    old, new = worlds.OLD_CLASSES, worlds.NEW_CLASS
    with worlds.inside(world):
        load_folder(nights.draw(scratch / "messy", old, nights.BENCHMARK_IMAGES, 1000), BENCHMARK)
        benchmark.freeze("a test", "a first benchmark")
        load_folder(nights.draw(scratch / "first", old, images), LABELLED)
        first = observed(world, worlds.FIRST_PLAN)
        load_folder(nights.draw(scratch / "grown", (new,), 6, seed=1000), BENCHMARK)
        benchmark.grow("a test", f"{new} is new")
        nights.more_images(scratch, (*old, new), seed=100)
        second = observed(world, worlds.SECOND_PLAN)
        third = observed(world, worlds.SECOND_PLAN)
    assert [one.outcome.state for one in (first, second, third)] == [
        "deployed", "deployed", "skipped"
    ]  # fmt: skip
    return Nights(world, first, second, third)


@pytest.fixture(scope="module")
def small(
    services: Addresses,
    template: str,
    prefect_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Nights]:
    """Nights that begin with 12 images of each class."""
    found = played(services, template, tmp_path_factory.mktemp("small"), SMALL)
    yield found
    worlds.drop(found.world)


@pytest.fixture(scope="module")
def large(
    services: Addresses,
    template: str,
    prefect_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Nights]:
    """Nights that begin with three times as many."""
    found = played(services, template, tmp_path_factory.mktemp("large"), 3 * SMALL)
    yield found
    worlds.drop(found.world)


def within(counted: dict[Any, int], pinned: dict[Any, int], what: str, where: str) -> None:
    """Fail when something happens more often than it is pinned, and say what to pin."""
    more = {one: count for one, count in counted.items() if count > pinned.get(one, 0)}
    assert not more, f"{what}: {more} is more than is pinned. Counted: {counted}. {where}"


# --- the guard ------------------------------------------------------------------------------


@pytest.mark.parametrize("night", ["first", "second", "third"])
def test_a_night_asks_no_more_than_it_did(small: Nights, night: str) -> None:
    """SQL statements, and S3 requests by method and prefix, stay within what is pinned."""
    one: Night = getattr(small, night)
    within(one.asked_of_s3(), REQUESTS[night], "requests to S3",
           f"By step: {one.by_step(one.requests)}")  # fmt: skip
    within({"all": sum(one.stated().values())}, {"all": STATEMENTS[night]}, "SQL statements",
           f"By step: {one.stated()}")  # fmt: skip


def test_each_image_is_fetched_and_decoded_once(small: Nights) -> None:
    """Over all nights, whatever reads it: at intake if it is new, else when it is first needed."""
    world = small.world
    fetched: Counter[str] = Counter()
    for night in (small.first, small.second, small.third):
        fetched += night.fetched("labelled/")
        # A benchmark image is measured when it is frozen, before any geometry is known.
        benchmarked = night.fetched("benchmark-images/")
        assert set(benchmarked.values()) <= {1}
        assert len(night.decoded) == night.fetched("labelled/").total() + benchmarked.total()
    listed = {key for (key,) in world.ask("SELECT key FROM objects")}
    assert fetched == Counter(listed)
    assert len(listed) == 3 * SMALL + 4 * nights.IMAGES


def test_held_out_images_are_answered_once_by_each_version(small: Nights) -> None:
    """Each step passes an image once; training validates every epoch."""
    for night, plan in ((small.first, worlds.FIRST_PLAN), (small.second, worlds.SECOND_PLAN)):
        split = Counter(splits(small.world).values())
        found = answered(small.world, night, plan)
        classes = max(classes for _, classes, _ in found)
        for where, (count, least, most) in found.items():
            step, _, group = where
            if (step, group) == ("train", "validation"):
                assert (least, most) == (plan.epochs, plan.epochs), found
            elif (step, group) == ("keep checkpoint", "validation"):
                assert most <= 2, found  # the temperature is fitted, and some look whether it took
            elif group != "made up" and step not in OWN_TESTS:
                assert most <= 1, f"{where}: {least} to {most} times in {found}"
            if night is small.second and (step, group) in {
                ("evaluate", "validation"), ("evaluate", "test"), ("benchmark", "benchmark")
            }:  # fmt: skip
                assert count == split[group], found
        assert {knows for step, knows, _ in found if step == "evaluate"} == {classes}


def test_training_sees_each_image_once_an_epoch(small: Nights) -> None:
    """No image passes through the network in training mode but for a gradient step."""
    for night, plan in ((small.first, worlds.FIRST_PLAN), (small.second, worlds.SECOND_PLAN)):
        seen = sum(len(images) for _, (training, _, images) in night.passes if training)
        [(trained,)] = small.world.ask(
            "SELECT facts->'images' FROM run_steps WHERE run_id = :run AND name = 'train'",
            run=night.outcome.run_id,
        )
        assert seen == trained * plan.epochs


def test_maps_cost_one_pass_each(small: Nights) -> None:
    """Grad-CAM asks the network once for each map that it keeps."""
    for night in (small.first, small.second):
        passes = sum(
            len(images) for moment, (_, _, images) in night.passes
            if night.step_of(moment) == "explain"
        )  # fmt: skip
        [(maps,)] = small.world.ask(
            "SELECT facts->'maps' FROM run_steps WHERE run_id = :run AND name = 'explain'",
            run=night.outcome.run_id,
        )
        assert passes == maps > 0


def test_failure_analysis_costs_its_share_of_the_training(small: Nights) -> None:
    """It tries bent validation images, and lets the parent answer each new training image once."""
    for night, plan in ((small.first, worlds.FIRST_PLAN), (small.second, worlds.SECOND_PLAN)):
        found = answered(small.world, night, plan)
        analysed = {
            (classes, group): most
            for (step, classes, group), (_, _, most) in found.items()
            if step == "analyse failures"
        }
        own = max(classes for _, classes, _ in found)
        [(new,)] = small.world.ask(
            "SELECT coalesce((doubted->>'batch')::int, 0) FROM failure_analyses"
            " WHERE version_id = :version",
            version=night.outcome.version_id,
        )
        assert {group for classes, group in analysed if classes == own} <= {"validation", "made up"}
        assert {group for classes, group in analysed if classes != own} == (
            {"train"} if new else set()
        )
        assert all(most == 1 for (classes, _), most in analysed.items() if classes != own)
        [(trained,)] = small.world.ask(
            "SELECT facts->'images' FROM run_steps WHERE run_id = :run AND name = 'train'",
            run=night.outcome.run_id,
        )
        passes = sum(
            len(images) for moment, (_, _, images) in night.passes
            if night.step_of(moment) == "analyse failures"
        )  # fmt: skip
        assert 0 < passes <= NIGHTLY_SHARE * trained * plan.epochs + new
        assert night.by_step(night.statements)["analyse failures"] <= 30


def test_a_night_with_nothing_new_only_lists(small: Nights) -> None:
    """It fetches, decodes and computes nothing."""
    assert small.third.requests
    assert not small.third.fetched("")
    assert not small.third.decoded
    assert not small.third.passes


def test_the_library_does_not_make_a_night_dearer(small: Nights, large: Nights) -> None:
    """With three times the library, the same new images cost the same statements and requests."""
    assert len(large.third.statements) == len(small.third.statements)
    assert large.third.asked_of_s3() == small.third.asked_of_s3()
    assert large.second.asked_of_s3() == small.second.asked_of_s3()
    assert len(large.second.decoded) == len(small.second.decoded)
    assert large.second.stated() == small.second.stated()

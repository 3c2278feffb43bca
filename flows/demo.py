"""The demo: three nights on real images, told as they happen."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from infra import database, embedded, settings
from infra.places import WEB_PORT
from records import deployments, summaries
from vision.plan import Augmentation, Plan

SEED = 7
BENCHMARK_SHARE = 0.2  # of each class's images, before any training sees them
FIRST_NIGHT_SHARE = 0.6  # of the rest of a known class; the others come in the second night
SHUFFLED = 80  # most images with another class's label in the third night

# A network small enough for two cores. Its last layer would be a single cell at this size, and
# Grad-CAM a plain red square; with a stride of 8 it is 6 x 6.
DIGITS = Plan(
    architecture="test_resnet",
    arguments={"output_stride": 8},
    image_size=48,
    crop=1.0,
    epochs=20,
    batch_size=32,
    learning_rate=3e-3,
    dropout=0.0,
    # A digit that is mirrored or turned far is another digit, or none.
    augmentation=Augmentation(flip=False, scale=0.85, rotation=8.0, saturation=0.0),
)
PHOTOGRAPHS = replace(
    DIGITS, image_size=96, crop=0.875, cutoff=10, augmentation=Augmentation(), label_smoothing=0.0
)
# A small folder is gone through more often: what counts is how many steps the network takes.
IMAGES_SEEN = 14_000
FEWEST_EPOCHS, MOST_EPOCHS = 12, 100
WARM_SHARE = 0.4  # of the first night's epochs
MOST_CLASSES = 9
FEWEST_EACH, MOST_EACH = 20, 200  # images of a class; the story is short, whatever the folder has


class BadDemo(ValueError):
    """The folder cannot tell this story."""


@dataclass(frozen=True)
class Story:
    """The images of each act: class name -> files."""

    benchmark: dict[str, list[Path]]
    first: dict[str, list[Path]]
    second: dict[str, list[Path]]
    third: dict[str, list[Path]]
    benchmark_growth: dict[str, list[Path]]
    newcomer: str
    plan: Plan


def prepare(fresh: bool) -> None:
    """Begin in a state folder of the demo's own, so that no real library is touched."""
    folder = settings.load().state_dir.with_name("regraft-demo")
    os.environ["REGRAFT_STATE_DIR"] = str(folder)
    known = settings.load()
    if fresh and folder.exists():
        embedded.down(known)
        shutil.rmtree(folder)


def play(images: Path | None) -> None:
    """Play the story and end with what came of it."""
    from flows.nightly import nightly
    from records.objects import LABELLED
    from tasks import benchmark
    from tasks.benchmark import BENCHMARK

    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        if images is None:
            story = _story(_digits(Path(scratch) / "digits"), DIGITS)
        else:
            story = _story(images, PHOTOGRAPHS)
        people = "the demo"

        console.rule("[bold]Before the first night: a benchmark is frozen")
        _upload(story.benchmark, BENCHMARK)
        frozen = benchmark.freeze(people, "what the first classes look like").benchmark
        console.print(f"{frozen.images} images of {frozen.classes} classes, seen by no training")

        console.rule(f"[bold]Night 1: {len(story.first)} classes, from scratch")
        _upload(story.first, LABELLED)
        first = nightly(plan=replace(story.plan, recipe="scratch"))
        if first.state != "deployed":
            raise BadDemo(
                "the demo's small network does not learn these images well enough to serve, so the "
                "story ends here; `regraft nightly --set weights=hub` starts from a pretrained one"
            )

        console.rule(f"[bold]Night 2: more images, and a new class: {story.newcomer}")
        _upload(story.benchmark_growth, BENCHMARK)
        benchmark.grow(people, f"{story.newcomer} is new")
        _upload(story.second, LABELLED)
        epochs = round(story.plan.epochs * WARM_SHARE)
        warm = replace(story.plan, epochs=epochs, learning_rate=story.plan.learning_rate / 3)
        nightly(plan=warm)

        console.rule("[bold]Night 3: a batch with shuffled labels")
        before = _champion()
        _upload(story.third, LABELLED)
        outcome = nightly(plan=warm)
        untouched = _champion() == before
        console.print(
            f"version {before} still serves" if untouched else "[red]the champion changed[/red]"
        )
        picture = _kept(story)
    _epilogue(console, picture)
    if outcome.state not in ("stopped", "refused") or not untouched:
        raise BadDemo(
            "night 3 was let through: the champion knows these images too little to contradict "
            "their labels; a pretrained network would (`regraft nightly --set weights=hub`)"
        )


def _story(folder: Path, plan: Plan) -> Story:
    """Deal a folder of class folders out to the acts; the last class is the newcomer."""
    if not folder.is_dir():
        raise BadDemo(f"{folder} is not a folder: name one that holds a folder for each class")
    files = {
        path.name: sorted(one for one in path.rglob("*") if one.is_file())
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }
    files = {name: some[:MOST_EACH] for name, some in files.items() if len(some) >= FEWEST_EACH}
    if len(files) < 3:
        raise BadDemo(
            f"{folder} has {len(files)} class folders of {FEWEST_EACH} images or more: the story "
            "needs three"
        )
    dealt = random.Random(SEED)  # noqa: S311  (dealing cards, not secrets)
    for some in files.values():
        dealt.shuffle(some)
    *old, newcomer = list(files)[:MOST_CLASSES]
    held = {name: max(5, round(len(files[name]) * BENCHMARK_SHARE)) for name in files}
    rest = {name: files[name][held[name] :] for name in files}
    first = {name: rest[name][: round(len(rest[name]) * FIRST_NIGHT_SHARE)] for name in old}
    later = {name: rest[name][len(first[name]) :] for name in old}
    # Each known class keeps a part of its later images for the third night, where they come
    # under the label of the next class.
    spare = {name: max(3, min(len(later[name]) // 2, SHUFFLED // len(old))) for name in old}
    wrong = {name: old[(place + 1) % len(old)] for place, name in enumerate(old)}
    smallest = min(len(some) for some in first.values())
    images = sum(len(some) for some in first.values())
    return Story(
        benchmark={name: files[name][: held[name]] for name in old},
        first=first,
        second={name: later[name][spare[name] :] for name in old} | {newcomer: rest[newcomer]},
        third={wrong[name]: later[name][: spare[name]] for name in old},
        benchmark_growth={newcomer: files[newcomer][: held[newcomer]]},
        newcomer=newcomer,
        plan=replace(
            plan,
            cutoff=min(plan.cutoff, smallest),
            epochs=min(MOST_EPOCHS, max(FEWEST_EPOCHS, IMAGES_SEEN // images)),
        ),
    )


def _digits(folder: Path) -> Path:
    """Write scikit-learn's 1,797 handwritten digits, 8 x 8 scans of real ink, as PNG files."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    for number, (pixels, digit) in enumerate(zip(scans.images, scans.target, strict=True)):
        place = folder / f"digit {digit}"
        place.mkdir(parents=True, exist_ok=True)
        ink = (255 - pixels * 255 / 16).round().astype(np.uint8)
        Image.fromarray(ink).save(place / f"{number:04d}.png")
    return folder


def _upload(files: dict[str, list[Path]], prefix: str) -> None:
    from tasks.loading import load_folder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / prefix.rstrip("/")  # its name stands in the progress bar
        for name, some in files.items():
            place = folder / name
            place.mkdir(parents=True)
            for path in some:
                (place / path.name).symlink_to(path.resolve())
        load_folder(folder, prefix)


def _champion() -> int | None:
    with database.connect().transaction() as session:
        serving = deployments.champion(session)
    return serving.version_id if serving else None


def _kept(story: Story) -> Path:
    """A picture of the benchmark, which no training has seen, kept to ask the service about."""
    chosen = next(iter(story.benchmark.values()))[0]
    kept = settings.load().state_dir / f"picture{chosen.suffix}"
    shutil.copyfile(chosen, kept)
    return kept


def _epilogue(console: Console, picture: Path) -> None:
    from flows.figures import percent
    from flows.grid import table

    console.rule("[bold]What came of it")
    rows = summaries.of_versions()
    table(
        ["version", "from", "classes", "images", "test", "benchmark", "became"],
        (
            (
                str(row.id),
                f"version {row.parent_id}" if row.parent_id else "scratch",
                str(row.classes),
                str(row.images),
                percent(row.test_accuracy),
                percent(row.benchmark_accuracy),
                "serves" if row.serves else row.reason or "served before",
            )
            for row in reversed(rows)
        ),
    )
    pages = (os.environ.get("PREFECT_API_URL") or "").removesuffix("/api")
    regraft = "regraft" if shutil.which("regraft") else sys.argv[0]  # as it can be typed here
    asked = f"http://127.0.0.1:{WEB_PORT}"
    console.print(
        "Where to look next:\n"
        f"  export REGRAFT_STATE_DIR={shlex.quote(str(settings.load().state_dir))}\n"
        f"  {f'{regraft} web':40} {asked}: all of it in a browser; {asked}/docs is the API\n"
        f"  curl -F image=@{shlex.quote(str(picture))} {asked}/v1/predictions\n"
        f"  {f'{regraft} show {rows[0].id} --pictures maps':40} "
        "each figure, check and Grad-CAM map\n"
        f"  {f'{regraft} status':40} runs, batches, and why one was refused\n"
        f"  {pages:40} Prefect's pages: runs with their reports\n"
        f"  {f'{regraft} down':40} stops the services; the data stays",
        soft_wrap=True,  # or a line could not be copied
    )

"""The images that are missing: what a throw-away run finds of eight scarce classes among thousands.

    python -m benchmarks.stories.shortlist --data DATA

Everything is real: an embedded Postgres, S3 and Prefect for each seed; a night, a throw-away run, a
person who confirms (the truth is known), another night. Caltech-101 with cutoff 20 and throw-away
cutoff 15: eight classes have 15 to 19 usable images and five in the benchmark; their other images
lie in the pool, among those of twenty classes that nobody has listed, some of known classes, cats,
dogs and small scans.

Writes docs/stories/shortlist.md, shortlist.png and shortlist.json.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from loky import ProcessPoolExecutor

from benchmarks.services import services
from benchmarks.stories.study import (
    FOLDER,
    SEEDS,
    Found,
    Run,
    Setup,
    arguments,
    run_all,
    spread,
    table,
    write,
)
from vision.images import examine
from vision.outlook import BANDS, ENOUGH
from vision.plan import Augmentation, Plan

STORY = "shortlist"
CUTOFF, LOWER = 20, 15
NEAR_HAVE = (15, 16, 17, 18, 19, 15, 17, 19)  # usable images of the classes near the cutoff
KNOWN_EACH = 24  # usable images of a class that has enough; the rest is in the pool
NEAR_BENCHMARK, KNOWN_BENCHMARK = 5, 8  # images of each class
UNLISTED = 20
CATS_AND_DOGS = 500  # of each
SCANS = 100  # of each of ten kinds
FIRST_LOOK = 20  # candidates of each class that are judged before anything is expected of the rest
DEPTHS = (10, 20, 50)
DEEPEST = 100  # of the picture
COPY = 3  # bits between two hashes that count as one picture
BY = "benchmarks/stories/shortlist.py"
WEIGHTS = "weights/mobilenetv2_100_coral_dequant.timm.safetensors"
PLAN = Plan(
    architecture="mobilenetv2_100", arguments={"pad_type": "same"}, mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5), image_size=96, recipe="two-phase", epochs=16, head_epochs=13, unfreeze=3,
    learning_rate=2e-3, batch_norm="eval", cutoff=CUTOFF, augmentation=Augmentation(rotation=5.0),
    precision="float32", channels_last=True,
)  # fmt: skip
OURS, NEAREST, LOOK_ALIKE, UNSURE = "shortlist", "nearest", "look-alike", "unsure"
WAYS = {
    OURS: "the throw-away run's shortlist",
    NEAREST: "champion: features nearest to the mean of the class's own images",
    LOOK_ALIKE: "champion: taken for the class that it confuses this one with, least sure first",
    UNSURE: "champion: least sure of all first",
}
COLOURS = {OURS: "#2f6f9f", NEAREST: "#c8702a", LOOK_ALIKE: "#5b8c5a", UNSURE: "#7a7a7a"}


def main() -> None:
    """Play it for every seed, then the page."""
    given = arguments(STORY, __doc__)
    runs = run_all(STORY, seed, [setup_of(one) for one in SEEDS], given)
    draw(runs)
    page(runs)


def setup_of(number: int) -> Setup:
    """Whatever decides a run's figures."""
    return {"seed": number, "plan": PLAN.to_dict(), "cats_and_dogs": CATS_AND_DOGS, "scans": SCANS}


def seed(setup: Setup, data: Path) -> Found:
    """In a process of its own: Prefect and connections learn once where their services are."""
    from benchmarks.stories import shortlist

    with ProcessPoolExecutor(1) as process:
        return dict(process.submit(shortlist.play, setup["seed"], data).result())


# --- what is played -------------------------------------------------------------------------


def play(number: int, data: Path) -> Found:
    """Night, throw-away run, confirmations, night."""
    from dataclasses import replace

    scene, clock = Scene(data, number), Clock()
    plan = replace(PLAN, seed=number, weights=str(data / WEIGHTS))
    with services():
        from flows.identify import identify
        from flows.nightly import nightly
        from flows.throwaway import throwaway

        pool = fill(scene)
        first = clock.times("night", lambda: nightly(plan=plan))
        # all of it answered by the champion, too, which does not know the classes near the cutoff
        clock.times("champion's pool", lambda: identify(f"s3://{pool}", first.version_id))
        run = clock.times("throw-away run", lambda: throwaway(LOWER, [f"s3://{pool}"], plan))
        ranks, counts = ranked(scene, first.version_id, run)
        looked = confirm(scene, run.run_id)
        second = clock.times("next night", lambda: nightly(plan=plan))
        learned = of_the_benchmark(second.version_id)
        return {
            "pool": counts,
            "classes": [
                {"class": name, "ranks": ranks[name], **looked[name],
                 "learned": learned.get(name)} for name in scene.near
            ],
            "nights": [told(one) for one in (first, run, second)],
            "acts": clock.seconds,
        }  # fmt: skip


@dataclass
class Clock:
    """Wall seconds of each act."""

    seconds: dict[str, float] = field(default_factory=dict)

    def times(self, what: str, act: Callable[[], Any]) -> Any:
        """Do it, and say what came of it."""
        started = time.perf_counter()
        done = act()
        self.seconds[what] = round(time.perf_counter() - started, 1)
        said = getattr(done, "reason", None) or done.sentence
        print(f"{what}, {self.seconds[what]:.0f} s: {said}", file=sys.stderr, flush=True)
        return done


class Scene:
    """Which file is where: in the library, in the benchmark, in the pool.

    near: the classes that lack images, none with copies of its own pictures, of which intake would
    refuse some; truth: of each object in the pool, by its name.
    """

    def __init__(self, data: Path, number: int) -> None:
        order = random.Random(number)  # noqa: S311  (no secret, here and below)
        folders = sorted(one for one in (data / "caltech101_max40").iterdir() if one.is_dir())
        files = {one.name: sorted(one.iterdir()) for one in folders}
        for paths in files.values():
            order.shuffle(paths)
        names = order.sample(list(files), len(files))
        plain = (name for name in names if not has_copies(files[name]))
        self.near = list(itertools.islice(plain, len(NEAR_HAVE)))
        rest = [name for name in names if name not in self.near]
        unlisted, known = rest[:UNLISTED], rest[UNLISTED:]
        have = dict.fromkeys(known, KNOWN_EACH) | dict(zip(self.near, NEAR_HAVE, strict=True))
        first = {name: NEAR_BENCHMARK if name in self.near else KNOWN_BENCHMARK for name in have}
        ends = {name: first[name] + count for name, count in have.items()}
        self.benchmark = {name: files[name][:first[name]] for name in have}
        self.labelled = {name: files[name][first[name]:ends[name]] for name in have}
        self.kinds = dict.fromkeys(known, "known") | dict.fromkeys(unlisted, "unlisted")
        pool = [(path, name) for name in names for path in files[name][ends.get(name, 0):]]
        for kind in ("cats", "dogs"):
            some = sorted((data / "cats_dogs" / "train" / kind).iterdir())[:CATS_AND_DOGS]
            pool += [(path, kind) for path in some]
        for folder in sorted((data / "cifar10_sample").iterdir()):
            pool += [(path, "scans") for path in sorted(folder.iterdir())[:SCANS]]
        order.shuffle(pool)
        self.pool = {f"{place:05d}{path.suffix}": path for place, (path, _) in enumerate(pool)}
        self.truth = dict(zip(self.pool, (name for _, name in pool), strict=True))

    def is_of(self, key: str) -> str:
        """The true class of an object of the pool."""
        return self.truth[key.rsplit("/", 1)[1]]

    def counts(self) -> Counter[str]:
        """How many of what lie in the pool: near, known, unlisted, cats, dogs, scans."""
        return Counter(
            "near" if name in self.near else self.kinds.get(name, name)
            for name in self.truth.values()
        )


def has_copies(paths: Sequence[Path]) -> bool:
    """Whether two of these pictures are as good as one."""
    hashes = [examine(path.read_bytes(), None)[0].dhash or 0 for path in paths]
    return any((a ^ b).bit_count() <= COPY for a, b in itertools.combinations(hashes, 2))


def fill(scene: Scene) -> str:
    """Freeze the benchmark, upload library and pool; answers the pool's prefix."""
    from tasks import benchmark
    from tasks.benchmark import BENCHMARK
    from tasks.identification import locate
    from tasks.loading import load_folder

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        load_folder(linked(place / "benchmark", scene.benchmark), BENCHMARK)
        benchmark.freeze(BY, "some of each class, of those near the cutoff, too")
        load_folder(linked(place / "labelled", scene.labelled), "labelled/")
        (place / "camera").mkdir()
        for name, path in scene.pool.items():
            (place / "camera" / name).symlink_to(path.resolve())
        return locate(str(place / "camera"))


def linked(folder: Path, classes: Mapping[str, Sequence[Path]]) -> Path:
    """A folder of class folders of these pictures."""
    for name, paths in classes.items():
        (folder / name).mkdir(parents=True)
        for path in paths:
            (folder / name / path.name).symlink_to(path.resolve())
    return folder


def told(outcome: Any) -> dict[str, Any]:
    """How it ended, and the benchmark accuracy of its version."""
    from infra import database
    from records import evaluations, versions

    with database.connect().transaction() as session:
        rows = evaluations.of_version(session, outcome.version_id)
        classes = len(versions.get(session, outcome.version_id).class_names)
    on = next(one for one in reversed(rows) if one.subject == "benchmark")
    return {"state": outcome.state, "reason": outcome.reason, "classes": classes,
            "benchmark": on.accuracy, "images": on.images}  # fmt: skip


def of_the_benchmark(version_id: int) -> dict[str, tuple[int, int]]:
    """Of each class that a version has learned: right ones, and images, on the benchmark."""
    from infra import database
    from records import evaluations, versions

    with database.connect().transaction() as session:
        known = versions.get(session, version_id).class_names
        rows = evaluations.of_version(session, version_id)
        on = next(one for one in reversed(rows) if one.subject == "benchmark")
        found = evaluations.class_scores(session, on.id)
    return {one.name: (one.correct, one.images) for one in found if one.name in known}


# --- in which order somebody would look -------------------------------------------------------


def ranked(
    scene: Scene, champion: int, run: Any
) -> tuple[dict[str, dict[str, list[int]]], dict[str, int]]:
    """Places, from 1, of each near class's pictures in the order of each way; the pool's counts.

    A picture that the shortlist does not have stands in none of its places. Only what may be
    offered counts: no near copies of what library or benchmark have.
    """
    from flows import shortlist

    theirs, marked = answers(champion)
    order = sorted(theirs)
    truth = np.array([scene.is_of(theirs[one]["key"]) for one in order])
    sure = np.array([theirs[one]["confidence"] for one in order])
    says = np.array([theirs[one]["predicted"] for one in order])
    seen = unit(stored_features(champion, order))
    ranks: dict[str, dict[str, list[int]]] = {}
    for name in scene.near:
        own, called = own_features(champion, name)
        look_alike = Counter(called).most_common(1)[0][0]
        scores = {
            NEAREST: seen @ unit(own).mean(axis=0),
            LOOK_ALIKE: np.where(says == look_alike, 1 - sure, -sure),
            UNSURE: -sure,
        }
        ranks[name] = {
            way: places(truth[np.argsort(-values, kind="stable")] == name)
            for way, values in scores.items()
        }
        listed = shortlist.candidates(name, run.run_id)
        ranks[name][OURS] = places([scene.is_of(one.key) == name for one in listed])
        ranks[name]["there"] = [int((truth == name).sum())]
    return ranks, {"offered": len(order), "marked": marked, **scene.counts()}


def places(right: Sequence[bool] | npt.NDArray[np.bool_]) -> list[int]:
    """From 1."""
    return [place for place, one in enumerate(right, 1) if one]


def answers(version: int) -> tuple[dict[str, dict[str, Any]], int]:
    """What a version said of each picture that may be offered; and how many may not be."""
    from sqlalchemy import text

    from infra import database

    with database.connect().transaction() as session:
        rows = session.execute(
            text(
                """
                SELECT a.sha256, a.predicted, a.confidence, p.mark,
                       (SELECT min(key) FROM pool_objects o WHERE o.sha256 = a.sha256) AS key
                FROM pool_answers a JOIN pool_images p USING (sha256) WHERE version_id = :version
                """
            ),
            {"version": version},
        ).all()
    offered = {one.sha256: dict(one._mapping) for one in rows if one.mark is None}
    return offered, len(rows) - len(offered)


def stored_features(version: int, order: Sequence[str]) -> npt.NDArray[np.float32]:
    """The embeddings that the identification has kept, in this order."""
    from sqlalchemy import text

    from infra import database

    with database.connect().transaction() as session:
        rows = session.execute(
            text("SELECT sha256, features FROM embeddings WHERE version_id = :version"),
            {"version": version},
        ).all()
    kept = {sha256: np.frombuffer(features, "<f2") for sha256, features in rows}
    return np.stack([kept[sha256] for sha256 in order]).astype(np.float32)


def own_features(version: int, name: str) -> tuple[npt.NDArray[np.float32], list[str]]:
    """What a version sees in the library's images of a class, and what it calls them."""
    from infra import database, settings
    from records import library
    from tasks import checkpoints, pixels
    from tasks.evaluation import choose_engine
    from vision.identification import identify, seeing

    with database.connect().transaction() as session:
        sources = {
            sha256: (key, etag)
            for sha256, label, key, etag in library.usable(session) if label == name
        }  # fmt: skip
    loaded, device = checkpoints.load(version), settings.load().device
    forward = seeing(choose_engine(loaded, len(sources)), loaded.network, loaded.plan, device)
    images = list(sources)
    with pixels.streamed(loaded.plan.geometry, sources) as held:
        said = identify(forward, loaded.network, images, held.gather(images), [], device)
    return said.features.astype(np.float32), [loaded.class_names[one] for one in said.top[:, 0]]


def unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


# --- a person who knows -----------------------------------------------------------------------


def confirm(scene: Scene, run_id: int) -> dict[str, dict[str, Any]]:
    """Judge the first of each class; note what is expected of the rest; judge the rest."""
    from flows import shortlist

    for name in scene.near:
        judge(scene, waiting(name, run_id)[:FIRST_LOOK])
    found: dict[str, dict[str, Any]] = {}
    for one in shortlist.of_run(run_id).classes:
        known = one.outlook
        found[one.class_name] = {
            "had": one.had, "judged": one.judged, "right": one.right, "lacks": one.lacks,
            "waiting": one.waiting, "expected": known.expected, "low": known.expected_low,
            "high": known.expected_high, "reaches": one.reaches,
            **actual(scene, shortlist.candidates(one.class_name, run_id)),
        }  # fmt: skip
    for name in scene.near:
        judge(scene, waiting(name, run_id))
    for one in shortlist.of_run(run_id).classes:
        found[one.class_name] |= {"confirmed": one.confirmed, "finally": one.reaches}
    return found


def waiting(name: str, run_id: int) -> list[Any]:
    """Candidates that nobody has judged, the surest first."""
    from flows import shortlist

    return [one for one in shortlist.candidates(name, run_id) if one.state == "waiting"]


def actual(scene: Scene, rows: Sequence[Any]) -> dict[str, int]:
    """How many of those that wait are right, in bands where enough were judged, and elsewhere."""

    def band(score: float) -> int:
        return int(np.searchsorted(BANDS, np.float32(score), side="right"))

    judged = Counter(band(one.score) for one in rows if one.state != "waiting")
    right = [one for one in rows if one.state == "waiting" and scene.is_of(one.key) == one.label]
    inside = sum(judged[band(one.score)] >= ENOUGH for one in right)
    return {"truly": inside, "truly_elsewhere": len(right) - inside}


def judge(scene: Scene, rows: Sequence[Any]) -> None:
    """Label what is of a near class, whichever it was offered for; dismiss the rest."""
    from records.labels import Wish
    from tasks import labelling

    right, wrong = [], []
    for one in rows:
        name = scene.is_of(one.key)
        if name in scene.near:
            right.append(Wish(one.key, image=one.sha256, label=name, version=one.version))
        else:
            wrong.append(
                Wish(one.key, image=one.sha256, version=one.version, offered=one.label)
            )
    if right:
        labelling.label(right, BY)
    if wrong:
        labelling.dismiss(wrong, BY)


# --- the page -------------------------------------------------------------------------------


def recall(one: Mapping[str, Any], way: str, depth: int) -> float:
    """Of a class's pictures in the pool, the share among the first so many."""
    return sum(place <= depth for place in one["ranks"][way]) / there(one)


def there(one: Mapping[str, Any]) -> int:
    """How many of a class may be offered: its R."""
    return int(one["ranks"]["there"][0])


def every(runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Each near class of each seed."""
    return ((run, one) for run in runs for one in run.found["classes"])


def each(runs: Sequence[Run], of: Callable[[Run, dict[str, Any]], float]) -> list[float]:
    """The mean of a figure over a seed's near classes, for every seed."""
    return [statistics.mean(of(run, one) for one in run.found["classes"]) for run in runs]


def page(runs: Sequence[Run]) -> None:
    """docs/stories/shortlist.md."""
    pools = [run.found["pool"] for run in runs]

    def pooled(what: str) -> str:
        return spread([one[what] for one in pools], 1, 0)

    listed = {run.setup["seed"]: [one["class"] for one in run.found["classes"]] for run in runs}
    refused = [run for run in runs if run.found["nights"][0]["state"] != "deployed"]
    lines = [
        f"Caltech-101, a cutoff of {CUTOFF} and a throw-away cutoff of {LOWER}. {len(NEAR_HAVE)} "
        f"classes have {min(NEAR_HAVE)} to {max(NEAR_HAVE)} usable images, "
        f"{runs[0].found['nights'][0]['classes']} have enough. The pool holds the "
        f"{pooled('near')} other images of the {len(NEAR_HAVE)} classes, {pooled('known')} of "
        f"known ones, {pooled('unlisted')} of {UNLISTED} classes that nobody has listed, "
        f"{2 * CATS_AND_DOGS:,} cats and dogs and {10 * SCANS:,} small scans; {pooled('marked')} "
        "are near copies of what library or benchmark hold and are not offered, "
        f"{pooled('offered')} are. The classes near the cutoff are, among those without copies of "
        "their own pictures: "
        + "; ".join(f"seed {number}: {', '.join(names)}" for number, names in listed.items())
        + ".",
        "",
        f"The night trains {PLAN.architecture} from ImageNet weights at {PLAN.image_size} pixels "
        f"({PLAN.recipe}, {PLAN.epochs} epochs) and does not know these classes; its version is "
        "the champion, the throw-away version starts from it.",
        *(f"Not so with seed {run.setup['seed']}, where nothing serves: "
          f"{run.found['nights'][0]['reason']}" for run in refused),
        "",
        *table(
            ["version", "classes", "benchmark", "of so many images"],
            [
                [name, *(spread([run.found["nights"][at][what] for run in runs], scale, digits)
                         for what, scale, digits in (("classes", 1, 0), ("benchmark", 100, 1),
                                                     ("images", 1, 0)))]
                for at, name in enumerate(("night", "throw-away run", "next night"))
            ],
        ),
        "## Where to look",
        "",
        "Percent of a class's images in the pool that are among the first 10, 20 and 50 of an "
        "order; and among the first R, where R is how many there are (then precision and recall "
        "are one). Means over the classes.",
        "",
        *table(
            ["order", "recall at 10", "at 20", "at 50", "precision at R"],
            [*(orders(WAYS[way], runs, lambda _, one, depth, way=way: recall(one, way, depth))
               for way in WAYS),
             orders("random order, on average", runs,
                    lambda run, _, depth: depth / run.found["pool"]["offered"]),
             orders("all of them first", runs, lambda _, one, depth: min(1, depth / there(one)))],
        ),
        f"![recall by how many one looks at, and what was expected of the rest]({STORY}.png)",
        "",
        *table(
            ["class", "seed", "usable", "R", "recall at 10", "at 20", "at 50", "precision at R",
             "nearest features, at R"],
            [
                [one["class"], str(run.setup["seed"]), str(one["had"]), str(there(one)),
                 *(f"{recall(one, OURS, depth):.0%}" for depth in (*DEPTHS, there(one))),
                 f"{recall(one, NEAREST, there(one)):.0%}"]
                for run, one in every(runs)
            ],
        ),
        *confirmations(runs),
        *next_nights(runs),
    ]
    write(STORY, "The images that are missing", lines,
          "which classes are near the cutoff or not listed, which of their images are where, the "
          "order of images and the augmentation",
          "one process for each core, with services of its own")  # fmt: skip


def orders(
    name: str, runs: Sequence[Run], of: Callable[[Run, dict[str, Any], int], float]
) -> list[str]:
    """A row: a share at each depth, and at as many as there are."""
    at = [spread(each(runs, lambda run, one, depth=depth: of(run, one, depth))) for depth in DEPTHS]
    return [name, *at, spread(each(runs, lambda run, one: of(run, one, there(one))))]


def confirmations(runs: Sequence[Run]) -> list[str]:
    """What was expected from the first that were judged, and what came."""
    known = [one for _, one in every(runs) if one["expected"] is not None]
    inside = sum(one["low"] <= one["truly"] <= one["high"] for one in known)
    return [
        "## What people confirm tells of the rest",
        "",
        f"The first {FIRST_LOOK} candidates of each class were judged, the surest first. From them "
        "the shortlist expects, band by band of scores, how many of those that wait are right; of "
        f"bands with fewer than {ENOUGH} judged ones it expects nothing. Of {len(known)} classes "
        "with an "
        f"estimate, the 95% interval held for {inside}; "
        f"{sum(one['expected'] for one in known):.0f} right ones were expected in all, and "
        f"{sum(one['truly'] for one in known)} there were.",
        "",
        *table(
            ["class", "seed", "right of judged", "still lacks", "waiting", "expected right",
             "in truth", "elsewhere", f"reaches {CUTOFF}?", "confirmed in the end", "and then"],
            [
                [one["class"], str(run.setup["seed"]), f"{one['right']} of {one['judged']}",
                 str(one["lacks"]), str(one["waiting"]),
                 "no estimate" if one["expected"] is None
                 else f"{one['expected']:.1f} ({one['low']} to {one['high']})",
                 str(one["truly"]), str(one["truly_elsewhere"]), one["reaches"],
                 str(one["confirmed"]), one["finally"]]
                for run, one in every(runs)
            ],
        ),
        "Elsewhere: right ones in the other bands.",
        "",
    ]  # fmt: skip


def next_nights(runs: Sequence[Run]) -> list[str]:
    """Whether the classes are trained then, and how they do."""
    learned = [one["learned"] for _, one in every(runs) if one["learned"]]
    right, images = (sum(pair[at] for pair in learned) for at in (0, 1))
    return [
        "## The next night",
        "",
        f"It trained {len(learned)} of the {len(list(every(runs)))} classes, with what the "
        f"throw-away versions had found and a person confirmed; on their benchmark images it is "
        f"right about {right} of {images}.",
        "",
        *(f"- Seed {run.setup['seed']}: {run.found['nights'][2]['state']}; "
          f"{run.found['nights'][2]['reason']}." for run in runs),
        "",
    ]  # fmt: skip


def draw(runs: Sequence[Run]) -> None:
    """Recall by how many one looks at; what was expected of the rest, and what came."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    depths = np.arange(1, DEEPEST + 1)

    def curves(of: Callable[[dict[str, Any], int], float]) -> npt.NDArray[np.float64]:
        return np.array([
            [statistics.mean(of(one, int(depth)) for one in run.found["classes"])
             for depth in depths] for run in runs
        ])  # fmt: skip

    left.plot(depths, curves(lambda one, depth: min(1, depth / there(one))).mean(axis=0),
              color="#b0b0b0", linestyle="--", linewidth=1.2, label="all of them first")
    for way, name in WAYS.items():
        lines = curves(lambda one, depth, way=way: recall(one, way, depth))
        mean, deviation = lines.mean(axis=0), lines.std(axis=0)
        left.plot(depths, mean, color=COLOURS[way], linewidth=1.8, label=name)
        left.fill_between(depths, mean - deviation, mean + deviation, color=COLOURS[way],
                          alpha=0.15, linewidth=0)  # fmt: skip
    offered = statistics.mean(run.found["pool"]["offered"] for run in runs)
    left.plot(depths, depths / offered, color="#2b2b2b", linestyle=":", label="random order")
    left.set_xlim(0, DEEPEST)
    left.set_ylim(0, 1.02)
    left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.set_xlabel(f"pictures looked at, of {offered:,.0f}")
    left.set_ylabel("of the class's images in the pool")
    rows = sorted(every(runs), key=lambda pair: (pair[1]["truly"], pair[1]["expected"] or 0))
    for place, (_, one) in enumerate(rows):
        if one["expected"] is not None:
            right.plot([one["low"], one["high"]], [place, place], color="#9a9a9a", linewidth=5,
                       alpha=0.5, solid_capstyle="butt")  # fmt: skip
            right.scatter(one["expected"], place, marker="|", s=90, color="#555555")
        right.scatter(one["truly"], place, color=COLOURS[OURS], s=28, zorder=3)
    right.set_yticks(range(len(rows)), [one["class"] for _, one in rows], fontsize=8)
    right.set_xlabel(f"right ones that wait when {FIRST_LOOK} were judged:\n"
                     "expected, with its 95% interval (grey), and in truth (blue)")  # fmt: skip
    for axes in (left, right):
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2,
                  frameon=False, fontsize=9)  # fmt: skip
    figure.suptitle(
        f"Classes that lack 1 to {CUTOFF - LOWER} images: mean of {len(runs)} seeds with "
        f"{len(NEAR_HAVE)} classes each, bands of one standard deviation",
        x=0.01, ha="left", fontweight="bold",
    )  # fmt: skip
    figure.savefig(FOLDER / f"{STORY}.png")


if __name__ == "__main__":
    main()

"""A shortlist on real photographs: eight classes that lack a few images, in a pool of thousands.

    python -m benchmarks.shortlist --data ../shared/data

Everything is real: an embedded Postgres, S3 and Prefect of its own, a night, a throw-away run, a
person who confirms (the truth is known), another night. Caltech-101 with cutoff 20 and throw-away
cutoff 15: eight classes have 15 to 19 usable images and five in the benchmark; their other images
lie in the pool, among those of twenty classes that nobody has listed, some of each known class,
cats, dogs and small scans.

Writes docs/stories/shortlist.md, .png and .json; --page writes page and picture again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.bench import facts

FOLDER = Path(__file__).parents[1] / "docs" / "stories"
NAME = "shortlist"
CUTOFF, LOWER = 20, 15
BENCHMARK_EACH = 5
KNOWN_EACH = 24  # usable images of a class that has enough; the rest is in the pool
NEAR_HAVE = (15, 16, 17, 18, 19, 15, 17, 19)
UNLISTED = 20
CATS_AND_DOGS = 750  # of each
SCANS = 150  # of each of ten kinds
FIRST_LOOK = 10  # candidates of each class that are judged before anything is expected of the rest
AT = (10, 20, 50)
BY = "benchmarks/shortlist.py"
WAYS = {
    "throwaway": "the throw-away run's shortlist",
    "look-alike": "champion: taken for the class it confuses this one with, least sure first",
    "unsure": "champion: least sure of all first",
    "nearest": "champion: features nearest to the mean of the class's own images",
    "random": "random order",
}

Ranking = list[bool]  # the offerable pictures of the pool in one order: of the class or not


def main() -> None:
    """Play the story, or only write its page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="holds caltech101_max40, cats_dogs, weights, ...")
    parser.add_argument("--page", action="store_true", help="only write page and picture again")
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = FOLDER / f"{NAME}.json"
    if not given.page:
        if given.data is None:
            raise SystemExit("--data is missing: name the folder of the data sets")
        kept.write_text(json.dumps(facts() | staged(given.data.resolve()), indent=1) + "\n")
    found = json.loads(kept.read_text())
    draw(found)
    write(found)


def staged(data: Path) -> dict[str, Any]:
    """Play in services of its own, which are gone afterwards."""
    state = Path(tempfile.mkdtemp(prefix="regraft-shortlist-", dir="/tmp"))
    state.chmod(0o755)
    os.environ["REGRAFT_STATE_DIR"] = str(state)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from infra import embedded, settings

    try:
        os.environ["PREFECT_API_URL"] = str(embedded.up(settings.load()).prefect_api_url)
        return play(data)
    finally:
        embedded.down(settings.load())
        shutil.rmtree(state)


# --- the story ------------------------------------------------------------------------------


def play(data: Path) -> dict[str, Any]:
    """Night, throw-away run, confirmations, night."""
    from flows.identify import identify
    from flows.nightly import nightly
    from flows.throwaway import throwaway
    from tasks import benchmark
    from tasks.benchmark import BENCHMARK
    from tasks.identification import locate
    from vision.plan import Augmentation, Plan

    plan = Plan(
        architecture="mobilenetv2_100",
        arguments={"pad_type": "same"},
        weights=str(data / "weights" / "mobilenetv2_100_coral_dequant.timm.safetensors"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_size=128,
        recipe="two-phase",
        epochs=24,
        head_epochs=20,
        unfreeze=3,
        learning_rate=2e-3,
        batch_norm="eval",
        cutoff=CUTOFF,
        augmentation=Augmentation(rotation=5.0),
    )
    scene = Scene(data)
    with tempfile.TemporaryDirectory() as scratch:
        load_classes(Path(scratch) / "benchmark", scene.benchmark, BENCHMARK)
        benchmark.freeze(BY, "five of each class, the near ones too")
        load_classes(Path(scratch) / "labelled", scene.labelled, "labelled/")
        pool = locate(str(link(Path(scratch) / "camera", scene.pool)))
    first = timed("night 1", lambda: nightly(plan=plan))
    # Each picture of the pool answered by the champion, which does not know the near classes.
    timed("champion's pool", lambda: identify(f"s3://{pool}", first.version_id))
    run = timed("throw-away run", lambda: throwaway(LOWER, [f"s3://{pool}"], plan))
    assert run.version_id is not None
    assert first.version_id is not None
    rankings, counts = ranked(scene, first.version_id, run.version_id)
    looked = confirm(scene, run.run_id)
    second = timed("night 2", lambda: nightly(plan=plan))
    return {
        "pool": {"pictures": len(scene.pool), **counts},
        "near": [
            {
                "class": name,
                "has": len(scene.labelled[name]),
                "in_pool": sum(rankings[name]["throwaway"]),
                "ways": {way: measured(one) for way, one in rankings[name].items()},
                "confirming": looked[name],
            }
            for name in scene.near
        ],
        "nights": [told(first), told(run), told(second)],
        "learned": learned(scene, second.version_id),
        "plan": {"architecture": plan.architecture, "image_size": plan.image_size,
                 "recipe": plan.recipe, "epochs": plan.epochs},
        "seconds": SECONDS,
    }  # fmt: skip


class Scene:
    """Which file is where: in the library, in the benchmark, in the pool.

    near: the classes that lack images; truth: of each object in the pool, by its file name.
    """

    def __init__(self, data: Path) -> None:
        folders = sorted(one for one in (data / "caltech101_max40").iterdir() if one.is_dir())
        files = {one.name: sorted(one.iterdir()) for one in folders}
        names = list(files)
        # By their place in the alphabet, so that nothing but that decides.
        self.near = names[5::12][: len(NEAR_HAVE)]
        rest = [name for name in names if name not in self.near]
        unlisted = rest[2::4][:UNLISTED]
        known = [name for name in rest if name not in unlisted]
        have = dict.fromkeys(known, KNOWN_EACH) | dict(zip(self.near, NEAR_HAVE, strict=True))
        self.benchmark = {name: files[name][:BENCHMARK_EACH] for name in have}
        ends = {name: BENCHMARK_EACH + count for name, count in have.items()}
        self.labelled = {name: files[name][BENCHMARK_EACH:ends[name]] for name in have}
        pool = [(path, name) for name in names for path in files[name][ends.get(name, 0):]]
        for kind in ("cats", "dogs"):
            some = sorted((data / "cats_dogs" / "train" / kind).iterdir())[:CATS_AND_DOGS]
            pool += [(path, kind) for path in some]
        for folder in sorted((data / "cifar10_sample").iterdir()):
            pool += [(path, "scan") for path in sorted(folder.iterdir())[:SCANS]]
        random.Random(0).shuffle(pool)  # noqa: S311  (no secret)
        self.pool = {f"{place:05d}{path.suffix}": path for place, (path, _) in enumerate(pool)}
        self.truth = dict(zip(self.pool, (name for _, name in pool), strict=True))

    def is_of(self, key: str) -> str:
        """The true class of an object of the pool."""
        return self.truth[key.rsplit("/", 1)[1]]


def link(folder: Path, files: Mapping[str, Path]) -> Path:
    """A folder with these files under these names."""
    folder.mkdir(parents=True)
    for name, path in files.items():
        (folder / name).symlink_to(path)
    return folder


def load_classes(folder: Path, classes: Mapping[str, Sequence[Path]], prefix: str) -> None:
    """Upload class folders."""
    from tasks.loading import load_folder

    for name, paths in classes.items():
        link(folder / name, {path.name: path for path in paths})
    load_folder(folder, prefix)


def timed(what: str, act: Any) -> Any:
    """Do it, and say how long it took."""
    started = time.perf_counter()
    done = act()
    seconds = time.perf_counter() - started
    said = getattr(done, "reason", getattr(done, "sentence", ""))
    print(f"{what}: {said} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    SECONDS[what] = seconds
    return done


SECONDS: dict[str, float] = {}


def told(outcome: Any) -> dict[str, Any]:
    """An outcome with the accuracy of its version on the benchmark."""
    from infra import database
    from records import evaluations

    with database.connect().transaction() as session:
        rows = evaluations.of_version(session, outcome.version_id)
    on = next(one for one in reversed(rows) if one.subject == "benchmark")
    return {
        "state": outcome.state, "reason": outcome.reason, "version": outcome.version_id,
        "benchmark": on.accuracy, "images": on.images, "low": on.accuracy_low,
        "high": on.accuracy_high,
    }  # fmt: skip


def learned(scene: Scene, version_id: int) -> dict[str, Any]:
    """What the second night trained, and how it does on the near classes' benchmark images."""
    from sqlalchemy import text

    from infra import database
    from records import versions

    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        rows = session.execute(
            text(
                """
                SELECT c.class_name, c.images, c.correct FROM evaluation_classes c
                JOIN evaluations e ON e.id = c.evaluation_id
                WHERE e.version_id = :version AND e.subject = 'benchmark'
                  AND c.class_name = ANY(:near)
                """
            ),
            {"version": version_id, "near": scene.near},
        ).all()
        mined = session.execute(
            text(
                """
                SELECT c.name, count(*) FROM images i JOIN classes c ON c.id = i.class_id
                WHERE i.mined AND i.withdrawn_at IS NULL AND i.split = 'train' GROUP BY c.name
                """
            )
        ).all()
    return {
        "classes": len(version.class_names),
        "near_trained": sorted(set(scene.near) & set(version.class_names)),
        "benchmark": {name: [correct, images] for name, images, correct in rows},
        "mined": {name: count for name, count in mined if name in scene.near},
    }


# --- the orders in which somebody might look --------------------------------------------------


def ranked(
    scene: Scene, champion: int, version: int
) -> tuple[dict[str, dict[str, Ranking]], dict[str, int]]:
    """For each near class the pool's pictures in the order of each way, and counts of the pool."""
    mine, marked = answers(version)
    theirs, _ = answers(champion)
    order = sorted(mine)
    keys = [mine[sha256]["key"] for sha256 in order]
    truth = np.array([scene.is_of(key) for key in keys])
    sure = np.array([theirs[sha256]["confidence"] for sha256 in order])
    says = np.array([theirs[sha256]["predicted"] for sha256 in order])
    seen = stored_features(champion, order)
    rankings: dict[str, dict[str, Ranking]] = {}
    for name in scene.near:
        own, called = own_features(champion, name)
        middle = unit(unit(own).mean(axis=0, keepdims=True))
        look_alike = Counter(called).most_common(1)[0][0]
        scores = {
            "throwaway": np.array([mine[sha256]["targets"][name] for sha256 in order]),
            "look-alike": np.where(says == look_alike, 1 - sure, -sure),
            "unsure": -sure,
            "nearest": (unit(seen) @ middle.T)[:, 0],
        }
        rankings[name] = {
            way: (truth[np.argsort(-values, kind="stable")] == name).tolist()
            for way, values in scores.items()
        }
    kinds = Counter(scene.truth.values())
    return rankings, {
        "offerable": len(order),
        "marked": marked,
        "near": sum(kinds[name] for name in scene.near),
        "cats_and_dogs": kinds["cats"] + kinds["dogs"],
        "scans": kinds["scan"],
        "known": sum(kinds[name] for name in scene.labelled if name not in scene.near),
        "classes": len(scene.labelled) - len(scene.near),
    }


def answers(version: int) -> tuple[dict[str, dict[str, Any]], int]:
    """What a version said of each picture that may be offered; and how many may not be."""
    from sqlalchemy import text

    from infra import database

    with database.connect().transaction() as session:
        rows = session.execute(
            text(
                """
                SELECT a.sha256, min(o.key), a.predicted, a.confidence, a.target_confidences,
                       i.targets, p.mark
                FROM pool_answers a JOIN identifications i ON i.id = a.identification_id
                JOIN pool_images p ON p.sha256 = a.sha256
                JOIN pool_objects o ON o.sha256 = a.sha256
                WHERE a.version_id = :version
                GROUP BY a.version_id, a.sha256, i.targets, p.mark
                """
            ),
            {"version": version},
        ).all()
    offered = {
        row.sha256: {
            "key": row[1], "predicted": row.predicted, "confidence": row.confidence,
            "targets": dict(zip(row.targets, row.target_confidences, strict=True)),
        }
        for row in rows
        if row.mark is None
    }  # fmt: skip
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


def measured(order: Ranking) -> dict[str, float]:
    """Recall at some depths, and precision at as many as there are."""
    right = sum(order)
    found = {f"recall_{depth}": sum(order[:depth]) / right for depth in AT}
    return found | {"precision_r": sum(order[:right]) / right}


def by_chance(of: int, right: int) -> dict[str, float]:
    """What a random order has in the mean."""
    return {f"recall_{depth}": depth / of for depth in AT} | {"precision_r": right / of}


# --- a person who knows -----------------------------------------------------------------------


def confirm(scene: Scene, run_id: int) -> dict[str, dict[str, Any]]:
    """Judge the first of each class; note what is expected of the rest; judge the rest."""
    from flows import shortlist

    for name in scene.near:
        waiting = [one for one in shortlist.candidates(name, run_id) if one.state == "waiting"]
        judge(scene, waiting[:FIRST_LOOK])
    expected = {one.class_name: one for one in shortlist.of_run(run_id).classes}
    found: dict[str, dict[str, Any]] = {}
    for name, one in expected.items():
        known = one.outlook
        found[name] = {
            "judged": one.judged, "right": one.right, "lacks": one.lacks, "waiting": one.waiting,
            "unjudged": known.unjudged, "expected": known.expected, "low": known.expected_low,
            "high": known.expected_high, "reaches": one.reaches,
            **actual(scene, shortlist.candidates(name, run_id)),
        }  # fmt: skip
    for name in scene.near:
        judge(scene, [one for one in shortlist.candidates(name, run_id) if one.state == "waiting"])
    for one in shortlist.of_run(run_id).classes:
        found[one.class_name] |= {"confirmed": one.confirmed, "finally": one.reaches}
    return found


def actual(scene: Scene, rows: Sequence[Any]) -> dict[str, int]:
    """How many of those that wait are right, in bands where some were judged, and elsewhere."""
    from vision.outlook import BANDS

    def band(score: float) -> int:
        return int(np.searchsorted(BANDS, np.float32(score), side="right"))

    told = {band(one.score) for one in rows if one.state != "waiting"}
    right = [one for one in rows if one.state == "waiting" and scene.is_of(one.key) == one.label]
    inside = sum(band(one.score) in told for one in right)
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
            wrong.append(Wish(one.key, image=one.sha256, version=one.version))
    if right:
        labelling.label(right, BY)
    if wrong:
        labelling.dismiss(wrong, BY)


# --- page and picture -------------------------------------------------------------------------


def draw(found: dict[str, Any]) -> None:
    """Recall at 20 by class and way; what was expected of the rest, and what came."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    near = sorted(found["near"], key=lambda one: -one["ways"]["throwaway"]["recall_20"])
    places = np.arange(len(near))[::-1]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.6), dpi=120, layout="constrained", width_ratios=(3, 2)
    )
    styles = {"throwaway": ("o", "C0", 70), "nearest": ("D", "C1", 36),
              "look-alike": ("s", "C2", 36), "unsure": ("x", "#8a8a8a", 36)}  # fmt: skip
    for way, (marker, colour, size) in styles.items():
        left.scatter([one["ways"][way]["recall_20"] for one in near], places, s=size,
                     marker=marker, color=colour, label=WAYS[way], zorder=3)  # fmt: skip
    left.set_yticks(places, [f"{one['class']} ({one['in_pool']} in the pool)" for one in near])
    left.set_xlim(-0.03, 1.03)
    left.xaxis.set_major_formatter(PercentFormatter(1.0))
    left.set_xlabel(f"of the class's images, among the first 20 of {found['pool']['offerable']:,}")
    for one, place in zip(near, places, strict=True):
        looked = one["confirming"]
        if looked["expected"] is not None:
            right.plot([looked["low"], looked["high"]], [place, place], color="#9a9a9a",
                       linewidth=5, alpha=0.5, solid_capstyle="butt")  # fmt: skip
            right.scatter(looked["expected"], place, marker="|", s=120, color="#555555")
        right.scatter(looked["truly"], place, color="C0", s=60, zorder=3)
    right.set_yticks(places, [one["class"] for one in near])
    right.set_xlabel("right ones that still wait, after ten were judged:\n"
                     "expected with 95% interval (grey), and in truth (blue)")  # fmt: skip
    for axes in (left, right):
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False, fontsize=9)  # fmt: skip
    figure.savefig(FOLDER / f"{NAME}.png")


def write(found: dict[str, Any]) -> None:
    """The page."""
    pool, near, plan = found["pool"], found["near"], found["plan"]
    first, run, second = found["nights"]
    learned_, looked = found["learned"], [one["confirming"] for one in near]
    whole = {way: means([one["ways"][way] for one in near]) for way in WAYS if way != "random"}
    whole["random"] = means([by_chance(pool["offerable"], one["in_pool"]) for one in near])
    truly = sum(one["truly"] for one in looked)
    inside = sum(
        one["low"] <= one["truly"] <= one["high"] for one in looked if one["expected"] is not None
    )
    correct, images = (sum(pair[place] for pair in learned_["benchmark"].values())
                       for place in (0, 1))  # fmt: skip
    lines = [
        "# The images that are missing",
        "",
        f"Written by `python -m benchmarks.{NAME} --data DATA`; nothing here is typed by hand. "
        "One run, one seed.",
        "",
        f"Caltech-101, a cutoff of {CUTOFF} and a throw-away cutoff of {LOWER}. {len(near)} "
        f"classes have 15 to 19 usable images, {pool['classes']} others have enough. A pool of "
        f"{pool['pictures']:,} pictures holds the other {pool['near']} images of the "
        f"{len(near)} classes, {pool['known']} of known ones, those of {UNLISTED} classes that "
        f"nobody has listed, {pool['cats_and_dogs']:,} cats and dogs and {pool['scans']:,} small "
        f"scans. {pool['marked']} of them are near copies of what library or benchmark hold and "
        f"are not offered; {pool['offerable']:,} are.",
        "",
        f"The first night ({plan['architecture']} from ImageNet weights, {plan['image_size']} "
        f"pixels, {plan['recipe']}, {plan['epochs']} epochs) has "
        f"{share(first['benchmark'])} on the {first['images']} benchmark images, of which it does "
        f"not know the {len(near)} classes; the throw-away version, trained from it, has "
        f"{share(run['benchmark'])}.",
        "",
        "## Where to look",
        "",
        "Means over the classes. R is as many as a class has in the pool.",
        "",
        "| order | recall at 10 | at 20 | at 50 | precision at R |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {WAYS[way]} | "
            + " | ".join(share(one[f"recall_{depth}"]) for depth in AT)
            + f" | {share(one['precision_r'])} |"
            for way, one in whole.items()
        ),
        "",
        f"![recall by class, and what was expected of the rest]({NAME}.png)",
        "",
        "| class | has | in the pool | recall at 10 | at 20 | at 50 | precision at R | nearest "
        "features, at R |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {one['class']} | {one['has']} | {one['in_pool']} | "
            + " | ".join(share(one["ways"]["throwaway"][f"recall_{depth}"]) for depth in AT)
            + f" | {share(one['ways']['throwaway']['precision_r'])}"
            f" | {share(one['ways']['nearest']['precision_r'])} |"
            for one in near
        ),
        "",
        "## What people confirm tells of the rest",
        "",
        f"The first {FIRST_LOOK} candidates of each class were judged, the surest first; from "
        "them the shortlist expects, band by band of scores, how many of those that wait are "
        f"right. In truth {truly} were. The 95% interval held for {inside} of "
        f"{sum(one['expected'] is not None for one in looked)} classes. Of bands where nobody has "
        "judged any nothing is expected; what was right in them stands in the last column.",
        "",
        "| class | judged | right | lacks | waiting | expected right | in truth | will it reach "
        f"{CUTOFF}? | confirmed in the end | and now | elsewhere |",
        "|---|---:|---:|---:|---:|---|---:|---|---:|---|---:|",
        *(confirming(one) for one in near),
        "",
        "## The next night",
        "",
        f"It trained {learned_['classes']} classes, {len(learned_['near_trained'])} of the "
        f"{len(near)} among them, with {sum(learned_['mined'].values())} images that the "
        f"throw-away version had found and a person confirmed; on their benchmark images "
        f"{correct} of {images} are right. On all {second['images']} benchmark images it has "
        f"{share(second['benchmark'])} ({share(second['low'])} to {share(second['high'])}). "
        f"It was {second['state']}: {second['reason']}.",
        "",
        f"<sub>{found['measured']}: {found['processor']}, {found['cores']} cores, Python "
        f"{found['python']}. Everything: [{NAME}.json]({NAME}.json).</sub>",
    ]
    (FOLDER / f"{NAME}.md").write_text("\n".join(lines) + "\n")
    print(f"{FOLDER / NAME}.md written")


def confirming(one: dict[str, Any]) -> str:
    """One row of the second table."""
    looked = one["confirming"]
    expected = (
        "no estimate" if looked["expected"] is None
        else f"{looked['expected']:.1f} ({looked['low']} to {looked['high']})"
    )  # fmt: skip
    return (
        f"| {one['class']} | {looked['judged']} | {looked['right']} | {looked['lacks']} | "
        f"{looked['waiting']} | {expected} | {looked['truly']} | {looked['reaches']} | "
        f"{looked['confirmed']} | {looked['finally']} | {looked['truly_elsewhere']} |"
    )


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: float(np.mean([one[name] for one in rows])) for name in rows[0]}


def share(value: float) -> str:
    """In percent."""
    return f"{value:.1%}"


if __name__ == "__main__":
    main()

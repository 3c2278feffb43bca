"""Fine-tuning: images per second with input and augmentation, against three tools and the limit.

Same JPEGs, networks (random weights), batch size, optimizer and number of images for all. regraft
trains by its own `fit`, from the pixel cache; the others read the JPEGs, as they come and again
with their own switches. The limit is the bare step on one constant batch. `alone` tries one
network:

    python -c 'from benchmarks.training import alone; print(alone("mobilenetv2_100"))'
"""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bench import arguments, facts
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.photographs import photographs
from benchmarks.trainers import (
    CLASSES,
    CORES,
    MEAN,
    SIZE,
    STD,
    Contender,
    Task,
    cached,
    plain_losses,
)

PART = "train"
AS_THEY_COME = ("fastai", "Trainer", "loop")
SWITCHED = tuple(f"{name}, switched" for name in AS_THEY_COME)
# Half of the peers at a time beside regraft and the limit: eight trainings of a ResNet-50 that keep
# their memory are more than 24 GiB, and a machine short of it measures only that.
GROUPS = (AS_THEY_COME, SWITCHED)
ROUNDS = 2  # of each group
HELD_OUT = 8
# architecture -> images per round on a CPU, wished multiple of the best peer as it comes
NETWORKS: dict[str, tuple[int, float | None]] = {
    "mobilenetv2_100": (192, 1.9),
    "efficientnet_b0": (96, None),
    "resnet50": (96, 3.3),
}
BATCH, BATCH_ON_GPU, IMAGES_ON_GPU = 32, 128, 4096
# a run that regraft takes for so many pictures is worth measuring, and not worth compiling
PICTURES = 4000
COMPILED = "mobilenetv2_100"
# all of it must end within 14 minutes on two cores; what is optional is left out later than this
OPTIONAL_UNTIL = 640.0
STEPS_EPOCHS, STEPS_IMAGES, TOLERANCE = 6, 64, 0.01


def main() -> None:
    """Measure all networks and write the part."""
    given = arguments(PART)
    begun = time.perf_counter()
    device = "cuda" if given.gpu else "cpu"
    count = IMAGES_ON_GPU if given.gpu else max(images for images, _ in NETWORKS.values())
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        notes.append(_written(folder, count + HELD_OUT, given.data))
        for architecture, (images, goal) in NETWORKS.items():
            row, note = measured(_task(folder, device, architecture, images), goal)
            rows.append(row)
            notes.append(note)
        rows.append(_equal_losses(folder, notes))
        if device == "cpu" and time.perf_counter() - begun < OPTIONAL_UNTIL:
            rows.append(_compiled(folder, notes))
    notes.append(ABOUT)
    print(Part(PART, "Training", tuple(rows), tuple(notes), (), facts()).save(device))


ABOUT = (
    "As they come: fastai with `aug_transforms` on batches and its workers, the Trainer and the "
    "loop with torchvision's `RandomResizedCrop`, flip and `ColorJitter` and `DataLoader`'s "
    f"default of no workers. Switched: {CORES} workers, fused AdamW, and the precision and memory "
    "format that were fastest here in the trials. Each contender has its own process; regraft and "
    "the limit keep freed memory (`memory.keep_freed`), the others do not, as they come without. "
    "regraft clips gradients, as its plans and the Trainer do by default; the limit does not. "
    "Gathering and bending pictures is about 2% of a step of MobileNetV2, the norm of all "
    "gradients about 0.5%."
)


def alone(architecture: str, device: str = "cpu", images: int = 64, rounds: int = 2,
          groups: tuple[tuple[str, ...], ...] = (("loop", "loop, switched"),)) -> Row:
    """One network, fewer images and contenders: to try something."""
    with tempfile.TemporaryDirectory() as place:
        _written(Path(place), images + HELD_OUT, None)
        task = replace(_task(Path(place), device, architecture, images), images=images)
        return measured(task, None, groups, rounds)[0]


@contextmanager
def contenders(names: tuple[str, ...]) -> Iterator[dict[str, Contender]]:
    """Their processes, which end when the block does."""
    running = {name: Contender(name) for name in names}
    try:
        yield running
    finally:
        for one in running.values():
            one.end()


def measured(
    task: Task,
    goal: float | None,
    groups: tuple[tuple[str, ...], ...] = GROUPS,
    rounds: int = ROUNDS,
) -> tuple[Row, str]:
    """One network: the contenders of each group in turn with regraft and the limit."""
    print(f"{task.architecture}: {task.images} images a round", flush=True)
    found: dict[str, Figure] = {}
    for group in groups:
        with contenders(("regraft", "limit", *group)) as running:
            machine = running["regraft"].begin(task)["machine"]
            told = _with_fastest(task, machine)
            for name, one in running.items():
                if name != "regraft":
                    one.begin(told)
            turns = {name: one.round for name, one in running.items()}
            for name, figure in take_turns(turns, "images/s", rounds).items():
                before = found[name].values if name in found else ()
                found[name] = replace(figure, values=before + figure.values)
    print(f"  regraft chose {machine['precision']}, channels last {machine['channels_last']}, "
          f"{machine['threads']} threads", flush=True)
    ours = found.pop("regraft")
    ours = replace(ours, note=f"{machine['precision']}"
                   f"{', channels last' if machine['channels_last'] else ''}")
    goals = []
    plain = [found[name] for name in AS_THEY_COME if name in found]
    switched = [found[name] for name in SWITCHED if name in found]
    if goal and task.device == "cpu" and plain:
        best = _best(plain)
        goals.append(Goal(best.name, goal, f"at least {goal} x the best peer as it comes"))
    if task.device == "cpu" and switched:
        best = _best(switched)
        goals.append(Goal(best.name, 1.2, "at least 1.2 x the best peer with its switches"))
    share = 0.97 if task.device == "cpu" else 0.90
    goals.append(Goal("limit", share, f"at least {share:.0%} of the limit"))
    what = f"{task.architecture}, {SIZE} px, batch {task.batch_size}, {task.images} images a round"
    trials = ", ".join(f"{1 / each:.1f} with {way}"
                       for way, each in machine["measured_seconds"].items())
    note = (f"{task.architecture}: the trials that chose for regraft (steps without optimizer) "
            f"saw images/s of {trials or 'nothing, the run is too short'}.")
    row = Row(what, ours, tuple(found.values()), tuple(goals))
    return row, f"{note} {beyond(row)}".strip()


def beyond(row: Row) -> str:
    """Which goals no eager step can reach, because the limit itself does not."""
    limit = next(one for one in row.others if one.name == "limit")
    medians = {one.name: one.median for one in row.others}
    return " ".join(
        f"The limit itself is {limit.median / medians[goal.against]:.2f} x {goal.against}: "
        f"{goal.ratio:g} x is more than eager steps can give here."
        for goal in row.goals
        if goal.against != limit.name and limit.median < goal.ratio * medians[goal.against]
    )


def _best(figures: list[Figure]) -> Figure:
    return max(figures, key=lambda one: one.median)


def _task(folder: Path, device: str, architecture: str, images: int) -> Task:
    if device == "cuda":
        return Task(folder, device, architecture, IMAGES_ON_GPU, BATCH_ON_GPU, epochs=100)
    return Task(folder, device, architecture, images, BATCH, epochs=-(-PICTURES // images))


def _with_fastest(task: Task, machine: dict[str, Any]) -> Task:
    """The fastest way of the trials, whatever regraft chose of them."""
    seconds = machine["measured_seconds"]
    if not seconds:
        return replace(task, precision=machine["precision"],
                       channels_last=machine["channels_last"])
    best = min((way for way in seconds if "compiled" not in way), key=lambda way: seconds[way])
    return replace(task, precision=best.split(",")[0], channels_last="channels last" in best,
                   threads=int(re.search(r"(\d+) thread", best)[1]))


def _written(folder: Path, count: int, data: Path | None) -> str:
    """Write the JPEGs and regraft's pixel cache of them; says what decoding once costs."""
    from vision.images import decode, prepare
    from vision.pixels import PixelCache
    from vision.plan import Plan

    listed = []
    bodies = photographs(count, data, classes=CLASSES)
    for number, (name, body) in enumerate(bodies):
        place = folder / "jpegs" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(body)
        listed.append((name, f"{number}.jpg", hashlib.sha256(body).hexdigest()))
    (folder / "listed.json").write_text(json.dumps(listed))
    geometry = Plan(image_size=SIZE).geometry
    begun = time.perf_counter()
    with PixelCache(folder / "pixels", 20).writer("all", geometry, count) as writer:
        for row, ((_, body), (_, _, digest)) in enumerate(zip(bodies, listed, strict=True)):
            writer.put(row, digest, prepare(decode(body), geometry))
    each = 1000 * (time.perf_counter() - begun) / count
    with PixelCache(folder / "pixels", 20).writer("still", _still().geometry, count) as writer:
        for row, ((_, body), (_, _, digest)) in enumerate(zip(bodies, listed, strict=True)):
            writer.put(row, digest, prepare(decode(body), _still().geometry))
    return (f"regraft decodes each image once, at intake: {each:.1f} ms each on one core for these "
            "JPEGs, before the figures below, which begin with pixels in the cache; the others "
            "decode in every epoch.")


# --- the same result ---


def _still() -> Any:
    """A plan without anything that a plain loop does not do."""
    from vision.plan import Augmentation, Plan

    return Plan(
        architecture="mobilenetv2_100", image_size=SIZE, crop=1.0, recipe="scratch",
        epochs=STEPS_EPOCHS, batch_size=BATCH, learning_rate=RATE_OF_STEPS, warmup_epochs=0.0,
        weight_decay=0.0, optimizer="sgd", dropout=0.0, label_smoothing=0.0, class_weights="none",
        gradient_clip=None, precision="float32", channels_last=False, mean=MEAN, std=STD,
        augmentation=Augmentation(flip=False, scale=1.0, rotation=0.0, brightness=0.0,
                                  contrast=0.0, saturation=0.0),
    )


# AdamW would turn differences in the last bit into whole steps: its first is a sign
RATE_OF_STEPS = 3e-3


def _equal_losses(folder: Path, notes: list[str]) -> Row:
    """The same network, steps, rate and images: the same loss, epoch by epoch."""
    from vision import network as networks
    from vision.fitting import Examples, fit

    plan = _still()
    examples = cached(folder, plan.geometry)
    names = sorted(set(examples.labels))
    train = Examples(examples.pixels, examples.images[:STEPS_IMAGES],
                     examples.labels[:STEPS_IMAGES])
    validation = Examples(examples.pixels, examples.images[-HELD_OUT:],
                          examples.labels[-HELD_OUT:])
    fitted = fit(networks.build(plan, names), plan, train, validation, folder / "equal", "cpu")
    ours = [epoch.train_loss for epoch in fitted.epochs]
    plain = plain_losses(folder, plan, names, STEPS_IMAGES)
    apart = max(abs(one - two) / two for one, two in zip(ours, plain, strict=True))
    notes.append(
        f"The same loss after the same steps ({plan.architecture}, float32 on the CPU, SGD with "
        "momentum, the same start, rate, batches and pixels, no augmentation, "
        f"{STEPS_IMAGES} images, "
        f"{STEPS_EPOCHS * STEPS_IMAGES // BATCH} steps): mean losses of the epochs were "
        f"{', '.join(f'{one:.4f}' for one in ours)} in regraft and "
        f"{', '.join(f'{one:.4f}' for one in plain)} in a plain loop; at most {apart:.2%} apart, "
        f"{'within' if apart <= TOLERANCE else '**not within**'} the tolerance of {TOLERANCE:.0%}."
    )
    return Row(
        "Largest difference of an epoch's mean loss from a plain loop's, float32, equal steps",
        Figure("regraft", "relative loss", (apart,)),
        (Figure("tolerance", "relative loss", (TOLERANCE,)),),
        (Goal("tolerance", 1.0, f"within {TOLERANCE:.0%} in every epoch"),),
    )


# --- compiled ---


def _compiled(folder: Path, notes: list[str]) -> Row:
    """The same once more with torch.compile, which regraft uses only for long runs."""
    images, _ = NETWORKS[COMPILED]
    task = replace(_task(folder, "cpu", COMPILED, images), epochs=10_000)
    with contenders(("regraft", "loop, compiled", "limit")) as running:
        machine = running["regraft"].begin(task)["machine"]
        task = _with_fastest(task, machine)
        for name in ("loop, compiled", "limit"):
            running[name].begin(task)
        found = take_turns({name: one.round for name, one in running.items()}, "images/s", ROUNDS)
    notes.append(
        f"For a run of {task.epochs * images:,} images the trials compile too: regraft chose "
        f"{'to compile' if machine['compiled'] else 'not to compile'}. The goals above are for "
        "runs that are too short to pay for the minute or two that compiling takes."
    )
    ours = replace(found.pop("regraft"),
                   note="compiled" if machine["compiled"] else "not compiled")
    return Row(f"{COMPILED}, {SIZE} px, batch {BATCH}, a long run: torch.compile", ours,
               tuple(found.values()),
               (Goal("loop, compiled", 1.2, "at least 1.2 x the loop, compiled too"),))


if __name__ == "__main__":
    main()

"""The decision: may this candidate serve? Pure functions of figures; they query, log, copy nothing.

Every check says what it looked at in numbers and in one sentence. It fails closed: an absent or
non-finite figure fails its check, and no checks means not passed. `undecidable` is said where the
images do not suffice to tell; it does not stop a candidate by itself.

The checks, by name:
  checkpoint, benchmark, answers, class names, runtime   may the figures be compared at all
  reproduction                     the stored checkpoint, loaded again, repeats its answers
  no worse, margin, slide          images of the classes that both versions know, pair by pair,
                                   each answering with those classes only: what was forgotten
  crowding                         the same images with all classes to choose from: what new
                                   classes take from the known ones, and no more than they may
  class recall, small classes, dead classes, lost classes, new classes, unproven classes
  accuracy floor                   a first version only: nobody is there to compare it with
  calibration, gap, latency        in bounds
  rejection                        only where a person has rejected the version, or taken it back
When the figures cannot be compared, the checks that compare them are not made. Of the failures a
person may override those that `OVERRIDABLE` names, after having seen them: `overridden`.

No torch here: records and pages import this.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, bdtrc, betaln, gammaln

from vision.answers import Answers
from vision.scores import calibration_by_chance, calibration_error, class_indices, interval

# sums of shares like 5 * 0.004 must not pass a limit of 0.02 by rounding alone
ROUNDING = 1e-9
NAMES_SHOWN = 8
USUAL_DISCORDANCE = 0.06  # of two trainings of one plan, while nothing was measured
# How far an answer repeated from the stored checkpoint may lie from the recorded one. The engine
# and its precision are those of the record, so this is about other shapes of the last batch only.
REPEAT_TOLERANCE = 1e-3

# What a person may override, and the figure that must be there for it: nobody can weigh what was
# not measured. Whatever is not named here stops a version for good: figures that cannot be
# compared, and a class that has died.
OVERRIDABLE = {
    "no worse": "chance",
    "margin": "drop",
    "slide": "sum",
    "crowding": "sum",
    "class recall": "vetoed",
    "lost classes": "classes",
    "new classes": "measured",
    "unproven classes": "unproven",
    "accuracy floor": "accuracy",
    "calibration": "error",
    "gap": "gap",
    "latency": "seconds",
    "rejection": "rejected",
}
# Whoever overrides one of these accepts a loss: the version becomes the new anchor.
LOSSES = ("no worse", "margin", "slide", "crowding")

Numbers = Mapping[str, float | int | None]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class BadLimits(ValueError):
    """A limit outside its range; the message names field, value and mend."""


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    numbers: finite or None, so that JSON and Postgres take them; shares are 0..1, times are
    seconds. sentence: what a person needs to know, with counts.
    """

    name: str
    verdict: Literal["passed", "failed", "undecidable", "overridden"]
    numbers: Numbers
    sentence: str

    def __post_init__(self) -> None:
        if self.verdict not in ("passed", "failed", "undecidable", "overridden"):
            raise ValueError(f"{self.name}: verdict {self.verdict!r} is none")
        for key, number in self.numbers.items():
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{self.name}: {key}={number}: use None for what is not known")

    @property
    def may_be_overridden(self) -> bool:
        """Whether a person may let this failure pass: it is their choice, and it was measured."""
        return self.numbers.get(OVERRIDABLE.get(self.name, "")) is not None


@dataclass(frozen=True)
class Verdict:
    """All checks; passed is derived from them, so that the two cannot disagree."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether anything was checked and nothing failed."""
        return bool(self.checks) and all(check.verdict != "failed" for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that stopped the candidate."""
        return tuple(check for check in self.checks if check.verdict == "failed")

    @property
    def overridden(self) -> tuple[Check, ...]:
        """The checks that a person let pass."""
        return tuple(check for check in self.checks if check.verdict == "overridden")

    def check(self, name: str) -> Check | None:
        """Give the check of this name, or None when it was not made."""
        return next((check for check in self.checks if check.name == name), None)

    def approved(self, seen: AbstractSet[str]) -> "Verdict":
        """Give the verdict of a person who lets those failures pass that they have seen, by name.

        What nobody may override, and what failed without their having seen it, still fails.
        """
        return Verdict(tuple(
            replace(check, verdict="overridden")
            if check.verdict == "failed" and check.name in seen and check.may_be_overridden
            else check
            for check in self.checks
        ))


def _limit(default: float, low: float, high: float) -> float:
    """Declare a limit with its range, both ends allowed."""
    value: float = field(default=default, metadata={"range": (low, high)})
    return value


@dataclass(frozen=True)
class Limits:
    """What a candidate may not exceed. Shares are 0..1: 0.01 is one point. Raises `BadLimits`.

    margin: largest drop in accuracy on images of shared classes, each version answering with
        those classes only. A product choice, not an allowance for noise. The drops since the
        anchor version may sum to twice as much.
    seed_noise: standard deviation of the true accuracy between trainings of one plan that differ
        in their seed alone. It widens the standard error of `no worse`: a large benchmark would
        otherwise tell an unlucky seed from a lucky one, and refuse half of all equal plans.
    crowding: by how much more than the margin accuracy on these images may drop with all classes
        to choose from, for each doubling of the class list: from 60 classes to 101 it doubles
        0.75 times. A list that grows class by class may drop no more than one that grows at once.
    significance: chance, at most, of calling an equal candidate worse; used by `no worse` and,
        over all classes together, by `class recall` and `new classes`.
    veto_recall: a class stops a candidate only if its recall fell by more than this, besides
        significantly; retraining moves single classes a little even between equals.
    veto_share: a class counts as decidable when the loss of this share of the champion's right
        answers there would be vetoed; below that it is listed as a small class.
    new_class_floor: least recall of the classes that the champion does not know, in the mean. A
        single one stops a candidate when it is surely below, or when nothing of it is right.
    new_class_images: fewest images on the benchmark that prove a class. With fewer it is
        unproven and judged on the test split.
    unproven_allowed: whether unproven classes may serve.
    retired_classes: classes that a person has withdrawn; others may not disappear.
    chance_times: a first version's accuracy (lower 95% bound) must exceed this many times
        chance, or half the way from chance to 1 if that is less. Chance: the share of the most
        frequent class, which is what always answering that class would reach.
    calibration_bound: by how much the expected calibration error on the benchmark may exceed what
        chance gives a version that is as right as it is sure, on so many images.
    calibration_worse: by how much it may exceed the champion's on the images of shared classes.
    gap_bound: largest training accuracy minus validation accuracy.
    latency_seconds: longest median time for one image at batch size 1 on CPU.
    latency_times: longest latency as a multiple of the champion's, when both were measured on
        the same machine.
    """

    margin: float = _limit(0.01, 0, 1)
    seed_noise: float = _limit(0.003, 0, 0.5)
    crowding: float = _limit(0.05, 0, 1)
    significance: float = _limit(0.05, 1e-6, 0.5)
    veto_recall: float = _limit(0.05, 0, 1)
    veto_share: float = _limit(0.5, 0.01, 1)
    new_class_floor: float = _limit(0.5, 0, 1)
    new_class_images: int = 5
    unproven_allowed: bool = False
    retired_classes: tuple[str, ...] = ()
    chance_times: float = _limit(2.0, 1, 1000)
    calibration_bound: float = _limit(0.2, 0, 1)
    calibration_worse: float = _limit(0.05, 0, 1)
    gap_bound: float = _limit(0.3, 0, 1)
    latency_seconds: float = _limit(0.5, 1e-6, 3600)
    latency_times: float = _limit(1.5, 1, 1000)

    def __post_init__(self) -> None:
        for one in fields(self):
            if "range" not in one.metadata:
                continue
            value, (low, high) = getattr(self, one.name), one.metadata["range"]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # written so that a NaN is refused too
            if not (number and low <= value <= high):
                raise BadLimits(f"{one.name}={value!r}: use a number from {low:g} to {high:g}")
        images = self.new_class_images
        if not isinstance(images, int) or isinstance(images, bool) or images < 1:
            raise BadLimits(f"new_class_images={images!r}: use a whole number of at least 1")
        if not isinstance(self.unproven_allowed, bool):
            raise BadLimits(f"unproven_allowed={self.unproven_allowed!r}: use true or false")
        retired = self.retired_classes
        if not isinstance(retired, list | tuple) or not all(isinstance(c, str) for c in retired):
            raise BadLimits(f"retired_classes={retired!r}: use a list of class names")
        # a list comes from JSON; frozen means frozen
        object.__setattr__(self, "retired_classes", tuple(retired))

    def changed(self, changes: Mapping[str, Any]) -> "Limits":
        """The limits with some set otherwise; raises `BadLimits` for a name that is none."""
        known = [one.name for one in fields(self)]
        for name in changes:
            if name not in known:
                raise BadLimits(f"{name!r} is no limit: known are {', '.join(known)}")
        return replace(self, **changes)


@dataclass(frozen=True)
class Repeated:
    """What the stored checkpoint, fetched, hashed and loaded again, answered a second time.

    images: how many of the benchmark's. apart: the largest distance of any confidence from the
    recorded one, 0..1. turned: how many are answered with another class. elsewhere: whether they
    were recorded in another runtime than repeated.
    """

    images: int
    apart: float
    turned: int = 0
    elsewhere: bool = False


@dataclass(frozen=True)
class SinceAnchor:
    """What the versions deployed since the anchor have cost, the champion included.

    drop: the sum of numbers["drop"] of their `margin` checks; whole_drop: of their `crowding`
    checks; gains count as negative drops. doublings: how often the class list has doubled. None
    where it is not known: `slide` and `crowding` fail.
    """

    drop: float | None = 0.0
    whole_drop: float | None = 0.0
    doublings: float | None = 0.0


@dataclass(frozen=True)
class Evidence:
    """What is known about one version when it is judged.

    version: how people call it. class_names: the checkpoint's own, in column order.
    checkpoint_digest: of the bytes that would serve; evaluated_digest: of those that answered.
    benchmark_digest, benchmark_images: of the frozen benchmark version answered, and the sha256
        of everything it holds, so that a missing answer is noticed.
    benchmark, test: the answers; test may be None when no class needs it.
    runtime: what computed the benchmark answers (software, device, precision); answers of
        different runtimes are not compared.
    training_accuracy, validation_accuracy: shares. latency_seconds: median for one image.
    latency_machine: where that was measured; None when not known.
    repeated: of a candidate; None when it was not loaded again. looks: verdicts that were given
    on this benchmark version before. rejected: who rejected the version or let another serve in
    its place, when and why.
    """

    version: str
    class_names: tuple[str, ...]
    checkpoint_digest: str
    evaluated_digest: str
    benchmark_digest: str
    benchmark_images: AbstractSet[str]
    benchmark: Answers | None
    runtime: str
    test: Answers | None = None
    training_accuracy: float | None = None
    validation_accuracy: float | None = None
    latency_seconds: float | None = None
    latency_machine: str | None = None
    repeated: Repeated | None = None
    looks: int = 0
    rejected: str | None = None


@dataclass(frozen=True)
class Flips:
    """Images (sha256) whose answer turned right or wrong from champion to candidate."""

    gained: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Power:
    """What a benchmark can notice, told by simulation.

    images, classes: its size. discordance: the share of images assumed right with exactly one of
    two equal versions. equal_refused: how often an equal candidate is refused. noticed_drop: the
    smallest true drop in accuracy (0..1) that is refused with 80% probability, None when not
    even the largest possible drop is. small_classes: how many are too small for a veto.
    """

    images: int
    classes: int
    accuracy: float
    discordance: float
    equal_refused: float
    noticed_drop: float | None
    small_classes: int
    sentence: str


def judge(
    candidate: Evidence,
    champion: Evidence | None,
    limits: Limits,
    since_anchor: SinceAnchor = SinceAnchor(),
) -> Verdict:
    """Decide whether the candidate may serve. champion: None for the first version."""
    checks = _comparable(candidate, champion)
    answered = candidate.benchmark
    if answered is not None and all(check.verdict == "passed" for check in checks):
        if champion is None or champion.benchmark is None:
            checks += _first_version(candidate, answered, limits)
            checks.append(_calibration(candidate, None, answered, None, limits))
        else:
            pairs = _pair(answered, champion.benchmark)
            checks += _shared_images(candidate, champion, pairs, limits, since_anchor)
            checks += _shared_classes(candidate, champion, pairs, limits)
            checks.append(_lost_classes(candidate, champion, limits))
            checks += _new_classes(candidate, champion, answered, limits)
            checks.append(
                _calibration(candidate, champion, answered, champion.benchmark, limits)
            )
    checks.append(_reproduction(candidate))
    checks.append(_gap(candidate, limits))
    checks.append(_latency(candidate, champion, limits))
    if candidate.rejected is not None:
        checks.append(_check("rejection", False, {"rejected": 1}, candidate.rejected))
    return Verdict(tuple(checks))


def flips(candidate: Answers, champion: Answers) -> Flips:
    """List the images that both answered and only one of them has right, in order of sha256."""
    right = dict(zip(champion.images, champion.correct.tolist(), strict=True))
    gained, lost = [], []
    for image, now in zip(candidate.images, candidate.correct.tolist(), strict=True):
        before = right.get(image, now)
        if now and not before:
            gained.append(image)
        elif before and not now:
            lost.append(image)
    return Flips(tuple(sorted(gained)), tuple(sorted(lost)))


# may the figures be compared at all


def _comparable(candidate: Evidence, champion: Evidence | None) -> list[Check]:
    versions = [candidate] if champion is None else [candidate, champion]
    return [
        _same_checkpoint(versions),
        _same_benchmark(versions),
        _complete_answers(versions),
        _same_class_names(versions),
        _same_runtime(versions),
    ]


def _same_checkpoint(versions: list[Evidence]) -> Check:
    wrong = [
        one.version
        for one in versions
        if not one.checkpoint_digest or one.checkpoint_digest != one.evaluated_digest
    ]
    if wrong:
        return _check(
            "checkpoint", False, {"versions": len(wrong)},
            f"{_listed(wrong)}: the checkpoint that answered is not the one that would serve; "
            "evaluate again.",
        )
    return _check(
        "checkpoint", True, {"versions": 0}, "The checkpoints that answered are those that serve."
    )


def _same_benchmark(versions: list[Evidence]) -> Check:
    first = versions[0]
    numbers = {"images": len(first.benchmark_images), "looks": first.looks}
    if not first.benchmark_digest or not first.benchmark_images:
        return _check(
            "benchmark", False, numbers,
            f"{first.version} was not evaluated on a benchmark that has images; freeze one with "
            "`regraft benchmark freeze`.",
        )
    for other in versions[1:]:
        if (other.benchmark_digest != first.benchmark_digest
                or other.benchmark_images != first.benchmark_images):
            return _check(
                "benchmark", False, numbers,
                f"{first.version} answered benchmark {first.benchmark_digest[:12]}, champion "
                f"{other.version} answered {other.benchmark_digest[:12] or 'none'}; evaluate both "
                "on the newest.",
            )
    return _check(
        "benchmark", True, numbers,
        f"Benchmark {first.benchmark_digest[:12]} with {_images(len(first.benchmark_images))}, "
        f"looked at {_times(first.looks)} before.",
    )


def _complete_answers(versions: list[Evidence]) -> Check:
    labels: dict[str, str] = {}
    for one in versions:
        if one.benchmark is None:
            return _check(
                "answers", False, {"missing": len(one.benchmark_images)},
                f"{one.version} has no answers for the benchmark; evaluate it.",
            )
        answered = set(one.benchmark.images)
        missing = len(one.benchmark_images - answered)
        foreign = len(answered - one.benchmark_images)
        twice = len(one.benchmark.images) - len(answered)
        figures = (one.benchmark.confidences, one.benchmark.label_confidence)
        broken = sum(int((~np.isfinite(figure)).sum()) for figure in figures)
        known = dict(zip(one.benchmark.images, one.benchmark.labels, strict=True))
        relabelled = sum(labels.get(image, label) != label for image, label in known.items())
        labels = known
        if missing or foreign or twice or broken or relabelled:
            return _check(
                "answers", False,
                {"missing": missing, "foreign": foreign, "twice": twice,
                 "not_finite": broken, "relabelled": relabelled},
                f"{one.version}'s answers are not the benchmark's {len(one.benchmark_images)}: "
                f"{missing} missing, {foreign} of other images, {twice} twice, {broken} figures "
                f"not finite, {relabelled} with another label than the candidate's; evaluate both "
                "again.",
            )
    return _check(
        "answers", True,
        {"missing": 0, "foreign": 0, "twice": 0, "not_finite": 0, "relabelled": 0},
        f"{_listed([one.version for one in versions])} answered every image once, with the same "
        "labels.",
    )


def _same_class_names(versions: list[Evidence]) -> Check:
    for one in versions:
        for answers in (one.benchmark, one.test):
            if answers is not None and tuple(answers.class_names) != tuple(one.class_names):
                return _check(
                    "class names", False, {"classes": len(one.class_names)},
                    f"{one.version} was evaluated with other class names than its checkpoint's "
                    f"{len(one.class_names)}; evaluate again.",
                )
    return _check(
        "class names", True, {"classes": len(versions[0].class_names)},
        f"{versions[0].version} knows {_classes(len(versions[0].class_names))}, in its checkpoint "
        "and in its answers alike.",
    )


def _same_runtime(versions: list[Evidence]) -> Check:
    runtimes = sorted({one.runtime for one in versions})
    numbers = {"runtimes": len(runtimes)}
    if "" in runtimes or len(runtimes) > 1:
        return _check(
            "runtime", False, numbers,
            f"The answers come from different or unknown runtimes ({_listed(runtimes)}); "
            "evaluate both in one.",
        )
    return _check("runtime", True, numbers, f"All answers come from one runtime: {runtimes[0]}.")


def _reproduction(candidate: Evidence) -> Check:
    again = candidate.repeated
    if again is None or not math.isfinite(again.apart) or again.images < 1:
        return _check(
            "reproduction", False, {"images": again.images if again else 0, "apart": None},
            f"{candidate.version} was not loaded again from its stored checkpoint to repeat its "
            "answers; evaluate it again.",
        )
    return _check(
        "reproduction", again.apart <= REPEAT_TOLERANCE,
        {"images": again.images, "apart": again.apart, "limit": REPEAT_TOLERANCE},
        f"{candidate.version}, loaded again from its stored checkpoint, answers "
        f"{_images(again.images)} as recorded to within {again.apart:.1g}; "
        f"{REPEAT_TOLERANCE:g} is allowed.",
    )


# images of the classes that both versions know


@dataclass(frozen=True)
class _Pairs:
    """Per image of a shared class: its class, and who has it right; `names` lists the classes.

    now, before: with all classes to choose from; now_shared, before_shared: with the shared only.
    """

    names: tuple[str, ...]
    true: Counts
    now: Flags
    before: Flags
    now_shared: Flags
    before_shared: Flags

    def count(self, which: Flags) -> Counts:
        return np.bincount(self.true[which], minlength=len(self.names))


def _pair(candidate: Answers, champion: Answers) -> _Pairs:
    known = set(champion.class_names)
    shared = tuple(name for name in candidate.class_names if name in known)
    place = {name: index for index, name in enumerate(shared)}
    champion = champion.only(candidate.images)  # both in one order
    true = np.array([place.get(label, -1) for label in candidate.labels], np.int64)
    kept = true >= 0
    return _Pairs(
        shared, true[kept], candidate.correct[kept], champion.correct[kept],
        candidate.correct_among(shared)[kept], champion.correct_among(shared)[kept],
    )


def _shared_images(
    candidate: Evidence, champion: Evidence, pairs: _Pairs, limits: Limits,
    since_anchor: SinceAnchor,
) -> list[Check]:
    images = len(pairs.true)
    if images == 0:
        sentence = (
            f"The benchmark has no image of the {_classes(len(pairs.names))} that "
            f"{candidate.version} and champion {champion.version} both know; grow it with "
            "`regraft benchmark grow`."
        )
        return [_check(name, False, {"images": 0}, sentence)
                for name in ("no worse", "margin", "slide", "crowding")]
    now, before = int(pairs.now_shared.sum()), int(pairs.before_shared.sum())
    lost = int((pairs.before_shared & ~pairs.now_shared).sum())
    gained = int((pairs.now_shared & ~pairs.before_shared).sum())
    drop = (before - now) / images
    whole_drop = float(pairs.before.sum() - pairs.now.sum()) / images
    return [
        _no_worse(candidate, champion, limits,
                  images=images, now=now, before=before, gained=gained, lost=lost),
        _margin(drop, now / images, before / images, limits),
        _slide(drop, since_anchor.drop, limits),
        _crowding(candidate, len(pairs.names), drop, whole_drop, limits, since_anchor),
    ]


def _no_worse(
    candidate: Evidence, champion: Evidence, limits: Limits, *,
    images: int, now: int, before: int, gained: int, lost: int,
) -> Check:
    chance = _chance_of_equals(lost, gained, images, limits.seed_noise)
    numbers = {"images": images, "candidate_correct": now, "champion_correct": before,
               "gained": gained, "lost": lost, "chance": chance}
    sentence = (
        f"Of {_images(images)} of shared classes, answered with these classes only, "
        f"{candidate.version} has {now} right ({_percent(now / images)}), champion "
        f"{champion.version} {before} ({_percent(before / images)}): {gained} gained, {lost} lost, "
        f"which trainings of one plan would show or exceed in {_percent(chance)} of cases "
        f"(refused at {_percent(limits.significance)})."
    )
    if chance <= limits.significance:
        return _check("no worse", False, numbers, sentence)
    if _chance_of_equals(before, 0, images, limits.seed_noise) > limits.significance:
        # not even losing everything could have been told from chance
        return Check("no worse", "undecidable", numbers, sentence)
    return _check("no worse", True, numbers, sentence)


def _margin(drop: float, now: float, before: float, limits: Limits) -> Check:
    return _check(
        "margin", drop <= limits.margin + ROUNDING,
        {"drop": drop, "candidate": now, "champion": before, "limit": limits.margin},
        f"Accuracy among shared classes went from {_percent(before)} to {_percent(now)}, a "
        f"{'drop' if drop > 0 else 'gain'} of {_points(abs(drop))}; a drop of "
        f"{_points(limits.margin)} is allowed.",
    )


def _slide(drop: float, before: float | None, limits: Limits) -> Check:
    if before is None or not math.isfinite(before):
        return _check(
            "slide", False, {"drop": drop, "before": None},
            "The sum of drops since the anchor version is not known: a deployment has no figures; "
            "restore the database from a backup.",
        )
    total, limit = before + drop, 2 * limits.margin
    return _check(
        "slide", total <= limit + ROUNDING,
        {"drop": drop, "before": before, "sum": total, "limit": limit},
        f"Since the anchor version accuracy among shared classes would have "
        f"{'dropped' if total > 0 else 'gained'} {_points(abs(total))} in sum; a drop of "
        f"{_points(limit)} is allowed.",
    )


def _crowding(
    candidate: Evidence, shared: int, drop: float, whole_drop: float, limits: Limits,
    since_anchor: SinceAnchor,
) -> Check:
    """Bound what known classes lose when all classes compete, tonight and since the anchor.

    By the doublings of the class list, and not by the new classes: they add up to the same
    however the nights divide the growth, so that small steps earn no more than a large one.
    """
    classes = len(candidate.class_names)
    doublings = math.log2(classes / shared)
    limit = limits.margin + limits.crowding * doublings
    numbers: dict[str, float | int | None] = {
        "new": classes - shared, "cost": whole_drop - drop, "drop": whole_drop,
        "doublings": doublings, "limit": limit, "sum": None,
    }
    before, grown = since_anchor.whole_drop, since_anchor.doublings
    if before is None or grown is None or not math.isfinite(before) or not math.isfinite(grown):
        return _check(
            "crowding", False, numbers,
            "What the class list has cost since the anchor version is not known: a deployment has "
            "no figures; restore the database from a backup.",
        )
    total = before + whole_drop
    total_limit = 2 * limits.margin + limits.crowding * (grown + doublings)
    numbers |= {"sum": total, "sum_limit": total_limit}
    if classes == shared:  # then it is what margin and slide have judged
        return _check("crowding", True, numbers, "No class is new that could take images.")
    return _check(
        "crowding",
        whole_drop <= limit + ROUNDING and total <= total_limit + ROUNDING,
        numbers,
        f"{_classes(classes - shared)} more to choose from cost {_points(whole_drop - drop)} on "
        f"images of shared classes; with all classes accuracy there would {_change(whole_drop)}, "
        f"a drop of {_points(limit)} is allowed; since the anchor version it would "
        f"{_change(total)}, a drop of {_points(total_limit)} is allowed.",
    )


def _shared_classes(
    candidate: Evidence, champion: Evidence, pairs: _Pairs, limits: Limits
) -> list[Check]:
    images = pairs.count(np.ones(len(pairs.true), np.bool_))
    before, now = pairs.count(pairs.before), pairs.count(pairs.now)
    lost = pairs.count(pairs.before & ~pairs.now)
    gained = pairs.count(pairs.now & ~pairs.before)
    adjusted = _family_chances(lost, gained)
    drops = (before - now) / np.maximum(images, 1)
    vetoed = (adjusted <= limits.significance) & (drops > limits.veto_recall + ROUNDING)
    small = ~_decidable(images, before, limits)
    dead = (now == 0) & (before > 0)

    def told(chosen: Flags) -> list[str]:
        return [
            f"{pairs.names[index]} ({before[index]} to {now[index]} right of {images[index]})"
            for index in np.flatnonzero(chosen)[np.argsort(-drops[chosen], kind="stable")]
        ]

    return [
        _class_recall(told(vetoed), drops, adjusted, small, limits),
        _small_classes([pairs.names[index] for index in np.flatnonzero(small)], small),
        _check(
            "dead classes", not dead.any(), {"classes": int(dead.sum())},
            f"{candidate.version} has nothing right in {_listed(told(dead))}, where champion "
            f"{champion.version} had." if dead.any()
            else "No class that the champion got right at times was lost altogether.",
        ),
    ]


def _class_recall(
    vetoed: list[str], drops: Floats, adjusted: Floats, small: Flags, limits: Limits
) -> Check:
    decidable = int((~small).sum())
    numbers = {
        "classes": len(drops), "decidable": decidable, "vetoed": len(vetoed),
        "largest_drop": float(drops.max()) if len(drops) else None,
        "least_chance": float(adjusted.min()) if len(drops) else None,
    }
    if vetoed:
        return _check(
            "class recall", False, numbers,
            f"Recall fell by more than {_points(limits.veto_recall)}, and more than chance "
            f"explains over {_classes(len(drops))}, in {_listed(vetoed)}.",
        )
    if not decidable:
        return Check(
            "class recall", "undecidable", numbers,
            f"None of {_classes(len(drops))} has enough benchmark images to tell a drop from "
            "chance; grow it with `regraft benchmark grow`.",
        )
    return _check(
        "class recall", True, numbers,
        f"No class fell by more than {_points(limits.veto_recall)} beyond chance; the images "
        f"suffice to tell in {decidable} of {_classes(len(drops))}.",
    )


def _small_classes(names: list[str], small: Flags) -> Check:
    numbers = {"classes": len(small), "small": len(names)}
    if names:
        return Check(
            "small classes", "undecidable", numbers,
            f"{_listed(names)}: too few benchmark images that the champion has right to tell a "
            "drop from chance; add some with `regraft benchmark grow`.",
        )
    return _check(
        "small classes", True, numbers,
        f"Each of {_classes(len(small))} has enough benchmark images to tell a drop from chance.",
    )


def _decidable(images: Counts, before: Counts, limits: Limits) -> Flags:
    """Tell for each class whether losing `veto_share` of the right answers would be vetoed.

    A property of benchmark and champion, not of the candidate: the family is all classes with
    images, each at its equal share of the significance (Sidak). Where the champion has nothing
    right there is nothing to lose, and images suffice as soon as there are any.
    """
    family = max(1, int((images > 0).sum()))
    needed = 1 - (1 - limits.significance) ** (1 / family)
    hypothetical = np.ceil(limits.veto_share * before - ROUNDING)
    noticed = 0.5**hypothetical <= needed
    heavy = hypothetical / np.maximum(images, 1) > limits.veto_recall + ROUNDING
    return np.asarray((images > 0) & ((before == 0) | (noticed & heavy)))


def _chance_of_equals(lost: int, gained: int, images: int, seed_noise: float) -> float:
    """Chance that of two trainings of one plan one loses as many, one-sided.

    McNemar's test, whose coin is fair for two versions that are equal in truth. Two seeds are
    not: their accuracies are apart by the square root of two times seed_noise, so the coin's
    chance is drawn from a beta distribution about one half that is as wide. Without seed noise,
    and for a benchmark so small that it would not show, that is the fair coin again.
    """
    discordant = lost + gained
    if discordant == 0:
        return 1.0
    spread = seed_noise * images / discordant
    if spread**2 < ROUNDING:
        return float(bdtrc(lost - 1.0, discordant, 0.5))
    # A variance above that of heads or tails themselves cannot be; it explains everything.
    shape = max((1 / (2 * spread**2) - 1) / 2, ROUNDING)
    heads = np.arange(lost, discordant + 1)
    ways = gammaln(discordant + 1) - gammaln(heads + 1) - gammaln(discordant - heads + 1)
    terms = ways + betaln(heads + shape, discordant - heads + shape) - betaln(shape, shape)
    return min(1.0, float(np.exp(terms).sum()))


def _chances(lost: Counts, gained: Counts) -> Floats:
    """Chance that of lost + gained fair coins at least `lost` fall on lost: McNemar, one-sided."""
    return np.asarray(bdtrc(lost - 1.0, lost + gained, 0.5), np.float64)


def _family_chances(lost: Counts, gained: Counts) -> Floats:
    """Correct each class's chance for having looked at all of them.

    This is the permutation test in which every image's pair of answers is swapped at random and
    the smallest chance of any class is kept. Classes share no image, so its distribution is a
    product over classes and needs no drawing; a class too small to reach a chance adds nothing
    to it. The raw largest drop instead would always be that of the smallest class.
    """
    chances = _chances(lost, gained)
    discordant, classes = np.unique(lost + gained, return_counts=True)
    everywhere = np.broadcast_to(classes[:, None], (len(discordant), len(chances)))
    return _smallest_of(chances, discordant, everywhere)


def _smallest_of(chances: Floats, discordant: Counts, classes: Counts) -> Floats:
    """Probability that the smallest chance among equals is at most chances [R].

    classes [D, R]: how many classes of case R have discordant [D] images.
    """
    none_so_small = np.zeros(len(chances))
    for count, how_many in zip(discordant.tolist(), classes, strict=True):
        steps = _chances(np.arange(count, -1, -1), np.arange(count + 1))
        # the largest chance this class can show that is not above the one asked for
        # (equal chances of classes of other sizes differ by their rounding)
        step = np.searchsorted(steps, chances * (1 + ROUNDING), side="right") - 1
        reached = np.where(step >= 0, steps[np.maximum(step, 0)], 0.0)
        with np.errstate(divide="ignore"):
            term = np.log1p(-reached)
        none_so_small += np.where(how_many > 0, how_many * np.maximum(term, -1e9), 0.0)
    return np.asarray(-np.expm1(none_so_small))


# classes that only one of them knows


def _lost_classes(candidate: Evidence, champion: Evidence, limits: Limits) -> Check:
    lost = sorted(set(champion.class_names) - set(candidate.class_names))
    unwanted = [name for name in lost if name not in limits.retired_classes]
    numbers = {"classes": len(unwanted), "retired": len(lost) - len(unwanted)}
    if unwanted:
        return _check(
            "lost classes", False, numbers,
            f"{candidate.version} does not know {_listed(unwanted)}, which champion "
            f"{champion.version} serves; add images of them, or retire them.",
        )
    return _check(
        "lost classes", True, numbers,
        "Every class that the champion serves is still known"
        + (f", but for {len(lost)} retired." if lost else "."),
    )


def _new_classes(
    candidate: Evidence, champion: Evidence, answered: Answers, limits: Limits
) -> list[Check]:
    new = [name for name in candidate.class_names if name not in set(champion.class_names)]
    on_benchmark, on_test = _recalls(answered), _recalls(candidate.test)
    proven = [name for name in new if on_benchmark[name][1] >= limits.new_class_images]
    unproven = [name for name in new if on_benchmark[name][1] < limits.new_class_images]
    measured: dict[str, tuple[str, int, int]] = {}
    for name in new:
        where, (right, images) = "benchmark", on_benchmark[name]
        if images < limits.new_class_images:
            where, (right, images) = "test", on_test.get(name, (0, 0))
        if images:
            measured[name] = where, right, images
    unmeasured = [name for name in new if name not in measured]
    mean = float(np.mean([right / images for _, right, images in measured.values()] or [0.0]))
    # Of 40 classes with 5 images each one alone would be below its floor every other night.
    alone = 1 - (1 - limits.significance) ** (1 / max(1, len(measured)))
    floor, below, weak = limits.new_class_floor, [], []
    for name, (where, right, images) in measured.items():
        told = f"{name} ({right} of {images} right on the {where} images)"
        dead = right == 0 and images >= limits.new_class_images and floor > 0
        if dead or float(bdtr(right, images, floor)) <= alone:
            below.append(told)
        elif right / images < floor - ROUNDING:
            weak.append(told)
    numbers: dict[str, float | int | None] = {
        "classes": len(new), "below_floor": len(below), "weak": len(weak),
        "unmeasured": len(unmeasured), "floor": floor,
        "measured": len(measured) if not unmeasured else None,
        "mean_recall": mean if measured else None,
    }
    problems = []
    if measured and mean < floor - ROUNDING:
        problems.append(f"with a mean recall of {_percent(mean)}, below the floor of "
                        f"{_percent(floor)}: {_listed(below + weak)}")
    elif below:
        problems.append(f"surely below the floor of {_percent(floor)}: {_listed(below)}")
    if unmeasured:
        problems.append(f"without any test or benchmark image: {_listed(unmeasured)}")
    if problems:
        sentence = f"New classes {'; '.join(problems)}."
    elif new:
        sentence = (f"{_classes(len(new))} new, with a mean recall of {_percent(mean)}, and none "
                    f"surely below the floor of {_percent(floor)}"
                    + (f"; too few images to tell of {_listed(weak)}." if weak else "."))
    else:
        sentence = "No new classes."
    verdict: Literal["passed", "failed", "undecidable"] = (
        "failed" if problems else "undecidable" if weak else "passed"
    )
    return [
        Check("new classes", verdict, numbers, sentence),
        _unproven_classes(unproven, len(proven), limits),
    ]


def _unproven_classes(unproven: list[str], proven: int, limits: Limits) -> Check:
    numbers = {"proven": proven, "unproven": len(unproven), "images": limits.new_class_images}
    if not unproven:
        return _check("unproven classes", True, numbers, "No new class is unproven.")
    sentence = (
        f"Unproven: the benchmark has fewer than {_images(limits.new_class_images)} of new "
        f"{_listed(unproven)}; add some with `regraft benchmark grow`"
    )
    if limits.unproven_allowed:
        return Check("unproven classes", "undecidable", numbers,
                     f"{sentence}. They may serve, because unproven classes are allowed.")
    return _check("unproven classes", False, numbers, f"{sentence}, or approve by hand.")


def _recalls(answers: Answers | None) -> dict[str, tuple[int, int]]:
    """Give (right, images) of each class."""
    if answers is None:
        return {}
    names, true = class_indices(answers)
    right = np.bincount(true[answers.correct], minlength=len(names)).tolist()
    images = np.bincount(true, minlength=len(names)).tolist()
    return dict(zip(names, zip(right, images, strict=True), strict=True))


# a first version


def _first_version(candidate: Evidence, answered: Answers, limits: Limits) -> list[Check]:
    """Nobody serves yet: better than chance, and no class that it claims to know is dead."""
    recalls = {name: _recalls(answered)[name] for name in candidate.class_names}
    right = sum(one for one, _ in recalls.values())
    images = sum(count for _, count in recalls.values())
    dead = [f"{name} (0 of {count})" for name, (one, count) in recalls.items()
            if one == 0 and count >= limits.new_class_images]
    few = [name for name, (_, count) in recalls.items() if count < limits.new_class_images]
    unproven = {"proven": len(recalls) - len(few), "unproven": len(few),
                "images": limits.new_class_images}
    return [
        _accuracy_floor(candidate, right, images, max(c for _, c in recalls.values()), limits),
        _check(
            "dead classes", not dead, {"classes": len(dead)},
            f"{candidate.version} has nothing right in {_listed(dead)}." if dead
            else "No class with enough benchmark images is without a right answer.",
        ),
        Check(
            "unproven classes", "undecidable", unproven,
            f"The benchmark has fewer than {_images(limits.new_class_images)} of "
            f"{_listed(few)}; add some with `regraft benchmark grow`.",
        ) if few else _check(
            "unproven classes", True, unproven,
            f"The benchmark has enough images of each of {_classes(len(recalls))}.",
        ),
    ]


def _accuracy_floor(
    candidate: Evidence, right: int, images: int, most_frequent: int, limits: Limits
) -> Check:
    bounds = interval(right, images)
    if bounds is None:
        return _check(
            "accuracy floor", False, {"images": 0},
            f"The benchmark has no image of the {_classes(len(candidate.class_names))} that "
            f"{candidate.version} knows; grow it with `regraft benchmark grow`.",
        )
    # with one class everything is chance, and that is said by a floor of 1
    chance = max(most_frequent / images, 1 / len(candidate.class_names))
    floor = min(limits.chance_times * chance, (1 + chance) / 2)
    return _check(
        "accuracy floor", bounds[0] > floor,
        {"images": images, "correct": right, "accuracy": right / images, "low": bounds[0],
         "chance": chance, "floor": floor},
        f"{candidate.version} has {right} of {_images(images)} right ({_percent(right / images)}, "
        f"surely {_percent(bounds[0])}); a first version must surely exceed {_percent(floor)}, "
        f"chance being {_percent(chance)}.",
    )


# in bounds


def _calibration(
    candidate: Evidence, champion: Evidence | None,
    answered: Answers, champion_answered: Answers | None, limits: Limits,
) -> Check:
    known = _of_classes(answered, candidate.class_names)
    error, chance = calibration_error(known), calibration_by_chance(known)
    if error is None or chance is None or not math.isfinite(error - chance):
        return _check(
            "calibration", False, {"error": None, "limit": limits.calibration_bound},
            f"{candidate.version}'s calibration error on the benchmark could not be measured.",
        )
    numbers: dict[str, float | int | None] = {
        "error": error, "by_chance": chance, "limit": limits.calibration_bound
    }
    # few images push the error up although nothing is wrong
    sentence = (f"{candidate.version}'s calibration error is {_percent(error)}, "
                f"{_percent(limits.calibration_bound)} allowed beyond the {_percent(chance)} that "
                "chance gives on so many images")
    passed = error - chance <= limits.calibration_bound + ROUNDING
    if champion is None or champion_answered is None:
        return _check("calibration", passed, numbers, f"{sentence}.")
    shared = set(candidate.class_names) & set(champion.class_names)
    now = calibration_error(_of_classes(answered, shared))
    before = calibration_error(_of_classes(champion_answered, shared))
    numbers |= {"shared_error": now, "champion_error": before, "worse": limits.calibration_worse}
    if now is None or before is None:
        return _check("calibration", False, numbers,
                      f"{sentence}; it could not be compared with the champion's.")
    return _check(
        "calibration", passed and now - before <= limits.calibration_worse + ROUNDING, numbers,
        f"{sentence}; on shared classes {_percent(now)} against champion {champion.version}'s "
        f"{_percent(before)}, {_points(limits.calibration_worse)} more allowed.",
    )


def _of_classes(answers: Answers, names: Iterable[str]) -> Answers:
    kept = set(names)
    return answers.select(np.array([label in kept for label in answers.labels], np.bool_))


def _gap(candidate: Evidence, limits: Limits) -> Check:
    figures = {"training_accuracy": candidate.training_accuracy,
               "validation_accuracy": candidate.validation_accuracy}
    absent = [name.replace("_", " ") for name, value in figures.items() if not _is_share(value)]
    training, validation = figures.values()
    if absent or training is None or validation is None:
        return _check("gap", False, {"limit": limits.gap_bound},
                      f"{candidate.version} has no usable {' and no '.join(absent)}.")
    gap = training - validation
    return _check(
        "gap", gap <= limits.gap_bound + ROUNDING,
        {**figures, "gap": gap, "limit": limits.gap_bound},
        f"{candidate.version} has {_percent(training)} right in training and "
        f"{_percent(validation)} in validation, {_points(gap)} apart; "
        f"{_points(limits.gap_bound)} are allowed.",
    )


def _latency(candidate: Evidence, champion: Evidence | None, limits: Limits) -> Check:
    seconds = candidate.latency_seconds
    if seconds is None or not _is_time(seconds):
        return _check("latency", False, {"limit": limits.latency_seconds},
                      f"{candidate.version} has no usable latency; measure it again.")
    numbers: dict[str, float | int | None] = {
        "seconds": seconds, "limit": limits.latency_seconds}
    sentence = (f"{candidate.version} takes {seconds * 1000:.1f} ms for one image, "
                f"{limits.latency_seconds * 1000:.1f} ms allowed")
    passed = seconds <= limits.latency_seconds
    if champion is None:
        return _check("latency", passed, numbers, f"{sentence}.")
    before = champion.latency_seconds
    machines = {candidate.latency_machine, champion.latency_machine}
    if before is None or None in machines or len(machines) > 1:
        return _check(
            "latency", passed, numbers,
            f"{sentence}; not compared with champion {champion.version}, which was not measured "
            "on the same machine.",
        )
    if not _is_time(before):
        return _check("latency", False, numbers,
                      f"Champion {champion.version} has no usable latency; measure it again.")
    numbers |= {"champion_seconds": before, "times": seconds / before,
                "times_limit": limits.latency_times}
    return _check(
        "latency", passed and seconds <= limits.latency_times * before, numbers,
        f"{sentence}; {seconds / before:.2f} times champion {champion.version}'s, "
        f"{limits.latency_times:g} times allowed.",
    )


# what a benchmark can notice


def power(
    answers_or_counts: Answers | Sequence[int],
    limits: Limits,
    *,
    accuracy: float | None = None,
    discordance: float = USUAL_DISCORDANCE,
    draws: int = 1000,
    seed: int = 0,
) -> Power:
    """Simulate which true drop the gate notices on a benchmark, and how often it refuses equals.

    answers_or_counts: the champion's answers, or the benchmark's images per class. accuracy: the
    champion's, 0..1; by default that of the answers, 0.9 for counts. discordance: share of images
    right with exactly one of two equal versions, 0..1; measure it on two trainings of one plan.
    Only the checks that compare image by image are simulated (no worse, margin, class recall,
    dead classes), with drops spread evenly over the classes and the seed noise of two trainings
    around them. Raises ValueError for figures out of range.
    """
    images = _class_sizes(answers_or_counts)
    total = int(images.sum())
    if total == 0:
        raise ValueError("the benchmark has no images: add some before asking for its power")
    if accuracy is None:
        accuracy = (float(answers_or_counts.correct.mean())
                    if isinstance(answers_or_counts, Answers) else 0.9)
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy={accuracy}: use a share from 0 to 1")
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance={discordance}: use a share from 0 to 1")
    # equal versions cannot disagree more often than either is wrong, or right
    discordance = min(discordance, 2 * accuracy, 2 * (1 - accuracy))
    # more classes are more work for each draw and fewer draws keep it within a second or two
    draws = max(100, min(draws, 200_000 // len(images)))

    def refused(drop: float) -> float:
        return refused_share(images, limits, accuracy=accuracy, discordance=discordance,
                             drop=drop, draws=draws, seed=seed)

    equal, noticed = refused(0.0), _noticed(refused, accuracy)
    # at least one, or a tiny class would count as one with nothing to lose
    before = np.maximum(1, np.rint(images * accuracy)).astype(np.int64)
    small = int((~_decidable(images, before, limits)).sum())
    return Power(
        images=total, classes=len(images), accuracy=accuracy, discordance=discordance,
        equal_refused=equal, noticed_drop=noticed, small_classes=small,
        sentence=(
            f"{_images(total)} of {_classes(len(images))}: "
            + (f"a true drop of {_points(noticed)} is refused 4 times in 5"
               if noticed is not None else "no drop is refused 4 times in 5")
            + f", an equal version {_percent(equal)} of the time; {small} classes are too small "
            f"for a veto (assumed: {_percent(accuracy)} right, {_percent(discordance)} of answers "
            "differing between equals)."
        ),
    )


def _class_sizes(answers_or_counts: Answers | Sequence[int]) -> Counts:
    if not isinstance(answers_or_counts, Answers):
        images = np.array(answers_or_counts, np.int64)
        if images.ndim != 1 or (images < 0).any():
            raise ValueError("counts: use one number of images for each class")
        return images
    _, true = class_indices(answers_or_counts)
    return np.bincount(true)


def refused_share(
    images: Counts, limits: Limits, *,
    accuracy: float, discordance: float, drop: float, draws: int, seed: int = 0,
) -> float:
    """Share of draws refused when the candidate is truly worse by `drop` in every class.

    images: of each class [C]; accuracy, discordance, drop: shares, as `power` explains them.
    """
    random = np.random.default_rng(seed)
    true_drop = random.normal(drop, 2**0.5 * limits.seed_noise, (draws, 1))
    # more than the versions can differ, or the champion has, cannot be lost
    true_drop = np.clip(true_drop, -discordance, accuracy)
    gain_rate = np.minimum(np.maximum(0.0, (discordance - true_drop) / 2), accuracy - true_drop)
    lost_share = (gain_rate + true_drop) / accuracy if accuracy else np.zeros((draws, 1))
    wrong_rate = 1 - accuracy
    gained_share = gain_rate / wrong_rate if wrong_rate > ROUNDING else np.zeros((draws, 1))
    before = random.binomial(images, accuracy, (draws, len(images)))
    lost = random.binomial(before, np.clip(lost_share, 0, 1))
    gained = random.binomial(images - before, np.clip(gained_share, 0, 1))
    all_lost, all_gained = lost.sum(axis=1), gained.sum(axis=1)
    total = int(images.sum())
    refused = (all_lost - all_gained) / total > limits.margin + ROUNDING
    turned, place = np.unique(np.stack([all_lost, all_gained]), axis=1, return_inverse=True)
    refused |= np.array([
        _chance_of_equals(one_lost, one_gained, total, limits.seed_noise) <= limits.significance
        for one_lost, one_gained in turned.T.tolist()
    ])[place.ravel()]
    refused |= ((before > 0) & (before - lost + gained == 0)).any(axis=1)
    refused[~refused] = _vetoed(images, lost[~refused], gained[~refused], limits)
    return float(refused.mean())


def _vetoed(images: Counts, lost: Counts, gained: Counts, limits: Limits) -> Flags:
    """Tell for each draw [R, C] whether the class recall check would fail."""
    heavy = (lost - gained) / np.maximum(images, 1) > limits.veto_recall + ROUNDING
    smallest = np.where(heavy, _chances(lost, gained), 1.0).min(axis=1, initial=1.0)
    discordant = lost + gained
    counts = np.unique(discordant)
    classes = np.array([(discordant == count).sum(axis=1) for count in counts])
    return np.asarray((smallest < 1) & (
        _smallest_of(smallest, counts, classes) <= limits.significance))


def _noticed(refused: Callable[[float], float], accuracy: float) -> float | None:
    """Halve the range until it is finer than a tenth of a point."""
    low, high = 0.0, accuracy
    if refused(high) < 0.8:
        return None
    while high - low > 0.0005:
        middle = (low + high) / 2
        low, high = (low, middle) if refused(middle) >= 0.8 else (middle, high)
    return high


# words


def _check(name: str, passed: bool, numbers: Numbers, sentence: str) -> Check:
    return Check(name, "passed" if passed else "failed", numbers, sentence)


def _is_share(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and 0 <= value <= 1


def _is_time(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(share: float) -> str:
    number = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    return f"{number} point{'' if number == '1' else 's'}"


def _change(drop: float) -> str:
    return f"{'drop' if drop > 0 else 'gain'} {_points(abs(drop))}"


def _times(count: int) -> str:
    return f"{count:,} time{'' if count == 1 else 's'}"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _classes(count: int) -> str:
    return f"{count:,} class{'' if count == 1 else 'es'}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown

"""The gate lets no candidate through that it should stop, and not too many equals are stopped."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest

from vision.answers import Answers
from vision.gate import (
    BadLimits,
    Check,
    Evidence,
    Limits,
    Repeated,
    SinceAnchor,
    Verdict,
    _chance_of_equals,
    _family_chances,
    flips,
    judge,
    power,
)

Flags = npt.NDArray[np.bool_]
LIMITS = Limits()
TEN = tuple(f"class {index}" for index in range(10))


def labels_of(counts: dict[str, int]) -> list[str]:
    """Give the true class of each image."""
    return [name for name, images in counts.items() for _ in range(images)]


def answers_of(
    labels: list[str], right: Flags, names: tuple[str, ...], confidence: float = 0.9
) -> Answers:
    """Answer each image rightly or wrongly; the rest of the confidence goes to one other class."""
    place = {name: index for index, name in enumerate(names)}
    true = np.array([place.get(label, -1) for label in labels], np.int64)
    other = (true + 1) % len(names)
    known = true >= 0
    right = right & known
    unknown_second = np.where(known, true, (other + 1) % len(names))
    top = np.where(right[:, None], np.stack([true, other], 1), np.stack([other, unknown_second], 1))
    given = np.where(right, confidence, 1 - confidence) * known
    return Answers(
        images=tuple(f"{index:064x}" for index in range(len(labels))),
        labels=tuple(labels),
        class_names=names,
        top=top,
        confidences=np.tile(np.array([confidence, 1 - confidence], np.float32), (len(labels), 1)),
        label_confidence=given.astype(np.float32),
    )


def evidence(version: str, benchmark: Answers, **changes: object) -> Evidence:
    """Give a version about which everything is known and in bounds."""
    whole = Evidence(
        version=version,
        class_names=benchmark.class_names,
        checkpoint_digest=version * 2,
        evaluated_digest=version * 2,
        benchmark_digest="b" * 64,
        benchmark_images=frozenset(benchmark.images),
        benchmark=benchmark,
        runtime="torch cpu float32",
        training_accuracy=0.97,
        validation_accuracy=0.92,
        latency_seconds=0.02,
        latency_machine="here",
        repeated=Repeated(64, 0.0),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def versions(
    now: Flags, before: Flags, labels: list[str] | None = None
) -> tuple[Evidence, Evidence]:
    """Give candidate and champion that know the same ten classes."""
    labels = labels or [TEN[index % 10] for index in range(len(now))]
    return (evidence("v2", answers_of(labels, now, TEN)),
            evidence("v1", answers_of(labels, before, TEN)))


def drawn(
    random: np.random.Generator, images: int, drop: float, discordance: float = 0.08
) -> tuple[Flags, Flags]:
    """Draw who is right: a champion at 90%, a candidate that is truly worse by `drop`."""
    uniform = random.random(images)
    before = uniform < 0.9
    lost = before & (uniform < (discordance + drop) / 2)
    gained = ~before & (uniform > 1 - (discordance - drop) / 2)
    return (before & ~lost) | gained, before


def planted(images: int, lost: int, gained: int) -> tuple[Flags, Flags]:
    """Give a champion at 90% and a candidate with these many flips, spread over the classes."""
    before = np.ones(images, np.bool_)
    before[-images // 10:] = False
    now = before.copy()
    now[:lost] = False
    now[images - gained:] = True
    return now, before


def verdicts(verdict: Verdict) -> dict[str, str]:
    """Give the verdict of each check by name."""
    return {check.name: check.verdict for check in verdict.checks}


def failed(verdict: Verdict) -> set[str]:
    """Name the checks that failed."""
    return {check.name for check in verdict.failed}


def sentence(verdict: Verdict, name: str) -> str:
    """Give one check's sentence."""
    check = verdict.check(name)
    assert check is not None
    return check.sentence


# equals and losses


def test_the_same_answers_pass_every_check() -> None:
    """A candidate that answers like the champion passes, with figures a table takes."""
    now, before = planted(1000, 0, 0)
    verdict = judge(*versions(now, before), LIMITS)
    assert verdict.passed
    assert set(verdicts(verdict).values()) == {"passed"}
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)
    for check in verdict.checks:
        json.dumps(asdict(check), allow_nan=False)
        assert check.sentence.endswith(".")
        assert "\n" not in check.sentence


def test_a_loss_of_three_points_is_promoted_at_most_one_time_in_twenty() -> None:
    """Over 400 draws of 1,000 images."""
    random = np.random.default_rng(4)
    promoted = [judge(*versions(*drawn(random, 1000, 0.03)), LIMITS).passed for _ in range(400)]
    assert np.mean(promoted) <= 0.05


def test_equal_versions_are_refused_at_most_one_time_in_five() -> None:
    """Over 400 draws of 1,000 images and two seeds, and as often as the power foretold."""
    random = np.random.default_rng(5)
    seeds = random.normal(0, 2**0.5 * LIMITS.seed_noise, 400)
    refused = [not judge(*versions(*drawn(random, 1000, one)), LIMITS).passed for one in seeds]
    assert np.mean(refused) <= 0.20
    foretold = power([100] * 10, LIMITS, discordance=0.08).equal_refused
    assert np.mean(refused) == pytest.approx(foretold, abs=0.06)


def test_significantly_worse_fails_even_within_the_margin() -> None:
    """The paired test is exact, and one point of margin excuses no proven loss."""
    now, before = planted(4000, 30, 10)
    verdict = judge(*versions(now, before), Limits(seed_noise=0))
    check = verdict.check("no worse")
    assert check is not None
    assert check.numbers["chance"] == pytest.approx(
        binomtest(30, 40, alternative="greater").pvalue)
    assert failed(verdict) == {"no worse"}
    assert "30 lost" in check.sentence


def test_seed_noise_widens_the_standard_error_and_nothing_else() -> None:
    """What another seed alone explains is not called worse; what it does not explain still is."""
    within = planted(10_000, 110, 70)  # 0.4 points: three standard errors of the images alone
    assert failed(judge(*versions(*within), Limits(seed_noise=0))) == {"no worse"}
    assert judge(*versions(*within), Limits(seed_noise=0.003)).passed
    beyond = planted(10_000, 140, 45)  # 0.95 points, within the margin
    assert failed(judge(*versions(*beyond), Limits(seed_noise=0.003))) == {"no worse"}
    over = planted(10_000, 141, 40)  # 1.01 points
    assert "margin" in failed(judge(*versions(*over), Limits(seed_noise=0.5)))


def test_equal_seeds_are_called_worse_as_rarely_as_promised() -> None:
    """Pairs that differ by images and seed alone: at most the significance, and not far below."""
    random = np.random.default_rng(9)
    noise, images, worse = 0.003, 5000, []
    for _ in range(2000):
        drop = random.normal(0, 2**0.5 * noise)
        lost = int(random.binomial(images, 0.03 + drop / 2))
        gained = int(random.binomial(images, 0.03 - drop / 2))
        worse.append(_chance_of_equals(lost, gained, images, noise) <= 0.05)
    assert 0.02 <= np.mean(worse) <= 0.07


def test_a_drop_beyond_the_margin_fails_even_when_not_proven() -> None:
    """11 of 1,000 are more than a point, 10 are not."""
    assert failed(judge(*versions(*planted(1000, 51, 40)), LIMITS)) == {"margin"}
    assert judge(*versions(*planted(1000, 50, 40)), LIMITS).passed


def test_ten_nights_each_a_little_worse_are_stopped() -> None:
    """Nights of 0.4 points each pass alone; the sixth would make 2.4 points since the anchor."""
    summed, nights = 0.0, 0
    for _ in range(10):
        verdict = judge(*versions(*planted(1000, 24, 20)), LIMITS, SinceAnchor(summed, summed))
        if not verdict.passed:
            break
        check = verdict.check("margin")
        assert check is not None
        summed += check.numbers["drop"] or 0.0
        nights += 1
    assert nights == 5
    assert failed(verdict) == {"slide"}
    assert "2.4 points" in sentence(verdict, "slide")


def test_an_unknown_sum_since_the_anchor_fails() -> None:
    """A sum that is absent or NaN stops the candidate, and nobody may override it."""
    now, before = planted(1000, 0, 0)
    for unknown in (None, math.nan, math.inf):
        for since, name in (
            (SinceAnchor(drop=unknown), "slide"),
            (SinceAnchor(whole_drop=unknown), "crowding"),
            (SinceAnchor(doublings=unknown), "crowding"),
        ):
            verdict = judge(*versions(now, before), LIMITS, since)
            assert failed(verdict) == {name}
            assert not verdict.approved({name}).passed


# a class list that grows


def grown(
    known: int, new: int, crowded: int, forgotten: int, confused: int = 0
) -> tuple[Evidence, Evidence]:
    """Give a champion of `known` classes, always right, and a candidate with `new` more.

    Of the candidate's answers on known classes `crowded` go to a new class while the true one
    comes second, and `forgotten` to another known class. Each class has 20 images, and of each
    new one `confused` are wrong.
    """
    names = tuple(f"class {index:03d}" for index in range(known + new))
    labels = labels_of(dict.fromkeys(names, 20))
    true = np.repeat(np.arange(known + new), 20)
    second = (true + 1) % known
    top = np.stack([true, second], 1)
    old = np.flatnonzero(true < known)[:: max(1, known * 20 // (crowded + forgotten + 1))]
    for place, row in enumerate(old[: crowded + forgotten]):
        top[row] = (known + place % new, true[row]) if place < crowded else (second[row], true[row])
    for one in range(known, known + new):
        rows = np.flatnonzero(true == one)[:confused]
        top[rows] = top[rows][:, ::-1]
    given = np.where(top[:, 0] == true, 0.9, 0.1).astype(np.float32)
    candidate = Answers(
        images=tuple(f"{index:064x}" for index in range(len(labels))),
        labels=tuple(labels), class_names=names, top=top,
        confidences=np.tile(np.array([0.9, 0.1], np.float32), (len(labels), 1)),
        label_confidence=given,
    )
    champion = answers_of(labels, true < known, names[:known])
    return evidence("v2", candidate), evidence("v1", champion)


def test_what_new_classes_take_is_not_called_forgetting() -> None:
    """41 new classes beside 60 may cost 4 points of known images; forgetting as many may not."""
    verdict = judge(*grown(60, 41, crowded=48, forgotten=0), LIMITS)
    assert verdict.passed
    crowding = verdict.check("crowding")
    assert crowding is not None
    assert crowding.numbers["cost"] == pytest.approx(0.04)
    assert "41 classes more to choose from cost 4 points" in crowding.sentence
    margin = verdict.check("margin")
    assert margin is not None
    assert margin.numbers["drop"] == 0
    assert failed(judge(*grown(60, 41, crowded=0, forgotten=48), LIMITS)) == {
        "no worse", "margin", "slide"}


def test_what_new_classes_take_is_bounded_by_how_the_list_grows() -> None:
    """Past the allowance for its doublings it fails, and one class more earns next to nothing."""
    assert failed(judge(*grown(60, 41, crowded=60, forgotten=0), LIMITS)) == {"crowding"}
    assert failed(judge(*grown(60, 1, crowded=15, forgotten=0), LIMITS)) == {"crowding"}
    assert judge(*grown(60, 1, crowded=12, forgotten=0), LIMITS).passed


def test_growing_class_by_class_earns_no_more_than_at_once() -> None:
    """Twenty nights of one new class each, 0.9 points dearer every time, are stopped."""
    since, nights = SinceAnchor(), 0
    for known in range(60, 80):
        verdict = judge(*grown(known, 1, crowded=round(0.009 * 20 * known), forgotten=0),
                        LIMITS, since)
        if not verdict.passed:
            break
        crowding, margin = verdict.check("crowding"), verdict.check("margin")
        assert crowding is not None
        assert margin is not None
        since = SinceAnchor(
            (since.drop or 0) + (margin.numbers["drop"] or 0),
            (since.whole_drop or 0) + (crowding.numbers["drop"] or 0),
            (since.doublings or 0) + (crowding.numbers["doublings"] or 0),
        )
        nights += 1
    assert failed(verdict) == {"crowding"}
    assert 2 <= nights <= 4


def test_a_class_that_a_new_one_swallows_still_stops() -> None:
    """Among known columns all is well; in use the class is gone, and that is what counts."""
    candidate, champion = grown(60, 41, crowded=0, forgotten=0)
    assert candidate.benchmark is not None
    top = candidate.benchmark.top.copy()
    top[:20] = (60, 0)  # all images of class 0
    given = candidate.benchmark.label_confidence.copy()
    given[:20] = 0.1
    swallowed = replace(candidate.benchmark, top=top, label_confidence=given)
    verdict = judge(replace(candidate, benchmark=swallowed), champion, LIMITS)
    assert verdicts(verdict)["margin"] == "passed"
    assert {"dead classes", "class recall"} <= failed(verdict)
    top[:5] = (0, 1)
    given[:5] = 0.9
    swallowed = replace(candidate.benchmark, top=top, label_confidence=given)
    assert failed(judge(replace(candidate, benchmark=swallowed), champion, LIMITS)) == {
        "class recall"}


def test_answers_among_some_classes_count_what_is_not_known_as_wrong() -> None:
    """The best of those classes within the top k; where none of them is kept, nothing is right."""
    names = ("a", "b", "c", "d")
    one = Answers(
        images=("1", "2", "3"), labels=("a", "a", "a"), class_names=names,
        top=np.array([[2, 0], [1, 0], [2, 3]]),
        confidences=np.tile(np.array([0.5, 0.3], np.float32), (3, 1)),
        label_confidence=np.array([0.3, 0.3, 0.1], np.float32),
    )
    assert one.correct.tolist() == [False, False, False]
    assert one.correct_among(("a", "b")).tolist() == [True, False, False]
    assert one.correct_among(("a",)).tolist() == [True, True, False]
    assert one.correct_among(names).tolist() == one.correct.tolist()


# classes


def test_a_dead_class_stops_a_better_total() -> None:
    """More right in sum does not buy a class that is never right again."""
    labels = labels_of(dict.fromkeys(TEN[:9], 100) | {TEN[9]: 4})
    before = np.array([index % 10 != 0 for index in range(len(labels))])
    now = before.copy()
    now[:900] = True
    before[-4:] = True
    now[-4:] = False
    verdict = judge(*versions(now, before, labels), LIMITS)
    assert "dead classes" in failed(verdict)
    assert TEN[9] in sentence(verdict, "dead classes")
    assert verdicts(verdict)["no worse"] == "passed"


def test_a_significant_drop_of_one_class_is_vetoed() -> None:
    """A class that falls from 90 to 70 of 100 stops a candidate that gained it back elsewhere."""
    labels = labels_of(dict.fromkeys(TEN, 100))
    before = np.array([index % 100 < 90 for index in range(1000)])
    now = before.copy()
    now[:20] = False
    now[[index for index in range(100, 1000) if index % 100 >= 97]] = True
    verdict = judge(*versions(now, before, labels), LIMITS)
    assert failed(verdict) == {"class recall"}
    assert f"{TEN[0]} (90 to 70 right of 100)" in sentence(verdict, "class recall")


def test_classes_with_few_images_are_undecidable_and_do_not_block() -> None:
    """Small classes are listed; when all are small, recall per class is undecidable as a whole."""
    labels = labels_of(dict.fromkeys(TEN[:9], 100) | {TEN[9]: 6})
    right = np.ones(len(labels), np.bool_)
    verdict = judge(*versions(right, right, labels), LIMITS)
    assert verdict.passed
    assert verdicts(verdict)["small classes"] == "undecidable"
    assert verdicts(verdict)["class recall"] == "passed"
    assert TEN[9] in sentence(verdict, "small classes")
    labels = labels_of(dict.fromkeys(TEN, 6))
    right = np.ones(60, np.bool_)
    verdict = judge(*versions(right, right, labels), LIMITS)
    assert verdict.passed
    assert verdicts(verdict)["class recall"] == "undecidable"


def test_a_class_that_counts_as_decidable_is_vetoed_when_it_loses_its_share() -> None:
    """What `small classes` promises about the veto holds at every size of class."""
    for images in range(2, 60, 3):
        labels = labels_of(dict.fromkeys(TEN, images))
        before = np.ones(len(labels), np.bool_)
        now = before.copy()
        now[: math.ceil(images / 2)] = False
        verdict = judge(*versions(now, before, labels), LIMITS)
        small = verdict.check("small classes")
        assert small is not None
        if small.verdict == "passed":
            assert "class recall" in failed(verdict)


def test_family_chances_equal_the_permutation_test() -> None:
    """The product over classes is what swapping pairs at random converges to."""
    random = np.random.default_rng(6)
    for _ in range(5):
        lost, gained = random.integers(0, 12, 6), random.integers(0, 8, 6)
        exact = _family_chances(lost, gained)
        swapped = random.binomial(lost + gained, 0.5, (20_000, 6))
        table = np.array([
            [binomtest(k, n, alternative="greater").pvalue if n else 1.0 for k in range(n + 1)]
            + [1.0] * (20 - n) for n in (lost + gained).tolist()
        ])
        smallest = table[np.arange(6), swapped].min(axis=1)
        own = table[np.arange(6), lost]
        shares = [(smallest <= chance * (1 + 1e-9)).mean() for chance in own]
        assert exact == pytest.approx(shares, abs=0.015)


def test_lost_classes_fail_unless_retired() -> None:
    """A class that the champion serves cannot vanish, but a person can withdraw it."""
    labels = labels_of(dict.fromkeys(TEN, 50))
    right = np.ones(500, np.bool_)
    candidate = evidence("v2", answers_of(labels, right, TEN[:9]))
    champion = evidence("v1", answers_of(labels, right, TEN))
    verdict = judge(candidate, champion, LIMITS)
    assert failed(verdict) == {"lost classes"}
    assert TEN[9] in sentence(verdict, "lost classes")
    assert judge(candidate, champion, Limits(retired_classes=(TEN[9],))).passed


def new_class(images: int, right: int, tested: int | None = None) -> tuple[Evidence, Evidence]:
    """Give a candidate with a tenth class, with these benchmark and test images of it."""
    labels = labels_of(dict.fromkeys(TEN[:9], 50) | {TEN[9]: images})
    flags = np.ones(len(labels), np.bool_)
    flags[450 + right:] = False
    champion = evidence("v1", answers_of(labels, np.ones(len(labels), np.bool_), TEN[:9]))
    test = None
    if tested is not None:
        test = answers_of([TEN[9]] * 10, np.arange(10) < tested, TEN)
    return evidence("v2", answers_of(labels, flags, TEN), test=test), champion


def test_a_new_class_has_its_own_floor_on_the_benchmark() -> None:
    """Half of its benchmark images right suffices, fewer do not; its losses count nowhere else."""
    assert judge(*new_class(20, 10), LIMITS).passed
    verdict = judge(*new_class(20, 9), LIMITS)
    assert failed(verdict) == {"new classes"}
    assert "9 of 20" in sentence(verdict, "new classes")


def test_one_weak_class_of_many_new_ones_stops_only_when_it_surely_is() -> None:
    """2 of 5 right is chance among 41 classes, and listed; none right, or 2 of 20, is not."""
    def with_first(images: int, right: int) -> Verdict:
        names = tuple(f"class {index:03d}" for index in range(101))
        labels = labels_of(dict.fromkeys(names[:60], 5) | {names[60]: images}
                           | dict.fromkeys(names[61:], 5))
        known = np.ones(len(labels), np.bool_)
        flags = known.copy()
        flags[300 + right:300 + images] = False
        return judge(evidence("v2", answers_of(labels, flags, names)),
                     evidence("v1", answers_of(labels, known, names[:60])), LIMITS)

    assert with_first(5, 2).passed
    assert verdicts(with_first(5, 2))["new classes"] == "undecidable"
    assert "class 060 (2 of 5 right" in sentence(with_first(5, 2), "new classes")
    assert failed(with_first(5, 0)) == {"new classes"}
    assert failed(with_first(20, 2)) == {"new classes"}
    assert failed(judge(*grown(60, 41, 0, 0, confused=11), LIMITS)) == {"new classes"}


def test_a_new_class_without_benchmark_images_is_unproven() -> None:
    """It is judged on the test split and stopped unless unproven classes are allowed."""
    allowed = Limits(unproven_allowed=True)
    verdict = judge(*new_class(0, 0, tested=9), LIMITS)
    assert failed(verdict) == {"unproven classes"}
    assert "regraft benchmark grow" in sentence(verdict, "unproven classes")
    verdict = judge(*new_class(0, 0, tested=9), allowed)
    assert verdict.passed
    assert verdicts(verdict)["unproven classes"] == "undecidable"
    assert failed(judge(*new_class(0, 0, tested=4), allowed)) == {"new classes"}
    assert failed(judge(*new_class(0, 0), allowed)) == {"new classes"}
    assert failed(judge(*new_class(4, 4, tested=9), LIMITS)) == {"unproven classes"}


# absent, broken and different figures


def test_one_missing_answer_fails() -> None:
    """A benchmark image that either did not answer stops the candidate."""
    candidate, champion = versions(*planted(1000, 0, 0))
    assert candidate.benchmark is not None
    short = candidate.benchmark.select(np.arange(999))
    for one, other in (
        (replace(candidate, benchmark=short), champion),
        (candidate, replace(champion, benchmark=short)),
        (replace(candidate, benchmark=None), champion),
        (candidate, replace(champion, benchmark=None)),
    ):
        verdict = judge(one, other, LIMITS)
        assert failed(verdict) == {"answers"}
        assert "no worse" not in verdicts(verdict)
    assert "1 missing" in sentence(judge(replace(candidate, benchmark=short), None, LIMITS),
                                   "answers")


def test_an_empty_benchmark_fails() -> None:
    """Nothing answered is nothing proven, with a champion and without."""
    empty = answers_of([], np.ones(0, np.bool_), TEN)
    candidate, champion = evidence("v2", empty), evidence("v1", empty)
    assert failed(judge(candidate, champion, LIMITS)) == {"benchmark"}
    assert failed(judge(candidate, None, LIMITS)) == {"benchmark"}


def test_images_of_no_shared_class_prove_nothing() -> None:
    """A benchmark that has images of none of the classes known cannot promote."""
    strangers = answers_of(["stranger"] * 50, np.ones(50, np.bool_), TEN)
    candidate, champion = evidence("v2", strangers), evidence("v1", strangers)
    assert {"no worse", "margin", "slide", "calibration"} <= failed(
        judge(candidate, champion, LIMITS))
    assert {"accuracy floor", "calibration"} <= failed(judge(candidate, None, LIMITS))


def test_different_benchmarks_are_not_compared() -> None:
    """Another digest, or other images under the same digest, stop the candidate."""
    candidate, champion = versions(*planted(1000, 0, 0))
    for other in (
        replace(champion, benchmark_digest="c" * 64),
        replace(champion, benchmark_digest=""),
        replace(champion, benchmark_images=frozenset({"0" * 64})),
    ):
        assert "benchmark" in failed(judge(candidate, other, LIMITS))


def test_the_same_images_with_other_labels_are_not_compared() -> None:
    """One image relabelled between the two evaluations stops the candidate."""
    candidate, _ = versions(*planted(1000, 0, 0))
    labels = [TEN[index % 10] for index in range(1000)]
    labels[0] = TEN[5]
    relabelled = evidence("v1", answers_of(labels, np.ones(1000, np.bool_), TEN))
    verdict = judge(candidate, relabelled, LIMITS)
    assert failed(verdict) == {"answers"}
    assert "1 with another label" in sentence(verdict, "answers")


def test_other_checkpoints_class_names_and_runtimes_are_not_compared() -> None:
    """What answered must be what would serve, knowing the same classes, computed alike."""
    candidate, champion = versions(*planted(1000, 0, 0))
    strangers = answers_of(["a"], np.ones(1, np.bool_), ("a", "b"))
    for name, wrong in (
        ("checkpoint", replace(candidate, evaluated_digest="other")),
        ("checkpoint", replace(candidate, checkpoint_digest="", evaluated_digest="")),
        ("class names", replace(candidate, class_names=TEN[::-1])),
        ("class names", replace(candidate, test=strangers)),
        ("runtime", replace(candidate, runtime="onnxruntime cpu")),
        ("runtime", replace(candidate, runtime="")),
    ):
        assert failed(judge(wrong, champion, LIMITS)) == {name}


def test_one_absent_or_broken_figure_fails_its_check() -> None:
    """None, NaN and infinity each fail, by name, and nothing else does."""
    pair = versions(*planted(1000, 0, 0))
    for name, figure in (
        ("gap", "training_accuracy"), ("gap", "validation_accuracy"),
        ("latency", "latency_seconds"),
    ):
        for broken in (None, math.nan, math.inf, -1.0):
            candidate = replace(pair[0], **{figure: broken})  # type: ignore[arg-type]
            verdict = judge(candidate, pair[1], LIMITS)
            assert failed(verdict) == {name}
            assert "no usable" in sentence(verdict, name)


def test_a_nan_among_the_answers_fails() -> None:
    """Even where it slipped in behind the back of the constructor."""
    candidate, champion = versions(*planted(1000, 0, 0))
    assert candidate.benchmark is not None
    confidences = candidate.benchmark.confidences.copy()
    confidences[3, 0] = np.nan
    object.__setattr__(candidate.benchmark, "confidences", confidences)
    verdict = judge(candidate, champion, LIMITS)
    assert failed(verdict) == {"answers"}
    assert "1 figures not finite" in sentence(verdict, "answers")


def test_what_does_not_repeat_its_answers_fails() -> None:
    """Not loaded again, nothing answered, another answer or none that is a number."""
    candidate, champion = versions(*planted(1000, 0, 0))
    for again in (None, Repeated(0, 0.0), Repeated(64, 0.01), Repeated(64, math.nan)):
        verdict = judge(replace(candidate, repeated=again), champion, LIMITS)
        assert failed(verdict) == {"reproduction"}
        assert not verdict.approved({"reproduction"}).passed
    assert judge(candidate, replace(champion, repeated=None), LIMITS).passed


def test_a_rejected_version_fails() -> None:
    """A person's word is a check like the others, which another person may override."""
    candidate, champion = versions(*planted(1000, 0, 0))
    verdict = judge(replace(candidate, rejected="Rejected by Zoë."), champion, LIMITS)
    assert failed(verdict) == {"rejection"}
    assert verdict.approved({"rejection"}).passed


def test_a_person_overrides_only_what_was_measured_and_seen() -> None:
    """Margin and gap may pass if they were seen; dead classes and absent figures never."""
    candidate, champion = versions(*planted(1000, 60, 0))
    poor = judge(replace(candidate, validation_accuracy=0.6), champion, LIMITS)
    assert failed(poor) == {"no worse", "margin", "slide", "gap", "calibration"}
    approved = poor.approved(failed(poor))
    assert approved.passed
    assert {check.name for check in approved.overridden} == failed(poor)
    assert failed(poor.approved({"no worse", "margin", "slide", "calibration"})) == {"gap"}
    everything = set(verdicts(poor)) | {"dead classes", "gap", "answers", "runtime"}
    for wrong in (
        replace(candidate, validation_accuracy=None),
        replace(candidate, latency_seconds=math.nan),
        replace(candidate, runtime="elsewhere"),
        replace(candidate, evaluated_digest="other"),
        replace(candidate, benchmark=None),
    ):
        assert not judge(wrong, champion, LIMITS).approved(everything).passed
    labels = labels_of(dict.fromkeys(TEN, 100))
    dead = np.ones(1000, np.bool_)
    dead[:100] = False
    verdict = judge(*versions(dead, np.ones(1000, np.bool_), labels), LIMITS)
    assert failed(verdict.approved(everything)) == {"dead classes"}


def test_broken_calibration_fails() -> None:
    """Beyond the bound, or within it but worse than the champion by more than allowed."""
    labels = [TEN[index % 10] for index in range(1000)]
    right, _ = planted(1000, 0, 0)
    champion = evidence("v1", answers_of(labels, right, TEN))
    broken = evidence("v2", answers_of(labels, right, TEN, confidence=0.6))
    assert failed(judge(broken, champion, LIMITS)) == {"calibration"}
    assert failed(judge(broken, None, LIMITS)) == {"calibration"}
    worse = evidence("v2", answers_of(labels, right, TEN, confidence=0.8))
    assert failed(judge(worse, champion, LIMITS)) == {"calibration"}
    assert judge(worse, None, LIMITS).passed


def test_gap_and_latency_out_of_bounds_fail() -> None:
    """A gap, a slow candidate, and one slower than the champion on the same machine."""
    candidate, champion = versions(*planted(1000, 0, 0))
    assert failed(judge(replace(candidate, validation_accuracy=0.6), champion, LIMITS)) == {"gap"}
    assert failed(judge(replace(candidate, latency_seconds=0.6), None, LIMITS)) == {"latency"}
    slower = replace(candidate, latency_seconds=0.031)
    assert failed(judge(slower, champion, LIMITS)) == {"latency"}
    assert judge(replace(slower, latency_machine="elsewhere"), champion, LIMITS).passed
    assert judge(replace(slower, latency_machine=None), champion, LIMITS).passed
    unmeasured = replace(champion, latency_seconds=math.nan)
    assert failed(judge(candidate, unmeasured, LIMITS)) == {"latency"}


# a first version


def test_a_first_version_needs_to_be_clearly_better_than_chance() -> None:
    """Without a champion the absolute checks decide, and an accuracy floor."""
    labels = [TEN[index % 10] for index in range(200)]
    good = evidence("v1", answers_of(labels, np.arange(200) < 180, TEN))
    verdict = judge(good, None, LIMITS)
    assert verdict.passed
    assert "no worse" not in verdicts(verdict)
    wide = Limits(calibration_bound=1)
    poor = evidence("v1", answers_of(labels, np.arange(200) < 45, TEN))
    assert failed(judge(poor, None, wide)) == {"accuracy floor"}
    # 11 of 12 of one class: what always answering it would reach
    lopsided = labels_of({TEN[0]: 110, TEN[1]: 10})
    lazy = evidence("v1", answers_of(lopsided, np.arange(120) < 110, TEN))
    assert failed(judge(lazy, None, wide)) == {"accuracy floor", "dead classes"}


def test_a_first_version_lists_what_the_benchmark_cannot_show() -> None:
    """A class hardly on the benchmark is unproven, which does not keep a first version back."""
    labels = labels_of(dict.fromkeys(TEN[:9], 20) | {TEN[9]: 2})
    verdict = judge(evidence("v1", answers_of(labels, np.arange(182) % 10 > 0, TEN)), None, LIMITS)
    assert verdict.passed
    assert verdicts(verdict)["unproven classes"] == "undecidable"
    assert TEN[9] in sentence(verdict, "unproven classes")


# properties


def test_no_random_evidence_passes_with_a_failed_check() -> None:
    """Whatever is absent, broken or worse: passed means that nothing failed, and nothing raises."""
    random = np.random.default_rng(7)
    seen = set()
    for _ in range(300):
        images = int(random.integers(0, 120))
        labels = [TEN[index] for index in random.integers(0, 10, images)]
        sides = []
        for version in ("v2", "v1"):
            names = TEN[: int(random.integers(2, 11))] if random.random() < 0.3 else TEN
            answers = answers_of(labels, random.random(images) < random.random(), names,
                                 float(random.choice([0.55, 0.9])))
            one = evidence(version, answers)
            if random.random() < 0.2:
                spoilt: dict[str, object] = {
                    "benchmark": None, "benchmark_digest": "", "validation_accuracy": math.nan,
                    "latency_seconds": None, "runtime": "", "evaluated_digest": "x",
                    "benchmark_images": frozenset({"x"}), "class_names": ("x",),
                }
                name = str(random.choice(sorted(spoilt)))
                one = replace(one, **{name: spoilt[name]})  # type: ignore[arg-type]
            sides.append(one)
        champion = sides[1] if random.random() < 0.8 else None
        verdict = judge(sides[0], champion, LIMITS, SinceAnchor(float(random.normal(0, 0.02))))
        assert verdict.checks
        assert verdict.passed == (not verdict.failed)
        for check in verdict.checks:
            json.dumps(asdict(check), allow_nan=False)
        seen |= set(verdicts(verdict).items())
    assert {verdict for _, verdict in seen} == {"passed", "failed", "undecidable"}


def test_no_checks_is_not_passed() -> None:
    """Passed follows from the checks: none at all, or one failed, is not passed."""
    good, bad = Check("a", "passed", {}, "Good."), Check("b", "failed", {}, "Bad.")
    unsure = Check("c", "undecidable", {}, "Unsure.")
    assert not Verdict(()).passed
    assert not Verdict((good, bad, unsure)).passed
    assert Verdict((good, unsure)).passed
    assert Verdict((good, bad)).failed == (bad,)


def test_a_check_takes_no_nan() -> None:
    """A figure that is not known is None, never NaN or infinite."""
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="use None"):
            Check("a", "passed", {"drop": number}, "Good.")
    with pytest.raises(ValueError, match="verdict"):
        Check("a", "maybe", {}, "Good.")  # type: ignore[arg-type]


def test_the_same_evidence_gives_the_same_verdict() -> None:
    """The order in which images were answered does not matter, and nothing is drawn by chance."""
    random = np.random.default_rng(8)
    candidate, champion = versions(*drawn(random, 500, 0.01))
    assert champion.benchmark is not None
    shuffled = replace(champion, benchmark=champion.benchmark.select(random.permutation(500)))
    assert judge(candidate, champion, LIMITS) == judge(candidate, shuffled, LIMITS)


def test_wrong_limits_give_one_line() -> None:
    """Each names the field, the value and the mend."""
    for wrong in (
        {"margin": -0.01}, {"margin": math.nan}, {"margin": "0.01"}, {"significance": 0},
        {"new_class_images": 0}, {"new_class_images": 2.5}, {"unproven_allowed": 1},
        {"retired_classes": "wolf"}, {"latency_seconds": math.inf}, {"gap_bound": True},
    ):
        with pytest.raises(BadLimits, match=f"^{next(iter(wrong))}=.*: use ") as caught:
            Limits(**wrong)
        assert "\n" not in str(caught.value)
    assert Limits(**asdict(LIMITS)) == LIMITS
    assert Limits(**json.loads(json.dumps(asdict(LIMITS)))) == LIMITS


# flips and power


def test_flips_are_listed_both_ways() -> None:
    """Gained and lost images are named, whatever the order they were answered in."""
    candidate, champion = versions(*planted(100, 3, 2))
    assert candidate.benchmark is not None
    assert champion.benchmark is not None
    turned = flips(candidate.benchmark, champion.benchmark.select(np.arange(99, -1, -1)))
    assert turned.lost == tuple(f"{index:064x}" for index in range(3))
    assert turned.gained == tuple(f"{index:064x}" for index in (98, 99))


def test_a_larger_benchmark_notices_smaller_drops() -> None:
    """Power grows with the images, is repeatable, and says when classes are too small."""
    found = [power([images] * 10, LIMITS) for images in (10, 30, 100, 1000)]
    drops = [one.noticed_drop or 1.0 for one in found]
    assert drops == sorted(drops, reverse=True)
    assert drops[2] <= 0.02
    assert found[0].small_classes == 10
    assert found[2].small_classes == 0
    assert power([30] * 10, LIMITS) == found[1]


def test_power_reads_the_champions_answers() -> None:
    """Sizes and accuracy come from the answers where there are some."""
    _, champion = versions(*planted(1000, 0, 0))
    assert champion.benchmark is not None
    told = power(champion.benchmark, LIMITS)
    assert (told.images, told.classes, told.accuracy) == (1000, 10, 0.9)
    assert "1,000 images of 10 classes" in told.sentence
    with pytest.raises(ValueError, match="no images"):
        power([], LIMITS)
    with pytest.raises(ValueError, match="discordance=nan"):
        power([10], LIMITS, discordance=math.nan)


def test_power_of_extreme_benchmarks() -> None:
    """A champion that is always or never right, one image, or empty classes raise nothing."""
    for counts in ([1], [0, 5], [5] * 10, [3] * 300):
        for accuracy in (0.0, 0.5, 1.0):
            told = power(counts, LIMITS, accuracy=accuracy)
            assert 0 <= told.equal_refused <= 1
            json.dumps(asdict(told), allow_nan=False)

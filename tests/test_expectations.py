"""Validation: every expectation refuses its own bad case, nothing else, and never by silence."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pictures
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tasks import data_docs
from tasks.expectations import (
    BATCH_SUITE,
    SUITE,
    BadRules,
    Candidate,
    Rules,
    SuiteError,
    Summary,
    Validation,
    disagreement_p,
    frame_of,
    validate,
    validate_batch,
)
from vision.images import examine

ROOT = Path(__file__).parent.parent


def sound(key: str = "labelled/cat/sound.jpg", **changes: Any) -> Candidate:
    """A row that every expectation accepts, with these changes."""
    good = Candidate(
        key=key,
        readable=True,
        label="cat",
        labelled_by="ann",
        format="JPEG",
        width=640,
        height=480,
        orientation=1,
        animated=False,
        brightness=120.0,
        sharpness=400.0,
    )
    return dataclasses.replace(good, **changes)


def unread(problem: str | None, **changes: Any) -> dict[str, Any]:
    """What a row looks like whose bytes gave no picture."""
    names = ("format", "width", "height", "orientation", "animated", "brightness", "sharpness")
    return {"readable": False, "problem": problem, **dict.fromkeys(names), **changes}


STRICT = Rules(allow_new_classes=False)
# One bad row for each expectation on rows: what differs from a sound one, and what the sentence
# must say. All are judged by the strict rules.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "key_allowed": ({"key_problem": "the key ends in a slash"}, "ends in a slash"),
    "text_clean": ({"text_problem": "label holds NUL"}, "label holds NUL"),
    "object_exists": (unread(None, has_object=False), "no such object"),
    "readable": (unread("the object is empty (0 bytes)"), "is empty"),
    "format": ({"format": "TIFF"}, "TIFF is none of JPEG, PNG, WEBP, BMP"),
    "still": ({"animated": True}, "more than one frame"),
    "side": ({"width": 7, "height": 9}, "7 x 9: the shorter side needs 8 pixels"),
    "aspect": ({"width": 90, "height": 10}, "90 x 10: one side is more than 8 times"),
    "bright_enough": ({"brightness": 7.94}, "7.9 of 255, under 8"),
    "sharp_enough": ({"sharpness": 1.0}, "sharpness 1.0, under 5"),
    "upright": ({"orientation": 9}, "EXIF orientation 9 is none of 1 to 8"),
    "subject": ({"box_share": 0.004}, "covers 0.40% of the picture: at least 2.00%"),
    "labelled": ({"label": "  "}, "no label"),
    "label_spelt": (
        {"label": "Cat", "label_known": False, "label_problem": "Cat is cat but for its case"},
        "Cat is cat but for its case",
    ),
    "label_allowed": (
        {"label": "heron", "label_known": False},
        "class heron is new and allow_new_classes is off",
    ),
    "one_label": ({"labels_of_content": 2}, "carry 2 different labels"),
    "origin": ({"origin": "found"}, "origin 'found' is none of real, staged, synthetic"),
    "labelled_by_person": ({"labelled_by": "model:7"}, "labelled by 'model:7'"),
    "not_in_benchmark": (
        {"in_benchmark": True, "near_benchmark": "benchmark/1.jpg"},
        "these very bytes are in the benchmark",
    ),
    "not_near_benchmark": (
        {"near_benchmark": "benchmark/1.jpg"},
        "same picture as benchmark/1.jpg",
    ),
    "not_removed": ({"removed": "Ann removed it on 2026-11-22 (blurred)"}, "Ann removed it on"),
}
GOOD_BATCH = Summary(100, 0.1, 0.4, True, 0.05, 0.4)
BAD_BATCH: dict[str, tuple[dict[str, Any], Rules, str]] = {
    "has_images": ({"images": 0}, Rules(), "0 images"),
    "figures_known": ({"class_drift": math.nan}, Rules(), "class_drift could not be computed"),
    "bad_share": ({"bad_share": 0.51}, Rules(), "51.0% of 100 images were refused"),
    "class_drift": (
        {"class_drift": 0.8},
        Rules(largest_class_drift=0.7),
        "0.80 from the library's, more than 0.70",
    ),
    "disagreement": (
        {"disagreement": 0.31, "disagreement_p": 1e-9},
        Rules(),
        "contradicts 31.0% of the new labels, which chance explains with p = 1e-09",
    ),
}


def test_every_expectation_has_a_case() -> None:
    """Nobody adds an expectation without a bad row that it refuses."""
    assert {each.name for each in SUITE} == {"has_rows", *BAD}
    assert {each.name for each in BATCH_SUITE} == {"has_summary", *BAD_BATCH}


def test_sound_rows_pass() -> None:
    """A sound row, with a box, of a new class, by any spelling of a person's name, is accepted."""
    rows = [
        sound(),
        sound("2", box_share=0.5, label="new", label_known=False, labelled_by="Bo Ek"),
        sound("3", width=8, height=8, origin="staged", orientation=8, labelled_by="model maker"),
        sound("4", width=80, height=10, origin="synthetic", box_share=1.0),
    ]
    answer = validate(frame_of(rows), Rules())
    assert (answer.passed, answer.reasons, answer.refusals) == (True, {}, ())


@pytest.fixture(scope="module")
def judged() -> Validation:
    """All the bad rows among sound ones, judged at once."""
    rows = [sound(name, **changes) for name, (changes, _) in BAD.items()]
    return validate(frame_of([sound("first"), *rows, sound("last")]), STRICT)


@pytest.mark.parametrize("name", BAD)
def test_each_expectation_refuses_its_case_alone(name: str, judged: Validation) -> None:
    """The bad row has this one reason, in one line; sound rows have none."""
    (reason,) = judged.reasons[name]
    assert reason.expectation == name
    assert BAD[name][1] in reason.sentence
    assert "\n" not in reason.sentence
    assert not judged.passed
    assert set(judged.reasons) == set(BAD)


@pytest.mark.parametrize("name", BAD)
def test_without_the_expectation_its_case_goes_unnoticed(name: str) -> None:
    """No expectation is there in vain: its bad row passes all the others."""
    without = [each for each in SUITE if each.name != name]
    assert validate(frame_of([sound(name, **BAD[name][0])]), STRICT, without).passed


@pytest.mark.parametrize("name", BAD_BATCH)
def test_each_batch_expectation_refuses_its_case_alone(name: str) -> None:
    """The same for the batch as a whole."""
    changes, rules, says = BAD_BATCH[name]
    frame = frame_of([dataclasses.replace(GOOD_BATCH, **changes)])
    answer = validate_batch(frame, rules)
    assert not answer.passed
    (reason,) = answer.reasons["batch"]
    assert reason.expectation == name
    assert says in reason.sentence
    without = [each for each in BATCH_SUITE if each.name != name]
    assert validate_batch(frame, rules, without).passed


def test_no_rows_are_refused() -> None:
    """An empty frame, on which everything else passes, fails by the row count alone."""
    empty = frame_of([])
    answer = validate(empty, Rules())
    assert not answer.passed
    assert [each.expectation for each in answer.refusals] == ["has_rows"]
    assert validate(empty, Rules(), SUITE[1:]).passed
    assert answer.sentences == ("the batch has no row: nothing was validated",)


@pytest.mark.parametrize("count", [0, 2])
def test_a_batch_has_one_summary(count: int) -> None:
    """No summary, or two, is no judgement of the batch."""
    frame = frame_of([GOOD_BATCH, GOOD_BATCH]).head(count)
    answer = validate_batch(frame, Rules())
    assert [each.expectation for each in answer.refusals] == ["has_summary"]
    assert validate_batch(frame, Rules(), BATCH_SUITE[1:]).passed


@pytest.mark.parametrize("absent", [None, math.nan, math.inf])
@pytest.mark.parametrize("name", ["bad_share", "class_drift", "disagreement", "disagreement_p"])
def test_an_absent_figure_fails_the_batch(name: str, absent: float | None) -> None:
    """What could not be computed is not passed; without a champion there is nothing to disagree."""
    summary = dataclasses.replace(GOOD_BATCH, **{name: absent})
    answer = validate_batch(frame_of([summary]), Rules())
    assert "figures_known" in {each.expectation for each in answer.reasons["batch"]}
    alone = dataclasses.replace(GOOD_BATCH, has_champion=False, **{name: absent})
    assert validate_batch(frame_of([alone]), Rules()).passed == name.startswith("disagreement")


def test_a_small_batch_is_not_stopped_by_its_share_of_bad_rows() -> None:
    """One broken upload among few is quarantined and does not stop the night."""
    assert validate_batch(frame_of([Summary(19, 1.0, 0.0)]), Rules()).passed
    assert not validate_batch(frame_of([Summary(20, 1.0, 0.0)]), Rules()).passed
    assert not validate_batch(frame_of([Summary(19, 1.0, 0.0)]), Rules(fewest_for_share=1)).passed


def test_swapped_labels_stop_a_batch_and_honest_errors_do_not() -> None:
    """30 % flipped labels are refused; errors at the usual rate, or a little more, are not."""
    rules = Rules()
    for disagreeing, passes in ((4, True), (12, True), (32, False)):
        p = disagreement_p(disagreeing, 100, 0.03, rules)
        summary = Summary(100, 0.0, 0.2, True, disagreeing / 100, p)
        assert validate_batch(frame_of([summary]), rules).passed is passes
    assert disagreement_p(0, 0, 0.03, rules) == 1.0
    with pytest.raises(SuiteError, match="impossible"):
        disagreement_p(3, 2, 0.03, rules)
    with pytest.raises(SuiteError, match="impossible"):
        disagreement_p(1, 2, math.nan, rules)


def test_only_people_label() -> None:
    """Nobody, models and versions under any spelling are not people."""
    nobody = ["", " ", None, "model:7", "VERSION:3", "regraft:shortlist", " model:7", "Model :7"]
    rows = [sound(str(place), labelled_by=who) for place, who in enumerate(nobody)]
    answer = validate(frame_of(rows), Rules())
    reasons = [each.expectation for (each,) in answer.reasons.values()]
    assert reasons == ["labelled_by_person"] * len(nobody)


def test_unreadable_rows_have_one_reason() -> None:
    """A row without a picture is not also called dark, blurred, unlabelled and foreign."""
    worst = unread("not JPEG", label=None, origin=None, labelled_by=None, labels_of_content=3)
    rows = [
        sound("unreadable", **worst, in_benchmark=True),
        sound("gone", **worst, has_object=False),
    ]
    answer = validate(frame_of(rows), STRICT)
    reasons = {key: [each.expectation for each in all_] for key, all_ in answer.reasons.items()}
    assert reasons == {"unreadable": ["readable"], "gone": ["object_exists"]}


def test_several_reasons_are_all_told_in_the_order_of_the_suite() -> None:
    """A row that is wrong in several ways is told all of them at once."""
    row = sound("bad", brightness=0.0, sharpness=0.0, label=None, origin=None)
    answer = validate(frame_of([row]), Rules())
    assert [each.expectation for each in answer.reasons["bad"]] == [
        "bright_enough",
        "sharp_enough",
        "labelled",
        "origin",
    ]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Candidate)])
def test_a_missing_column_is_an_error_and_no_pass(field: str) -> None:
    """A frame that lacks what is judged is not judged."""
    with pytest.raises(SuiteError, match=rf"^the frame lacks {field}: "):
        validate(frame_of([sound()]).drop(columns=field), Rules())


@pytest.mark.parametrize(
    "field", ["format", "animated", "width", "height", "brightness", "sharpness", "orientation"]
)
def test_an_absent_fact_of_a_readable_picture_is_an_error_and_no_pass(field: str) -> None:
    """Great Expectations passes what is absent; we do not."""
    with pytest.raises(SuiteError, match="is absent in 1 rows, the first is bad: "):
        validate(frame_of([sound(), sound("bad", **{field: None})]), Rules())


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("readable", None, "readable is neither true nor false"),
        ("in_benchmark", "no", "in_benchmark is neither true nor false"),
        ("brightness", "dark", "brightness is not a number everywhere"),
    ],
)
def test_frames_of_the_wrong_kind_are_errors(field: str, value: object, says: str) -> None:
    """Texts for numbers and anything for a truth are told in one line."""
    rows = [sound(), sound("other", **{field: value})]
    with pytest.raises(SuiteError, match=says) as error:
        validate(frame_of(rows), Rules())
    assert "\n" not in str(error.value)


def test_one_object_has_one_row() -> None:
    """Two rows of one key, which may contradict each other, are not judged."""
    with pytest.raises(SuiteError, match=r"^twice has more than one row: "):
        validate(frame_of([sound("twice"), sound("twice", label="dog")]), Rules())


def test_an_expectation_that_cannot_run_is_an_error() -> None:
    """Great Expectations reports a failure inside as an empty result; we raise it."""
    broken = dataclasses.replace(SUITE[1], column="no_such_column")
    with pytest.raises(SuiteError, match=r"key_allowed could not run: .*no_such_column") as error:
        validate(frame_of([sound()]), Rules(), [broken])
    assert "\n" not in str(error.value)


def test_hostile_texts_are_stored_and_shown_inert() -> None:
    """NUL, surrogates, formulas, braces, markup and megabytes reach neither jsonb nor the page."""
    hostile = ["\0\ud800", "{rules}{0}", "<script>alert(1)</script>", "=cmd|'/c'!A1", "x" * 10**6]
    rows = [
        sound(
            f"{text}{place}",
            label=text,
            origin=text,
            label_problem=text,
            labelled_by=f"model:{text}",
        )
        for place, text in enumerate(hostile)
    ]
    answer = validate(frame_of(rows), Rules())
    assert list(answer.reasons) == [row.key for row in rows]
    for sentence in answer.sentences:
        assert sentence.isprintable()
        assert len(sentence) < 400
    text = json.dumps(answer.results, allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in text
    text.encode()  # raises on a lone surrogate
    assert len(text) < 50_000
    page = data_docs.page(answer.suite, answer.results)
    assert "<script>alert" not in page
    assert "alert(1)" in page


def test_results_are_strict_json_and_data_docs_come_from_them() -> None:
    """What Postgres gives back is enough to write the page, and names key and expectation."""
    rows = [sound(), sound("labelled/cat/night.jpg", brightness=1.0, box_share=math.nan)]
    answer = validate(frame_of(rows), Rules())
    stored = json.loads(json.dumps(answer.results, allow_nan=False))
    assert stored == answer.results
    failed = [each for each in stored["results"] if not each["success"]]
    assert [each["expectation_config"]["meta"]["name"] for each in failed] == ["bright_enough"]
    assert failed[0]["result"]["unexpected_index_list"] == [
        {"brightness": 1.0, "row": 1, "key": "labelled/cat/night.jpg"}
    ]
    assert "labelled/cat/night.jpg" in data_docs.page(answer.suite, stored)


def test_data_docs_show_what_is_absent(caplog: pytest.LogCaptureFixture) -> None:
    """An image without a label has its row on the page, and nothing failed while it was made."""
    answer = validate(frame_of([sound(), sound("labelled/bare.jpg", label=None)]), Rules())
    assert not answer.passed
    page = data_docs.page(answer.suite, answer.results)
    assert "labelled/bare.jpg" in page
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_data_docs_show_what_should_be_absent(caplog: pytest.LogCaptureFixture) -> None:
    """An image near the benchmark stands on the page beside the one that it is near to."""
    near = sound("labelled/cat/near.jpg", near_benchmark="benchmark/cat/1.jpg")
    answer = validate(frame_of([sound(), near]), Rules())
    page = data_docs.page(answer.suite, answer.results)
    assert "labelled/cat/near.jpg" in page
    assert "benchmark/cat/1.jpg" in page
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_data_docs_are_one_file_that_asks_no_other_host() -> None:
    """On a machine without a way out the page still shows which expectation failed."""
    answer = validate(frame_of([sound(), sound("labelled/cat/night.jpg", brightness=1.0)]), Rules())
    page = data_docs.page(answer.suite, answer.results)
    assert "<script" not in page
    assert re.findall(r"""(?:src|href)=["'](?!#)""", page) == []
    assert page.count("fa-times") > page.count(".fa-times")


ODD_REASONS = {
    "1 x 1": {"side", "bright_enough", "sharp_enough"},
    "1 x 100000": {"side", "aspect", "bright_enough", "sharp_enough"},
    "animated PNG": {"still"},
    "animated WEBP": {"still"},
    "all black": {"bright_enough", "sharp_enough"},
    "orientation 9": {"upright"},
}


def test_from_bytes_to_reasons() -> None:
    """Bad bytes are unreadable and no more, odd pictures fail by their facts, others pass."""
    bodies = {name: make() for name, make, _ in (*pictures.UNREADABLE, *pictures.ODD)}
    bodies |= {name: make() for name, make in pictures.ACCEPTED}
    expected = {name: {"readable"} for name, _, _ in pictures.UNREADABLE} | ODD_REASONS
    assert refused(bodies) == expected


def test_real_digits_and_made_shapes_are_accepted() -> None:
    """The smallest real scans and the shapes that the tests train on break no rule."""
    scans = load_digits().images[:100]
    bodies = {
        f"digit {place}": pictures.png(Image.fromarray((scan * 15.9).astype("uint8")))
        for place, scan in enumerate(scans)
    }
    bodies |= {name: pictures.jpeg(pictures.shape(name)) for name in pictures.SHAPES}
    assert refused(bodies) == {}


def refused(bodies: dict[str, bytes]) -> dict[str, set[str]]:
    """The expectations that each of these files fails, all else being in order."""
    shared = {field.name for field in dataclasses.fields(Candidate)}
    rows = []
    for key, body in bodies.items():
        facts, _ = examine(body, None)
        known = {name: value for name, value in vars(facts).items() if name in shared}
        rows.append(sound(key, **known))
    reasons = validate(frame_of(rows), Rules()).reasons
    return {key: {each.expectation for each in all_} for key, all_ in reasons.items()}


def test_one_bad_row_among_ten_thousand_is_found() -> None:
    """A batch of thousands is judged whole, and only the bad row is refused."""
    rows = [sound(str(number)) for number in range(10_000)]
    rows[7_000] = sound("7000", brightness=2.0)
    assert list(validate(frame_of(rows), Rules()).reasons) == ["7000"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"allow_new_classes": 1}, "allow_new_classes=1: must be true or false"),
        ({"smallest_side": 8.5}, "smallest_side=8.5: must be a whole number from 1"),
        ({"smallest_side": True}, "smallest_side=True: must be"),
        ({"largest_aspect": 0.5}, "largest_aspect=0.5: must be a number from 1"),
        ({"darkest": math.nan}, "darkest=nan: must be a number from 0 to 255"),
        ({"largest_bad_share": "0.5"}, "largest_bad_share='0.5': must be a number from 0 to 1"),
        ({"smallest_subject": -0.1}, "smallest_subject=-0.1: must be a number from 0 to 1"),
        ({"largest_class_drift": 2}, "largest_class_drift=2: must be a number from 0 to 1"),
    ],
)
def test_impossible_rules_are_refused(changes: dict[str, Any], says: str) -> None:
    """A rule that cannot be meant is told by field, value and mend."""
    with pytest.raises(BadRules, match="must be") as error:
        Rules(**changes)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_importing_the_rules_is_cheap() -> None:
    """Light commands may import this module: no pandas, no Great Expectations."""
    program = (
        "import sys, tasks.expectations;"
        "print({'pandas', 'great_expectations', 'scipy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"

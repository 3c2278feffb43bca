"""What a new image and a whole batch must be like: every rule of validation stands in this file.

SUITE judges the rows of one batch, a row per new object; what a row fails are the reasons for its
quarantine. BATCH_SUITE judges the batch as a whole; if it fails, the night stops and changes
nothing. Great Expectations runs both; its results are stored and become Data Docs.
"""

import copy
import functools
import html
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from vision.images import FORMATS

if TYPE_CHECKING:  # both take seconds to import, which light commands must not pay
    import pandas as pd

ORIGINS = ("real", "staged", "synthetic")
# A label by one of these was given by a model: trained on, it would teach its own errors.
NOT_PEOPLE = ("model", "version", "regraft")
# Longer texts are cut where they are shown and stored; a field may hold a megabyte.
LONGEST_SHOWN = 200
# columns that name a row of a batch on its page
ROW = ("row", "key")


class BadRules(ValueError):
    """A rule with an impossible value; the message is one line: field, value, mend."""


class SuiteError(RuntimeError):
    """The suite could not judge: a column is missing, a figure absent. Nothing may pass then."""


@dataclass(frozen=True)
class Rules:
    """Where the lines are drawn.

    allow_new_classes: take labels that the library does not know yet.
    smallest_side: pixels of the shorter side; 8 lets scanned digits through.
    largest_aspect: longer side by shorter side.
    darkest: smallest mean luma, of 255. The darkest of 1,200 photographs of animals and things
    had 16.
    smallest_sharpness: smallest variance of the Laplacian (vision.images). The softest of the same
    photographs had 10, a blank wall has 0.
    smallest_subject: smallest share of the picture that a given box may cover.
    largest_bad_share: of a batch's rows; more means that something went wrong with all of them.
    fewest_for_share: in smaller batches the share is no evidence, and one broken upload would stop
    the night; its bad rows are quarantined all the same.
    largest_class_drift: total variation distance between the class mix of batch and library, 0 to
    1. 1 is off: classes are uploaded one at a time and new ones are the purpose, so that a sound
    batch is often as far from the library as can be. Lower it where batches are random samples.
    disagreement_margin: by how much more than on held-out images the champion may confidently
    disagree with the new labels.
    smallest_disagreement_p: the batch stops when excess disagreement is less likely than this by
    chance: one false alarm in a thousand nights.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    allow_new_classes: bool = True
    smallest_side: int = 8
    largest_aspect: float = 8.0
    darkest: float = 8.0
    smallest_sharpness: float = 5.0
    smallest_subject: float = 0.02
    largest_bad_share: float = 0.5
    fewest_for_share: int = 20
    largest_class_drift: float = 1.0
    disagreement_margin: float = 0.1
    smallest_disagreement_p: float = 0.001

    def __post_init__(self) -> None:
        if not isinstance(self.allow_new_classes, bool):
            raise BadRules(f"allow_new_classes={self.allow_new_classes!r}: must be true or false")
        for name, low, high in (
            ("smallest_side", 1, 100_000),
            ("largest_aspect", 1, 100_000),
            ("darkest", 0, 255),
            ("smallest_sharpness", 0, 1_000_000),
            ("smallest_subject", 0, 1),
            ("largest_bad_share", 0, 1),
            ("fewest_for_share", 1, 1_000_000),
            ("largest_class_drift", 0, 1),
            ("disagreement_margin", 0, 1),
            ("smallest_disagreement_p", 0, 1),
        ):
            value = getattr(self, name)
            whole = name in {"smallest_side", "fewest_for_share"}
            right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            # Written so that NaN, which compares false with everything, is refused.
            if not (right and low <= value <= high):
                kind = "a whole number" if whole else "a number"
                raise BadRules(f"{name}={value!r}: must be {kind} from {low} to {high}")


@dataclass(frozen=True)
class Candidate:
    """One new object as the suite sees it: a row of the frame.

    key: its S3 key, unique in the frame. key_problem, text_problem: why the key or a text of its
    row (label, group, ...) cannot be taken, else None. has_object: False for a manifest row whose
    object is not there.
    readable, problem, format, width, height, orientation, animated, brightness, sharpness: from
    vision.images.Facts. box_share: share of the picture that a given box covers, else None.
    label: the class; None or blank: no label. label_problem: how it (or the sub-label) differs
    from a known one by spelling only, else None. label_known: the library has the class.
    origin: one of ORIGINS. labelled_by: who said so.
    labels_of_content: distinct labels of this sha256 in batch and library together.
    in_benchmark: its bytes are in the benchmark. near_benchmark: key of a benchmark image that it
    nearly repeats, else None. removed: who removed its bytes from the library, and why, else None.
    """

    key: str
    readable: bool
    label: str | None
    labelled_by: str | None
    key_problem: str | None = None
    text_problem: str | None = None
    has_object: bool = True
    problem: str | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    animated: bool | None = None
    brightness: float | None = None
    sharpness: float | None = None
    box_share: float | None = None
    label_problem: str | None = None
    label_known: bool = True
    origin: str | None = "real"
    labels_of_content: int = 1
    in_benchmark: bool = False
    near_benchmark: str | None = None
    removed: str | None = None


@dataclass(frozen=True)
class Summary:
    """One batch as the batch suite sees it: the only row of its frame.

    images: rows of the batch. bad_share: share of them that the row suite refused.
    class_drift: see Rules. has_champion: some version serves.
    disagreement: share of its confident answers that contradict the new labels, disagreement_p:
    see `disagreement_p`; both None without a champion.
    """

    images: int
    bad_share: float | None
    class_drift: float | None
    has_champion: bool = False
    disagreement: float | None = None
    disagreement_p: float | None = None


@dataclass(frozen=True)
class Expected:
    """One declared expectation.

    name: what is stored as the reason. promise: the rule in words, shown in Data Docs.
    kind: class of great_expectations.expectations. column: what it looks at, None: the table.
    sentence: for people, on what was found; {names} are the row's columns and `rules`.
    among: the STAGES column of the rows it judges, None: all.
    arguments: keyword arguments, given the rules.
    absent_passes: None in the column is an answer (no box was given), not a figure that is missing.
    """

    name: str
    promise: str
    kind: str
    column: str | None
    sentence: str
    among: str | None = "decoded"
    arguments: Callable[[Rules], dict[str, Any]] = lambda _: {}
    absent_passes: bool = False


# Which rows an expectation judges. Those left out pass it, so each stage leaves out only what
# another expectation refuses: a picture that cannot be read has that one reason and no more.
STAGES: dict[str, Callable[["pd.DataFrame"], "pd.Series[bool]"]] = {
    "fetchable": lambda frame: frame["key_problem"].isna() & frame["text_problem"].isna(),
    "fetched": lambda frame: frame["fetchable"] & frame["has_object"],
    "decoded": lambda frame: frame["fetched"] & frame["readable"],
    "with_label": lambda frame: frame["decoded"] & frame["label"].notna(),
    "well_spelt": lambda frame: frame["with_label"] & frame["label_problem"].isna(),
    "outside_benchmark": lambda frame: frame["decoded"] & ~frame["in_benchmark"],
}

BE_TRUE: Callable[[Rules], dict[str, Any]] = lambda _: {"value_set": [True]}  # noqa: E731
BE_FALSE: Callable[[Rules], dict[str, Any]] = lambda _: {"value_set": [False]}  # noqa: E731
IN_SET, BETWEEN = "ExpectColumnValuesToBeInSet", "ExpectColumnValuesToBeBetween"
ABSENT, PRESENT = "ExpectColumnValuesToBeNull", "ExpectColumnValuesToNotBeNull"

SUITE: tuple[Expected, ...] = (
    Expected(
        "has_rows",
        "there is at least one row: every other expectation passes on none",
        "ExpectTableRowCountToBeBetween",
        None,
        "the batch has no row: nothing was validated",
        among=None,
        arguments=lambda _: {"min_value": 1},
    ),
    Expected(
        "key_allowed",
        "the key fits our alphabet, so that every store means the same object by it",
        ABSENT,
        "key_problem",
        "{key_problem}",
        among=None,
    ),
    Expected(
        "text_clean",
        "label, group and the other texts can be stored: no control characters, no endless fields",
        ABSENT,
        "text_problem",
        "{text_problem}",
        among=None,
    ),
    Expected(
        "object_exists",
        "what the manifest names is there",
        IN_SET,
        "has_object",
        "the manifest names it and there is no such object: upload it or take the row out",
        among="fetchable",
        arguments=BE_TRUE,
    ),
    Expected(
        "readable",
        "every pixel decodes",
        IN_SET,
        "readable",
        "{problem}",
        among="fetched",
        arguments=BE_TRUE,
    ),
    Expected(
        "format",
        "the format is one that we read",
        IN_SET,
        "format",
        "{format} is none of " + ", ".join(FORMATS) + ": convert it",
        arguments=lambda _: {"value_set": list(FORMATS)},
    ),
    Expected(
        "still",
        "one frame",
        IN_SET,
        "animated",
        "more than one frame: save the one that shows the subject",
        arguments=BE_FALSE,
    ),
    Expected(
        "side",
        "the shorter side is long enough to show something",
        BETWEEN,
        "shorter_side",
        "{width:.0f} x {height:.0f}: the shorter side needs {rules.smallest_side} pixels",
        arguments=lambda rules: {"min_value": rules.smallest_side},
    ),
    Expected(
        "aspect",
        "no strip: of a strip the centre crop shows next to nothing",
        BETWEEN,
        "aspect",
        "{width:.0f} x {height:.0f}: one side is more than {rules.largest_aspect:g} times the "
        "other; crop it",
        arguments=lambda rules: {"max_value": rules.largest_aspect},
    ),
    Expected(
        "bright_enough",
        "bright enough to see something",
        BETWEEN,
        "brightness",
        "mean brightness {brightness:.1f} of 255, under {rules.darkest:g}: too dark",
        arguments=lambda rules: {"min_value": rules.darkest},
    ),
    Expected(
        "sharp_enough",
        "sharp enough to see something",
        BETWEEN,
        "sharpness",
        "sharpness {sharpness:.1f}, under {rules.smallest_sharpness:g}: blurred or blank",
        arguments=lambda rules: {"min_value": rules.smallest_sharpness},
    ),
    Expected(
        "upright",
        "EXIF says which way is up, or nothing",
        BETWEEN,
        "orientation",
        "EXIF orientation {orientation:.0f} is none of 1 to 8, so which way is up is unknown: "
        "turn it and save it anew",
        arguments=lambda _: {"min_value": 1, "max_value": 8},
    ),
    Expected(
        "subject",
        "where a box is given, the subject in it is not tiny, and the box lies in the picture",
        BETWEEN,
        "box_share",
        "the box covers {box_share:.2%} of the picture: at least {rules.smallest_subject:.2%} and "
        "at most all of it; crop the picture or mend the box",
        arguments=lambda rules: {"min_value": rules.smallest_subject, "max_value": 1},
        absent_passes=True,
    ),
    Expected(
        "labelled",
        "there is a label",
        PRESENT,
        "label",
        "no label: put it into the folder of its class or name the class in the manifest",
    ),
    Expected(
        "label_spelt",
        "one class, one spelling",
        ABSENT,
        "label_problem",
        "{label_problem}",
        among="with_label",
    ),
    Expected(
        "label_allowed",
        "the class is known, or new classes are allowed",
        IN_SET,
        "label_known",
        "class {label} is new and allow_new_classes is off: allow it or mend the label",
        among="well_spelt",
        arguments=lambda rules: {"value_set": [True, False] if rules.allow_new_classes else [True]},
    ),
    Expected(
        "one_label",
        "the same bytes have the same label everywhere",
        BETWEEN,
        "labels_of_content",
        "these very bytes carry {labels_of_content} different labels: leave them under one",
        among="with_label",
        arguments=lambda _: {"max_value": 1},
    ),
    Expected(
        "origin",
        "the origin is stated: " + ", ".join(ORIGINS),
        IN_SET,
        "origin",
        "origin {origin!r} is none of " + ", ".join(ORIGINS),
        arguments=lambda _: {"value_set": list(ORIGINS)},
    ),
    Expected(
        "labelled_by_person",
        "a person gave the label",
        "ExpectColumnValuesToMatchRegex",
        "labelled_by",
        "labelled by {labelled_by!r}: only people's labels are trained on; have it confirmed",
        among="with_label",
        arguments=lambda _: {"regex": rf"(?i)^(?!(?:{'|'.join(NOT_PEOPLE)})\s*:)\S"},
    ),
    Expected(
        "not_in_benchmark",
        "not a benchmark image, or the benchmark would flatter us",
        IN_SET,
        "in_benchmark",
        "these very bytes are in the benchmark, which no training may see",
        arguments=BE_FALSE,
    ),
    Expected(
        "not_near_benchmark",
        "nor one re-encoded, resized or mirrored",
        ABSENT,
        "near_benchmark",
        "nearly the same picture as {near_benchmark} of the benchmark, which no training may see",
        among="outside_benchmark",
    ),
    Expected(
        "not_removed",
        "no person has removed these bytes from the library",
        ABSENT,
        "removed",
        "{removed}: `regraft image restore` brings it back, this copy too",
    ),
)

BATCH_STAGES: dict[str, Callable[["pd.DataFrame"], "pd.Series[bool]"]] = {
    "large_enough": lambda frame: frame["images"] >= frame["fewest_for_share"],
    "with_champion": lambda frame: frame["has_champion"],
}

BATCH_SUITE: tuple[Expected, ...] = (
    Expected(
        "has_summary",
        "the batch has exactly one summary",
        "ExpectTableRowCountToEqual",
        None,
        "there is no summary, or more than one: nothing was validated",
        among=None,
        arguments=lambda _: {"value": 1},
    ),
    Expected(
        "has_images",
        "the batch has at least one image",
        BETWEEN,
        "images",
        "the batch has {images} images",
        among=None,
        arguments=lambda _: {"min_value": 1},
    ),
    Expected(
        "figures_known",
        "every figure could be computed: an absent one passes every limit",
        ABSENT,
        "absent_figures",
        "{absent_figures} could not be computed, and what is not known is not passed",
        among=None,
    ),
    Expected(
        "bad_share",
        "most of the batch is sound",
        BETWEEN,
        "bad_share",
        "{bad_share:.1%} of {images} images were refused, more than {rules.largest_bad_share:.1%}: "
        "look for the cause before taking the rest",
        among="large_enough",
        arguments=lambda rules: {"min_value": 0, "max_value": rules.largest_bad_share},
        absent_passes=True,  # figures_known has it
    ),
    Expected(
        "class_drift",
        "the class mix is near the library's",
        BETWEEN,
        "class_drift",
        "the class mix is {class_drift:.2f} from the library's, more than "
        "{rules.largest_class_drift:.2f}: look at what was uploaded, then raise the limit",
        among=None,
        arguments=lambda rules: {"min_value": 0, "max_value": rules.largest_class_drift},
        absent_passes=True,  # figures_known has it
    ),
    Expected(
        "disagreement",
        "the champion does not confidently contradict the new labels more than it errs",
        BETWEEN,
        "disagreement_p",
        "the champion confidently contradicts {disagreement:.1%} of the new labels, which chance "
        "explains with p = {disagreement_p:.2g} only: look for swapped labels, then revert the "
        "batch or lower smallest_disagreement_p",
        among="with_champion",
        arguments=lambda rules: {"min_value": rules.smallest_disagreement_p, "max_value": 1},
        absent_passes=True,  # figures_known has it
    ),
)


@dataclass(frozen=True)
class Reason:
    """One expectation that was not met: its name and a sentence with what was found."""

    expectation: str
    sentence: str


@dataclass(frozen=True)
class Validation:
    """What a suite said of a frame.

    passed: every expectation was met. reasons: for each refused row's key (for the batch suite:
    'batch') why, in the order of the suite. refusals: what the table as a whole failed.
    results: Great Expectations' own result, as JSON that Postgres takes.
    """

    suite: str
    passed: bool
    reasons: Mapping[str, tuple[Reason, ...]]
    refusals: tuple[Reason, ...]
    results: dict[str, Any]

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences on the table as a whole and on its rows."""
        rows = (reason for each in self.reasons.values() for reason in each)
        return tuple(reason.sentence for reason in (*self.refusals, *rows))


def validate(frame: "pd.DataFrame", rules: Rules, suite: Sequence[Expected] = SUITE) -> Validation:
    """Judge new objects: a frame with the fields of Candidate as columns, a row each.

    Build it by `frame_of`. Raises SuiteError, one line, when a column or a needed figure is
    missing, a key comes twice, or an expectation could not run: then nothing is known.
    """
    ready = _checked(frame, Candidate)
    if ready["key"].duplicated().any():
        twice = _shown(ready["key"][ready["key"].duplicated()].iloc[0])
        raise SuiteError(f"{twice} has more than one row: each object has one")
    for name in ("label", "labelled_by", "origin"):
        blank = ready[name].map(lambda text: isinstance(text, str) and not text.strip())
        ready[name] = ready[name].mask(blank.astype(bool), None)
    # In a set or matching a pattern is, to Great Expectations, whatever is absent.
    ready["labelled_by"] = ready["labelled_by"].where(ready["labelled_by"].notna(), "")
    ready["origin"] = ready["origin"].where(ready["origin"].notna(), "")
    sides = ready[["width", "height"]]
    ready["shorter_side"] = sides.min(axis=1, skipna=False)
    ready["aspect"] = sides.max(axis=1) / ready["shorter_side"]
    for name, stage in STAGES.items():
        ready[name] = stage(ready).astype(bool)
    return _run("images", suite, ready, rules)


def validate_batch(
    summary: "pd.DataFrame", rules: Rules, suite: Sequence[Expected] = BATCH_SUITE
) -> Validation:
    """Judge the batch: a frame with the fields of Summary as columns and one row.

    Build it by `frame_of`. Raises SuiteError as `validate` does.
    """
    ready = _checked(summary, Summary)
    ready["key"] = "batch"
    ready["fewest_for_share"] = rules.fewest_for_share
    # A sum of shares may exceed 1 by its last bit.
    ready["class_drift"] = ready["class_drift"].round(9)
    needed: dict[str, str | None] = {"bad_share": None, "class_drift": None}
    needed |= {"disagreement": "has_champion", "disagreement_p": "has_champion"}
    ready["absent_figures"] = [
        ", ".join(
            name
            for name, where in needed.items()
            if (where is None or row[where]) and not math.isfinite(row[name])
        )
        or None
        for row in ready.to_dict("records")
    ]
    for name, stage in BATCH_STAGES.items():
        ready[name] = stage(ready).astype(bool)
    return _run("batch", suite, ready, rules)


def frame_of(rows: Iterable[Candidate] | Iterable[Summary]) -> "pd.DataFrame":
    """The frame that the suites take. Any text is allowed in it, lone surrogates included."""
    import pandas as pd

    listed = list(rows)
    kind: Any = type(listed[0]) if listed else Candidate
    names = [field.name for field in fields(kind)]
    values = [[getattr(row, name) for name in names] for row in listed]
    # Pandas would turn texts into UTF-8, which lone surrogates do not survive.
    return pd.DataFrame(values, columns=names, dtype=object)


def disagreement_p(disagreeing: int, confident: int, usual: float, rules: Rules) -> float:
    """Chance of at least so many contradictions if labels were as right as ever (binomial).

    disagreeing of confident: the champion's confident answers on new images of classes it knows
    that contradict the label. usual: the same share on held-out images. 1 where it was confident
    about none: there is no evidence against them.
    """
    from scipy.stats import binomtest

    if not (0 <= disagreeing <= confident and 0 <= usual <= 1):
        raise SuiteError(f"disagreeing={disagreeing} of {confident}, usual={usual}: impossible")
    if confident == 0:
        return 1.0
    rate = min(1.0, usual + rules.disagreement_margin)
    return float(binomtest(disagreeing, confident, rate, "greater").pvalue)


def rendered(results: Mapping[str, Any]) -> str:
    """Great Expectations' HTML page on a suite's stored results; about 0.3 s."""
    great_expectations = _great_expectations()
    with great_expectations.lock:
        # Its templates print what they are given: a key may be a script.
        whole = great_expectations.schema.load(_inert(_showable(results)))
        return str(great_expectations.view().render(great_expectations.page().render(whole)))


@functools.cache
def _great_expectations() -> SimpleNamespace:
    """Import what we need of it, once: it takes seconds."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read while importing
    with warnings.catch_warnings():
        # It imports modules that Python has deprecated, which is not ours to mend.
        warnings.simplefilter("ignore")
        import great_expectations as gx
        from great_expectations import expectations
        from great_expectations.core.expectation_validation_result import (
            expectationSuiteValidationResultSchema,
        )
        from great_expectations.data_context.types.base import (
            ProgressBarsConfig,
        )
        from great_expectations.expectations.row_conditions import Column
        from great_expectations.render.renderer.page_renderer import (
            ValidationResultsPageRenderer,
        )
        from great_expectations.render.view.view import DefaultJinjaPageView
    # It announces a temporary folder each time, which tells nobody anything. Set after the import,
    # which sets it to INFO.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    return SimpleNamespace(
        gx=gx,
        expectations=expectations,
        schema=expectationSuiteValidationResultSchema,
        quiet=ProgressBarsConfig(globally=False),
        column=Column,
        page=ValidationResultsPageRenderer,
        view=DefaultJinjaPageView,
        lock=threading.Lock(),  # its current context belongs to the whole process
    )


def _run(name: str, suite: Sequence[Expected], frame: "pd.DataFrame", rules: Rules) -> Validation:
    """Run a suite over a prepared frame, and put each failure into a sentence."""
    shown = frame.copy()
    for column in shown.columns:
        if shown[column].dtype.kind == "O":
            shown[column] = shown[column].map(_shown)
    shown.insert(0, "row", range(len(shown)))
    for expected in suite:
        _refuse_absent(expected, shown)
    answer = _ask(name, suite, shown, rules)
    by_name = {each["expectation_config"]["meta"]["name"]: each for each in answer["results"]}
    reasons: dict[str, list[Reason]] = {}
    refusals = []
    keys = frame["key"].tolist()
    for expected in suite:
        one = by_name.get(expected.name)
        if one is None:
            raise SuiteError(f"expectation {expected.name} gave no result")
        problem = _exception(one["exception_info"])
        if problem:
            raise SuiteError(f"expectation {expected.name} could not run: {problem}")
        if one["success"]:
            continue
        if expected.column is None:
            refusals.append(Reason(expected.name, expected.sentence))
            continue
        rows = [entry["row"] for entry in one["result"].get("unexpected_index_list") or []]
        if not rows:
            raise SuiteError(f"expectation {expected.name} failed and names no row")
        for row, values in zip(rows, shown.iloc[rows].to_dict("records"), strict=True):
            found = {str(column): value for column, value in values.items()}
            sentence = expected.sentence.format(**found, rules=rules)
            reasons.setdefault(keys[row], []).append(Reason(expected.name, sentence))
    return Validation(
        suite=name,
        passed=bool(answer["success"]),
        reasons={key: tuple(each) for key, each in reasons.items()},
        refusals=tuple(refusals),
        results=_storable(answer),
    )


def _ask(
    name: str, suite: Sequence[Expected], frame: "pd.DataFrame", rules: Rules
) -> dict[str, Any]:
    """Great Expectations' answer on the frame, as it gives it."""
    library = _great_expectations()
    expectations = []
    for expected in suite:
        arguments = expected.arguments(rules)
        if expected.column is not None:
            arguments["column"] = expected.column
        if expected.among is not None:
            arguments["row_condition"] = library.column(expected.among) == True  # noqa: E712
        kind = getattr(library.expectations, expected.kind)
        meta = {"name": expected.name, "promise": expected.promise}
        expectations.append(kind(**arguments, meta=meta))
    with library.lock:
        context = library.gx.get_context(mode="ephemeral")
        context.variables.progress_bars = library.quiet
        batch = (
            context.data_sources.add_pandas(name)
            .add_dataframe_asset(name)
            .add_batch_definition_whole_dataframe(name)
        )
        definition = library.gx.ValidationDefinition(
            name=name,
            data=batch,
            suite=context.suites.add(
                library.gx.ExpectationSuite(name=name, expectations=expectations)
            ),
        )
        answer: dict[str, Any] = (
            context.validation_definitions.add(definition)
            .run(
                batch_parameters={"dataframe": frame},
                result_format={
                    "result_format": "COMPLETE",
                    "unexpected_index_column_names": list(ROW),
                },
            )
            .to_json_dict()
        )
    return answer


def _checked(frame: "pd.DataFrame", kind: type[Candidate] | type[Summary]) -> "pd.DataFrame":
    """A copy with the columns that we know, numbers as numbers and truths as truths."""
    import pandas as pd

    names = [field.name for field in fields(kind)]
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise SuiteError(f"the frame lacks {', '.join(missing)}: build it by frame_of")
    ready = frame[names].reset_index(drop=True)
    for field in fields(kind):
        if field.type is bool:
            if not ready[field.name].isin([True, False]).all():
                raise SuiteError(f"{field.name} is neither true nor false in some rows")
            ready[field.name] = ready[field.name].astype(bool)
        elif field.type in {int, int | None, float, float | None}:
            try:
                ready[field.name] = pd.to_numeric(ready[field.name])
            except (TypeError, ValueError) as error:
                raise SuiteError(f"{field.name} is not a number everywhere: {error}") from error
    return ready


def _refuse_absent(expected: Expected, frame: "pd.DataFrame") -> None:
    """Great Expectations passes what is absent: a missing figure would pass every limit."""
    if expected.column is None or expected.absent_passes or expected.kind in {ABSENT, PRESENT}:
        return
    judged = frame if expected.among is None else frame[frame[expected.among]]
    absent = judged[judged[expected.column].isna()]
    if len(absent):
        raise SuiteError(
            f"{expected.column} is absent in {len(absent)} rows, the first is "
            f"{absent['key'].iloc[0]}: {expected.name} cannot be judged"
        )


def _exception(info: Mapping[str, Any]) -> str | None:
    """The first line of what went wrong inside an expectation, None when nothing did."""
    if "raised_exception" in info:
        found = [info] if info["raised_exception"] else []
    else:
        found = [each for each in info.values() if each.get("raised_exception")]
    return (str(found[0]["exception_message"]).splitlines() or ["?"])[0] if found else None


def _shown(value: Any) -> Any:
    """Text as it may be shown and stored: one line, bounded, no control character or surrogate."""
    if not isinstance(value, str):
        return value
    text = value if len(value) <= LONGEST_SHOWN else value[: LONGEST_SHOWN - 1] + "…"
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _storable(value: Any) -> Any:
    """Strict JSON that jsonb takes (no NaN, no NUL), without what repeats the lists of rows."""
    if isinstance(value, dict):
        repeated = {"unexpected_list", "unexpected_index_query", "partial_unexpected_index_list"}
        return {_shown(str(k)): _storable(v) for k, v in value.items() if k not in repeated}
    if isinstance(value, list | tuple):
        return [_storable(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _shown(value)


def _showable(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results as its page can show them, which fails at two things that it stores itself.

    Absent values get a word, since rows that have none are left out. And where values should be
    absent, it does not say which columns name the row.
    """
    named = copy.deepcopy(dict(results))
    for one in named["results"]:
        result = one["result"]
        for name in ("unexpected_index_list", "partial_unexpected_counts"):
            for entry in result.get(name) or []:
                entry |= {key: "nothing" for key, value in entry.items() if value is None}
        if result.get("unexpected_index_list"):
            result["unexpected_index_column_names"] = list(ROW)
    return named


def _inert(value: Any) -> Any:
    """The same with every text made harmless in HTML."""
    if isinstance(value, dict):
        return {_inert(k): _inert(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_inert(each) for each in value]
    return html.escape(value) if isinstance(value, str) else value

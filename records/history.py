"""History: one SQL query for each question, over the views of the schema `history`.

A question is made here and answered by whoever asks: the command line at once through the driver,
the pages in their session. Its rows are the same everywhere, and docs/history.md says what each
column means. Windows are days of UTC, both included. Names of classes are those of today; `called`
is the name that the row was stored under, and a class is found by any name that it ever had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from infra import reading

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Row = TypeVar("Row")

SUBJECTS = ("validation", "test", "benchmark", "batch", "library")
MOST = 1000
MOST_EVER = 1_000_000
# What is asked without version, class or window would be millions of rows: it is told of what
# serves, or of the last days.
SERVING = "(SELECT version_id FROM history.live ORDER BY deployment_id DESC LIMIT 1)"
LAST_DAYS = 7


class BadQuestion(ValueError):
    """A window, a set of images or a number of rows that cannot be; the message says the mend."""


@dataclass(frozen=True)
class Question(Generic[Row]):
    """One query, with %(name)s for its values, and what its rows are."""

    row: type[Row]
    sql: str
    values: Mapping[str, Any] = field(default_factory=dict)


def answered(session: Session, question: Question[Row]) -> list[Row]:
    """The rows, asked in a session."""
    found = session.connection().exec_driver_sql(question.sql, dict(question.values))
    return [question.row(*row) for row in found]


def at_once(question: Question[Row]) -> list[Row]:
    """The rows, asked through the driver alone."""
    return [question.row(*row) for row in reading.rows(question.sql, question.values)]


# --- what was measured of versions ------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """One evaluation of a version; first_live: when it first served, None where it never did."""

    version_id: int
    purpose: str
    trained_at: datetime | None
    subject: str
    benchmark_version: int | None
    batch_id: int | None
    evaluated_at: datetime
    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top5_accuracy: float | None
    mean_recall: float | None
    mean_f1: float | None
    loss: float | None
    calibration_error: float | None
    calibration_by_chance: float | None
    first_live: datetime | None


def accuracy(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    subject: str | None = None,
    most: int = MOST,
) -> Question[Accuracy]:
    """Accuracy over time and by version: every evaluation, the newest first."""
    return _question(
        Accuracy, "history.accuracy", "evaluated_at DESC, version_id DESC, subject", most,
        _moments("evaluated_at", since, until) | _measured(version, subject),
    )  # fmt: skip


@dataclass(frozen=True)
class ClassAccuracy:
    """One class of one evaluation; a share is None where there is nothing to share."""

    version_id: int
    subject: str
    benchmark_version: int | None
    batch_id: int | None
    evaluated_at: datetime
    class_name: str
    called: str
    images: int
    correct: int
    predicted: int
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    f1: float | None
    f1_low: float | None
    f1_high: float | None


def classes(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    class_name: str | None = None,
    subject: str | None = None,
    most: int = MOST,
) -> Question[ClassAccuracy]:
    """Accuracy by class, the newest evaluation first, the weakest class first.

    Of one class over all versions, or of all classes of one version: by default what serves.
    """
    return _question(
        ClassAccuracy, "history.classes",
        "evaluated_at DESC, version_id DESC, subject, recall NULLS LAST, called", most,
        _moments("evaluated_at", since, until) | _measured(version, subject)
        | _class(class_name) | _of_what_serves(version, class_name),
    )  # fmt: skip


@dataclass(frozen=True)
class Band:
    """How right the answers of one band of confidence were, above low and at most high."""

    version_id: int
    subject: str
    benchmark_version: int | None
    batch_id: int | None
    evaluated_at: datetime
    low: float
    high: float
    images: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def bands(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    subject: str | None = None,
    most: int = MOST,
) -> Question[Band]:
    """Accuracy by confidence, the newest evaluation first, its bands from the least sure on."""
    return _question(
        Band, "history.bands", "evaluated_at DESC, version_id DESC, subject, low", most,
        _moments("evaluated_at", since, until) | _measured(version, subject),
    )  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """How right one evaluation was on library images of one origin."""

    version_id: int
    subject: str
    batch_id: int | None
    evaluated_at: datetime
    origin: str
    images: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def origins(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    subject: str | None = None,
    most: int = MOST,
) -> Question[Origin]:
    """Accuracy by origin: real, staged, synthetic; the newest evaluation first."""
    return _question(
        Origin, "history.origins", "evaluated_at DESC, version_id DESC, subject, origin", most,
        _moments("evaluated_at", since, until) | _measured(version, subject),
    )  # fmt: skip


@dataclass(frozen=True)
class SubClass:
    """How right one evaluation was on library images of one sub-class and origin."""

    version_id: int
    subject: str
    batch_id: int | None
    evaluated_at: datetime
    class_name: str
    called: str
    sub_class: str
    origin: str
    images: int
    correct: int
    recall: float
    recall_low: float
    recall_high: float


def sub_classes(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    class_name: str | None = None,
    subject: str | None = None,
    most: int = MOST,
) -> Question[SubClass]:
    """Recall by sub-class and origin, the newest evaluation first, the weakest first.

    Of one class over all versions, or of all classes of one version: by default what serves.
    """
    return _question(
        SubClass, "history.sub_classes",
        "evaluated_at DESC, version_id DESC, subject, recall, called, sub_class, origin", most,
        _moments("evaluated_at", since, until) | _measured(version, subject)
        | _class(class_name) | _of_what_serves(version, class_name),
    )  # fmt: skip


@dataclass(frozen=True)
class Threshold:
    """A version's threshold for a wished precision and what it gives on one set of images.

    coverage: the share of the images that is answered so surely; shown_in_use: of the version's
    transactions, by the threshold that it served with.
    """

    version_id: int
    wished: float
    subject: str
    benchmark_version: int | None
    confidence: float | None
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    answered: int
    images: int
    fitted_at: datetime
    coverage: float | None
    shown_in_use: float | None


def thresholds(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    subject: str | None = None,
    most: int = MOST,
) -> Question[Threshold]:
    """The confidence that each version needs to be shown, the newest fit first."""
    return _question(
        Threshold, "history.thresholds", "fitted_at DESC, version_id DESC, wished, subject", most,
        _moments("fitted_at", since, until) | _measured(version, subject),
    )  # fmt: skip


# --- two versions on the same images ------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two versions on images of classes that both know; gained: right here and wrong there.

    change: the accuracy of version_id minus that of other_id, with its 95% interval for pairs.
    """

    version_id: int
    other_id: int
    subject: str
    batch_id: int | None
    images: int
    correct: int
    other_correct: int
    gained: int
    lost: int
    change: float
    change_low: float
    change_high: float


def compare(version: int, other: int, subject: str | None = None) -> Question[Comparison]:
    """Two versions against each other on the images that both answered, set by set."""
    return _question(
        Comparison, "history.compared", "subject, batch_id", MOST, _pair(version, other, subject)
    )


@dataclass(frozen=True)
class Flip:
    """An image that one of two versions answers right and the other wrong.

    key: where its bytes lie, source_key: what it was loaded as; None where S3 has it no more.
    """

    version_id: int
    other_id: int
    subject: str
    batch_id: int | None
    sha256: str
    key: str | None
    source_key: str | None
    class_name: str
    gained: bool
    predicted: str
    confidence: float
    other_predicted: str
    other_confidence: float


def flips(
    version: int, other: int, subject: str | None = None, most: int = MOST
) -> Question[Flip]:
    """Images on which two versions part: those lost first, what is surely wrong first."""
    return _question(
        Flip, "history.flips", "gained, subject, confidence DESC, sha256", most,
        _pair(version, other, subject),
    )  # fmt: skip


# --- use ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InUse:
    """One version in use beside what was measured when it was trained.

    reviewed: transactions of the random stream that people could judge; undecided: those they could
    not. accuracy: what they estimate of all transactions, each weighted by its chance to come in.
    reviewed_confidence: how sure the version was of these, weighted alike.
    """

    version_id: int
    purpose: str | None
    first_live: datetime | None
    transactions: int
    shown: int
    mean_confidence: float | None
    reviewed: int
    undecided: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    reviewed_confidence: float | None
    test_accuracy: float | None
    test_low: float | None
    test_high: float | None
    benchmark_version: int | None
    benchmark_accuracy: float | None
    benchmark_low: float | None
    benchmark_high: float | None


def in_use(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    most: int = MOST,
) -> Question[InUse]:
    """Accuracy in use, from reviews, beside the figures of training; the newest version first."""
    return _summed(
        InUse, "in_use", "version_id DESC", most, (since, until), _version(version)
    )


@dataclass(frozen=True)
class InUseClass:
    """How often an answer of this class is right in use; the figures are those of `InUse`."""

    class_name: str
    reviewed: int
    undecided: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    reviewed_confidence: float | None


def in_use_classes(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    class_name: str | None = None,
    most: int = MOST,
) -> Question[InUseClass]:
    """Accuracy in use by the class answered, the most reviewed first."""
    today = """class_name = coalesce(
        (SELECT n.class_name FROM history.class_names n WHERE n.name = %(class_name)s),
        %(class_name)s)"""
    return _summed(
        InUseClass, "in_use_classes", "reviewed DESC, class_name", most, (since, until),
        {today: ("class_name", _word(class_name))}, version,
    )  # fmt: skip


@dataclass(frozen=True)
class InUseBand:
    """How often answers of one tenth of confidence are right in use."""

    low: float
    high: float
    reviewed: int
    undecided: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    reviewed_confidence: float | None


def in_use_bands(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    most: int = MOST,
) -> Question[InUseBand]:
    """Accuracy in use by confidence, from the least sure on."""
    return _summed(InUseBand, "in_use_bands", "low", most, (since, until), {}, version)


@dataclass(frozen=True)
class Calibration:
    """One week (by its Monday, UTC): how sure and how right what served was.

    gap: how much surer than right, from reviews; test_gap: the same of these versions on their test
    images. What moves is the gap; where nobody reviews, mean_confidence still tells of a change.
    """

    week: date
    versions: int
    transactions: int
    mean_confidence: float | None
    reviewed: int
    undecided: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    reviewed_confidence: float | None
    gap: float | None
    test_gap: float | None


def calibration(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    most: int = MOST,
) -> Question[Calibration]:
    """Accuracy in use over time and the drift of calibration, the newest week first."""
    return _summed(Calibration, "calibration", "week DESC", most, (since, until), {}, version)


@dataclass(frozen=True)
class Usage:
    """What one client asked one version on one day (UTC)."""

    day: date
    client: str
    version_id: int
    transactions: int
    shown: int
    mean_latency_seconds: float | None
    max_latency_seconds: float
    mean_confidence: float | None


def usage(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    client: str | None = None,
    most: int = MOST,
) -> Question[Usage]:
    """Usage by day and client, the newest day first, the busiest client first."""
    return _question(
        Usage, "history.usage", "day DESC, transactions DESC, client, version_id", most,
        _days(since, until) | _version(version)
        | {"client = %(client)s": ("client", _word(client))},
    )  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """How often one version answered one class on one day (UTC), and how surely."""

    day: date
    version_id: int
    class_name: str
    called: str
    transactions: int
    mean_confidence: float | None


def predicted(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    class_name: str | None = None,
    most: int = MOST,
) -> Question[Predicted]:
    """Answers by day and class, the newest day first, the most frequent class first.

    Of one class over all time, or of all classes since a day: by default the last seven of it.
    """
    if since is None and class_name is None:
        last = (until or datetime.now(UTC).date()).toordinal()
        since = date.fromordinal(max(1, last - LAST_DAYS + 1))
    return _question(
        Predicted, "history.predicted", "day DESC, transactions DESC, called, version_id", most,
        _days(since, until) | _class(class_name) | _version(version),
    )  # fmt: skip


# --- what served, and what was learned from -------------------------------------------------------


@dataclass(frozen=True)
class Live:
    """One stretch in which a version served, and why it came to; live_until: None while it does.

    kind: promotion | approval | adoption | rollback. shared_drop: what its verdict said it cost on
    classes that the one before knew; overridden: checks that a person let pass.
    """

    deployment_id: int
    version_id: int
    purpose: str
    kind: str
    deployed_by: str
    why: str
    live_from: datetime
    live_until: datetime | None
    previous_version_id: int | None
    benchmark_version: int
    benchmark_accuracy: float | None
    shared_drop: float | None
    overridden: list[str]


def live(
    since: date | None = None,
    until: date | None = None,
    version: int | None = None,
    most: int = MOST,
) -> Question[Live]:
    """What was live when and why it changed, the newest first: all that served in the window."""
    begin, end = _bounds(since, until)
    return _question(
        Live, "history.live", "deployment_id DESC", most,
        {
            "(live_until IS NULL OR live_until > %(begin)s)": ("begin", begin),
            "live_from < %(end)s": ("end", end),
        } | _version(version),
    )  # fmt: skip


@dataclass(frozen=True)
class Growth:
    """What one choice of library images held when it was frozen, and who first learned it."""

    snapshot_digest: str
    frozen_at: datetime
    version_id: int
    purpose: str
    cutoff: int
    classes: int
    images: int
    under_cutoff: int


def growth(
    since: date | None = None, until: date | None = None, most: int = MOST
) -> Question[Growth]:
    """How many classes and images there were to learn, the newest choice first."""
    return _question(
        Growth, "history.growth", "frozen_at DESC, snapshot_digest", most,
        _moments("frozen_at", since, until),
    )  # fmt: skip


@dataclass(frozen=True)
class ClassGrowth:
    """What one class had in one choice of library images; lacks above 0: it was left out."""

    snapshot_digest: str
    frozen_at: datetime
    version_id: int
    purpose: str
    cutoff: int
    class_name: str
    called: str
    usable: int
    lacks: int
    train: int
    validation: int
    test: int


def class_growth(
    class_name: str | None = None,
    since: date | None = None,
    until: date | None = None,
    most: int = MOST,
) -> Question[ClassGrowth]:
    """How many images a class had, the newest choice first; without a class, all in the newest."""
    window = _moments("frozen_at", since, until)
    where = window | _class(class_name)
    if class_name is None:
        within = " AND ".join(one for one, (_, value) in window.items() if value) or "true"
        newest = f"frozen_at = (SELECT max(frozen_at) FROM history.growth WHERE {within})"  # noqa: S608
        where |= {newest: ("newest", True)}
    return _question(
        ClassGrowth, "history.class_growth", "frozen_at DESC, lacks DESC, usable, called", most,
        where,
    )  # fmt: skip


# --- making a question ----------------------------------------------------------------------------

# A condition, and the name and value that it needs; where that is None it is left out.
Conditions = dict[str, tuple[str, Any]]


def _question(
    row: type[Row],
    source: str,
    order: str,
    most: int,
    where: Conditions,
    values: Mapping[str, Any] | None = None,
) -> Question[Row]:
    """The question that picks the fields of a row from a source; values: those of the source."""
    if not 1 <= most <= MOST_EVER:
        raise BadQuestion(f"{most} rows: ask for 1 to {MOST_EVER:,}")
    given = {condition: pair for condition, pair in where.items() if pair[1] is not None}
    columns = ", ".join(one.name for one in fields(row))  # type: ignore[arg-type]
    filters = " AND ".join(given) or "true"
    sql = f"SELECT {columns} FROM {source} WHERE {filters} ORDER BY {order} LIMIT %(most)s"  # noqa: S608
    return Question(row, sql, {**dict(given.values()), **(values or {}), "most": most})


def _summed(
    row: type[Row],
    name: str,
    order: str,
    most: int,
    window: tuple[date | None, date | None],
    where: Conditions,
    version: int | None = None,
) -> Question[Row]:
    """The question whose sums go over a window, and over one version where one is given."""
    since, until = window
    _bounds(since, until)
    values: dict[str, Any] = {"since": since, "until": until}
    source = f"history.{name}(since => %(since)s, until => %(until)s)"
    if version is not None:
        source = f"{source[:-1]}, of_version => %(version)s)"
        values["version"] = _number(version)
    return _question(row, source, order, most, where, values)


def _days(since: date | None, until: date | None) -> Conditions:
    _bounds(since, until)
    return {"day >= %(since)s": ("since", since), "day <= %(until)s": ("until", until)}


def _moments(column: str, since: date | None, until: date | None) -> Conditions:
    begin, end = _bounds(since, until)
    return {f"{column} >= %(begin)s": ("begin", begin), f"{column} < %(end)s": ("end", end)}


def _bounds(since: date | None, until: date | None) -> tuple[datetime | None, datetime | None]:
    """The first moment of a window and the first after it."""
    if since and until and since > until:
        raise BadQuestion(f"since {since} until {until}: the window ends before it begins")
    last = until and until < date.max
    return (
        datetime.combine(since, time(), UTC) if since else None,
        datetime.combine(until + timedelta(days=1), time(), UTC) if until and last else None,
    )


def _measured(version: int | None, subject: str | None) -> Conditions:
    """Of one version and one set of images."""
    if subject is not None and subject not in SUBJECTS:
        raise BadQuestion(f"{subject!r} is no set of images: use {', '.join(SUBJECTS)}")
    return _version(version) | {"subject = %(subject)s": ("subject", subject)}


def _version(version: int | None) -> Conditions:
    return {"version_id = %(version)s": ("version", _number(version))}


def _number(version: int | None) -> int | None:
    if version is not None and not 0 < version < 2**63:
        raise BadQuestion(f"{version} is no version: `regraft versions` lists them")
    return version


def _class(class_name: str | None) -> Conditions:
    """Of a class by any name that it has or had."""
    return {
        """called = ANY (ARRAY(
            SELECT name FROM history.class_names WHERE class_name = coalesce(
                (SELECT class_name FROM history.class_names WHERE name = %(class_name)s),
                %(class_name)s)
            UNION SELECT %(class_name)s))""": ("class_name", _word(class_name))
    }


def _of_what_serves(version: int | None, class_name: str | None) -> Conditions:
    if version is not None or class_name is not None:
        return {}
    return {f"version_id = {SERVING}": ("serving", True)}


def _pair(version: int, other: int, subject: str | None) -> Conditions:
    if version == other:
        raise BadQuestion(f"version {version} against itself: name two versions")
    return _measured(version, subject) | {"other_id = %(other)s": ("other", _number(other))}


def _word(word: str | None) -> str | None:
    """A name that Postgres can be asked for."""
    if word is not None and any(one == "\x00" or "\ud800" <= one <= "\udfff" for one in word):
        raise BadQuestion(f"{word!r} is no text that anything could be called")
    return word

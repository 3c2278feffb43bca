"""Saved filters: what each finds where the truth is known, and the same rows in every form."""

import base64
import csv
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import intakes
import numpy as np
import pictures
import pytest
import worlds
from PIL import Image
from sqlalchemy import insert, text
from sqlalchemy.orm import Session
from test_cli import regraft
from worlds import World

from flows import shortlist
from infra.embedded import Addresses
from infra.storage import Listed
from records import classes, findings, identifications, pools, runs, snapshots, versions
from records.findings import (
    BadFilter,
    Findings,
    Found,
    NothingAnswered,
    UnknownPool,
    UnknownToVersion,
)
from records.pools import ListedObject, ReadObject
from records.shortlists import Candidate
from records.spreadsheet import as_csv
from records.tables import PoolAct
from tasks import labelling
from vision import images, variety
from vision.answers import Identified
from web import sheet

CLASSES = ("antelope", "lion", "okapi", "zebra <b>&")
ODD = CLASSES[-1]
TARGET = "okapi"
QUOTED = "\" onerror='&lt;"  # no key holds < itself
DAY, NIGHT = "pools/day/", "pools/night/"
WIDTH = 64


# --- a world whose truth is known -----------------------------------------------------------


def direction(seed: int, near: int | None = None) -> np.ndarray:
    """Features of a picture; near: almost those of that one."""
    base = np.random.default_rng(seed).normal(size=WIDTH)
    if near is None:
        return base
    return np.random.default_rng(near).normal(size=WIDTH) + 0.05 * base


class Answer:
    """One picture of a pool and what a version says of it: class names with their confidences."""

    def __init__(self, key: str, body: bytes, features: np.ndarray, **said: float) -> None:
        self.key, self.body, self.features = key, body, features
        self.said = {{"odd": ODD}.get(name, name): share for name, share in said.items()}

    def row(self) -> tuple[list[int], list[float], list[float]]:
        """Columns best first, their confidences, and those of the target."""
        shares = [self.said.get(name, 0.0) for name in CLASSES]
        best = sorted(range(len(CLASSES)), key=lambda place: -shares[place])
        return best, [shares[place] for place in best], [self.said.get(TARGET, 0.0)]


def photograph(seed: int, quality: int = 90) -> bytes:
    """A small photograph; of one seed and another quality, a near-duplicate."""
    return pictures.jpeg(pictures.photograph(seed, 120, 90), quality)


LIBRARY_COPY = photograph(500)
# One burst five times over, three frames that only a network finds alike, and others.
OKAPIS = [
    *(
        Answer(f"{DAY}burst-{n}.jpg", photograph(1, 95 - 10 * n), direction(1, near=1), okapi=share)
        for n, share in enumerate((0.99, 0.98, 0.97, 0.96, 0.95))
    ),
    *(
        Answer(f"{DAY}alike-{n}.jpg", photograph(10 + n), direction(10 + n, near=2), okapi=share)
        for n, share in enumerate((0.94, 0.8, 0.7))
    ),
    Answer(f"{DAY}other.jpg", photograph(20), direction(20), okapi=0.6, lion=0.3),
    Answer(f"{DAY}second.jpg", photograph(21), direction(21), odd=0.5, okapi=0.45),
    Answer(f"{DAY}in-library.jpg", LIBRARY_COPY, direction(22), okapi=0.97),
]
# Two kinds that the version does not know hide at low confidence among antelopes.
GAZELLES, ORYXES = (
    [
        Answer(
            f"{DAY}{name}-{n}.jpg", photograph(100 * kind + n),
            direction(100 * kind + n, near=kind), antelope=share + 0.01 * n, lion=0.2,
        )
        for n in range(count)
    ]
    for name, kind, count, share in (("gazelle", 3, 9, 0.2), ("oryx", 4, 7, 0.3))
)  # fmt: skip
STRAYS = [
    Answer(f"{DAY}stray-{n}.jpg", photograph(600 + n), direction(600 + n), antelope=0.45)
    for n in range(3)
]
SURE = [
    Answer(f"{DAY}antelope-{n}.jpg", photograph(700 + n), direction(700 + n), antelope=0.9)
    for n in range(3)
]
LIONS = [
    Answer(f"{NIGHT}lion-{n}.jpg", photograph(800 + n), direction(800 + n), lion=0.9 - 0.2 * n)
    for n in range(4)
]
ZEBRAS = [
    Answer(f"{DAY}{QUOTED}{n}.jpg", photograph(900 + n), direction(900 + n), odd=0.8 - 0.1 * n)
    for n in range(3)
]
BY_KEY = {
    one.key: one
    for one in [*OKAPIS, *GAZELLES, *ORYXES, *STRAYS, *SURE, *LIONS, *ZEBRAS]
}


@pytest.fixture(scope="module")
def world(services: Addresses, template: str) -> Iterator[World]:
    """A library of three classes, two pools, and versions that answered them; only read."""
    found = worlds.make(services, template)
    try:
        with worlds.inside(found):
            _library(found)
            with found.transaction() as session:
                first, second = (_version(session, seed) for seed in range(2))
                _version(session, 2)  # has answered nothing
                thrown = _version(session, 3, "throwaway")
                _version(session, 4, state="training")
            _identify(found, first, DAY, OKAPIS[:5] + STRAYS)
            _identify(found, second, DAY, [one for one in BY_KEY.values() if one not in LIONS])
            _identify(found, second, NIGHT, LIONS)
            _identify(found, thrown, NIGHT, LIONS)
            yield found
    finally:
        worlds.drop(found)


def _library(world: World) -> None:
    """okapi: 4 images. lion: 12. The odd class: 9, of which 8 are staged."""
    for name, count in (("okapi", 3), ("lion", 12)):
        for number in range(count):
            key = f"labelled/{name}/{number}.png"
            intakes.put(world.storage, key, intakes.picture(len(name) * 100 + number))
    intakes.put(world.storage, "labelled/okapi/copied.jpg", LIBRARY_COPY)
    rows = []
    for number in range(9):
        key = f"labelled/{number}.png"
        intakes.put(world.storage, key, intakes.picture(number, "bar"))
        rows.append((key, ODD, "staged" if number else "real"))
    intakes.put(world.storage, "manifests/1.csv", intakes.csv(rows, "key,label,origin"))
    with world.database() as database:
        intakes.take_in(database)
    assert world.ask("SELECT count(*) FROM images") == [(25,)]


def _version(
    session: Session, seed: int, purpose: str = "nightly", state: str = "trained"
) -> int:
    """A version that knows CLASSES."""
    run = runs.begin(session, purpose, {}, None)
    snapshots.record(session, "digest", "key", "policy", 2, None, 25, [])
    plan = {"architecture": "test_resnet", "seed": seed, "cutoff": 6}
    version = versions.candidate(
        session, run, purpose, None, "digest", plan, f"plan {seed}", list(CLASSES)
    )
    if state == "trained":
        versions.trained(session, version, f"checkpoint {seed}", {}, {}, 1.0, 1.0)
    runs.close(session, run, "completed", None)
    return version


def _identify(world: World, version: int, prefix: str, told: Sequence[Answer]) -> None:
    """As an identification writes it: a page of the listing, one shard, all its answers."""
    for one in told:
        intakes.put(world.storage, one.key, one.body)
    listed = [one for one in world.storage.list(prefix) if one.key in {it.key for it in told}]
    with world.transaction() as session:
        pool = pools.enter(session, prefix)
        number = identifications.begin(session, pool, version, (TARGET,), 0.9, 0.5)
        identifications.hold_listing(session, number)
        page = [ListedObject(one.key, one.etag, one.size, None) for one in listed]
        identifications.add_page(session, number, None, page, last=True)
    with world.transaction() as session:
        claim = identifications.claim(session, number, "a test", 60)
        assert claim is not None
        read = [_read(one) for one in listed]
        identifications.settle(session, number, claim, "a test", "none", read, _identified(read))
        assert identifications.complete(session, number)


def _read(one: Listed) -> ReadObject:
    facts, _ = images.examine(BY_KEY[one.key].body, None)
    return ReadObject(
        one.key, one.etag, one.size, facts.sha256, None, facts.width, facts.height, facts.dhash,
        facts.dhash_mirror,
    )  # fmt: skip


def _identified(read: Sequence[ReadObject]) -> Identified:
    told = [BY_KEY[one.key] for one in read]
    tops, confidences, targets = zip(*(one.row() for one in told), strict=True)
    return Identified(
        images=tuple(str(one.sha256) for one in read),
        class_names=CLASSES,
        top=np.array(tops),
        confidences=np.array(confidences, np.float32),
        targets=(TARGET,),
        target_confidences=np.array(targets, np.float32),
        entropy=np.full(len(told), 0.5, np.float32),
        features=np.stack([one.features for one in told]).astype(np.float16),
    )


@pytest.fixture
def session(world: World) -> Iterator[Session]:
    """A session whose changes are undone, so that every test finds the same world."""
    with world.database() as database, Session(database.engine) as found:
        yield found


def act(session: Session, key: str, done: str, **facts: Any) -> None:
    """What a person did with the picture under a key."""
    facts_of = images.examine(BY_KEY[key].body, None)[0]
    session.execute(
        insert(PoolAct).values(sha256=facts_of.sha256, act=done, done_by="ann", **facts)
    )


def names(found: Findings) -> list[str]:
    """The last part of each key."""
    return [row.key.rpartition("/")[2] for row in found.rows]


# --- what each filter finds -----------------------------------------------------------------


def test_scarce_shows_a_burst_once_and_varies(session: Session) -> None:
    """Best first, copies collapsed, what is alike behind what is not; never what is known."""
    found = findings.scarce(session, fewer=10)
    okapis = [row for row in found.rows if row.class_name == "okapi"]
    assert [row.key.rpartition("/")[2] for row in okapis] == [
        "burst-0.jpg", "alike-0.jpg", "alike-1.jpg", "alike-2.jpg", "other.jpg", "second.jpg",
    ]  # fmt: skip
    assert (okapis[0].copies, okapis[1].copies) == (4, 0)
    assert {row.usable for row in okapis} == {4}
    # of a target also what was rather taken for another class
    assert (okapis[-1].predicted, okapis[-1].class_name) == (ODD, "okapi")
    assert okapis[-1].confidence == pytest.approx(0.45)
    few = findings.scarce(session, "okapi", most=4)
    assert names(few) == ["burst-0.jpg", "alike-0.jpg", "other.jpg", "second.jpg"]


def test_an_identification_that_answers_nothing_changes_nothing(session: Session) -> None:
    """Asked once more without its targets, a version still offers what it had kept of them."""
    before = findings.scarce(session, fewer=10)
    pool = pools.enter(session, DAY)
    identifications.begin(session, pool, before.rows[0].version)
    assert findings.scarce(session, fewer=10) == before
    assert {row.predicted for row in before.rows if row.class_name == TARGET} == {TARGET, ODD}


def test_scarce_classes_are_those_with_few_images(session: Session) -> None:
    """The nights' cutoff is 6 here: twice that is few, those next to it come first."""
    told = {row.class_name: row.usable for row in findings.scarce(session).rows}
    assert told == {"okapi": 4, "antelope": 0, ODD: 9}
    assert list(told) == ["okapi", "antelope", ODD]
    alone = findings.scarce(session, "lion", pool="s3://pools/night")
    assert {row.usable for row in alone.rows} == {12}
    assert names(alone) == [f"lion-{n}.jpg" for n in range(4)]
    # taking turns: no class takes all the places
    assert {row.class_name for row in findings.scarce(session, most=3).rows} == set(told)


def test_staged_shows_classes_that_rest_on_made_images(session: Session) -> None:
    """One of the odd class's nine images is real; the other classes' are."""
    found = findings.staged(session)
    assert {(row.class_name, row.usable, row.real) for row in found.rows} == {(ODD, 9, 1)}
    assert [round(row.confidence, 1) for row in found.rows] == [0.8, 0.7, 0.6, 0.5]
    assert findings.staged(session, "lion").rows == ()


def test_a_class_is_found_by_each_of_its_names(session: Session) -> None:
    """Renamed or merged, it keeps its images, and the version its word for it."""
    classes.merge(session, "okapi", "lion", "Ann", "for once")
    classes.rename(session, ODD, "zebra", "Ann", "as it is said")
    told = {row.class_name: row.usable for row in findings.scarce(session, fewer=20).rows}
    assert told == {"antelope": 0, "lion": 16, "okapi": 16, ODD: 9}
    staged = {(row.class_name, row.usable, row.real) for row in findings.staged(session).rows}
    assert staged == {(ODD, 9, 1)}
    assert {row.predicted for row in findings.matching(session, "zebra").rows} == {ODD}
    assert {row.usable for row in findings.scarce(session, "zebra").rows} == {9}
    with pytest.raises(UnknownToVersion):
        findings.look_alike(session, "gnu")


def test_look_alike_groups_what_is_not_known_yet(session: Session) -> None:
    """Both hidden kinds are a group each, the larger first; strays and sure answers are in none."""
    found = findings.look_alike(session, "antelope")
    members = {
        number: {row.key.rpartition("/")[2].partition("-")[0]
                 for row in found.rows if row.group == number}
        for number in {row.group for row in found.rows}
    }  # fmt: skip
    assert members == {1: {"gazelle"}, 2: {"oryx"}, None: {"stray"}}
    assert {row.group_size for row in found.rows} == {9, 7, 1}
    # a few of each, all of one
    assert {row.group for row in findings.look_alike(session, "antelope", most=4).rows} == {
        1, 2, None,
    }  # fmt: skip
    assert len(findings.look_alike(session, "antelope", group=2, most=9).rows) == 7
    with pytest.raises(BadFilter, match="there are 2 groups"):
        findings.look_alike(session, "antelope", group=3)
    below = findings.look_alike(session, "antelope", below=0.3)
    assert {row.key.rpartition("/")[2].partition("-")[0] for row in below.rows} == {"gazelle"}


def test_look_alike_without_embeddings_still_lists(session: Session, world: World) -> None:
    """The embeddings of a swept version are gone: its pictures are listed, without groups."""
    session.execute(text("DELETE FROM embeddings"))
    found = findings.look_alike(session, "antelope")
    assert len(found.rows) == len(GAZELLES + ORYXES + STRAYS)
    assert {row.group for row in found.rows} == {None}
    assert names(findings.scarce(session, "okapi", most=2)) == ["burst-0.jpg", "alike-0.jpg"]


def test_unknown_waits_for_a_later_version(session: Session) -> None:
    """What nobody could name comes back with the answer of a version that had not been asked."""
    assert findings.unknown(session).rows == ()
    key = f"{DAY}stray-1.jpg"
    act(session, key, "unknown", version_id=1, predicted="antelope", confidence=0.45)
    assert [row.key for row in findings.unknown(session).rows] == [key]
    assert [row.version for row in findings.unknown(session).rows] == [2]
    assert findings.unknown(session, version_id=1).rows == ()
    assert key not in {row.key for row in findings.look_alike(session, "antelope").rows}
    act(session, key, "unknown", version_id=2, predicted="antelope", confidence=0.45)
    assert findings.unknown(session).rows == ()


def test_junk_is_what_the_version_is_least_sure_of(session: Session) -> None:
    """Lowest confidence first, in all pools or in one."""
    assert names(findings.junk(session, most=2)) == ["gazelle-0.jpg", "gazelle-1.jpg"]
    night = findings.junk(session, pool="pools/night/", most=2)
    assert names(night) == ["lion-3.jpg", "lion-2.jpg"]
    assert all(row.confidence < 0.35 for row in findings.junk(session, below=0.35).rows)


def test_free_filters_bound_class_and_confidence(session: Session) -> None:
    """Every filter narrows, and --new leaves out what is known or was spoken of."""
    okapis = findings.matching(session, "okapi", above=0.95)
    assert len(okapis.rows) == 6
    assert {row.mark for row in okapis.rows} == {None, "library"}
    fresh = findings.matching(session, "okapi", above=0.95, new=True)
    assert names(fresh) == [f"burst-{n}.jpg" for n in range(5)]
    act(session, f"{DAY}burst-0.jpg", "label", class_name="okapi", to_key="labelled/okapi/9.jpg")
    act(session, f"{DAY}burst-1.jpg", "dismiss", version_id=2, predicted="okapi", confidence=1)
    assert names(findings.matching(session, "okapi", above=0.95, new=True)) == [
        f"burst-{n}.jpg" for n in (2, 3, 4)
    ]
    assert findings.matching(session, "okapi", most=1).rows[0].act == "label"
    between = findings.matching(session, above=0.5, below=0.6, pool="pools/night")
    assert names(between) == ["lion-2.jpg"]
    assert {row.version for row in findings.matching(session, version_id=1).rows} == {1}


def test_what_was_dismissed_as_one_class_is_offered_as_another(session: Session) -> None:
    """As the one it was offered as, however often and whatever was predicted or is said today."""
    key, facts = f"{DAY}second.jpg", {"version_id": 2, "predicted": ODD, "confidence": 0.5}

    def offered() -> tuple[bool, bool]:
        found = findings.scarce(session, "okapi"), findings.matching(session, ODD, new=True)
        okapi, odd = (key in {row.key for row in one.rows} for one in found)
        return okapi, odd

    assert offered() == (True, True)
    act(session, key, "dismiss", **facts, offered="okapi")
    assert offered() == (False, True)
    classes.rename(session, "okapi", "forest giraffe", "ann", "as some say")
    assert offered() == (False, True)
    act(session, key, "dismiss", **facts)
    assert offered() == (False, False)
    act(session, key, "label", class_name="lion", to_key="labelled/lion/9.jpg")
    act(session, key, "dismiss", **facts, offered="lion")
    assert offered() == (True, True)


def test_a_throwaway_version_is_asked_by_its_number(session: Session) -> None:
    """The newest that answered is asked, but for those that nobody keeps."""
    for pool in (None, NIGHT):
        assert {row.version for row in findings.matching(session, pool=pool).rows} == {2}
    assert {row.version for row in findings.matching(session, version_id=4).rows} == {4}
    session.execute(text("DELETE FROM pool_answers WHERE version_id < 4"))
    with pytest.raises(NothingAnswered, match=r"only throw-away versions .* --version 4"):
        findings.junk(session)
    session.execute(text("DELETE FROM pool_answers"))
    assert findings.junk(session) == findings.NONE


def test_equals_have_one_order(session: Session) -> None:
    """Pictures of one confidence come in the same order again, from either end."""
    sure = [row.sha256 for row in findings.matching(session, "antelope", above=0.9).rows]
    assert len(sure) == len(SURE)
    assert sure == sorted(sure)
    weak = [row.sha256 for row in findings.junk(session).rows if "stray" in row.key]
    assert len(weak) == len(STRAYS)
    assert weak == sorted(weak, reverse=True)
    assert weak == [
        row.sha256 for row in findings.junk(session, pool=DAY).rows if "stray" in row.key
    ]
    assert findings.matching(session, "antelope", most=2).rows[1].sha256 == sure[1]


def test_what_is_gone_is_not_shown(session: Session) -> None:
    """An object that a later listing did not find is no picture that anyone could label."""
    session.execute(
        text("UPDATE pool_objects SET gone_at = now() WHERE key LIKE '%lion-0.jpg'")
    )
    assert names(findings.matching(session, "lion", most=1)) == ["lion-1.jpg"]


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ({"class_name": "okappi"}, UnknownToVersion, "did you mean 'okapi'?"),
        ({"class_name": "whale"}, UnknownToVersion, "version 2 knows no class 'whale'"),
        ({"version_id": 3}, NothingAnswered, "version 3 has answered no pool yet: `regraft"),
        ({"version_id": 5}, NothingAnswered, "version 5 has answered no pool yet: it is training"),
        ({"version_id": 9}, versions.UnknownVersion, "there is no version 9"),
        ({"pool": "s3://pools/dya"}, UnknownPool, "did you mean 'pools/day/'?"),
        ({"below": float("nan")}, BadFilter, "--below nan: a confidence is between 0 and 1"),
        ({"above": 0.9, "below": 0.2}, BadFilter, "leave nothing between"),
        ({"most": 0}, BadFilter, "--limit 0"),
    ],
)
def test_a_wrong_word_is_named_with_its_mend(
    session: Session, words: dict[str, Any], error: type[Exception], said: str
) -> None:
    """Whatever cannot be meant is refused before anything is asked."""
    with pytest.raises(error, match=re.escape(said)):
        findings.matching(session, **words)


def test_odd_words_are_inert(session: Session) -> None:
    """SQL in a class's name is a class that there is not."""
    with pytest.raises(UnknownToVersion):
        findings.look_alike(session, "x'; DROP TABLE pool_answers; --")
    assert findings.matching(session).rows


# --- the same rows in every form ------------------------------------------------------------


def test_the_verbs_print_one_set_of_rows(world: World, tmp_path: Path) -> None:
    """JSON and CSV hold the same rows; the table fits 80 columns; a sheet is written beside."""
    page = tmp_path / "okapis.html"
    words = ("find", "scarce", "--class", "okapi", "--limit", "3")
    told = json.loads(regraft(*words, "--json").stdout)
    assert [row["key"].removeprefix(DAY) for row in told] == [
        "burst-0.jpg", "alike-0.jpg", "other.jpg",
    ]  # fmt: skip
    rows = list(csv.DictReader(StringIO(regraft(*words, "--csv").stdout)))
    assert [(row["sha256"], row["key"]) for row in rows] == [
        (row["sha256"], row["key"]) for row in told
    ]
    shown = regraft(*words, "--sheet", str(page))
    assert "okapi: 4 images" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert page.read_text().count("<img ") == 3
    free = regraft("find", "--pool", "pools/night", "--above", "0.6", "--json")
    assert [row["predicted"] for row in json.loads(free.stdout)] == ["lion", "lion"]


def test_nothing_found_is_one_line_and_no_failure(world: World, tmp_path: Path) -> None:
    """An empty answer is an answer; a sheet of nothing is not written."""
    path = tmp_path / "x.png"
    done = regraft("find", "unknown", "--sheet", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("nothing found: unknown: version 2")
    assert done.stderr.count("\n") == 1
    assert not path.exists()
    assert json.loads(regraft("find", "unknown", "--json").stdout) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("look-alike", "okappi"), 1, "did you mean 'okapi'?"),
        (("junk", "--sheet", "x.gif"), 1, "ends in .html or .png"),
        (("junk", "--sheet", "/nowhere/x.png"), 1, "/nowhere is not a folder"),
        (("junk", "--json", "--csv"), 1, "choose one"),
        (("--limit", "3", "junk"), 2, "write options behind `junk`"),
    ],
    ids=str,
)
def test_wrong_calls_are_told(
    world: World, words: tuple[str, ...], code: int, said: str
) -> None:
    """A mistake is one line on standard error, or Typer's word on usage."""
    done: subprocess.CompletedProcess[str] = regraft("find", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())


def test_cells_are_no_formulas(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """A class that is named like a formula is text to a spreadsheet, in a shortlist as well."""
    row = findings.matching(session, most=1).rows[0]
    odd = [replace(row, class_name="=1+1", key=key) for key in ("@sum", "'=p/1", "'p/1", "''-")]
    page = as_csv(Found, odd)
    told = next(csv.DictReader(StringIO(page)))
    assert (told["class_name"], told["key"]) == ("'=1+1", "'@sum")
    assert [one.key for one in labelling.read("x.csv", page.encode())] == [one.key for one in odd]
    waits = Candidate(row.sha256, "@sum", "=1+1", 2, 0.5, "+1", 0.5, "waiting")
    shortlist.write_candidates([waits, replace(waits, state="dismissed")])
    page = capsys.readouterr().out
    (told,) = csv.DictReader(StringIO(page))
    assert (told["key"], told["label"], told["said"]) == ("'@sum", "'=1+1", "'+1")
    (wish,) = labelling.read("x.csv", page.encode())
    assert (wish.key, wish.label) == ("@sum", "=1+1")


class Page(HTMLParser):
    """The tags of a page, its attributes and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.words.append(data)


def test_a_sheet_is_one_safe_page(session: Session) -> None:
    """Names are text wherever they stand, pictures lie within, each says what it is."""
    page = Page(sheet.html(findings.staged(session)))
    assert not {tag for tag, _ in page.tags} & {"i", "b", "script", "link"}
    drawn = [its for tag, its in page.tags if tag == "img"]
    assert [its["alt"] for its in drawn][:2] == [
        f"{ODD} 80%: {DAY}{QUOTED}0.jpg", f"{ODD} 70%: {DAY}{QUOTED}1.jpg",
    ]  # fmt: skip
    for its in drawn:
        head, _, body = str(its["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        thumbnail = Image.open(BytesIO(base64.b64decode(body)))
        assert thumbnail.size == (120, 90)
    assert f"{ODD}: 1 of 9 images are real" in page.words
    assert not any(
        str(value).startswith("http") for _, its in page.tags for value in its.values()
    )


def test_a_sheet_says_where_a_picture_is_missing(session: Session, world: World) -> None:
    """An object that vanished or was overwritten leaves its words, not a broken page."""
    found = findings.matching(session, "lion")
    rows = (
        replace(found.rows[0], key=f"{NIGHT}gone.jpg"),
        replace(found.rows[1], etag="0" * 32),
        found.rows[2],
    )
    page = Page(sheet.html(Findings("lions", rows)))
    assert sum(tag == "img" for tag, _ in page.tags) == 1
    drawn = Image.open(BytesIO(sheet.png(Findings("lions\n", rows))))
    assert drawn.format == "PNG"
    with pytest.raises(sheet.TooMany, match=r"--limit"):
        sheet.png(Findings("", found.rows * 200))


# --- variety --------------------------------------------------------------------------------


def test_copies_fall_to_their_first() -> None:
    """Within three bits, mirrored too; what has no hash is a copy of nothing."""
    hashes = [0, 0b111, 0b1111, None, None, -1]
    far = 0x0F0F0F0F0F0F0F0F
    mirrors = [-1, far, far << 2, None, None, 0]
    # the last one's mirror image is the first
    assert variety.firsts(hashes, mirrors, 3).tolist() == [0, 0, 2, 3, 4, 0]


def flickering(count: int, scenes: int, share: float, seed: int) -> list[int | None]:
    """Hashes of so many scenes, in each of which some bits come and go; a few are missing."""
    random = np.random.default_rng(seed)
    scene = random.integers(0, 256, (scenes, 8), dtype=np.uint8)
    bits = np.packbits(random.random((count, 64)) < share, axis=1)
    hashes = (scene[random.integers(0, scenes, count)] ^ bits).view(np.int64).ravel().tolist()
    return [None if n % 97 == 5 else one for n, one in enumerate(hashes)]


@pytest.mark.parametrize("bits", [0, 3, 5])
@pytest.mark.parametrize(
    ("count", "scenes", "share"),
    [(1, 1, 0.0), (1500, 1500, 0.0), (1500, 99, 0.02), (1500, 1, 0.04), (1100, 1, 0.0)],
)
def test_firsts_are_those_of_comparing_each_with_each(
    count: int, scenes: int, share: float, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many scenes or one, alike or the same: what is looked up in bands is what the words say."""
    monkeypatch.setattr(variety, "COMPARED", 30_000)
    hashes = flickering(count, scenes, share, seed=scenes)
    # those of an odd distance have other scenes
    mirrors = flickering(count, scenes, share, seed=scenes + bits % 2)[::-1]
    ours, theirs = (np.array([one or 0 for one in some]) for some in (hashes, mirrors))
    near = np.minimum(*(np.bitwise_count((some[:, None] ^ ours).view(np.uint64)) for some in
                        (ours, theirs))) <= bits  # fmt: skip
    missing = [one is None for one in hashes]
    near[missing] = near[:, missing] = False
    found: list[int] = []
    for place in range(count):
        leads = sorted(set(found))
        of = np.flatnonzero(near[place, leads])
        found.append(leads[of[0]] if len(of) else place)
    assert variety.firsts(hashes, mirrors, bits).tolist() == found


@pytest.mark.parametrize(("each", "share"), [(1, 0.0), (20, 0.02)])
def test_copies_are_looked_up_and_not_compared_with_all(
    each: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the pictures are about four times the comparisons, and not sixteen times."""
    compared = 0
    count_bits = np.bitwise_count

    def counting(words: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        nonlocal compared
        compared += words.size
        return count_bits(words)

    monkeypatch.setattr(np, "bitwise_count", counting)
    needed = []
    for count in (4000, 16_000):
        compared = 0
        hashes = flickering(count, count // each, share, seed=7)
        variety.firsts(hashes, hashes[::-1], 3)
        needed.append(compared)
    assert needed[1] < 6 * needed[0]


def test_groups_are_the_same_again() -> None:
    """A group has its number and its order whoever asks."""
    random = np.random.default_rng(0)
    four = 20 * np.eye(8)
    rows = [(random.normal(size=8) + four[n % 4]).astype("<f2").tobytes() for n in range(40)]
    found = variety.groups(variety.unit(rows))
    assert sorted(map(len, found)) == [10] * 4
    assert [one.tolist() for one in found] == [
        one.tolist() for one in variety.groups(variety.unit(rows))
    ]
    assert variety.groups(variety.unit(rows[:3])) == []


def test_a_row_tells_itself() -> None:
    """What is unusual about a picture stands beside it."""
    row = Found(
        "0" * 64, "p/", "p/1", "e", 1, "okapi", 0.4, "zebra", 0.5, 1.0, None, "near library",
        "dismiss", copies=2,
    )  # fmt: skip
    assert row.offer == "okapi 40%"
    assert row.remarks == ("rather zebra 50%", "2 more like it", "near library", "dismiss")

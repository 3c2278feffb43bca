"""Bad inputs, by the numbers of the list that the project keeps: each gets its one clear line.

Q quarantined and the rest goes on, R refused by the server or the client before it lay there,
F the run fails and nothing changed, X refused before anything starts, P it waits as pending.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import intakes
import nights
import numpy as np
import pictures
import pytest
from botocore.exceptions import ClientError
from intakes import csv, jsonl, picture, put, query, reasons, state, take_in
from pictures import jpeg, photograph, png
from PIL import Image, ImageOps
from sqlalchemy import text

import infra.database
import infra.storage
from infra import settings
from infra.database import Database, Unreachable
from infra.settings import BadSettings
from infra.storage import Storage, StorageError
from records import benchmark as frozen
from records import deployments, objects, versions
from records.benchmark import BadBenchmark
from records.invariants import check_invariants
from records.objects import ClassVanished
from tasks import benchmark, checkpoints, intake, pixels
from tasks.expectations import BadRules, Rules
from tasks.intake import BadManifest
from tasks.loading import BadFolder, load_folder
from tasks.pixels import MissingImages
from tasks.snapshot import NothingToTrain
from tasks.validation import check_batch
from vision import network
from vision.gate import BadLimits, Limits
from vision.plan import BadPlan, Plan

LEAKED = photograph(900)
MEGABYTE = "m" * 1_000_000


@dataclass(frozen=True)
class Case:
    """One bad input: where it lies, what it is, and the reaction that it must get."""

    number: str
    what: str
    key: str
    body: Callable[[], bytes] | None  # None: only a manifest names it
    reaction: str  # Q, R, P (pending) or A (accepted)
    expectation: str = ""
    says: str = ""


def converted(mode: str) -> bytes:
    """A picture in another mode of colour, as PNG or, where PNG has none, as JPEG."""
    plain = photograph(120 + len(mode))
    if mode == "I;16":
        return png(Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257))
    image = plain.convert(mode)
    return jpeg(image) if mode == "CMYK" else png(image)


def unreadable() -> list[Case]:
    """1 to 10: bytes that are no picture to us."""
    return [
        Case("1-10", what, f"labelled/circle/unreadable {n}.jpg", make, "Q", "readable", says)
        for n, (what, make, says) in enumerate(pictures.UNREADABLE)
    ]


ODD_REASONS = {
    "1 x 1": ("side", "1 x 1: the shorter side needs 8 pixels"),
    "1 x 100000": ("aspect", "1 x 100000: one side is more than 8 times"),
    "animated PNG": ("still", "more than one frame"),
    "animated WEBP": ("still", "more than one frame"),
    "all black": ("bright_enough", "too dark"),
    "orientation 9": ("upright", "EXIF orientation 9 is none of 1 to 8"),
}


def image(number: str, what: str, name: str, body: bytes, *reaction: str) -> Case:
    """A case that lies in the folder of a class."""
    return Case(number, what, f"labelled/{name}", lambda: body, *reaction)


def named(number: str, what: str, key: str, *reaction: str) -> Case:
    """A case that only a manifest names."""
    return Case(number, what, key, None, *reaction)


def keyed(number: str, what: str, key: str, seed: int, *reaction: str) -> Case:
    """A sound picture under an odd key."""
    return Case(number, what, key, lambda: picture(seed, "cross"), *reaction)


TWICE = picture(4000)
NO_FOLDER = [f"labelled/loose {n}.png" for n in range(8)]

CASES: list[Case] = [
    *unreadable(),
    *(
        Case("9, 11-15", what, f"labelled/circle/odd {what}.png", make, "Q", *ODD_REASONS[what])
        for what, make, _ in pictures.ODD
    ),
    *(
        Case("5, 14", what, f"labelled/circle/good {what}.png", make, "A")
        for what, make in pictures.ACCEPTED
    ),
    *(
        Case("12", mode, f"labelled/circle/mode {mode}.png", lambda m=mode: converted(m), "A")  # type: ignore[misc]
        for mode in ("CMYK", "P", "RGBA", "LA", "L", "1", "I;16")
    ),
    image("13", "EXIF rotation", "circle/turned.jpg", pictures.with_orientation(photograph(130), 6),
          "A"),
    image("15", "blank", "circle/blank.png", png(Image.new("RGB", (96, 96), (90, 90, 90))),
          "Q", "sharp_enough", "blurred or blank"),
    image("16", "benchmark copy", "ring/leak.png", png(LEAKED),
          "Q", "not_in_benchmark", "these very bytes are in the benchmark"),
    image("16", "benchmark copy, encoded again", "ring/near.jpg", jpeg(LEAKED, 40),
          "Q", "not_near_benchmark", "same picture as benchmark/ring/leak.png"),
    image("16", "benchmark copy, smaller", "ring/small.jpg", jpeg(LEAKED.resize((160, 120))),
          "Q", "not_near_benchmark", "same picture as benchmark/ring/leak.png"),
    image("16", "benchmark copy, mirrored", "ring/mirror.jpg", jpeg(ImageOps.mirror(LEAKED)),
          "Q", "not_near_benchmark", "same picture as benchmark/ring/leak.png"),
    image("17", "two labels", "ring/17.png", TWICE, "Q", "one_label", "2 different labels"),
    image("17", "two labels", "cross/17.png", TWICE, "Q", "one_label", "2 different labels"),
    image("17", "against an older image", "ring/older.png", picture(0, "circle"),
          "Q", "one_label", "2 different labels"),
    *(image("18", "copy", f"cross/copy {n}.png", picture(4001), "A") for n in range(50)),
    image("21", "unknown label", "heron/1.png", picture(4002), "Q", "label_allowed",
          "class heron is new"),
    image("22", "other case", "Circle/1.png", picture(4003), "Q", "label_spelt",
          "'Circle' is 'circle' spelt another way"),
    image("22", "space at the end", "circle /1.png", picture(4004), "A"),
    image("22", "NFD", "cafe\u0301/1.png", picture(4005), "A"),
    image("22", "blank class", " /1.png", picture(4006), "Q", "labelled", "no label"),
    image("23", "duplicate manifest rows", NO_FOLDER[0].removeprefix("labelled/"), picture(4007),
          "A"),
    named("24", "row without object", "labelled/nowhere.png", "Q", "object_exists",
          "no such object"),
    image("25", "object without row", NO_FOLDER[1].removeprefix("labelled/"), picture(4008), "P"),
    image("25", "too deep for a class", "a/b/c/d.png", picture(4009), "P"),
    image("26", "row in a file with BOM and CRLF", NO_FOLDER[2].removeprefix("labelled/"),
          picture(4010), "A"),
    image("26", "1 MB field", NO_FOLDER[3].removeprefix("labelled/"), picture(4011),
          "Q", "text_clean", "group has 1,000,000 characters"),
    image("27", "NUL", NO_FOLDER[4].removeprefix("labelled/"), picture(4012),
          "Q", "text_clean", "label holds U+0000"),
    image("27", "lone surrogate", NO_FOLDER[5].removeprefix("labelled/"), picture(4013),
          "Q", "text_clean", "label holds U+D800"),
    image("22", "invisible sign", NO_FOLDER[6].removeprefix("labelled/"), picture(4014),
          "Q", "text_clean", "label holds U+200B, which nobody sees"),
    image("31", "formula as sub-class", NO_FOLDER[7].removeprefix("labelled/"), picture(4015),
          "A"),
    named("26", "900 emoji as key", "😀" * 900, "Q", "text_clean", "key has 3600 bytes"),
    named("27", "key with NUL", "labelled/nul\\x00.png", "Q", "text_clean", "key holds U+0000"),
    named("40", "another bucket", "s3://other/circle.png", "Q", "text_clean", "an address"),
    named("40", "metadata", "http://169.254.169.254/latest", "Q", "text_clean", "an address"),
    named("40", "local file", "file:///etc/passwd", "Q", "text_clean", "an address"),
    named("32", "path in a manifest", "../../etc/passwd", "Q", "text_clean", "key is not a path"),
    keyed("32", "path", "labelled/circle/../../etc/passwd", 5000, "R"),
    keyed("32", "dot", "labelled/circle/./x.png", 5001, "R"),
    keyed("33", "empty segment", "labelled/circle//folded.png", 5002, "A"),
    keyed("33", "backslash", "labelled/circle/back\\slash.png", 5003, "A"),
    keyed("33", "leading slash", "/labelled/circle/leading.png", 5004, "A"),
    keyed("34", "newline", "labelled/circle/new\nline.png", 5005, "Q", "key_allowed", "U+000A"),
    keyed("34", "escape", "labelled/circle/\x1b[31m.png", 5006, "Q", "key_allowed", "U+001B"),
    keyed("34", "text that runs backwards", "labelled/circle/\u202egnp.exe", 5007, "Q",
          "key_allowed", "RIGHT-TO-LEFT OVERRIDE"),
    keyed("34", "NUL", "labelled/circle/nul\0.png", 5008, "R"),
    keyed("34", "1025 bytes", f"labelled/circle/{'k' * 1009}", 5009, "R"),
    keyed("34", "300 bytes between slashes", f"labelled/circle/{'k' * 300}", 5010, "R"),
    keyed("34", "full of controls", "labelled/" + "/".join(["\x01\x02\x7f" * 80] * 4), 5011, "Q",
          "key_allowed", "U+0001"),
    keyed("34", "emoji", "labelled/😀/1.png", 5012, "Q", "key_allowed", "GRINNING FACE"),
    keyed("33", "percent and plus", "labelled/circle/50%+1 %2F.png", 5013, "A"),
    keyed("53", "SQL", "labelled/circle/'; DROP TABLE objects; --.png", 5014, "A"),
    Case("37", "multipart ETag is no MD5", "labelled/circle/parts.png", None, "A"),
]
# This server keeps objects as files: it folds these to one /, so nothing odd lies there.
KEPT_AS = {
    "labelled/circle//folded.png": "labelled/circle/folded.png",
    "labelled/circle/back\\slash.png": "labelled/circle/back/slash.png",
    "/labelled/circle/leading.png": "labelled/circle/leading.png",
}
MANIFEST = jsonl(
    {"key": "labelled/nowhere.png", "label": "circle"},
    {"key": NO_FOLDER[3], "label": "circle", "group": MEGABYTE},
    {"key": NO_FOLDER[4], "label": "cir\0cle"},
    {"key": NO_FOLDER[5], "label": "circle \ud800"},
    {"key": NO_FOLDER[6], "label": "cir\u200bcle"},
    {"key": NO_FOLDER[7], "label": "circle", "sub_label": '=HYPERLINK("http://e.org";"x")'},
    {"key": "😀" * 900, "label": "circle"},
    {"key": "labelled/nul\0.png", "label": "circle"},
    {"key": "s3://other/circle.png", "label": "circle"},
    {"key": "http://169.254.169.254/latest", "label": "circle"},
    {"key": "file:///etc/passwd", "label": "circle"},
    {"key": "../../etc/passwd", "label": "circle"},
)
WITH_MARK = f"\ufeffkey,label\r\n{NO_FOLDER[2]},circle\r\n{NO_FOLDER[0]},circle\r\n".encode()
DOUBLED = csv([(NO_FOLDER[0], "circle"), (NO_FOLDER[0], "circle")])


def plant(storage: Storage, case: Case) -> bool:
    """Put a case where it belongs; False when client or server refuse it."""
    if case.number == "37":
        client, place = storage._client, {"Bucket": storage.bucket, "Key": case.key}
        upload = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}  # type: ignore[arg-type]
        part = client.upload_part(**upload, PartNumber=1, Body=picture(6000))  # type: ignore[arg-type]
        parts = [{"ETag": part["ETag"], "PartNumber": 1}]
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})  # type: ignore[arg-type,typeddict-item]
    elif case.body is not None:
        try:
            put(storage, case.key, case.body())
        except (ClientError, UnicodeEncodeError):
            return False
    return True


def kept_key(case: Case) -> str:
    """The key as the library shows it."""
    if case.expectation == "text_clean" and not case.key.isascii():
        return case.key.encode("unicode_escape").decode()[:1000]
    if case.expectation != "key_allowed":
        return KEPT_AS.get(case.key, case.key)
    return case.key.encode("unicode_escape").decode()


def what_went_wrong(database: Database, case: Case, planted: bool) -> str | None:
    """How the reaction differs from the one that the table gives, None when it does not."""
    if planted == (case.reaction == "R"):
        return f"planted: {planted}"
    if not planted:
        return None
    key = kept_key(case)
    if len(key) > 1000:
        key = query(
            database, "SELECT key FROM objects WHERE starts_with(key, :k)", k=key[:1000]
        )[0].key
    found = state(database, key)
    states = {"A": "accepted", "Q": "quarantined", "P": "pending"}
    only_row = case.body is None and case.reaction == "Q"
    if found != (None if only_row else states[case.reaction]):
        return f"state {found}, {reasons(database, key)}"
    told = reasons(database, key)
    if case.reaction != "Q":
        return f"refused: {told}" if told else None
    sentence = told.get(case.expectation, "")
    one_line = sentence.isprintable() and len(sentence) < 400
    if case.says not in sentence or not one_line:
        return f"told {told}"
    # A picture that cannot be read, or a key that cannot be taken, has that one reason.
    lonely = case.expectation in {"readable", "key_allowed", "text_clean", "object_exists"}
    return f"more reasons: {told}" if lonely and len(told) > 1 else None


@pytest.fixture
def known(database: Database, storage: Storage) -> Database:
    """Have a benchmark, and a library that knows circle, cross, ring and café."""
    put(storage, "benchmark/ring/leak.png", png(LEAKED))
    put(storage, "benchmark/cross/1.png", picture(9000, "cross"))
    benchmark.freeze("a test", "to leak from")
    for name in ("circle", "cross", "ring"):
        for seed in range(3):
            put(storage, f"labelled/{name}/{seed}.png", picture(seed, name))
    put(storage, "labelled/caf\u00e9/1.png", picture(8000))
    checked = take_in(database).checked
    assert checked is not None
    assert (checked.accepted, checked.quarantined) == (10, 0)
    return database


def test_every_bad_object_gets_its_reaction(known: Database, storage: Storage) -> None:
    """Bad objects and manifest rows among good ones: each its one line, and nothing is lost."""
    try:
        with ThreadPoolExecutor(4) as pool:
            planted = list(pool.map(lambda case: plant(storage, case), CASES))
        put(storage, "manifests/a.jsonl", MANIFEST)
        put(storage, "manifests/b.csv", WITH_MARK)
        put(storage, "manifests/c.csv", DOUBLED)
        put(storage, "manifests/ignored.txt", b"no manifest")
        put(storage, "labelled/circle/more good.png", picture(7000, "circle"))
        rules = Rules(allow_new_classes=False, largest_bad_share=1.0)
        checked = take_in(known, rules).checked
        assert checked is not None
        assert checked.refused is None
        wrong = [
            f"{case.number} {case.what}: {problem}"
            for case, there in zip(CASES, planted, strict=True)
            if (problem := what_went_wrong(known, case, there))
        ]
        assert wrong == []
        assert state(known, "labelled/circle/more good.png") == "accepted"
        assert intakes.all_accounted(known, storage)
        check_invariants(known, storage)
        copies = query(known, "SELECT count(*) AS n FROM images WHERE sha256 = (SELECT sha256 "
                              "FROM objects WHERE key = 'labelled/cross/copy 7.png')")  # fmt: skip
        assert copies[0].n == 1
        # 13: turned as EXIF says, 320 x 240 becomes 240 x 320
        turned = query(known, "SELECT width, height FROM images JOIN objects USING (sha256) "
                              "WHERE key = 'labelled/circle/turned.jpg'")  # fmt: skip
        assert tuple(turned[0]) == (240, 320)
        # 17: the older image is no longer trusted either
        assert intakes.label(known, "labelled/circle/0.png") is None
        # 31: kept as it is, as text
        formula = intakes.label(known, NO_FOLDER[7])
        assert formula is not None
        assert formula[1].startswith("=HYPERLINK")
        # what was judged once stays judged: no bad object is read or refused again
        assert take_in(known, rules).intake.batch_id is None
    finally:
        # XML holds no control characters, hence no list of keys that have them.
        for one in storage.list():
            storage._client.delete_object(Bucket=storage.bucket, Key=one.key)


BAD_MANIFESTS: list[tuple[str, str, bytes, str]] = [
    ("19", "empty.csv", b"", "column key, label is missing; it has none"),
    ("19", "empty.jsonl", b"", "it has no rows: delete it, or fill it"),
    ("19", "header.csv", b"key,label\n", "it has no rows: delete it, or fill it"),
    ("20", "column.csv", b"key,lable\na,b\n", "column label is missing; it has key, lable: add"),
    ("20", "semicolons.csv", b"key;label\na;b\n", "no commas separate its columns: save it with"),
    ("20", "column.jsonl", b'{"key": "a", "label": "b"}\n{"key": "c"}\n', "column label is mis"),
    ("20", "lines.csv", b'"key\n\x1b[31m",label\na,b\n', r"it has key\n\x1b[31m, label"),
    ("26", "utf16.csv", "key,label\na,b\n".encode("utf-16"), "byte 0 is not UTF-8: save"),
    ("26", "broken.jsonl", b'{"key": "a", "label": "b"}\n{"key": \n', "line 2 is not JSON"),
    ("26", "list.jsonl", b'["key", "label"]\n', "line 1 is not an object"),
    ("26", "deep.jsonl", b"[" * 200_000, "line 1 is not JSON"),
]


def test_a_manifest_that_cannot_be_read_fails_the_run(
    database: Database, storage: Storage
) -> None:
    """A manifest that is bad as a whole stops the intake by one line; mended, it comes in."""
    put(storage, "labelled/ring/1.png", picture(1))
    for number, name, body, says in BAD_MANIFESTS:
        put(storage, f"manifests/{name}", body)
        with pytest.raises(BadManifest) as caught:
            take_in(database)
        line = str(caught.value)
        assert says in line, (number, name, line)
        assert line.startswith(f"manifests/{name}: "), (number, line)
        assert line.isprintable(), (number, line)
        intakes.remove(storage, f"manifests/{name}")
    assert query(database, "SELECT * FROM objects") == []
    assert take_in(database).checked is not None
    assert state(database, "labelled/ring/1.png") == "accepted"


def test_a_race_with_whoever_uploads_is_quarantined_and_heals(
    database: Database, storage: Storage
) -> None:
    """35, 36: overwritten or deleted between list and get is quarantined, and comes in later."""
    for name in ("overwritten", "deleted", "calm"):
        put(storage, f"labelled/ring/{name}.png", picture(len(name)))
    run_id = intakes.begin(database)
    listed = intake._list_new(run_id, ())
    assert listed.batch_id is not None
    put(storage, "labelled/ring/overwritten.png", picture(100))
    intakes.remove(storage, "labelled/ring/deleted.png")
    assert intake._fetch(run_id, listed.batch_id, intakes.PLAN) == 3
    checked = check_batch.fn(run_id, listed.batch_id, Rules())
    assert (checked.accepted, checked.quarantined) == (1, 2)
    assert "was changed meanwhile" in reasons(database, "labelled/ring/overwritten.png")["readable"]
    assert "no such object" in reasons(database, "labelled/ring/deleted.png")["readable"]
    again = take_in(database)
    assert (again.intake.new, again.intake.gone) == (1, 2)
    assert state(database, "labelled/ring/overwritten.png") == "accepted"
    put(storage, "labelled/ring/deleted.png", picture(len("deleted")))
    take_in(database)
    assert state(database, "labelled/ring/deleted.png") == "accepted"
    assert reasons(database, "labelled/ring/deleted.png") == {}
    assert intakes.all_accounted(database, storage)
    check_invariants(database, storage)


def test_two_pages_of_keys_are_all_taken_in(database: Database, storage: Storage) -> None:
    """39: a listing of several pages loses no key; those without a class wait and cost no read."""
    keys = [f"labelled/{number:05}.png" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: put(storage, key, b"x"), keys))
    put(storage, "labelled/ring/1.png", picture(1))
    taken = take_in(database)
    assert taken.intake.listed == 1101
    assert taken.checked is not None
    assert taken.checked.images == 1
    assert intakes.all_accounted(database, storage)
    waiting = query(database, "SELECT count(*) AS n FROM objects WHERE facts IS NULL")
    assert waiting[0].n == 1100


ODD_CLASSES = [
    "Sumatran rhino",
    "O'Brien's \"big\" one, really",
    "東北犬",
    "Ñandú & friends",
    "русская выхухоль",
    "a/b\\c",
    "Robert'); DROP TABLE classes; --",
    "../../etc",
    '=HYPERLINK("http://e.org","x")',
    "<script>alert(1)</script>",
    "🦊 family 👨\u200d👩\u200d👧",
    "NULL",
    "{}",
    "x" * 255,
]


def test_class_names_are_only_names(database: Database, storage: Storage) -> None:
    """53, 31: spaces, slashes, quotes, emoji, SQL, HTML and formulas are names like any other."""
    rows = []
    for number, name in enumerate(ODD_CLASSES):
        key = f"labelled/odd {number}.png"
        put(storage, key, picture(number))
        rows.append({"key": key, "label": name, "group": name, "labelled_by": "Zoë"})
    long = {"key": "labelled/long.png", "label": "é" * 128}
    put(storage, "labelled/long.png", picture(50))
    for number, name in enumerate(("Sumatran rhino", "東北犬", "Ñandú + friends")):
        put(storage, f"labelled/{name}/in a folder.png", picture(60 + number))
    put(storage, "labelled/an empty class/", b"")
    put(storage, "manifests/names.jsonl", jsonl(*rows, long))
    take_in(database)
    got = [intakes.label(database, str(row["key"])) for row in rows]
    assert [one and one[0] for one in got] == ODD_CLASSES
    told = reasons(database, "labelled/long.png")
    assert told == {"text_clean": "label has 256 bytes: 255 are the most; shorten it"}
    known = {row.name for row in query(database, "SELECT name FROM classes")}
    assert known == {*ODD_CLASSES, "Ñandú + friends"}
    assert intakes.all_accounted(database, storage)


# --- 29, 30, 43, 45: against a champion -------------------------------------------------------


def tamper(database: Database, statement: str) -> None:
    """Change rows as nobody can through regraft: with the triggers off, as a restore has them."""
    with database.transaction() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text(statement))


def of_another_architecture(database: Database, version_id: int, folder: Path) -> None:
    """Give a version a checkpoint that names an architecture which timm does not know."""
    with database.transaction() as session:
        digest = versions.get(session, version_id).checkpoint_digest
    assert digest is not None
    tensors, facts = network.read_tensors(checkpoints.fetch(digest).read_bytes(), "a test")
    facts["plan"]["architecture"] = "okapi_net"
    path = folder / "changed.safetensors"
    changed = network.write_tensors(path, tensors, facts)
    checkpoints.store(path, changed)
    tamper(
        database,
        f"UPDATE versions SET checkpoint_digest = '{changed}' WHERE id = {version_id}",  # noqa: S608  (our own digest)
    )


def test_what_only_a_champion_can_tell(
    database: Database, storage: Storage, prefect_server: str, tmp_path: Path
) -> None:
    """29, 30, 43, 45: a vanished class, flipped labels, a broken benchmark or champion stop it."""
    from flows.nightly import nightly

    nights.tiny_library(tmp_path)
    assert nightly(plan=nights.TINY_PLAN).state == "deployed"
    with database.transaction() as session:
        champion = deployments.champion(session)
    assert champion is not None

    # 30: a third of the labels is wrong; the batch waits, and the next night goes on without it
    right, wrong = nights.CLASSES
    flipped = [(wrong if n % 3 == 0 else right, f"flipped {n}.png", 3000 + n) for n in range(60)]
    for label, name, seed in flipped:
        put(storage, f"labelled/{label}/{name}", picture(seed, right))
    outcome = nightly(plan=nights.TINY_PLAN)
    assert outcome.state == "stopped"
    assert "look for swapped labels" in outcome.reason
    assert "the champion was not touched" in outcome.reason
    assert outcome.reason.isprintable()
    assert state(database, f"labelled/{wrong}/flipped 0.png") == "pending"
    assert intakes.all_accounted(database, storage)
    assert nightly(plan=nights.TINY_PLAN).state == "skipped"

    # 29: a whole class is gone
    lost = [one.key for one in storage.list(f"labelled/{wrong}/")]
    bodies = {key: storage.read(key) for key in lost}
    for key in lost:
        storage.delete(key)
    with pytest.raises(ClassVanished, match=f"every object of '{wrong}' .12. has vanished") as gone:
        nightly(plan=nights.TINY_PLAN)
    assert str(gone.value).isprintable()
    assert query(database, "SELECT * FROM objects WHERE gone_at IS NOT NULL") == []
    # unless a person has retired it: then it is the snapshot that lacks a second class
    with pytest.raises(NothingToTrain, match="a classifier needs two"):
        nightly(plan=nights.TINY_PLAN, limits=Limits(retired_classes=(wrong,)))
    for key, body in bodies.items():
        put(storage, key, body)
    assert nightly(plan=nights.TINY_PLAN).state == "skipped"

    # 43: the benchmark is not the one that was frozen
    tamper(database, f"UPDATE benchmark_images SET class_name = '{wrong}'")  # noqa: S608
    with pytest.raises(BadBenchmark, match="its rows were changed; restore the database"):
        nightly(plan=nights.TINY_PLAN)
    kept = "split_part(source_key, '/', 2)"
    tamper(database, f"UPDATE benchmark_images SET class_name = {kept}")  # noqa: S608
    check_invariants(database, storage)

    # 45: the champion cannot be loaded: no new image is judged without it
    of_another_architecture(database, champion.version_id, tmp_path)
    put(storage, f"labelled/{right}/new.png", picture(5000, right))
    with pytest.raises(BadPlan, match=r"architecture='okapi_net': timm .* does not know it") as bad:
        nightly(plan=nights.TINY_PLAN)
    assert str(bad.value).isprintable()
    with database.transaction() as session:
        assert deployments.champion(session) is not None
        assert len(deployments.log(session)) == 1


def test_a_changed_benchmark_object_is_noticed(known: Database, storage: Storage) -> None:
    """43: other bytes under a frozen image's key are refused when they are read."""
    with known.transaction() as session:
        member = frozen.members(session, 1)[0]
    put(storage, member.key, picture(1))
    sources: dict[str, tuple[str, str | None]] = {member.sha256: (member.key, None)}
    with pytest.raises(MissingImages, match="is no longer the image it was") as caught:
        pixels.opened(nights.TINY_PLAN.geometry, sources)
    assert str(caught.value).isprintable()


# --- 38, 41, 42, 44: settings, plans, credentials -------------------------------------------------


@pytest.mark.parametrize(
    ("number", "make", "error", "says"),
    [
        ("41", lambda: settings.load({"REGRAFT_BUKET": "x"}), BadSettings, "REGRAFT_BUKET"),
        ("41", lambda: Plan.from_dict({"epoch": 3}), BadPlan, "epochs"),
        ("42", lambda: Plan(learning_rate=-1.0), BadPlan, "learning_rate"),
        ("42", lambda: Plan(learning_rate=float("nan")), BadPlan, "learning_rate"),
        ("42", lambda: Plan.from_dict({"dropout": "0.9"}), BadPlan, "dropout"),
        ("42", lambda: Rules(darkest=-1.0), BadRules, "darkest"),
        ("42", lambda: Rules(largest_bad_share=float("nan")), BadRules, "largest_bad_share"),
        ("42", lambda: Rules(**{"darkest": "0.9"}), BadRules, "darkest"),  # type: ignore[arg-type]
        ("42", lambda: Limits(margin=-0.1), BadLimits, "margin"),
        ("42", lambda: Limits(margin=float("nan")), BadLimits, "margin"),
        ("42", lambda: Limits(**{"margin": "0.9"}), BadLimits, "margin"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused_before_anything_starts(
    number: str, make: Callable[[], object], error: type[Exception], says: str
) -> None:
    """41, 42: an unknown, negative, absent or textual value is refused, and named."""
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value), number
    assert str(caught.value).isprintable(), number


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGRAFT_S3_ENDPOINT", "ftp//nonsense"),
        ("REGRAFT_S3_BUCKET", "Not A Bucket"),
        ("REGRAFT_S3_BUCKET", "../etc"),
        ("REGRAFT_DATABASE_URL", "mysql://x/y"),
    ],
)
def test_a_nonsense_address_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """44: nonsense as address or bucket is refused, and the setting named."""
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings, match=name) as caught:
        settings.load()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REGRAFT_S3_SECRET_KEY", "wrong-4711", "REGRAFT_S3_SECRET_KEY"),
        ("REGRAFT_S3_BUCKET", "no-such-bucket", "no bucket no-such-bucket; create it"),
        ("REGRAFT_S3_ENDPOINT", "http://127.0.0.1:9", "does not answer"),
    ],
)
def test_an_intake_without_its_bucket_fails_and_changes_nothing(
    database: Database,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    says: str,
) -> None:
    """38: wrong keys, a missing bucket and a dead server each fail by one line, no secret."""
    put(storage, "labelled/ring/1.png", picture(1))
    monkeypatch.setenv(name, value)
    infra.storage.connect.cache_clear()
    with pytest.raises(StorageError) as caught:
        take_in(database)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert "4711" not in str(caught.value)
    assert query(database, "SELECT id FROM batches UNION ALL SELECT id FROM objects") == []
    monkeypatch.undo()


def test_a_postgres_that_is_down_is_named(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres down: one line that names where it was looked for, without the password."""
    monkeypatch.setenv("REGRAFT_DATABASE_URL", "postgresql://regraft:hidden-4711@127.0.0.1:9/regraft")
    infra.database.connect.cache_clear()
    try:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9") as caught:
            intake.take_in_new_images.fn(1, intakes.PLAN)
    finally:
        infra.database.connect.cache_clear()
    assert str(caught.value).isprintable()
    assert "4711" not in str(caught.value)


# --- folders ----------------------------------------------------------------------------------


def test_a_folder_loads_what_it_can_and_names_the_rest(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    """Odd folders: every file is either uploaded or named with the reason, empty classes too."""
    good = ("ring/1.png", "O'Brien's \"ring\"/1.png", "東北犬/1.png", "lion/male/1.png")
    bad = {
        "loose.png": "no class: put it into the folder of its class",
        "ring/a/b/deep.png": "too deep: <class>/<sub-class>/<file> is the deepest",
        "ring/empty.png": "the file is empty",
        "ring/tab\t.png": "the key holds the character U+0009",
        "ring/back\\slash.png": "the key holds a backslash",
        os.fsdecode(b"ring/latin-\xe9.png"): "half a surrogate pair",
    }
    hidden = (".git/x/1.png", "ring/.DS_Store", "ring/.thumbnails/1.png")
    for number, name in enumerate(chain(good, bad, hidden)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if "empty" in name else picture(number))
    (tmp_path / "nobody").mkdir()
    os.mkfifo(tmp_path / "ring" / "pipe.png")
    loaded = load_folder(tmp_path, objects.LABELLED)
    assert (loaded.images, loaded.classes, loaded.empty_classes) == (4, 4, ("nobody",))
    assert len(loaded.skipped) == len(bad)
    for problem in bad.values():
        assert sum(problem in line for line in loaded.skipped) == 1, problem
    assert all(line.isprintable() and line.encode() for line in loaded.skipped)
    assert {one.key for one in storage.list()} == {objects.LABELLED + name for name in good}
    take_in(database)
    assert intakes.label(database, "labelled/lion/male/1.png") == ("lion", "male", "train")


@pytest.mark.parametrize("name", ["nowhere", "a file", "an empty folder", "only loose files"])
def test_a_folder_without_images_is_refused(tmp_path: Path, name: str) -> None:
    """A wrong folder is refused before anything is written."""
    (tmp_path / "a file").touch()
    (tmp_path / "an empty folder").mkdir()
    (tmp_path / "only loose files").mkdir()
    (tmp_path / "only loose files" / "1.png").write_bytes(picture(1))
    with pytest.raises(BadFolder) as caught:
        load_folder(tmp_path / name, objects.LABELLED)
    assert str(caught.value).isprintable()
    assert name in str(caught.value)

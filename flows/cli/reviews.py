"""`regraft review` and `regraft image`: what people say of answers, and do with the library."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import By, Json, NewClass, Why
from flows.cli.printing import (
    answer,
    plain_text,
    print_json,
    print_table,
    say,
    say_some,
    write_picture,
)

if TYPE_CHECKING:
    from records.labels import Done
    from records.queues import Waiting
    from records.reviews import Answered

verbs = typer.Typer()
group = typer.Typer(help="Look at answers and say whether they are right.", no_args_is_help=True)
images = typer.Typer(help="Remove, relabel and keep images of the library.", no_args_is_help=True)
verbs.add_typer(group, name="review")
verbs.add_typer(images, name="image")


def _day(word: str) -> datetime:
    """The begin of a day of UTC, or a time where one is given, of UTC unless it says otherwise."""
    try:
        said = datetime.fromisoformat(word)
        return said if said.tzinfo else said.replace(tzinfo=UTC)
    except ValueError:
        raise typer.BadParameter(f"{word!r} is no day: write 2026-11-22") from None


OfVersion = Annotated[int | None, typer.Option("--version", help="This version alone.")]
OfClass = Annotated[str | None, typer.Option("--class", help="This class alone.")]
ShownBy = Annotated[
    int | None, typer.Option("--version", help="The version whose answers had shown them.")
]
Queue = Annotated[
    str | None,
    typer.Option(help="random estimates accuracy in use; confidence, mistaken and scarce find "
                      "errors; pools has pictures of pools.",
                 metavar="random|confidence|mistaken|scarce|pools")
]  # fmt: skip
Most = Annotated[int, typer.Option("--limit", help="How many, at most.", min=1)]
Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE", help="Digest (8 characters or more) or key of an image."),
]
Save = Annotated[
    Path | None,
    typer.Option("--save", help="Write the pictures into this folder.", metavar="FOLDER",
                 file_okay=False)
]  # fmt: skip


# --- verdicts -------------------------------------------------------------------------------


@group.command("next")
def show_next(queue: Queue = "random", version: OfVersion = None, class_name: OfClass = None,
              most: Most = 1, save: Save = None,
              *, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Show which answers you should look at next, and why.

    Some of the random ones are shown without their answer: name what you see.

    Example: regraft review next --queue scarce --limit 5 --save ./look --by Ann
    """
    from infra import database
    from records import queues

    with database.connect().transaction() as session:
        rows = queues.waiting(session, queue or "random", by, version, class_name, most)
    if save is not None:
        _save_waiting(save, rows)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        mend = ("`regraft identify POOL` answers one" if queue == "pools"
                else "`regraft transactions list --kept` shows what is kept")  # fmt: skip
        say(f"nothing waits in this queue: {mend}")
        return
    print_table(
        ["of", "when", "version", "answer", "why"],
        ((_name(row), f"{row.at:%Y-%m-%d %H:%M}" if row.at else "", str(row.version_id),
          _answer(row), _shown(row.why)) for row in rows),
    )  # fmt: skip
    of = "" if rows[0].transaction_id else f"--of {rows[0].subject} --version {rows[0].version_id} "
    say(f"say it: regraft review say {_name(rows[0])} {of}--queue {rows[0].queue} "
         + ("--label CLASS" if rows[0].blind else "right"))  # fmt: skip


def _name(row: Waiting) -> str:
    return str(row.transaction_id or row.sha256[:12])


def _answer(row: Waiting) -> str:
    if row.top_labels is None or row.top_confidences is None:
        return "shown blind"
    pairs = zip(row.top_labels[:2], row.top_confidences[:2], strict=True)
    return _shown(", ".join(f"{name} {share:.0%}" for name, share in pairs))


def _save_waiting(folder: Path, rows: list[Waiting]) -> None:
    from infra import database, storage
    from infra.storage import Changed, Gone
    from web import kept
    from web.thumbnails import encoded

    with database.connect().transaction() as session:
        for row in rows:
            try:
                body = (storage.connect().read(row.key) if row.transaction_id
                        else kept.body_of(session, row.sha256))  # fmt: skip
            except (Gone, Changed) as error:
                say(str(error))
                continue
            write_picture(folder / f"{_name(row)}.jpg", encoded(kept.shown(body)))


@group.command("say")
def say_verdict(which: Annotated[str, typer.Argument(
            metavar="ANSWER",
            help="The transaction's number, or with --of the digest of an image.")],
        verdict: Annotated[str | None, typer.Argument(
            metavar="[right|wrong|'bad image'|'cannot tell']",
            help="Of the answer; without it the label says enough.")] = None,
        label: Annotated[str | None, typer.Option(help="What the picture shows.")] = None,
        queue: Queue = None,
        of: Annotated[str | None, typer.Option(
            metavar="identification|evaluation",
            help="An answer that --version gave to an image there.")] = None,
        version: Annotated[int | None, typer.Option(help="Whose answer, with --of.")] = None,
        learn: Annotated[bool, typer.Option(
            "--learn", help="Let the picture train as what the label says.")] = False,
        note: Annotated[str | None, typer.Option(help="A remark; it is kept.")] = None,
        new_class: NewClass = None,
        *, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Say whether an answer is right, or what the picture shows.

    All that people say is kept; of one person the newest word counts. Name the queue that had
    shown it: what you chose yourself estimates nothing.

    Example: regraft review say 0193a5c2-7f00-7000-8000-000000000001 wrong --label okapi --learn

    Example: regraft review say 3fa9c1d2 --of evaluation --version 7 right --by Ann
    """
    from infra import database
    from records import queues, reviews
    from tasks import labelling
    from web import kept

    if queue is not None and queue not in queues.QUEUES:
        raise typer.BadParameter(f"queue {queue!r} is none of {', '.join(queues.QUEUES)}")
    stream = reviews.stream_of(queue)
    allowed, learned = list(new_class or ()), None
    with database.connect().transaction() as session:
        answered = _answered(session, which, of, version)
        review = reviews.say(session, answered, by, verdict, label, note, stream, allowed)
        if learn and review.label is None:
            raise reviews.BadReview("nothing can be learned without a label: --label CLASS")
        if learn and review.label is not None:
            read = kept.read(answered) if answered.subject == "transaction" else None
            learned = reviews.into_library(
                session, answered, read, by, review.label, note, allowed
            )
    waiting = labelling.follow().waiting if learned else ()
    told = review.verdict + (f", it is {review.label}" if review.verdict == "wrong"
                             and review.label else "")  # fmt: skip
    line = f"{told}: {'kept' if review.fresh else 'you had said so before'}"
    if learned:
        line += "; the next night learns it" if learned.changed else "; it was learned before"
    facts = dataclasses.asdict(review) | {"learned": learned and dataclasses.asdict(learned)}
    answer(facts, line, as_json)
    say_some(waiting, "waits")


def _answered(session: Any, answer: str, of: str | None, version: int | None) -> Answered:
    from records import reviews

    if of is None:
        try:
            return reviews.of_transaction(session, uuid.UUID(answer))
        except ValueError:
            raise typer.BadParameter(
                f"{answer!r} is no transaction's number; an image needs --of and --version"
            ) from None
    if version is None or of not in ("identification", "evaluation"):
        raise typer.BadParameter("--of is identification or evaluation, and needs --version")
    if of == "identification":
        return reviews.of_identification(session, version, answer)
    return reviews.of_evaluation(session, version, answer)


@group.command("list")
def list_reviews(most: Most = 20, version: OfVersion = None, as_json: Json = False) -> None:
    """List what people said of answers, the newest first.

    Example: regraft review list --version 7
    """
    from infra import database
    from records import reviews

    with database.connect().transaction() as session:
        rows = reviews.newest(session, most, version_id=version)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("nobody has reviewed anything yet: `regraft review next` shows what waits")
        return
    print_table(
        ["when", "by", "of", "version", "answer", "verdict", "label", "how"],
        (
            (
                f"{row.reviewed_at:%Y-%m-%d %H:%M}", _shown(row.reviewed_by),
                str(row.transaction_id or row.sha256[:12]), str(row.version_id),
                _shown(f"{row.predicted} {row.confidence:.0%}"), row.verdict,
                _shown(row.label or ""), row.stream + (", blind" if row.blind else ""),
            )
            for row in rows
        ),
    )  # fmt: skip


@group.command()
def disagreements(most: Most = 20, as_json: Json = False) -> None:
    """List answers of which people say different things.

    Example: regraft review disagreements
    """
    from infra import database
    from records import reviews

    with database.connect().transaction() as session:
        rows = reviews.disagreements(session, most)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("no two people contradict each other")
        return
    print_table(
        ["of", "version", "answer", "what they say"],
        (
            (
                str(row.transaction_id or row.sha256[:12]), str(row.version_id),
                _shown(f"{row.predicted} {row.confidence:.0%}"),
                _shown("; ".join(
                    f"{one.by}: {one.verdict}{f', {one.label}' if one.label else ''}"
                    for one in row.words
                )),
            )
            for row in rows
        ),
    )  # fmt: skip


@group.command()
def estimate(version: OfVersion = None,
             since: Annotated[datetime | None, typer.Option(
                 help="Served from this day on (UTC).", parser=_day, metavar="DAY")] = None,
             until: Annotated[datetime | None, typer.Option(
                 help="Served before this day (UTC).", parser=_day, metavar="DAY")] = None,
             as_json: Json = False) -> None:  # fmt: skip
    """Say how many answers are right in use, by the random stream alone.

    Example: regraft review estimate --version 7 --since 2026-11-01
    """
    from infra import database
    from records import reviews

    with database.connect().transaction() as session:
        found = reviews.in_use(session, version, since, until)
    answer(dataclasses.asdict(found) | {"sentence": found.sentence}, found.sentence, as_json)


@group.command()
def worst(version: Annotated[int, typer.Argument(help="The version's number.")],
          subject: Annotated[str | None, typer.Option(
              help="What it was evaluated on: validation, test, benchmark, batch or library; by "
                   "default all.")] = None,
          class_name: OfClass = None,
          everything: Annotated[bool, typer.Option(
              "--all", help="What is right and sure, too.")] = False,
          again: Annotated[bool, typer.Option(
              "--again", help="What somebody has dealt with, too.")] = False,
          most: Most = 20, save: Save = None, as_json: Json = False) -> None:  # fmt: skip
    """List the images that a version has wrong or in doubt, the worst first.

    With --save, each with its Grad-CAM beside it. Then: `regraft image remove`, `relabel`, `keep`.

    Example: regraft review worst 7 --save ./look
    """
    from infra import database
    from records import queues

    with database.connect().transaction() as session:
        rows = queues.evaluated(session, version, subject, class_name, everything, again, most)
    if save is not None:
        for row in rows:
            _save_map(save, version, row.sha256)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say(f"nothing that version {version} answered is wrong or doubtful and not dealt with")
        return
    print_table(
        ["image", "on", "label", "answer", "mistaken", "perhaps", "now"],
        (
            (
                row.sha256[:12], row.subject + (", in sample" if row.in_sample else ""),
                _shown(f"{row.today or row.label} {row.label_confidence:.0%}"),
                _shown(f"{row.predicted} {row.confidence:.0%}"), f"{row.mistakenness:.2f}",
                _shown(row.suggested or ""),
                _shown(row.withdrawn or row.act or row.verdict or ""),
            )
            for row in rows
        ),
    )  # fmt: skip


def _save_map(folder: Path, version: int, sha256: str) -> None:
    from infra import database
    from infra.storage import Gone
    from web import kept, maps
    from web.thumbnails import encoded

    with database.connect().transaction() as session:
        try:
            pictures = {
                "": kept.shown(kept.body_of(session, sha256)),
                "-map": maps.overlay(session, version, sha256),
            }
        except Gone as error:
            say(str(error))
            return
    for name, picture in pictures.items():
        write_picture(folder / f"{sha256[:12]}{name}.jpg", encoded(picture))


# --- images of the library ------------------------------------------------------------------


@images.command()
def remove(names: Images, why: Why, version: ShownBy = None,
           *, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Withdraw images from every later snapshot; `regraft image restore` undoes it.

    Example: regraft image remove 3fa9c1d2 --why "nothing to see" --by Ann
    """
    from records import corrections

    _act("removed", lambda session: corrections.remove(session, names, by, why, version), as_json)


@images.command()
def restore(names: Images, why: Why, *, by: By, as_json: Json = False) -> None:
    """Bring removed images back, with class and split as they were.

    Example: regraft image restore 3fa9c1d2 --why "there is an okapi in it" --by Ann
    """
    from records import corrections

    _act("restored", lambda session: corrections.restore(session, names, by, why), as_json)


@images.command()
def relabel(label: Annotated[str, typer.Argument(metavar="CLASS", help="What they are.")],
            names: Images, why: Why, new_class: NewClass = None, version: ShownBy = None,
            *, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Put images into another class; their splits stay.

    Example: regraft image relabel okapi 3fa9c1d2 --why "stripes" --by Ann
    """
    from records import corrections

    _act(
        "relabelled",
        lambda session: corrections.relabel(
            session, names, label, by, why, new_class or (), version
        ),
        as_json,
    )


@images.command()
def keep(names: Images, why: Why, version: ShownBy = None,
         *, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Keep images as hard cases, to look at them in every version.

    Example: regraft image keep 3fa9c1d2 --why "half hidden" --by Ann
    """
    from records import corrections

    _act("kept", lambda session: corrections.keep(session, names, by, why, version), as_json)


@images.command()
def drop(names: Images, why: Why, *, by: By, as_json: Json = False) -> None:
    """Keep images as hard cases no longer.

    Example: regraft image drop 3fa9c1d2 --why "there are better ones" --by Ann
    """
    from records import corrections

    _act("dropped", lambda session: corrections.drop(session, names, by, why), as_json)


@images.command()
def undo(act: Annotated[int, typer.Argument(help="The act's number, of `regraft image log`.")],
         why: Why, *, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Do the opposite of an act.

    Example: regraft image undo 12 --why "the wrong one" --by Ann
    """
    from records import corrections

    _act("undone", lambda session: corrections.undo(session, act, by, why), as_json)


@images.command("log")
def log_of_images(most: Most = 20, as_json: Json = False) -> None:
    """List what people did with images of the library, the newest first.

    Example: regraft image log
    """
    from infra import database
    from records import corrections

    with database.connect().transaction() as session:
        rows = corrections.acts(session, most)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("nobody has corrected anything yet: `regraft review worst VERSION` shows what may be")
        return
    print_table(
        ["act", "when", "did", "image", "from", "to", "by", "why"],
        (
            (
                str(row.id), f"{row.done_at:%Y-%m-%d %H:%M}", row.act, row.sha256[:12],
                _shown(row.from_class or ""), _shown(row.to_class or ""), _shown(row.done_by),
                _shown(row.why),
            )
            for row in rows
        ),
    )  # fmt: skip


@images.command()
def challenges(version: ShownBy = None, as_json: Json = False) -> None:
    """List the images that are kept as hard cases, and what a version answers to them.

    Example: regraft image challenges --version 7
    """
    from infra import database
    from records import corrections

    with database.connect().transaction() as session:
        rows = corrections.hard_cases(session, version)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("no image is kept as a hard case: `regraft image keep IMAGE --why TEXT`")
        return
    print_table(
        ["image", "class", "answer", "right", "by", "why"],
        (
            (
                row.sha256[:12] + (", in sample" if row.in_sample else ""), _shown(row.label),
                _shown(f"{row.predicted} {row.confidence:.0%}" if row.predicted else ""),
                "" if row.correct is None else "yes" if row.correct else "no",
                _shown(row.kept_by), _shown(row.why),
            )
            for row in rows
        ),
    )  # fmt: skip


def _act(did: str, do: Any, as_json: bool) -> None:
    from infra import database

    with database.connect().transaction() as session:
        done: Done = do(session)
    before = f"; {done.already:,} already were" if done.already else ""
    line = f"{did} {done.changed:,} image{'' if done.changed == 1 else 's'}{before}"
    answer(dataclasses.asdict(done), line, as_json)
    for name in done.made:
        say(f"class {name!r} is new: it trains once it has enough images")


def _shown(words: str) -> str:

    return plain_text(words)

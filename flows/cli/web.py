"""Verbs of the web service: `regraft web`, and `regraft key …`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import By, Json
from flows.cli.printing import answer, print_json, print_table, say, say_as_it_goes
from infra.places import WEB_PORT

if TYPE_CHECKING:
    from records.keys import KeyRow

verbs = typer.Typer()
key_app = typer.Typer(help="Make and revoke keys for clients of the web service.",
                      no_args_is_help=True)  # fmt: skip
verbs.add_typer(key_app, name="key")

Name = Annotated[str, typer.Argument(help="Whose key it is; it stands in the log as the client.")]


def _prefixes(given: list[str] | None) -> list[str] | None:
    for one in given or ():
        if not one.endswith("/") or one == "/":
            raise typer.BadParameter(f"{one!r} would let more in than it says: end it with a slash")
    return given


@verbs.command()
def web(
    host: Annotated[str, typer.Option(
        help="Address to listen on; on others than the loopback every request needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = WEB_PORT,
    prefix: Annotated[list[str] | None, typer.Option(
        help="Prefix of S3, up to a slash, under which clients may name objects; may be repeated.",
        show_default="pools/", callback=_prefixes)] = None,
    precision: Annotated[float, typer.Option(
        help="The precision wished of the threshold that says what to show.", min=0.001, max=1)
    ] = 0.95,
    keys: Annotated[bool, typer.Option(
        "--keys", help="Want a key on the loopback, too: behind a proxy on this machine.")] = False,
    plain_http: Annotated[bool, typer.Option("--plain-http",
        help="Let browsers keep keys although nothing encrypts them on their way: for a network "
             "that you trust, where no proxy with TLS stands before the service.")] = False,
    log: Annotated[bool, typer.Option(help="Whether answers are logged.")] = True,
) -> None:  # fmt: skip
    """Serve the champion, its log, reviews and history until it is stopped.

    Example: regraft web --host 0.0.0.0 --port 80
    """
    from infra import database
    from records import deployments
    from web.access import is_loopback
    from web.app import create_app
    from web.decisions import Decisions
    from web.rules import Rules
    from web.server import serve
    from web.transaction_log import open_log

    say_as_it_goes(True)
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
    if champion is None:
        say("no version serves yet: pictures are answered as soon as a night has deployed one")
    else:
        from tasks import serving

        serving.prepare(champion.version_id)  # for one that was deployed before files were kept
    rules = Rules(
        loopback=is_loopback(host) and not keys, plain_http=plain_http, precision=precision,
        prefixes=tuple(prefix or ("pools/",)),
    )  # fmt: skip
    say(f"http://{host}:{port}" + ("" if rules.loopback else ": every request needs a key, "
         "`regraft key make NAME --scope predict`"))  # fmt: skip
    from tasks import labelling, promotion

    decisions = Decisions(
        promotion.approve, lambda version, by, why: promotion.adopt(version, {}, by, why),
        promotion.roll_back, labelling.follow,
    )  # fmt: skip
    say_as_it_goes(wanted=False)  # what a person decides on a page, and what fails, is told here
    serve(create_app(rules, open_log() if log else None, decisions), host, port)


@key_app.command()
def make(
    name: Name,
    by: By,
    scope: Annotated[list[str], typer.Option(help="predict, review or admin; may be repeated.")],
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only its digest is kept.

    Example: regraft key make gate-camera --scope predict
    """
    from infra import database
    from records import keys

    with database.connect().transaction() as session:
        secret = keys.make(session, name, scope, by)
    answer({"name": name, "key": secret}, secret, as_json)


@key_app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List every key: what it may be used for, who made it, and whether it still counts.

    Example: regraft key list
    """
    from infra import database
    from records import keys

    with database.connect().transaction() as session:
        rows = keys.listed(session)
    if as_json:
        print_json([_shown(row) for row in rows])
        return
    print_table(
        ["name", "scopes", "made", "by", "revoked"],
        (
            (
                row.name, ", ".join(row.scopes), f"{row.made_at:%Y-%m-%d %H:%M}", row.made_by,
                f"{row.revoked_at:%Y-%m-%d %H:%M} by {row.revoked_by}" if row.revoked_at else "",
            )
            for row in rows
        ),
    )  # fmt: skip


@key_app.command()
def revoke(name: Name, by: By, as_json: Json = False) -> None:
    """Let a key count no longer; services refuse it within seconds.

    Example: regraft key revoke gate-camera
    """
    from infra import database
    from records import keys

    with database.connect().transaction() as session:
        keys.revoke(session, name, by)
    answer({"name": name, "revoked": True}, f"key {name!r} is revoked", as_json)


def _shown(row: KeyRow) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(row).items() if name != "digest"}

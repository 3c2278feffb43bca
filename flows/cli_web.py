"""Verbs of the web service: `regraft web`, and `regraft key …`."""

from __future__ import annotations

import dataclasses
import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.places import WEB_PORT

if TYPE_CHECKING:
    from records.keys import KeyRow

key_app = typer.Typer(help="Make and revoke keys for clients of the web service.",
                      no_args_is_help=True)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON for scripts.")]
By = Annotated[
    str,
    typer.Option(help="Who does this; it is kept.", default_factory=getpass.getuser,
                 show_default="your user name"),
]  # fmt: skip
Name = Annotated[str, typer.Argument(help="Whose key it is; it stands in the log as the client.")]


def web(
    host: Annotated[str, typer.Option(
        help="Address to listen on; on others than the loopback every request needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = WEB_PORT,
    prefix: Annotated[list[str] | None, typer.Option(
        help="Prefix of S3 under which clients may name objects; may be repeated.",
        show_default="pools/")] = None,
    precision: Annotated[float, typer.Option(
        help="The precision wished of the threshold that says what to show.", min=0.001, max=1)
    ] = 0.95,
    log: Annotated[bool, typer.Option(help="Whether answers are logged.")] = True,
) -> None:  # fmt: skip
    """Serve the champion, its log, reviews and history until it is stopped.

    Example: regraft web --host 0.0.0.0 --port 80
    """
    from flows.cli import _say, _say_as_it_goes
    from infra import database
    from records import deployments
    from web.access import is_loopback
    from web.app import create_app
    from web.rules import Rules
    from web.server import serve
    from web.transaction_log import open_log

    _say_as_it_goes(True)
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
    if champion is None:
        _say("no version serves yet: pictures are answered as soon as a night has deployed one")
    else:
        from tasks import serving

        serving.prepare(champion.version_id)  # for one that was deployed before files were kept
    rules = Rules(
        loopback=is_loopback(host), precision=precision, prefixes=tuple(prefix or ("pools/",))
    )
    _say(f"http://{host}:{port}" + ("" if rules.loopback else ": every request needs a key, "
         "`regraft key make NAME --scope predict`"))  # fmt: skip
    serve(create_app(rules, open_log() if log else None), host, port)


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
    from flows.cli import _done
    from infra import database
    from records import keys

    with database.connect().transaction() as session:
        secret = keys.make(session, name, scope, by)
    _done({"name": name, "key": secret}, secret, as_json)


@key_app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List every key: what it may be used for, who made it, and whether it still counts.

    Example: regraft key list
    """
    from flows.cli import _print_json, _table
    from infra import database
    from records import keys

    with database.connect().transaction() as session:
        rows = keys.listed(session)
    if as_json:
        _print_json([_shown(row) for row in rows])
        return
    _table(
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
    from flows.cli import _done
    from infra import database
    from records import keys

    with database.connect().transaction() as session:
        keys.revoke(session, name, by)
    _done({"name": name, "revoked": True}, f"key {name!r} is revoked", as_json)


def _shown(row: KeyRow) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(row).items() if name != "digest"}

"""API keys: what a client shows, who made it, what it may be used for, and until when."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from records.tables import SCOPES, ApiKey

PREFIX = "regraft_"
# It stands in logs and plots as the client, beside `local`.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}")
LOCAL = "local"


class BadKeyName(ValueError):
    """A name or scope that a key cannot have; the message says the mend."""


class UnknownKey(LookupError):
    """No key of this name, or one that was revoked already."""


@dataclass(frozen=True)
class KeyRow:
    """One key, without its secret, of which only the digest is kept."""

    name: str
    digest: str
    scopes: list[str]
    made_by: str
    made_at: datetime
    revoked_at: datetime | None
    revoked_by: str | None


def digest_of(secret: str) -> str:
    """What is kept of a secret. It has 256 random bits, so nobody can guess their way back."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def make(session: Session, name: str, scopes: Collection[str], by: str) -> str:
    """Make a key and give its secret, which nobody can ever read again; raises `BadKeyName`."""
    if not NAME.fullmatch(name) or name == LOCAL:
        raise BadKeyName(
            f"{name!r} cannot name a key: use letters, digits and . _ @ -, at most 63, "
            f"and not {LOCAL!r}"
        )
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        named = f"there is no scope {unknown[0]!r}" if unknown else "a key needs a scope"
        raise BadKeyName(f"{named}: known are {', '.join(SCOPES)}")
    if session.scalar(select(ApiKey.id).where(ApiKey.name == name)) is not None:
        raise BadKeyName(f"a key {name!r} was made before: give another name, it tells them apart")
    secret = PREFIX + secrets.token_urlsafe(32)
    session.execute(
        insert(ApiKey).values(
            name=name,
            digest=digest_of(secret),
            scopes=[scope for scope in SCOPES if scope in scopes],
            made_by=by,
        )
    )
    return secret


def revoke(session: Session, name: str, by: str) -> None:
    """Let a key count no longer; raises `UnknownKey`."""
    done = session.execute(
        update(ApiKey)
        .where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
        .values(revoked_at=func.now(), revoked_by=by)
        .returning(ApiKey.id)
    ).first()
    if done is None:
        raise UnknownKey(f"no key {name!r} is in use: `regraft key list` shows them")


def listed(session: Session, revoked: bool = True) -> list[KeyRow]:
    """Every key, the newest first; revoked: those too that count no longer."""
    columns = [getattr(ApiKey, name) for name in KeyRow.__dataclass_fields__]
    query = select(*columns).order_by(ApiKey.id.desc())
    if not revoked:
        query = query.where(ApiKey.revoked_at.is_(None))
    return [KeyRow(*row) for row in session.execute(query)]

"""Where a version looked in an image that it was evaluated on: the map that is kept, or a new one.

A kept map needs no network. For another one the version's checkpoint is loaded, and stays until
another version is asked about. What is made so stays in this process alone: the rows of Postgres
are the choice that an evaluation made, and galleries show them as that.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from sqlalchemy.orm import Session

from records import classes, evaluations, reviews, versions
from records.versions import VersionRow
from vision import images
from vision.plan import Geometry, Plan
from web import kept
from web.explanations import loaded_by

if TYPE_CHECKING:
    from vision.gradcam import Map

MADE = 4096  # maps that are remembered, the newest looked at: some hundred bytes each
# One at a time: each takes all cores, and a network more than one would fill the memory.
_one = threading.Lock()
_network = functools.lru_cache(maxsize=1)(loaded_by)
_made: OrderedDict[tuple[str, str, str], tuple[Map, Geometry]] = OrderedDict()
_looking = threading.Lock()


def overlay(
    session: Session, version_id: int, image: str, target: str | None = None
) -> Image.Image:
    """The map over its picture, for one class; target: what was answered, if nothing is said.

    Raises `UnknownAnswer`, `UnknownVersion`, `Swept`, `UnknownClass`, `Gone` and `BadCheckpoint`.
    """
    from vision import gradcam

    version = versions.get(session, version_id)
    answered = reviews.of_evaluation(session, version_id, image)
    name = _known(session, version, target) if target else answered.predicted
    body = kept.body_of(session, answered.sha256)
    row = evaluations.gradcam(session, version_id, answered.sha256, name)
    if row is not None:
        plan = Plan.from_dict((version.resolved or {}).get("plan", version.plan))
        values = np.frombuffer(row.cells, "<f2").reshape(row.height, row.width)
        made = gradcam.Map(values, row.positive, **row.facts)
        return gradcam.overlay(images.square(body, plan.geometry), made)
    digest = versions.unswept(session, version_id).checkpoint_digest
    if digest is None:
        raise reviews.UnknownAnswer(f"version {version_id} is {version.state}: it has no network")
    wanted = digest, answered.sha256, name
    session.commit()  # or its connection would wait for the network, too
    found, geometry = _remembered(wanted) or _make(wanted, body)
    return gradcam.overlay(images.square(body, geometry), found)


def _remembered(wanted: tuple[str, str, str]) -> tuple[Map, Geometry] | None:
    with _looking:
        if wanted in _made:
            _made.move_to_end(wanted)
        return _made.get(wanted)


def _make(wanted: tuple[str, str, str], body: bytes) -> tuple[Map, Geometry]:
    from vision import gradcam

    digest, _, name = wanted
    with _one:
        if known := _remembered(wanted):  # somebody asked for it a moment before
            return known
        loaded = _network(digest)
        pixels = images.square(body, loaded.plan.geometry)
        column = loaded.class_names.index(name)
        (found,) = gradcam.maps(loaded.network, pixels[None], [column], loaded.plan, "cpu")
    with _looking:
        _made[wanted] = found, loaded.plan.geometry
        while len(_made) > MADE:
            _made.popitem(last=False)
    return found, loaded.plan.geometry


def _known(session: Session, version: VersionRow, target: str) -> str:
    (name,) = classes.as_known_to(version.class_names, [target], classes.today(session))
    if name not in version.class_names:
        raise classes.UnknownClass(f"version {version.id} knows no class {target[:60]!r}", [])
    return name

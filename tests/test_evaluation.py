"""Candidate and champion answer in one engine, which is recorded; cached pixels are not fetched."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch

from infra.storage import Storage
from tasks import pixels
from tasks.evaluation import answer, choose_engine, engine_of, runtime, start, told
from tasks.pixels import MissingImages
from vision.network import Loaded, build
from vision.plan import Plan
from vision.runtime import ENGINES, WORTH_MEASURING, NoEngine, named

NAMES = ("circle", "cross")
PLAN = Plan(architecture="test_resnet", image_size=32, precision="float32")
PLAIN, HALF = ENGINES[0], ENGINES[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing decoded or measured by another test is here."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("REGRAFT_DEVICE", "cpu")


@contextmanager
def reads_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The keys that are read from S3 within the block."""
    asked: list[str] = []
    read = Storage.read

    def noted(self: Storage, key: str, etag: str | None = None) -> bytes:
        asked.append(key)
        return read(self, key, etag)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "read", noted)
        yield asked


def uploaded(storage: Storage, count: int) -> dict[str, tuple[str, str | None]]:
    """So many pictures in S3, by digest."""
    found: dict[str, tuple[str, str | None]] = {}
    for number in range(count):
        body = pictures.png(pictures.shape(NAMES[number % 2], number, side=48))
        key = f"labelled/{NAMES[number % 2]}/{number}.png"
        storage.write(key, body)
        found[hashlib.sha256(body).hexdigest()] = (key, None)
    return found


def version(seed: int = 0) -> Loaded:
    """A network as loaded from a checkpoint."""
    return Loaded(build(replace(PLAN, seed=seed), NAMES).eval(), NAMES, PLAN)


def test_what_the_cache_holds_is_never_fetched(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image is fetched once, while others are answered; asked again, S3 hears nothing."""
    sources = uploaded(storage, 10)
    images = list(sources)
    pixels.opened(PLAN.geometry, {images[4]: sources[images[4]]})
    with reads_of(monkeypatch) as asked, pixels.streamed(PLAN.geometry, sources) as first:
        parts = [first.gather(images[start : start + 2]) for start in range(0, 10, 2)]
    assert len(asked) == len(set(asked)) == 9
    with reads_of(monkeypatch) as asked, pixels.streamed(PLAN.geometry, sources) as second:
        again = second.gather(images)
    assert asked == []
    assert np.array_equal(np.concatenate(parts), again)
    whole = pixels.opened(PLAN.geometry, sources).gather(images)
    assert np.array_equal(whole, again)


def test_an_image_that_is_gone_stops_the_answers(storage: Storage) -> None:
    """It is named, and not answered without its pixels."""
    sources = uploaded(storage, 3)
    key, _ = list(sources.values())[1]
    storage.delete(key)
    with pytest.raises(MissingImages, match="1 of 3 images cannot be read"):
        answer(version(), sources, list(sources), [NAMES[0]] * 3)


def test_one_engine_answers_for_all_that_is_compared(storage: Storage) -> None:
    """What was recorded repeats the very bits; another engine is another runtime."""
    sources = uploaded(storage, 6)
    images, labels = list(sources), [NAMES[0]] * 6
    loaded = version()
    recorded = answer(loaded, sources, images, labels, HALF)
    repeated = answer(loaded, sources, images, labels, engine_of(runtime(HALF)))
    assert np.array_equal(recorded.confidences, repeated.confidences)
    assert told(runtime(HALF)) != told(runtime(PLAIN))
    assert "engine eager bfloat16 channels last" in told(runtime(HALF))
    assert engine_of(runtime(PLAIN)) == PLAIN
    assert engine_of({"device": "cpu"}) is None
    with pytest.raises(NoEngine, match="abacus"):
        engine_of({"engine": "abacus"})
    libraries = runtime(named("onnxruntime float32"))["libraries"]
    assert "onnxruntime" in libraries
    assert "onnxruntime" not in runtime(PLAIN)["libraries"]


def test_the_choice_is_kept_beside_the_pixels() -> None:
    """Few images choose without measuring; many leave what was measured in the cache folder."""
    kept = Path(os.environ["REGRAFT_CACHE_DIR"]) / "calibration.json"
    assert choose_engine(version(), WORTH_MEASURING - 1) == PLAIN
    assert not kept.exists()
    chosen = choose_engine(version(), WORTH_MEASURING, networks=2)
    assert kept.exists()
    assert choose_engine(version(1), WORTH_MEASURING, networks=2) == chosen
    pixels_in = torch.zeros((2, PLAN.geometry.side, PLAN.geometry.side, 3), dtype=torch.uint8)
    assert start(version(), chosen).forward(pixels_in).shape == (2, 2)

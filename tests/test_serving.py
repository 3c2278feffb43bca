"""The file that serves answers as the network does that it was written from, and says what it is.
"""

from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from PIL import Image

from vision.export import BadExport, export
from vision.images import Large, decode, prepare, see
from vision.network import build, head
from vision.plan import Plan
from vision.prediction import eager
from vision.serving import Served, best

NAMES = ("cat", "dog", "emu", "gnu")
PLAN = Plan(architecture="test_efficientnet", image_size=48, crop=0.8, interpolation="bicubic")


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, bytes]:
    """A network whose answers differ between pictures, and its file."""
    made = build(PLAN, NAMES)
    with torch.no_grad():
        head(made).weight.mul_(2500)  # type: ignore[operator]
    path = tmp_path_factory.mktemp("served") / "network.onnx"
    export(made.eval(), PLAN, path)
    return made, path.read_bytes()


def test_a_file_answers_as_its_network(body: tuple[torch.nn.Module, bytes]) -> None:
    """Classes, geometry and confidences are the network's, for one picture and for several."""
    made, file = body
    served = Served(file, threads=1)
    assert served.class_names == NAMES
    assert served.geometry == PLAN.geometry
    side = PLAN.geometry.side
    noise = np.random.default_rng(3).integers(0, 256, (5, side, side, 3), dtype=np.uint8)
    network = eager(made, PLAN, torch.device("cpu"), False, False)
    expected = network(torch.from_numpy(noise)).softmax(dim=1).numpy()
    for count in (1, 5):
        found = served.shares(noise[:count])
        assert found.dtype == np.float32
        assert np.abs(found - expected[:count]).max() < 1e-4
        assert np.abs(found.sum(axis=1) - 1).max() < 1e-5
    served.warm(3)
    assert 0 < served.latency(repeats=3) < 10


def test_what_is_no_file_of_ours_is_one_line() -> None:
    """Bytes of something else are refused."""
    with pytest.raises(BadExport, match="no file of ours") as caught:
        Served(b"anything", threads=1)
    assert "\n" not in str(caught.value)


def test_answers_that_are_no_numbers_never_leave(tmp_path: Path) -> None:
    """Confidences of NaN raise instead."""
    made = build(PLAN, NAMES)
    export(made.eval(), PLAN, tmp_path / "network.onnx")
    served = Served((tmp_path / "network.onnx").read_bytes(), threads=1)
    served.logits = lambda pixels: np.full((len(pixels), 4), np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(BadExport, match="not numbers"):
        served.shares(np.zeros((1, 60, 60, 3), np.uint8))


def test_the_best_come_first_and_equals_in_their_order() -> None:
    """As a stable sort gives them, and no more than asked for."""
    columns, shares = best(np.array([0.1, 0.4, 0.1, 0.4], np.float32), 3)
    assert columns.tolist() == [1, 3, 0]
    assert shares.tolist() == pytest.approx([0.4, 0.4, 0.1])


def test_a_picture_is_seen_as_training_saw_it() -> None:
    """Upright, with its size as shown and the pixels that evaluation has."""
    seen = see(pictures.with_orientation(pictures.photograph(), 6), PLAN.geometry)
    assert (seen.width, seen.height) == (240, 320)
    same = decode(pictures.with_orientation(pictures.photograph(), 6))
    assert np.array_equal(seen.pixels, prepare(same, PLAN.geometry))


def test_what_takes_much_memory_is_known_by_its_head() -> None:
    """Before anything is decoded; a large JPEG is decoded reduced, and takes little."""
    large = pictures.png_of_size(4000, 3000, whole=False)
    webp = bytearray(pictures.encode(pictures.photograph(), "WEBP"))
    webp[26:30] = (4000).to_bytes(2, "little") + (3000).to_bytes(2, "little")
    for body in (large, bytes(webp), pictures.jpeg_of_size(8000, 6000)):
        with pytest.raises(Large):
            see(body, PLAN.geometry, 8_000_000)
    plain = pictures.jpeg(Image.new("RGB", (4000, 3000)))
    assert see(plain, PLAN.geometry, 8_000_000).width == 4000

"""Reading pictures: nothing bad raises or passes, and everybody sees the same upright pixels."""

import concurrent.futures
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pictures
import pytest
from PIL import Image, ImageDraw, ImageFile, ImageFilter, ImageOps

from vision import images
from vision.images import BadImage, decode, examine, prepare, square
from vision.plan import Geometry

GEOMETRY = Geometry(image_size=56, crop=0.875, interpolation="bilinear")
ROOT = Path(__file__).parent.parent


def bits(first: int | None, second: int | None) -> int:
    """Hamming distance of two hashes."""
    assert first is not None
    assert second is not None
    return ((first ^ second) & (2**64 - 1)).bit_count()


@pytest.mark.parametrize(
    ("make", "says"),
    [case[1:] for case in pictures.UNREADABLE],
    ids=[c[0] for c in pictures.UNREADABLE],
)
def test_bad_bytes_give_one_sentence_and_no_pixels(make: Callable[[], bytes], says: str) -> None:
    """Whatever the bytes are, the answer is one line that names what is wrong with them."""
    body = make()
    facts, pixels = examine(body, GEOMETRY)
    assert not facts.readable
    assert pixels is None
    assert facts.bytes == len(body)
    assert len(facts.sha256) == 64
    assert facts.problem is not None
    assert says in facts.problem
    assert facts.problem.isprintable()
    assert len(facts.problem) < 300
    with pytest.raises(BadImage, match=r"\w"):
        decode(body)


@pytest.mark.parametrize(
    ("make", "expected"), [case[1:] for case in pictures.ODD], ids=[c[0] for c in pictures.ODD]
)
def test_odd_pictures_decode_and_their_facts_give_them_away(
    make: Callable[[], bytes], expected: dict[str, object]
) -> None:
    """Too small, too long, animated, black, turned by an unknown amount: the rules can tell."""
    facts, pixels = examine(make(), GEOMETRY)
    assert facts.readable, facts.problem
    assert pixels is not None
    assert pixels.shape == (64, 64, 3)
    assert {name: getattr(facts, name) for name in expected} == expected


@pytest.mark.parametrize(
    "make", [case[1] for case in pictures.ACCEPTED], ids=[c[0] for c in pictures.ACCEPTED]
)
def test_harmless_oddities_are_pictures(make: Callable[[], bytes]) -> None:
    """A missing end marker, an archive behind the end or broken EXIF cost no picture."""
    facts, pixels = examine(make(), GEOMETRY)
    assert facts.readable, facts.problem
    assert facts.problem is None
    assert pixels is not None
    assert not facts.animated


def test_missing_end_marker_changes_no_pixel() -> None:
    """A JPEG without its end marker gives the pixels that it gives with it."""
    whole = np.asarray(decode(pictures.jpeg(pictures.photograph())))
    assert np.array_equal(np.asarray(decode(pictures.without_end())), whole)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP"])
def test_bytes_changed_or_cut_anywhere_never_raise(name: str) -> None:
    """A thousand ways of damaging a file end in facts, not in an exception."""
    body = pictures.encode(pictures.photograph(0, 48, 40), name)
    random = np.random.default_rng(1)
    for _ in range(250):
        damaged = bytearray(body)
        for position in random.integers(0, min(len(body), random.choice([64, 10**6])), 4):
            damaged[position] = random.integers(256)
        facts, _ = examine(bytes(damaged), GEOMETRY)
        assert facts.readable == (facts.problem is None)
        facts, _ = examine(body[: random.integers(len(body))], GEOMETRY)
        assert facts.readable == (facts.problem is None)


def test_bombs_take_no_memory() -> None:
    """Headers that promise gigapixels and texts of 300 MB are refused within 200 MB in all."""
    program = """
import resource, sys
sys.path[:0] = ["tests"]
import pictures
from vision.images import examine
bombs = ("megapixel", "gigapixel", "bomb", "scans")
bodies = [make() for name, make, _ in pictures.UNREADABLE if any(b in name for b in bombs)]
assert len(bodies) == 6
examine(pictures.jpeg(pictures.photograph()), None)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
for body in bodies:
    facts, _ = examine(body, None)
    assert not facts.readable and "memory" not in facts.problem, facts.problem
print("flat")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "flat\n", done.stderr


# Each mode is a square of four known pixels: red, green, blue, and one that is special in it.
def _palette() -> Image.Image:
    image = Image.new("P", (2, 2))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.putdata([0, 1, 2, 3])
    return image


def _filled(mode: str, values: list[object]) -> Image.Image:
    image = Image.new(mode, (2, 2))
    image.putdata(values)
    return image


RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3
GOLDEN: list[tuple[str, Callable[[], bytes], list[tuple[int, ...]]]] = [
    (
        "one bit",
        lambda: pictures.png(_filled("1", [0, 255, 255, 0])),
        [BLACK, WHITE, WHITE, BLACK],
    ),
    (
        "one bit, white transparent",
        lambda: pictures.encode(_filled("1", [0, 255, 0, 0]), "PNG", transparency=0),
        [WHITE, WHITE, WHITE, WHITE],
    ),
    (
        "grey",
        lambda: pictures.png(_filled("L", [0, 10, 200, 255])),
        [BLACK, (10,) * 3, (200,) * 3, WHITE],
    ),
    (
        "16-bit grey",
        lambda: pictures.png(
            Image.fromarray(np.array([[0, 300], [32768, 65535]], dtype=np.uint16))
        ),
        [BLACK, (1,) * 3, (128,) * 3, WHITE],
    ),
    (
        "grey and alpha",
        lambda: pictures.png(_filled("LA", [(0, 255), (0, 0), (0, 128), (100, 255)])),
        [BLACK, WHITE, (127,) * 3, (100,) * 3],
    ),
    (
        "colour and alpha",
        lambda: pictures.png(
            _filled("RGBA", [(255, 0, 0, 255), (0, 255, 0, 0), (0, 0, 255, 128), (0, 0, 0, 255)])
        ),
        [RED, WHITE, (127, 127, 255), BLACK],
    ),
    (
        "colour, green transparent",
        lambda: pictures.encode(
            _filled("RGB", [RED, GREEN, BLUE, BLACK]), "PNG", transparency=GREEN
        ),
        [RED, WHITE, BLUE, BLACK],
    ),
    ("palette", lambda: pictures.png(_palette()), [RED, GREEN, BLUE, (9, 9, 9)]),
    (
        "palette, blue transparent",
        lambda: pictures.encode(_palette(), "PNG", transparency=2),
        [RED, GREEN, WHITE, (9, 9, 9)],
    ),
    (
        "palette, blue half transparent",
        lambda: pictures.encode(_palette(), "PNG", transparency=b"\xff\xff\x80\xff"),
        [RED, GREEN, (127, 127, 255), (9, 9, 9)],
    ),
    (
        "bitmap",
        lambda: pictures.encode(_filled("RGB", [RED, GREEN, BLUE, BLACK]), "BMP"),
        [RED, GREEN, BLUE, BLACK],
    ),
    (
        "lossless WEBP with alpha",
        lambda: pictures.encode(
            _filled("RGBA", [(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 255, 255), (0, 0, 0, 255)]),
            "WEBP",
            lossless=True,
        ),
        [RED, WHITE, BLUE, BLACK],
    ),
]


@pytest.mark.parametrize(
    ("make", "expected"), [case[1:] for case in GOLDEN], ids=[case[0] for case in GOLDEN]
)
def test_every_mode_becomes_these_very_pixels(
    make: Callable[[], bytes], expected: list[tuple[int, ...]]
) -> None:
    """Palettes, alpha, one and sixteen bits: the RGB values are fixed."""
    image = decode(make())
    assert image.mode == "RGB"
    assert [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3)] == expected


@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((0, 0, 0, 0), WHITE),
        ((0, 255, 255, 0), RED),
        ((0, 0, 0, 255), BLACK),
        ((255, 255, 0, 0), BLUE),
    ],
)
def test_printers_colours_become_screen_colours(
    ink: tuple[int, ...], colour: tuple[int, ...]
) -> None:
    """A CMYK JPEG shows the colour that its inks make."""
    image = decode(pictures.encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100))
    assert np.abs(np.asarray(image).astype(int) - colour).max() <= 3


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_in_training_and_serving(orientation: int, name: str) -> None:
    """However the camera was held, red is top left and wide is wide."""
    upright = Image.new("RGB", (64, 32), BLUE)
    upright.paste(RED, (0, 0, 32, 16))
    # What the camera stores is the scene turned the other way round.
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    method = images.UPRIGHT.get(back)
    stored = upright if method is None else upright.transpose(method)
    body = pictures.with_orientation(stored, orientation, name)
    facts, pixels = examine(body, GEOMETRY)
    assert (facts.width, facts.height, facts.orientation) == (64, 32, orientation)
    seen = np.asarray(decode(body)).astype(int)
    assert np.abs(seen[4, 4] - RED).max() < 30
    assert np.abs(seen[4, 60] - BLUE).max() < 30
    assert np.abs(seen[28, 4] - BLUE).max() < 30
    assert pixels is not None
    assert np.array_equal(pixels, prepare(decode(body), GEOMETRY))
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    assert np.array_equal(np.asarray(reference.convert("RGB")), np.asarray(decode(body)))


def test_phone_photographs_with_previews_are_no_animations() -> None:
    """A JPEG that carries a second picture behind its end is one photograph."""
    body = pictures.encode(
        pictures.photograph(), "MPO", save_all=True, append_images=[pictures.photograph(1)]
    )
    facts, _ = examine(body, None)
    assert (facts.readable, facts.format, facts.animated) == (True, "JPEG", False)


def test_prepare_keeps_the_centre() -> None:
    """The shorter side fills the square, and what the sides lose is equal."""
    image = Image.new("RGB", (400, 100), RED)
    image.paste(GREEN, (150, 0, 250, 100))
    square = prepare(image, GEOMETRY)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    assert (square[:, 3:-3] == GREEN).all()
    assert np.array_equal(square[:, 0], square[:, -1])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_prepare_equals_a_plain_resize(interpolation: str) -> None:
    """The shortcut for large pictures stays within rounding of the plain way."""
    geometry = Geometry(64, 1.0, interpolation)  # type: ignore[arg-type]
    image = pictures.photograph(3, 1000, 1000)
    plain = image.resize((64, 64), Image.Resampling[interpolation.upper()])
    difference = np.abs(prepare(image, geometry).astype(int) - np.asarray(plain))
    assert difference.max() <= 3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(1024, 1024), (1300, 1101), (2403, 1805), (4200, 4104)])
def test_large_pictures_lose_nothing_by_the_shortcut(
    size: tuple[int, int], name: str, interpolation: str
) -> None:
    """Decoded 2, 4 or 8 times smaller, a square is within a level of a full decode and resize."""
    geometry = Geometry(224, 0.875, interpolation)  # type: ignore[arg-type]
    body = pictures.encode(pictures.photograph(5, *size), name)
    facts, pixels = examine(body, geometry)
    assert (facts.width, facts.height) == size
    plain = prepare(decode(body), geometry).astype(int)
    assert pixels is not None
    assert np.abs(pixels - plain).mean() <= 1
    assert np.abs(pixels - plain).max() <= 16


@pytest.mark.parametrize("side", [32, 96, 256, 300, 600])
@pytest.mark.parametrize("orientation", [1, 4, 6, 7])
def test_intake_and_serving_see_the_same_square(side: int, orientation: int) -> None:
    """Whatever the geometry and however the camera was held: the very same pixels, same facts."""
    geometry = Geometry(side, 1.0, "bilinear")
    body = pictures.with_orientation(pictures.photograph(2, 1501, 1203), orientation)
    facts, pixels = examine(body, geometry)
    assert np.array_equal(pixels, square(body, geometry))
    assert facts == examine(body, None)[0]
    plain = prepare(decode(body), geometry).astype(int)
    assert np.abs(square(body, geometry) - plain).mean() <= 1


def test_a_large_picture_cut_short_is_noticed() -> None:
    """Decoding smaller still reads all the data: what is missing is missed, but no end marker."""
    body = pictures.jpeg(pictures.photograph(1, 2400, 1800))
    for share in (0.1, 0.5, 0.9, 0.999):
        facts, pixels = examine(body[: int(len(body) * share)], GEOMETRY)
        assert (facts.readable, pixels) == (False, None)
        assert (facts.width, facts.height) == (2400, 1800)
    without_end, pixels = examine(body[:-2], GEOMETRY)
    assert without_end.readable
    assert np.array_equal(pixels, examine(body, GEOMETRY)[1])


@pytest.mark.parametrize("seed", range(3))
def test_hash_of_a_large_picture_finds_its_small_copy(seed: int) -> None:
    """A photograph of many pixels and the same one reduced, worse or mirrored, are near."""
    image = pictures.photograph(seed, 2403, 1805)
    large, _ = examine(pictures.jpeg(image), None)
    for copy in (image.resize((801, 602)), image.resize((320, 240)), image):
        worse, _ = examine(pictures.jpeg(copy, quality=40), None)
        assert bits(large.dhash, worse.dhash) <= 3
        mirror, _ = examine(pictures.jpeg(ImageOps.mirror(copy)), None)
        assert bits(large.dhash, mirror.dhash_mirror) <= 3


@pytest.mark.parametrize("seed", range(10))
def test_hash_is_imagehash_and_survives_what_people_do(seed: int) -> None:
    """Quality 40 moves at most 3 bits, halving 2; the mirror image is found by its own hash."""
    image = pictures.photograph(seed)
    facts, _ = examine(pictures.png(image), None)
    assert facts.dhash is not None
    assert -(2**63) <= facts.dhash < 2**63
    assert f"{facts.dhash & (2**64 - 1):016x}" == str(imagehash.dhash(image))
    worse, _ = examine(pictures.jpeg(image, quality=40), None)
    assert bits(facts.dhash, worse.dhash) <= 3
    half, _ = examine(pictures.png(image.resize((160, 120), Image.Resampling.LANCZOS)), None)
    assert bits(facts.dhash, half.dhash) <= 2
    mirror, _ = examine(pictures.jpeg(ImageOps.mirror(image)), None)
    assert bits(facts.dhash, mirror.dhash_mirror) <= 3
    assert bits(facts.dhash_mirror, mirror.dhash) <= 3
    assert bits(facts.dhash, mirror.dhash) > 10
    other, _ = examine(pictures.png(pictures.photograph(seed + 100)), None)
    assert bits(facts.dhash, other.dhash) >= 10


def test_tiny_pictures_have_no_hash() -> None:
    """Under 64 pixels the hash would call different pictures equal, so there is none."""
    small, _ = examine(pictures.png(pictures.photograph(0, 63, 500)), None)
    large, _ = examine(pictures.png(pictures.photograph(0, 64, 500)), None)
    assert (small.dhash, small.dhash_mirror) == (None, None)
    assert large.dhash is not None
    assert large.dhash_mirror is not None


def test_sharpness_tells_a_blurred_picture_at_any_size() -> None:
    """A photograph blurred beyond use is far below the same one, whether large or small."""
    for width in (200, 2000):
        image = pictures.photograph(4, width, width)
        draw = ImageDraw.Draw(image)
        for corner in range(0, width, width // 10):
            draw.rectangle((corner, corner // 2, corner + width // 20, width // 2), fill="white")
        blurred = image.filter(ImageFilter.GaussianBlur(width / 20))
        sharp, soft = (examine(pictures.png(each), None)[0] for each in (image, blurred))
        assert sharp.sharpness is not None
        assert soft.sharpness is not None
        assert sharp.sharpness > 10 * soft.sharpness


def test_facts_are_the_same_from_many_threads() -> None:
    """Sixteen threads examining the same files agree with one, in a process without globals set."""
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    bodies = [pictures.jpeg(pictures.photograph(seed)) for seed in range(8)]
    bodies += [
        pictures.jpeg(pictures.photograph())[:3000],
        pictures.corrupt_png(mend_checksum=True),
    ]
    alone = [examine(body, GEOMETRY)[0] for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda body: examine(body, GEOMETRY)[0], bodies * 8))
    assert together == alone * 8
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_half_pictures_do_not_slip_in_when_a_library_allows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If somebody tells Pillow to accept truncated files, we say so instead of accepting them."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        examine(pictures.jpeg(pictures.photograph())[:4000], None)


def test_damaged_metadata_is_no_matter_of_the_warning_filter() -> None:
    """Broken EXIF gives the same facts where warnings are errors and where they are not."""
    body = dict(pictures.ACCEPTED)["damaged EXIF"]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strict, _ = examine(body, None)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert examine(body, None)[0] == strict
    assert strict.readable

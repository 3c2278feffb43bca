"""From bytes that somebody uploaded to upright RGB pixels, or to one sentence that says why not.

Training and serving read pictures through this module only, so that both see the same pixels.
No setting of Pillow is changed: pictures are opened by the four plugins below and never by
`Image.open`, hence no other format is ever tried, and sizes are judged here, before decoding.
"""

import hashlib
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vision.plan import Geometry

Pixels = npt.NDArray[np.uint8]

# Opened in this order, recognized by their first bytes. What else Pillow reads (TIFF, EPS, FITS,
# FPX, GD, ...) has a history of holes and no place in a folder of photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# A photograph of 50 megapixels has 10 to 30 MB; more is a mistake or an attack on memory.
LARGEST_BYTES = 50_000_000
# 50 megapixels are 150 MB once decoded, and several threads decode at once.
LARGEST_PIXELS = 50_000_000
# A progressive photograph has about 10 scans. A small file may hold thousands, and each makes
# the decoder pass over the whole picture.
MOST_SCANS = 100
# Below this side a difference hash of 9 x 8 cells finds 'duplicates' among different pictures:
# 52 % of the 8 x 8 handwritten digits have a neighbour within 6 bits.
SMALLEST_HASHED_SIDE = 64
# Sharpness is compared at one size, or large photographs would all look blurred.
SHARPNESS_SIDE = 256
# Facts are measured on a picture whose shorter side may have been reduced to no less than this.
MEASURED_SIDE = 512
# How many times smaller a picture may be decoded: what JPEG decoders do at no cost (they leave out
# the finest parts of each block), and the mean of as many pixels in the other formats.
SCALES = (8, 4, 2)
# Text in PNG files: Pillow unpacks at most 1 MB a chunk (PngImagePlugin.MAX_TEXT_CHUNK) and 64 MB
# a file (MAX_TEXT_MEMORY) and refuses more; a test holds it to that.

# What EXIF orientation asks for. Not ImageOps.exif_transpose: it also writes all EXIF anew, which
# fails on damaged tags that matter to nobody.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
# Recorded when the orientation tag holds something that is no number of 16 bits.
NO_ORIENTATION = -1

# First bytes of what people upload instead of a picture that we read: the name helps to mend it.
LOOKALIKES = (
    (rb"GIF8", "GIF"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    (rb".{4}ftyp(heic|heix|hevc|mif1|msf1)", "HEIC"),
    (rb".{4}ftypavi[fs]", "AVIF"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\s*(<\?xml.*)?<svg", "SVG"),
    (rb"\s*<(!doctype\s+html|html|head|body)", "an HTML page"),
    (rb"\s*<", "XML"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS or PostScript"),
    (rb"%PDF", "PDF"),
    (rb"SIMPLE  =", "FITS"),
    (rb"\xd0\xcf\x11\xe0", "FPX or another OLE file"),
    (rb"\xff[\xfe\xff]....\x01?\xff\xff\xff\xff", "GD"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"8BPS", "Photoshop"),
)


class BadImage(ValueError):
    """Bytes that are no picture we read; the message is one line that says what is wrong.

    format, width and height hold what could be told before it went wrong, else None.
    """

    def __init__(
        self, problem: str, name: str | None = None, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(problem)
        self.format = name
        self.width = size[0] if size else None
        self.height = size[1] if size else None


class Large(Exception):
    """A picture that takes more memory to decode than was allowed at once; nothing is wrong."""


@dataclass(frozen=True)
class Facts:
    """What one object's bytes are.

    sha256: hex digest of the bytes. bytes: their number.
    readable: every pixel decodes; if not, problem is one line that says why, and of the rest only
    what could be told is given.
    format: one of FORMATS. width, height: pixels, upright. animated: more than one frame (the
    first is the one judged). orientation: the EXIF tag as given, 1 where there is none.
    brightness: mean luma, 0 to 255. sharpness: variance of the Laplacian of the luma, the picture
    being reduced to a longer side of SHARPNESS_SIDE.
    dhash, dhash_mirror: imagehash's 64-bit difference hash of the picture and of its mirror image
    as signed integers; None below SMALLEST_HASHED_SIDE.
    """

    sha256: str
    bytes: int
    readable: bool
    problem: str | None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    animated: bool | None = None
    brightness: float | None = None
    sharpness: float | None = None
    dhash: int | None = None
    dhash_mirror: int | None = None


def examine(body: bytes, geometry: Geometry | None) -> tuple[Facts, Pixels | None]:
    """Take from a picture all that intake wants to know; the facts are the same for any geometry.

    Never raises on bad bytes: Facts.problem says what is wrong with them. The second value is
    `prepare`'s uint8 [side, side, 3], None without a geometry or when unreadable.
    """
    digest = hashlib.sha256(body).hexdigest()
    try:
        picture = _decoded(body, MEASURED_SIDE)
        pixels = None
        if geometry:
            enough = _scale(picture.size, _least(geometry)) == picture.scale
            pixels = _squared(picture, geometry) if enough else square(body, geometry)
    except BadImage as bad:
        return Facts(digest, len(body), False, str(bad), bad.format, bad.width, bad.height), None
    luma = _upright(picture.image.convert("L"), picture.orientation)
    dhash, dhash_mirror = _hashes(luma)
    width, height = picture.size
    facts = Facts(
        sha256=digest,
        bytes=len(body),
        readable=True,
        problem=None,
        format=picture.format,
        width=height if picture.orientation in SIDEWAYS else width,
        height=width if picture.orientation in SIDEWAYS else height,
        orientation=picture.orientation,
        animated=picture.animated,
        brightness=float(np.asarray(luma).mean(dtype=np.float64)),
        sharpness=_sharpness(luma),
        dhash=dhash,
        dhash_mirror=dhash_mirror,
    )
    return facts, pixels


def square(body: bytes, geometry: Geometry) -> Pixels:
    """The square that training and serving see of these bytes: uint8 [side, side, 3].

    A large picture is decoded to no less than twice geometry.side, then resized: from a plain
    `prepare(decode(body), geometry)` its pixels are less than a level apart in the mean. Raises
    BadImage.
    """
    return _squared(_decoded(body, _least(geometry)), geometry)


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture as it is served: its digest, its size in pixels, upright, and `square`'s pixels."""

    sha256: str
    width: int
    height: int
    pixels: Pixels


def see(body: bytes, geometry: Geometry, at_once: int | None = None) -> Seen:
    """What an answer to these bytes needs, decoded once. Raises BadImage.

    Raises Large, before anything is decoded, where more pixels than `at_once` would be in memory.
    """
    picture = _decoded(body, _least(geometry), at_once)
    width, height = picture.size
    if picture.orientation in SIDEWAYS:
        width, height = height, width
    digest = hashlib.sha256(body).hexdigest()
    return Seen(digest, width, height, _squared(picture, geometry))


def decode(body: bytes) -> Image.Image:
    """The upright RGB picture in these bytes, at its full size (of an animation the first frame).

    Raises BadImage, one line, for whatever is no whole JPEG, PNG, WEBP or BMP within the limits.
    """
    picture = _decoded(body, LARGEST_PIXELS)
    return _upright(picture.image, picture.orientation)


def thumbnail(body: bytes, side: int, at_once: int | None = None) -> Image.Image:
    """The upright RGB picture in these bytes, whole and no longer than `side` pixels either way.

    Raises BadImage, and Large as `see` does.
    """
    picture = _decoded(body, side, at_once)
    image = _upright(picture.image, picture.orientation)
    image.thumbnail((side, side))
    return image


def prepare(image: Image.Image, geometry: Geometry) -> Pixels:
    """The square of an upright RGB picture: uint8 [side, side, 3].

    The shorter side becomes geometry.side and the centre is kept. The crop comes first, or a
    picture of 1 x 100000 would be blown up to gigabytes. Resized by torch, which gives Pillow's
    pixels (one level apart in a few of a thousand) in a third of the time; needs torch.
    """
    import torch
    from torch.nn.functional import interpolate

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = np.array(image.crop((left, top, left + side, top + side)))
    if side != geometry.side:
        colours_first = torch.from_numpy(square).permute(2, 0, 1)[None]
        resized = interpolate(
            colours_first, (geometry.side,) * 2, mode=geometry.interpolation, antialias=True
        )
        square = resized[0].permute(1, 2, 0).numpy()
    return square


def _least(geometry: Geometry) -> int:
    """Shorter side from which a square may be made; as small as the facts', to decode once."""
    return max(MEASURED_SIDE, 2 * geometry.side)


def _scale(size: tuple[int, int], least: int) -> int:
    """How many times smaller a picture may be decoded so that no side comes under `least`."""
    return next((scale for scale in SCALES if min(size) >= scale * least), 1)


@dataclass(frozen=True)
class _Decoded:
    """RGB pixels as they are stored, `scale` times smaller than `size`, and their facts."""

    image: Image.Image
    size: tuple[int, int]
    scale: int
    format: str
    orientation: int
    animated: bool


def _decoded(body: bytes, least: int, at_once: int | None = None) -> _Decoded:
    """Decode a picture, smaller where that leaves `least` pixels of the shorter side or more."""
    picture = _open(body, at_once)
    size, scale = picture.size, _scale(picture.size, least)
    _check_memory(str(picture.format), size, scale, at_once)
    loaded = _load(picture, body, scale)
    with _decoder_errors(str(picture.format), size):
        image = _rgb(loaded)
        if image.size == size and scale > 1:
            image = image.reduce(scale)
        return _Decoded(
            image, size, scale, str(picture.format), _orientation(picture), _frames(picture) > 1
        )


def _squared(picture: _Decoded, geometry: Geometry) -> Pixels:
    if picture.scale == 1:
        return prepare(_upright(picture.image, picture.orientation), geometry)
    side = min(picture.size)
    left, top = ((length - side) // 2 / picture.scale for length in picture.size)
    resized = picture.image.resize(  # by Pillow: torch cannot begin within a pixel
        (geometry.side, geometry.side),
        Image.Resampling[geometry.interpolation.upper()],
        box=(left, top, left + side / picture.scale, top + side / picture.scale),
    )
    return np.array(_upright(resized, picture.orientation))


def too_large(size: int) -> str | None:
    """Why an object of so many bytes is not decoded, or None."""
    if size <= LARGEST_BYTES:
        return None
    largest = LARGEST_BYTES / 1e6
    return f"{size / 1e6:.0f} MB: at most {largest:.0f} MB are decoded; make it smaller"


def kind(body: bytes) -> str:
    """The one of FORMATS that these bytes begin as; whether they are whole, decoding tells.

    Raises BadImage for what begins as none of them.
    """
    if not body:
        raise BadImage("the object is empty (0 bytes)")
    if body.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    if body.startswith(b"BM"):
        return "BMP"
    raise BadImage(f"not JPEG, PNG, WEBP or BMP{_lookalike(body)}: convert it")


def _open(body: bytes, at_once: int | None) -> ImageFile.ImageFile:
    """Read the header, and refuse by it what must not be decoded, or not now."""
    if problem := too_large(len(body)):
        raise BadImage(problem)
    name = kind(body)
    _silence_remarks_on_metadata()
    plugin: type[ImageFile.ImageFile]
    # A zip archive may hide behind the end of a picture. Only pixels are taken and no byte is ever
    # run or handed on as a file to be opened, so such a polyglot is a picture like any other.
    if name == "JPEG":
        plugin = JpegImageFile
        # The class itself, not Image.open: the latter turns phone photographs that carry a preview
        # or a gain map into an 'MPO' of several frames.
        if body.count(b"\xff\xda") > MOST_SCANS:
            raise BadImage(f"JPEG of more than {MOST_SCANS} scans: save it anew", name)
    elif name == "PNG":
        plugin = PngImageFile
        _check_png(body)
    elif name == "WEBP":
        plugin = WebPImageFile
        # Its decoder takes memory for the whole canvas as soon as it is made.
        size = _webp_size(body)
        _check_pixels(name, size)
        _check_memory(name, size, 1, at_once)
    else:
        plugin = BmpImageFile
    with _decoder_errors(name, None):
        picture: ImageFile.ImageFile = plugin(BytesIO(body))
    _check_pixels(name, picture.size)
    return picture


def _load(picture: ImageFile.ImageFile, body: bytes, scale: int) -> ImageFile.ImageFile:
    """Decode all the data, a JPEG `scale` times smaller.

    `verify` would pass truncated and corrupt files.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: halves of pictures would pass for whole "
            "ones; remove the line that sets it"
        )
    size = picture.size
    _reduce_while_decoding(picture, scale)
    try:
        with _decoder_errors(str(picture.format), size):
            picture.load()
    except BadImage:
        whole = _without_end(body, scale) if picture.format == "JPEG" else None
        if whole is None:
            raise
        return whole
    return picture


def _reduce_while_decoding(picture: ImageFile.ImageFile, scale: int) -> None:
    if scale > 1 and isinstance(picture, JpegImageFile):
        picture.draft(None, (picture.width // scale, picture.height // scale))


def _without_end(body: bytes, scale: int) -> JpegImageFile | None:
    """The picture of a JPEG that lacks its end marker, None if it also lacks pixels.

    Some cameras and cut-off streams leave the marker out. Accepted when every pixel is there: bits
    appended to complete data are skipped, but appended to incomplete data they become pixels.
    """
    loaded = []
    for padding in (b"", b"\x55" * 64):
        picture = JpegImageFile(BytesIO(body + padding + b"\xff\xd9"))
        _reduce_while_decoding(picture, scale)
        try:
            with _decoder_errors("JPEG", None):
                picture.load()
        except BadImage:
            return None
        loaded.append(picture)
    return loaded[0] if np.array_equal(np.asarray(loaded[0]), np.asarray(loaded[1])) else None


def _check_pixels(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > LARGEST_PIXELS:
        raise BadImage(
            f"{width} x {height} is {width * height / 1e6:.0f} megapixels: at most "
            f"{LARGEST_PIXELS / 1e6:.0f} are decoded; make it smaller",
            name,
            size,
        )


def _check_memory(name: str, size: tuple[int, int], scale: int, at_once: int | None) -> None:
    """Raise Large where decoding has more pixels in memory at once than allowed, about."""
    pixels = size[0] * size[1]
    if name == "JPEG":  # comes row by row and reduced, but of several scans coefficients are kept
        pixels = pixels // scale**2 + pixels // 4
    if at_once is not None and pixels > at_once:
        raise Large


def _check_png(body: bytes) -> None:
    """Compare the checksums of the chunks that make the picture: Pillow skips those of IDAT."""
    view = memoryview(body)
    position = 8
    while position + 12 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, position)
        end = position + 12 + length
        if end > len(body):
            break
        needed = not kind[0] & 0x20  # the letter's case says whether a reader may ignore the chunk
        if needed and zlib.crc32(view[position + 4 : end - 4]).to_bytes(4) != view[end - 4 : end]:
            raise BadImage(f"damaged PNG: wrong checksum in chunk {kind!r}", "PNG")
        if kind == b"IEND":
            return
        position = end
    raise BadImage("truncated PNG: it ends before its last chunk", "PNG")


def _webp_size(body: bytes) -> tuple[int, int]:
    """Width and height of the canvas, from the header alone."""
    if len(body) >= 30:
        kind, header = body[12:16], body[20:30]
        if kind == b"VP8X":
            return (
                int.from_bytes(header[4:7], "little") + 1,
                int.from_bytes(header[7:10], "little") + 1,
            )
        if kind == b"VP8L":
            bits = int.from_bytes(header[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8 ":
            width, height = struct.unpack("<HH", header[6:10])
            return width & 0x3FFF, height & 0x3FFF
    raise BadImage("damaged WEBP: its header is incomplete or of an unknown kind", "WEBP")


def _lookalike(body: bytes) -> str:
    start = body[:512]
    for pattern, name in LOOKALIKES:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return f" but {name}"
    return f" (it starts with {start[:12]!r})"


@contextmanager
def _decoder_errors(name: str, size: tuple[int, int] | None) -> Iterator[None]:
    """Turn whatever a decoder throws at hostile bytes into one BadImage of this format and size.

    Too little memory is the machine's fault, not the picture's: MemoryError passes.
    """
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadImage(f"damaged {name}: {reason}", name, size) from error


def _silence_remarks_on_metadata() -> None:
    """Ignore Pillow's warnings on damaged EXIF and the like: the pixels decide.

    Where warnings are errors such a picture would be refused, and elsewhere taken. Not
    `warnings.catch_warnings`: it is not safe among threads.
    """
    pattern = re.compile(r"PIL\.")
    if not any(known[0] == "ignore" and known[3] == pattern for known in warnings.filters):
        warnings.filterwarnings("ignore", module=pattern.pattern)


def _frames(picture: ImageFile.ImageFile) -> int:
    return int(getattr(picture, "n_frames", 1))


def _orientation(picture: ImageFile.ImageFile) -> int:
    """The EXIF orientation as given: 1 where there is none or the EXIF cannot be read at all."""
    try:
        given: Any = picture.getexif().get(ExifTag.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error):
        return 1
    return given if isinstance(given, int) and 0 <= given <= 0xFFFF else NO_ORIENTATION


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn as the camera asked; with a value that means nothing the picture stays as it is."""
    method = UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    """Eight-bit RGB; what is transparent shows white, as on a page. ICC profiles are ignored."""
    clear = "transparency" in image.info
    if image.mode.startswith("I"):
        # Scaled, not clipped: convert("L") takes 300 of 65535 for white.
        wide = np.asarray(image).astype(np.uint32)
        narrow = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        if clear:
            narrow[wide == image.info["transparency"]] = 255
        return Image.fromarray(narrow).convert("RGB")
    if clear or image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _sharpness(luma: Image.Image) -> float:
    """Variance of the Laplacian. Small pictures are not enlarged: that would only look blurred."""
    scale = SHARPNESS_SIDE / max(luma.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in luma.size)
        luma = luma.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    grey = np.pad(np.asarray(luma).astype(np.int16), 1, mode="edge")
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1]
    laplacian += grey[1:-1, :-2]
    laplacian += grey[1:-1, 2:]
    laplacian -= 4 * grey[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64))


def _hashes(luma: Image.Image) -> tuple[int | None, int | None]:
    """The difference hash (imagehash.dhash) of the picture and of its mirror image."""
    if min(luma.size) < SMALLEST_HASHED_SIDE:
        return None, None
    cells = np.asarray(luma.resize((9, 8), Image.Resampling.LANCZOS))
    return _bits(cells[:, 1:] > cells[:, :-1]), _bits((cells[:, :-1] > cells[:, 1:])[:, ::-1])


def _bits(bits: npt.NDArray[np.bool_]) -> int:
    """64 bits as Postgres keeps them: a signed integer, the first bit being the sign."""
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)

"""Pictures made in memory for the tests: good ones, and every bad one that people upload."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

# A class is a shape with a colour, which a tiny network learns within seconds.
SHAPES: dict[str, tuple[int, int, int]] = {
    "circle": (210, 60, 50),
    "square": (60, 160, 70),
    "triangle": (60, 80, 200),
    "cross": (220, 190, 60),
    "ring": (160, 70, 180),
    "bar": (60, 190, 200),
}


def shape(name: str, seed: int = 0, side: int = 96) -> Image.Image:
    """One of SHAPES, somewhere on a noisy ground; each seed is another picture."""
    random = np.random.default_rng([seed, sorted(SHAPES).index(name)])
    ground = random.integers(60, 200, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(ground).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    radius = side * random.uniform(0.22, 0.34)
    x, y = (random.uniform(radius, side - radius) for _ in range(2))
    colour = tuple(int(c) for c in np.clip(SHAPES[name] + random.integers(-25, 26, 3), 0, 255))
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "circle":
        draw.ellipse(box, fill=colour)
    elif name == "square":
        draw.rectangle(box, fill=colour)
    elif name == "triangle":
        draw.polygon(
            [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour
        )
    elif name == "cross":
        draw.rectangle((x - radius, y - radius / 3, x + radius, y + radius / 3), fill=colour)
        draw.rectangle((x - radius / 3, y - radius, x + radius / 3, y + radius), fill=colour)
    elif name == "ring":
        draw.ellipse(box, outline=colour, width=max(2, round(radius / 3)))
    else:
        draw.rectangle((x - radius, y - radius / 3, x + radius, y + radius / 3), fill=colour)
    noise = random.normal(0, 8, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def photograph(seed: int = 0, width: int = 320, height: int = 240) -> Image.Image:
    """Something like a photograph: large forms, finer ones on them, a little noise."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells, weight in ((4, 0.6), (12, 0.3), (40, 0.1)):
        part = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
    total = (total - total.mean()) * 1.6 + 127 + random.normal(0, 3, total.shape)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def encode(image: Image.Image, name: str = "JPEG", **options: object) -> bytes:
    """The file's bytes: JPEG, PNG, WEBP, BMP, or whatever else Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """A JPEG file of this quality."""
    return encode(image, "JPEG", quality=quality)


def png(image: Image.Image) -> bytes:
    """A PNG file."""
    return encode(image, "PNG")


def with_orientation(image: Image.Image, value: int, name: str = "JPEG") -> bytes:
    """A file whose EXIF asks for this orientation."""
    exif = Image.Exif()
    exif[0x0112] = value
    options = {"quality": 95, "subsampling": 0} if name == "JPEG" else {}
    return encode(image, name, exif=exif, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, *, whole: bool, extra: bytes = b"") -> bytes:
    """A black one-bit PNG of any size, whole or with a few bytes for pixels."""
    rows = zlib.compressobj(9)
    data = b""
    for _ in range(height if whole else 1):
        data += rows.compress(bytes(1 + (width + 7) // 8))
    data += rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A PNG of 1 x 1 whose compressed text unpacks to 300 MB."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(1_000_000)) for _ in range(300)) + packer.flush()
    return png_of_size(1, 1, whole=True, extra=chunk(b"zTXt", b"Comment\0\0" + text))


def corrupt_png(*, mend_checksum: bool) -> bytes:
    """A PNG with one byte of its pixel data changed, its chunk's checksum fitting or not."""
    body = bytearray(png(photograph()))
    start = body.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", body, start)
    body[start + 8 + length // 2] ^= 0xFF
    if mend_checksum:
        checksum = zlib.crc32(body[start + 4 : start + 8 + length])
        struct.pack_into(">I", body, start + 8 + length, checksum)
    return bytes(body)


def webp_of_size(width: int, height: int) -> bytes:
    """The header of a WEBP file of any size, and nothing after it."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    data = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(data)) + data


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    body = bytearray(jpeg(photograph()))
    position = body.index(b"\xff\xc0")
    struct.pack_into(">HH", body, position + 5, height, width)
    return bytes(body)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated over and over."""
    body = encode(photograph(), "JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    return body[:-2] + body[last:-2] * count + b"\xff\xd9"


def animation(name: str) -> bytes:
    """Two frames as PNG, WEBP or GIF."""
    return encode(photograph(1), name, save_all=True, append_images=[photograph(2)], duration=100)


def polyglot() -> bytes:
    """A JPEG that is a zip archive as well."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("payload.py", "raise SystemExit")
    return jpeg(photograph()) + archive.getvalue()


def without_end(share: float = 1.0) -> bytes:
    """A JPEG without its end marker, and with only this share of the rest."""
    body = jpeg(photograph())[:-2]
    return body[: int(len(body) * share)]


SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'

# Bytes that are no picture to us: (name, maker, what the sentence about them must say).
UNREADABLE: list[tuple[str, Callable[[], bytes], str]] = [
    ("zero bytes", lambda: b"", "empty"),
    ("HTML named .jpg", lambda: b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    ("truncated JPEG", lambda: jpeg(photograph())[:4000], "truncated"),
    ("JPEG cut in its header", lambda: jpeg(photograph())[:60], "damaged JPEG"),
    ("corrupt PNG, wrong checksum", lambda: corrupt_png(mend_checksum=False), "checksum"),
    ("corrupt PNG, checksum mended", lambda: corrupt_png(mend_checksum=True), "damaged PNG"),
    ("truncated PNG", lambda: png(photograph())[:4000], "truncated PNG"),
    ("truncated WEBP", lambda: encode(photograph(), "WEBP")[:1000], "damaged WEBP"),
    ("truncated BMP", lambda: encode(photograph(), "BMP")[:4000], "truncated"),
    ("JPEG without end marker and pixels", lambda: without_end(0.9), "truncated"),
    ("400 megapixel PNG header", lambda: png_of_size(20000, 20000, whole=False), "400 megapixels"),
    ("4 gigapixel JPEG header", lambda: jpeg_of_size(65500, 65500), "4290 megapixels"),
    ("268 megapixel WEBP header", lambda: webp_of_size(16384, 16384), "268 megapixels"),
    ("144 megapixel PNG", lambda: png_of_size(12000, 12000, whole=True), "144 megapixels"),
    ("51 MB", lambda: jpeg(photograph()) + bytes(51_000_000), "51 MB"),
    ("zTXt bomb", text_bomb, "damaged PNG"),
    ("JPEG of a thousand scans", lambda: jpeg_of_scans(1000), "scans"),
    ("SVG", lambda: SVG, "SVG"),
    ("EPS", lambda: encode(photograph(), "EPS"), "EPS"),
    ("TIFF", lambda: encode(photograph(), "TIFF"), "TIFF"),
    ("FITS", lambda: b"SIMPLE  =                    T".ljust(2880), "FITS"),
    ("FPX", lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "FPX"),
    ("GD", lambda: b"\xff\xfe\0\x09\0\x09\x01\xff\xff\xff\xff" + bytes(400), "GD"),
    ("GIF", lambda: animation("GIF"), "GIF"),
    ("random bytes", lambda: np.random.default_rng(0).bytes(5000), "starts with"),
]

# Pictures that decode and that a rule must judge: (name, maker, Facts that give them away).
ODD: list[tuple[str, Callable[[], bytes], dict[str, object]]] = [
    ("1 x 1", lambda: png_of_size(1, 1, whole=True), {"width": 1, "height": 1}),
    (
        "1 x 100000",
        lambda: png_of_size(1, 100_000, whole=True),
        {"width": 1, "height": 100_000, "dhash": None},
    ),
    ("animated PNG", lambda: animation("PNG"), {"animated": True}),
    ("animated WEBP", lambda: animation("WEBP"), {"animated": True}),
    (
        "all black",
        lambda: jpeg(Image.new("RGB", (96, 96))),
        {"brightness": 0.0, "sharpness": 0.0},
    ),
    (
        "orientation 9",
        lambda: with_orientation(photograph(), 9),
        {"orientation": 9, "width": 320, "height": 240},
    ),
]

# Odd files that are pictures like any other.
ACCEPTED: list[tuple[str, Callable[[], bytes]]] = [
    ("JPEG without end marker", without_end),
    ("JPEG and zip archive at once", polyglot),
    ("progressive JPEG", lambda: encode(photograph(), "JPEG", progressive=True)),
    ("damaged EXIF", lambda: encode(photograph(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),
    ("8 x 8", lambda: png(photograph(0, 8, 8))),
]

"""Real photographs for the benchmarks: your own folder of class folders, or crops of two of them.

scikit-learn ships two photographs (427 x 640). Without `--data` the benchmarks cut pieces out of
them, each another place, size and mirror, which is real image content to decode; their classes are
the quarters of the photographs, so that a network has something to learn.
"""

from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SUFFIXES = {".jpg", ".jpeg"}


def photographs(
    count: int,
    data: Path | None = None,
    sides: tuple[int, int] = (180, 300),
    quality: int = 90,
    classes: int | None = None,
) -> list[tuple[str, bytes]]:
    """`count` pairs (class, JPEG bytes), always the same.

    data: a folder of class folders of JPEGs, used in turn over its classes; None: pieces of the
    shipped photographs, whose sides in pixels lie within `sides`. classes: only the first so many
    of the folder's.
    """
    found = list(islice(_of_folder(data, classes) if data else _pieces(sides, quality), count))
    if len(found) < count:
        raise SystemExit(f"{data} holds {len(found)} JPEGs and {count} are needed: name a folder "
                         "with more, or leave --data out")
    return found


def _of_folder(data: Path, classes: int | None) -> Iterator[tuple[str, bytes]]:
    folders = [sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES)
               for folder in sorted(data.iterdir()) if folder.is_dir()][:classes]
    for turn in range(max(map(len, folders), default=0)):
        for files in folders:
            if turn < len(files):
                yield files[turn].parent.name, files[turn].read_bytes()


def _pieces(sides: tuple[int, int], quality: int) -> Iterator[tuple[str, bytes]]:
    random = np.random.default_rng(0)
    whole = [Image.fromarray(one) for one in load_sample_images().images]
    while True:
        for number, picture in enumerate(whole):
            width, height = random.integers(sides[0], sides[1] + 1, size=2)
            share = random.uniform(0.3, 0.5)
            side = round(share * min(picture.size))
            left = int(random.integers(0, picture.width - side))
            top = int(random.integers(0, picture.height - side))
            quarter = 2 * (top + side / 2 > picture.height / 2) + (
                left + side / 2 > picture.width / 2
            )
            piece = picture.resize(
                (int(width), int(height)), Image.Resampling.BICUBIC,
                box=(left, top, left + side, top + side),
            )
            if random.random() < 0.5:
                piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            body = BytesIO()
            piece.save(body, "JPEG", quality=quality)
            yield f"photograph {number + 1}, quarter {quarter + 1}", body.getvalue()

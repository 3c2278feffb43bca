"""Take the pictures of the pages that the README shows, of what the demo has left behind.

    regraft demo && python -m benchmarks.screenshots

Gives the demo's version a pool and some pictures to answer, so that there is something on every
page, serves its state folder, and writes docs/pages/NAME.png.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # its browser

from browsers import browsing  # noqa: E402

from flows import demo  # noqa: E402

OUT = ROOT / "docs" / "pages"
PORT = 18799
POOL = "pools/camera/"
# By name: the page, and light or dark.
PAGES = {
    "overview": ("/", "light"),
    "version": ("/versions/1?on=benchmark+2#classes", "light"),
    "in-use": ("/in-use", "light"),
    "pools": ("/pools?filter=look-alike&class=digit+3&below=0.999", "light"),
    "review": ("/reviews/next?queue=confidence", "dark"),
}
HEIGHT = 860


def main() -> None:
    """Fill in what is missing, serve, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    demo.prepare(fresh=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _blurred_digits(Path(scratch) / "camera")
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "identify", str(folder)], check=True, cwd=ROOT
        )
        service = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "web", "--port", str(PORT)], cwd=ROOT,
            env={**os.environ, "REGRAFT_REVIEW_SHARE": "0.5"},
        )  # fmt: skip
        try:
            _ask(sorted(folder.iterdir()))
            _take(arguments.out)
        finally:
            service.terminate()
            service.wait()


def _blurred_digits(folder: Path) -> Path:
    """Handwriting as bad as people's: turned, blurred and faint."""
    folder.mkdir(parents=True)
    dice = np.random.default_rng(1)
    for number, pixels in enumerate(load_digits().images[:90]):
        ink = Image.fromarray((255 - pixels * dice.uniform(6, 15)).round().astype(np.uint8))
        picture = ink.resize((96, 96), Image.Resampling.BICUBIC).rotate(
            dice.uniform(-35, 35), fillcolor=255
        ).filter(ImageFilter.GaussianBlur(dice.uniform(1, 5)))  # fmt: skip
        picture.save(folder / f"{number:03d}.jpg", quality=85)
    return folder


def _ask(files: list[Path]) -> None:
    """Have the service answer pictures, once it is there, and say what the drawn ones show."""
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30) as client:
        for _ in range(240):
            try:
                client.get("/readyz").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        for path in files:
            headers = {"Content-Type": "image/jpeg"}
            client.post("/v1/predictions", content=path.read_bytes(), headers=headers)
        digits = load_digits().target
        shows = {hashlib.sha256(one.read_bytes()).hexdigest(): digits[int(one.stem)]
                 for one in files}  # fmt: skip
        asked = {"by": "Ann", "queue": "random", "limit": len(files)}
        for _ in range(60):
            time.sleep(0.5)
            if drawn := client.get("/v1/reviews/next", params=asked).json():
                break
        for one in drawn:
            digit = f"digit {shows[one['sha256']]}"  # one of them the demo has never seen
            said = {"transaction": one["transaction_id"], "label": digit, "new_classes": [digit],
                    "queue": "random", "by": "Ann"}  # fmt: skip
            client.post("/v1/reviews", json=said).raise_for_status()


def _take(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with browsing(f"http://127.0.0.1:{PORT}") as browser:
        browser.open("/you")
        browser.driver.add_cookie({"name": "regraft_person", "value": "Ann"})
        for name, (path, scheme) in PAGES.items():
            browser.use(scheme, 1280, HEIGHT)
            browser.open(path)
            time.sleep(1.5)  # for the thumbnails
            browser.driver.save_screenshot(str(out / f"{name}.png"))
            print(out / f"{name}.png")


if __name__ == "__main__":
    main()

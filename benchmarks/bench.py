"""Every performance figure of regraft against its peers and its limit: `make bench`.

    python -m benchmarks.bench                     # all parts but soak, then docs/benchmarks.md
    python -m benchmarks.bench train gradcam       # these parts; the others' figures stay
    python -m benchmarks.bench --gpu               # what computes, on an accelerator
    python -m benchmarks.bench --data FOLDER       # on your own class folders of JPEGs
    python -m benchmarks.bench --page              # only docs/benchmarks.md again

Measure on a machine that does nothing else. The peers come with the extra `benchmarks`.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.figures import FOLDER, Figure, Part, Row

PAGE = FOLDER.parent / "benchmarks.md"
# part -> its module; in the order in which they run and stand on the page
PARTS = {
    "train": "benchmarks.training",
    "head": "benchmarks.head",
    "night": "benchmarks.nights",
    "intake": "benchmarks.intake",
    "decode": "benchmarks.decoding",
    "evaluate": "benchmarks.evaluation",
    "identify": "benchmarks.identification",
    "gradcam": "benchmarks.gradcam",
    "snapshot": "benchmarks.snapshot",
    "copy": "benchmarks.copying",
    "find": "benchmarks.finding",
    "review": "benchmarks.reviewing",
    "history": "benchmarks.history",
    "pages": "benchmarks.pages",
    "log": "benchmarks.transactions",
    "start": "benchmarks.starting",
    "serve": "benchmarks.serving",
    "soak": "benchmarks.soak",
}
ON_REQUEST = ("soak",)  # half an hour by itself
ON_GPU = ("train", "head", "evaluate", "gradcam")
LIBRARIES = (
    "torch", "torchvision", "timm", "numpy", "pillow", "fastai", "transformers", "accelerate",
    "onnxruntime", "openvino", "grad-cam", "opencv-python-headless", "pandas", "psycopg2-binary",
    "prefect", "sqlalchemy", "fastapi", "uvicorn", "litserve", "locust",
)  # fmt: skip


def main() -> None:
    """Run the parts asked for, one process each, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--gpu", action="store_true", help="on CUDA; " + ", ".join(ON_GPU))
    parser.add_argument("--data", type=Path, help="folder of class folders of JPEGs")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 weights for head and Grad-CAM")
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args()
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        parser.error(f"{unknown[0]!r} is no part: known are {', '.join(PARTS)}")
    usual = [name for name in PARTS if name not in ON_REQUEST]
    wanted = given.parts or list(ON_GPU if given.gpu else usual)
    failed = [] if given.page else [name for name in wanted if not run(name, given)]
    PAGE.write_text(page())
    print(f"{PAGE} written")
    if failed:
        sys.exit(f"these parts failed, their old figures stay: {', '.join(failed)}")


def run(name: str, given: argparse.Namespace) -> bool:
    """One part in a process of its own; says how long it took."""
    command = [sys.executable, "-m", PARTS[name]]
    if given.gpu:
        command.append("--gpu")
    if given.data:
        command += ["--data", str(given.data)]
    if given.weights:
        command += ["--weights", str(given.weights)]
    print(f"── {name} ", "─" * 60, flush=True)
    begun = time.perf_counter()
    done = subprocess.run(command, check=False, env=os.environ | {"GOMP_SPINCOUNT": "2000"})
    print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    return done.returncode == 0


def arguments(name: str, size: int | None = None) -> argparse.Namespace:
    """What each part is called with: `gpu`, `data`, `weights`.

    size: how much there is to measure on, for parts that can be tried with less, which is not kept.
    """
    parser = argparse.ArgumentParser(description=f"The part {name!r} of `make bench`")
    if size is not None:
        parser.add_argument("--size", type=int, default=size, help="less, to try it; nothing kept")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    return parser.parse_args()


def facts() -> dict[str, object]:
    """Machine, versions and time of a run, kept with its figures."""
    import torch

    told: dict[str, object] = {
        "measured": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        told["gpu"] = torch.cuda.get_device_name()
        told["driver"] = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            check=False, capture_output=True, text=True,
        ).stdout.strip()
    return told | {"versions": dict(_versions())}


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


# --- the page ---------------------------------------------------------------------------------


def page() -> str:
    """docs/benchmarks.md from all parts that were ever measured here."""
    found = [
        (name, device, Part.read(path))
        for device in ("cpu", "cuda")
        for name in PARTS
        if (path := FOLDER / (f"{name}.json" if device == "cpu" else f"{name}-cuda.json")).exists()
    ]
    rows = [row for _, _, part in found for row in part.rows]
    goals = [(row, goal) for row in rows for goal in row.goals]
    met = sum(row.met(goal) for row, goal in goals)
    lines = [
        "# How fast it is",
        "",
        "Written by `make bench` (one part: `make bench-train`, `bench-night`, …; `DATA=folder` "
        "for your own images); do not edit it. Peers and limits ran in the same run, in turn with "
        "regraft; each figure is the median of its rounds with the lowest and highest in "
        f"brackets. {met} of {len(goals)} goals are met; those that are not stand here as they "
        "came, with what holds them back.",
        "",
    ]
    for name, device, part in found:
        lines += _part(name, device, part)
    return "\n".join(lines).rstrip() + "\n"


def _part(name: str, device: str, part: Part) -> list[str]:
    told = part.facts
    where = told.get("gpu") or f"{told['processor']}, {told['cores']} cores"
    lines = [f"## {part.title}{' (GPU)' if device != 'cpu' else ''}", ""]
    for row in part.rows:
        lines += _row(row)
    for picture in part.pictures:
        lines += [f"![{part.title}](benchmarks/{picture})", ""]
    for note in part.notes:
        lines += [note, ""]
    versions = ", ".join(f"{one} {its}" for one, its in dict(told.get("versions", {})).items())
    command = f"make bench-{name}" + (" GPU=1" if device != "cpu" else "")
    more = "".join(
        f" {key}: {value}." for key, value in told.items()
        if key not in {"measured", "processor", "cores", "memory", "python", "gpu", "versions"}
    )
    lines += [
        f"<sub>`{command}` on {told['measured']}: {where}, {told['memory']} memory, Python "
        f"{told['python']}, {versions}.{more}</sub>",
        "",
    ]
    return lines


def _row(row: Row) -> list[str]:
    """A table of ours and the others, then the goals."""
    lines = [
        f"**{row.what}**", "",
        f"| contender | {row.ours.unit} | regraft is | |", "|---|---|---|---|",
    ]
    for figure in (row.ours, *row.others):
        ratio = "" if figure is row.ours else _ratio(row.ours, figure)
        shown = f"**{figure.name}**" if figure is row.ours else figure.name
        lines.append(f"| {shown} | {_spelt(figure)} | {ratio} | {figure.note} |")
    lines.append("")
    for goal in row.goals:
        sign = "met" if row.met(goal) else "**not met**"
        lines.append(f"- Goal: {goal.sentence}. Reached {row.reached(goal):.2f}: {sign}.")
    return [*lines, ""] if row.goals else lines


def _spelt(figure: Figure) -> str:
    if len(figure.values) == 1:
        return f"{_number(figure.median)}"
    return (
        f"{_number(figure.median)} "
        f"({_number(min(figure.values))} to {_number(max(figure.values))})"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(ours: Figure, other: Figure) -> str:
    return f"{ours.median / other.median:.2f} x"


if __name__ == "__main__":
    main()

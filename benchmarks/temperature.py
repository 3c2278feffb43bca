"""What one temperature does to confidences: calibration error on unseen images, with and without.

    python -m benchmarks.temperature

Small networks learn scikit-learn's handwritten digits from a random start in three ways, three
seeds each. The temperature is fitted on 200 validation digits, and the error measured on 1,000 that
neither training nor fit has seen. Writes the table of docs/figures.md between its marks.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.stories.gate import Held, dealt, handwriting
from flows.demo import DIGITS
from vision.answers import Answers
from vision.fitting import Examples, fit
from vision.network import build
from vision.plan import Plan
from vision.prediction import predict
from vision.scores import calibration_by_chance, calibration_error
from vision.temperature import calibrate

PAGE = Path(__file__).parents[1] / "docs" / "figures.md"
BEGIN = "<!-- measured: benchmarks/temperature.py writes from here to the end of the table -->\n"
END = "<!-- end of the table -->\n"
TEST, VALIDATION = 1000, 200
SEEDS = 3
PLAN = replace(DIGITS, recipe="scratch", precision="float32")
# name -> plan, and the training images it gets: as many steps for few
TRAININGS = {
    "smoothed labels, as by default, 597 images": (replace(PLAN, epochs=15), 597),
    "plain labels, 597 images": (replace(PLAN, epochs=15, label_smoothing=0.0), 597),
    "plain labels, 150 images seen 80 times": (replace(PLAN, epochs=80, label_smoothing=0.0), 150),
}


def main() -> None:
    """Train, measure, write."""
    pixels, label = handwriting()
    test, validation, train = dealt(list(label), TEST, VALIDATION)
    lines = [
        "| trained with | right | temperature | error without it | with it | by chance |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (plan, images) in TRAININGS.items():
        rows = [
            measured(replace(plan, seed=seed), pixels, label, train[:images], validation, test)
            for seed in range(SEEDS)
        ]
        columns = list(zip(*rows, strict=True))
        lines.append(
            f"| {name} | {told(columns[0], percent=True)} | {told(columns[1])} | "
            + " | ".join(told(column) for column in columns[2:]) + " |"
        )  # fmt: skip
        print(lines[-1], flush=True)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


def measured(
    plan: Plan, pixels: Held, label: dict[str, str], train: list[str], validation: list[str],
    test: list[str],
) -> tuple[float, float, float, float, float]:
    """Accuracy, temperature, calibration error without and with it, and that by chance."""
    classes = sorted(set(label.values()))
    network = build(plan, classes)

    def examples(images: list[str]) -> Examples:
        return Examples(pixels, images, [label[one] for one in images])

    def asked() -> Answers:
        labels = [label[one] for one in test]
        return predict(network, classes, pixels, test, labels, plan, "cpu")

    with TemporaryDirectory() as folder:
        fit(network, plan, examples(train), examples(validation), Path(folder), "cpu", threads=1)
    before = asked()
    heat = calibrate(
        network, pixels, validation, [label[one] for one in validation], plan, "cpu"
    )
    after = asked()
    errors = calibration_error(before), calibration_error(after), calibration_by_chance(after)
    without, with_it, chance = (one for one in errors if one is not None)
    assert heat is not None, "the head of this network is linear"
    return float(after.correct.mean()), heat, without, with_it, chance


def told(values: Sequence[float], percent: bool = False) -> str:
    """Mean and spread of the seeds."""
    scale, digits, unit = (100, 1, "%") if percent else (1, 3, "")
    mean, spread = statistics.mean(values), statistics.stdev(values)
    return f"{scale * mean:.{digits}f}{unit} ± {scale * spread:.{digits}f}"


if __name__ == "__main__":
    main()

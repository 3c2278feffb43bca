"""What a benchmark measured: figures of contenders that took turns, and the goals they stand for.

Each part is a module run on its own, so that no part inherits another's threads and memory; it
writes `docs/benchmarks/<part>.json`, and `benchmarks.bench` makes `docs/benchmarks.md` of them all.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"


@dataclass(frozen=True)
class Figure:
    """What one contender did, one value per round.

    unit: a rate such as `images/s`, where more is better, or a cost such as `s`, where less is.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        """The value to quote."""
        return statistics.median(self.values)

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")


@dataclass(frozen=True)
class Goal:
    """A wished ratio of our figure to another, by its name in the row.

    ratio: at least this for a rate, at most this for a cost; sentence: the goal in words.
    """

    against: str
    ratio: float
    sentence: str


@dataclass(frozen=True)
class Row:
    """One thing measured: ours, the others of the same run, and what was wished for."""

    what: str
    ours: Figure
    others: tuple[Figure, ...] = ()
    goals: tuple[Goal, ...] = ()

    def reached(self, goal: Goal) -> float:
        """Ours divided by the other, medians both."""
        other = next(one for one in self.others if one.name == goal.against)
        return self.ours.median / other.median

    def met(self, goal: Goal) -> bool:
        """Whether the goal is reached."""
        reached = self.reached(goal)
        return reached >= goal.ratio if self.ours.is_rate else reached <= goal.ratio


@dataclass(frozen=True)
class Part:
    """All that one part of the benchmarks found.

    pictures: file names below docs/benchmarks; notes: paragraphs of Markdown, what holds a figure
    back and what was tried; facts: machine, versions and settings of this run.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, device: str = "cpu") -> Path:
        """Write it where `benchmarks.bench` finds it; the figures of another device stay."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / (f"{self.name}.json" if device == "cpu" else f"{self.name}-{device}.json")
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> "Part":
        """Read back what `save` wrote."""
        told = json.loads(path.read_text())
        rows = tuple(
            Row(
                one["what"],
                _figure(one["ours"]),
                tuple(map(_figure, one["others"])),
                tuple(Goal(**goal) for goal in one["goals"]),
            )
            for one in told.pop("rows")
        )
        lists = {name: tuple(told.pop(name)) for name in ("notes", "pictures")}
        return cls(rows=rows, **lists, **told)


def _figure(told: dict[str, Any]) -> Figure:
    return Figure(**{**told, "values": tuple(told["values"])})


def take_turns(
    contenders: Mapping[str, Callable[[], float]], unit: str, rounds: int
) -> dict[str, Figure]:
    """Let every contender run once per round, in turn, so that a busy moment hits all alike.

    Each is a function that does the work and returns its value in `unit`; what it needs to warm up
    it does itself. The order turns round by round.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            value = contenders[name]()
            values[name].append(value)
            print(f"  {name}: {value:.4g} {unit}", flush=True)
    return {name: Figure(name, unit, tuple(found)) for name, found in values.items()}

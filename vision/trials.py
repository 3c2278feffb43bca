"""How training steps are computed fastest here: short trials of each way, kept for the next run.

A way is precision, memory format, threads and whether the network is compiled; never the batch
size, which is the plan's. The plain way always takes part and wins unless another is clearly
faster. A plan that names precision or memory format leaves only the rest to be tried, and one that
names the way leaves nothing.
"""

import copy
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vision import memory
from vision.calibration import Calibration
from vision.plan import BadPlan, Plan, Way
from vision.prediction import autocast

log = logging.getLogger(__name__)

# below so many pictures in a whole run, measuring the machine costs more than it can save
WORTH_MEASURING = 4000
# for all trials together, a compilation aside
MEASURING_SECONDS = 60.0
ROUNDS = 3
FEWEST_PICTURES = 8
# another way must be clearly faster than the plain one, or noise would choose
CLEARLY_FASTER = 1.1
# a way so many times slower than the best, such as bfloat16 where the processor lacks it, is left
HOPELESS = 3.0
# compiling takes a minute or two and saves up to a fifth: nothing for a run shorter than this
WORTH_COMPILING_SECONDS = 1800.0
TO_COMPILE = "set CXX, or install g++"

Prepare = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Choice:
    """The way to go, how it came, and seconds per picture of all that were tried."""

    way: Way
    reason: str
    seconds: Mapping[str, float]


def choose(
    network: nn.Module,
    plan: Plan,
    device: torch.device,
    pictures: int,
    prepare: Prepare,
    calibration: Calibration,
    threads: int | None = None,
    may_compile: bool = True,
) -> Choice:
    """Choose the way for a run of so many pictures, by trials or by what was measured before.

    `prepare` gives one training batch of the plan, float32 [B, 3, size, size] and labels [B], on
    the device; `threads` None lets them be tried too. The network is left as it is. Raises
    `BadPlan` for a way of the plan that cannot be gone here.
    """
    if plan.way is not None:
        if plan.way.compiled and device.type == "cpu" and _compiler() is None:
            raise BadPlan(f"way={plan.way}: there is no C++ compiler here; {TO_COMPILE}, or leave "
                          "way out")
        return Choice(plan.way, "by the plan", {})
    ways = _ways(plan, device, threads)
    plain = ways[0]
    free = len(ways) > 1 or (threads is None and plain.threads > 1 and device.type == "cpu")
    if not free:
        return Choice(plain, "by the plan", {})
    what = {
        "use": "training", "device": device.type, "architecture": plan.architecture,
        "arguments": plan.arguments, "image_size": plan.image_size, "batch_size": plan.batch_size,
        "learns": plan.unfreeze if plan.recipe == "two-phase" else "all",
        "batch_norm": plan.batch_norm, "ways": [asdict(one) for one in ways],
        "threads_given": threads is not None,
    }  # fmt: skip
    reason = "measured before"
    measured = calibration.recall(what)
    if measured is None:
        if pictures < WORTH_MEASURING:
            return _unmeasured(ways, device)
        reason = "measured"
        measured = {"ways": _measure(network, ways, device, prepare, threads is None)}
        if not measured["ways"]:
            return Choice(plain, "too little memory to measure", {})
        calibration.keep(what, measured)
    found = {Way(**one["way"]): float(one["seconds"]) for one in measured["ways"]}
    best = _fastest(found, plain)
    log.info("seconds per picture: %s", ", ".join(f"{each:.4f} with {way}"
                                                  for way, each in found.items()))
    if may_compile and device.type == "cpu" and found[best] * pictures >= WORTH_COMPILING_SECONDS:
        best = _compiled_if_it_pays(network, best, pictures, prepare, calibration, what, found)
    return Choice(best, reason, {str(way): each for way, each in found.items()})


def _ways(plan: Plan, device: torch.device, threads: int | None) -> list[Way]:
    """Every precision and memory format that the plan leaves open, the plain way first."""
    precisions: list[Literal["float32", "bfloat16"]] = ["float32", "bfloat16"]
    if plan.precision != "auto":
        precisions = [plan.precision]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        precisions = ["float32"]
    layouts = [False, True] if plan.channels_last is None else [plan.channels_last]
    count = threads or torch.get_num_threads()
    return [Way(one, last, count) for one in precisions for last in layouts]


def _unmeasured(ways: list[Way], device: torch.device) -> Choice:
    # on a GPU the last of them, half precision and channels last, is what its makers tell to use
    if device.type == "cuda":
        return Choice(ways[-1], "as the GPU supports", {})
    return Choice(ways[0], "too short to measure", {})


def _fastest(seconds: Mapping[Way, float], plain: Way) -> Way:
    best = min(seconds, key=lambda way: seconds[way])
    if plain not in seconds:  # the memory did not take it
        return best
    return best if seconds[best] * CLEARLY_FASTER <= seconds[plain] else plain


def _measure(
    network: nn.Module, ways: list[Way], device: torch.device, prepare: Prepare, try_threads: bool
) -> list[dict[str, Any]]:
    """Seconds per picture of each way, then of the best with ever fewer threads while that helps.

    The plain way takes its turn in every stage, so each stage is compared on its own terms. Ways
    that the memory does not take are left out; where it takes none, fewer pictures are tried.
    """
    batch, labels = prepare()
    first = ways[0]
    few = batch[:FEWEST_PICTURES], labels[:FEWEST_PICTURES]
    trial = _Trials(network, device, few)
    trial.seconds(first)
    affordable = MEASURING_SECONDS / (len(ways) + 2) / (ROUNDS + 1) / trial.seconds(first)
    count = min(len(batch), max(FEWEST_PICTURES, int(affordable)))
    while True:
        trial = _Trials(network, device, (batch[:count], labels[:count]))
        found = trial.turns(ways)
        if found or count <= FEWEST_PICTURES:
            break
        count = max(FEWEST_PICTURES, count // 2)
    if not found:
        return []
    best = _fastest(found, first)
    known = first if first in found else best
    fewer = best.threads
    while try_threads and device.type == "cpu" and (fewer := fewer // 2) >= 1:
        narrow = replace(best, threads=fewer)
        again = trial.turns(dict.fromkeys((known, best, narrow)))
        if not {known, best, narrow} <= again.keys():
            break
        # as a share of the known way's time in the same turns
        found[narrow] = found[known] * again[narrow] / again[known]
        if _fastest({best: again[best], narrow: again[narrow]}, best) is best:
            break
        best = narrow
    return [{"way": asdict(way), "seconds": each} for way, each in found.items()]


def _compiled_if_it_pays(
    network: nn.Module,
    way: Way,
    pictures: int,
    prepare: Prepare,
    calibration: Calibration,
    what: Mapping[str, Any],
    found: dict[Way, float],
) -> Way:
    """The compiled way where a run of so many pictures wins back what compiling costs."""
    compiler = _compiler()
    if compiler is None:
        log.info("not compiled: there is no C++ compiler here (%s)", TO_COMPILE)
        return way
    compiled = replace(way, compiled=True)
    asked = {**what, "compiled": asdict(way), "compiler": compiler}
    measured = calibration.recall(asked)
    if measured is None:
        trial = _Trials(network, torch.device("cpu"), prepare())
        try:
            begun = time.perf_counter()
            trial.seconds(compiled)
            took = time.perf_counter() - begun
            again = trial.turns([way, compiled])
            measured = {"compiling": None}
            if len(again) == 2:
                measured = {"compiling": took, "eager": again[way], "compiled": again[compiled]}
            else:
                log.info("not compiled: the memory does not take a whole batch")
        except Exception as error:  # of dynamo, inductor or the compiler, each its own
            reason = str(error).strip() or type(error).__name__
            log.info("not compiled: %s", reason.splitlines()[0])
            measured = {"compiling": None}
        calibration.keep(asked, measured)
    if measured["compiling"] is None:
        return way
    found[compiled] = measured["compiled"]
    saved = (measured["eager"] - measured["compiled"]) * pictures
    clearly = measured["compiled"] * CLEARLY_FASTER <= measured["eager"]
    log.info("compiling takes %.0f s and would save %.0f s", measured["compiling"], saved)
    return compiled if clearly and saved > 2 * measured["compiling"] else way


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


class _Trials:
    """Training steps without an optimizer, on copies of the network."""

    def __init__(
        self, network: nn.Module, device: torch.device, batch: tuple[Tensor, Tensor]
    ) -> None:
        self._original, self._device = network, device
        self._pictures, self._labels = batch
        self._copies: dict[tuple[bool, bool], nn.Module] = {}

    def turns(self, ways: Iterable[Way]) -> dict[Way, float]:
        """Seconds per picture of each way that the memory takes, the fastest of its rounds.

        They take turns, so that other work on the machine slows all of them alike; a first round
        only warms up.
        """
        fastest = dict.fromkeys(ways, math.inf)
        for turn in range(ROUNDS + 1):
            for way in list(fastest):
                if turn > 1 and fastest[way] > HOPELESS * min(fastest.values()):
                    continue
                seconds = self.seconds(way)
                if seconds == math.inf:
                    del fastest[way]
                elif turn > 0:
                    fastest[way] = min(fastest[way], seconds)
        return fastest

    def seconds(self, way: Way) -> float:
        """Seconds per picture of one step; infinite where the memory does not take it."""
        before = torch.get_num_threads()
        torch.set_num_threads(way.threads)
        try:
            return self._step(way) / len(self._labels)
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
        finally:
            torch.set_num_threads(before)
        # here, where the error no longer holds on to what it was raised among
        self._copies.clear()
        memory.release_freed()
        return math.inf

    def _step(self, way: Way) -> float:
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        network = self._copy(way, layout)
        pictures = self._pictures.contiguous(memory_format=layout)
        self._wait()
        start = time.perf_counter()
        with autocast(self._device, way.precision == "bfloat16"):
            outputs = network(pictures)
        loss = functional.cross_entropy(outputs.float(), self._labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self._wait()
        seconds = time.perf_counter() - start
        network.zero_grad(set_to_none=True)
        return seconds

    def _copy(self, way: Way, layout: torch.memory_format) -> nn.Module:
        key = way.channels_last, way.compiled
        if key not in self._copies:
            own = copy.deepcopy(self._original).to(memory_format=layout).train()
            self._copies[key] = compiled(own) if way.compiled else own
        return self._copies[key]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def compiled(network: nn.Module) -> nn.Module:
    """The network, compiled at its first call for pictures of one shape; weights are shared."""
    found: nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    return found

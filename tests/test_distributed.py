"""Several processes train what one would, and end well when one of them does not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from processes import NAMES, PLAN, alone, examples, fill, in_ranks, together
from torch import Tensor, nn

from vision import distributed
from vision.distributed import BrokenOff, fit_by
from vision.fitting import Diverged, Epoch, SmallerParts, fit
from vision.network import build, head, load, save
from vision.ranks import ALONE, Ranks

# Ranks import this module too, and are there sooner without what only the last test needs.
if TYPE_CHECKING:
    from infra.database import Database
    from infra.storage import Storage

PATIENCE_SECONDS = 100


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pixel cache with all pictures."""
    return fill(tmp_path_factory.mktemp("cache"))


def until(reached: Callable[[], Any]) -> Any:
    """Wait for what must come; gives it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := reached()):
        assert time.monotonic() < deadline, "it never came"
    return found


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Length of the difference of all weights and statistics."""
    return sum(
        float((one[key].double() - other[key].double()).square().sum()) for key in one
    ) ** 0.5


def assert_alike(one: list[Epoch], other: list[Epoch], **tolerance: float) -> None:
    """Every figure that does not tell the time."""
    for name in ("train_loss", "validation_loss", "learning_rate"):
        assert [getattr(each, name) for each in one] == pytest.approx(
            [getattr(each, name) for each in other], **tolerance
        )
    for name in ("number", "phase", "train_accuracy", "validation_accuracy"):
        assert [getattr(each, name) for each in one] == [getattr(each, name) for each in other]


# --- the same result ---


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (2, {"batch_norm": "eval"}),
        (2, {"batch_norm": "train"}),
        (3, {"batch_norm": "train", "class_weights": "none", "optimizer": "adamw",
             "learning_rate": 1e-3}),
        # 10, 10 and 9: batch norm blows up what little tells two pictures from their mixtures
        (2, {"mixup": 0.4, "cutmix": 1.0, "batch_size": 10, "ema_decay": 0.8, "layer_decay": 0.7}),
        (2, {"recipe": "two-phase", "head_epochs": 1, "unfreeze": 2, "warmup_epochs": 0.0}),
        (3, {"recipe": "two-phase", "epochs": 4, "head_epochs": 3, "head_views": 2, "unfreeze": 1}),
        (2, {"recipe": "two-phase", "epochs": 4, "head_epochs": 3, "head_views": None,
             "unfreeze": 1}),
    ],
)  # fmt: skip
def test_several_processes_train_what_one_would(
    world: int, changes: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    """Weights, running statistics and all figures agree, also where a batch does not divide."""
    plan = replace(PLAN, **changes)
    weights, epochs = alone(plan, cache, tmp_path / "alone")
    theirs, told = together(world, plan, cache, tmp_path / "together")
    moved = distance(weights, build(plan, NAMES).state_dict())
    assert distance(weights, theirs) < 1e-5 * moved
    assert_alike(epochs, told, rel=1e-5)


def normalise_as(ranks: Ranks, folder: Path) -> None:
    """Batch norm of this rank's share, and its gradients."""
    torch.manual_seed(0)
    pictures, wish = torch.randn(5, 4, 3, 3) * 2 + 5, torch.randn(5, 4, 3, 3)
    layer = nn.BatchNorm2d(4)
    rows, count = ranks.share(range(5))
    mine = pictures[rows].requires_grad_()
    with ranks.whole_batch(count):
        found = layer(mine)
    (found * wish[rows])[:count].sum().backward()
    assert mine.grad is not None
    weight, bias = layer.weight.grad, layer.bias.grad
    assert weight is not None
    assert bias is not None
    # gathered where they belong, so that the sum over the ranks is the whole batch
    places = torch.zeros(2, 5, 4, 3, 3)
    places[0, rows[:count]] = found.detach()[:count]
    places[1, rows[:count]] = mine.grad[:count]
    assert not mine.grad[count:].any()
    torch.save(
        [ranks.sum(one) for one in (places, weight, bias)] + list(layer.buffers()),
        folder / f"{ranks.rank}.pt",
    )


@pytest.mark.parametrize("world", [2, 6])
def test_batch_norm_sees_the_whole_batch(world: int, tmp_path: Path) -> None:
    """Outputs, gradients and running statistics are torch's own on all pictures at once, also
    where a rank has no picture at all.
    """
    in_ranks(1, normalise_as, tmp_path / "alone")
    in_ranks(world, normalise_as, tmp_path / "together")
    expected = torch.load(tmp_path / "alone" / "0.pt")
    for rank in range(world):
        for one, other in zip(
            torch.load(tmp_path / "together" / f"{rank}.pt"), expected, strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_shares_are_equally_long_and_miss_nobody() -> None:
    """Every row counts once, and all ranks take as many pictures through the network."""
    for rows in (list(range(7)), [5], list(range(6))):
        shares = [Ranks(rank, 3).share(rows) for rank in range(3)]
        assert sorted(row for share, count in shares for row in share[:count]) == rows
        assert {len(share) for share, _ in shares} == {-(-len(rows) // 3)}
    assert ALONE.share([3, 1, 2]) == ([3, 1, 2], 3)


# --- what goes wrong in one of them ---


class Spoilt(nn.Module):
    """A network that answers NaN at its nth training batch, or is out of memory for so many."""

    def __init__(self, network: nn.Module, at: int = 0, room: int = 100) -> None:
        super().__init__()
        self.inner, self.at, self.room, self.seen = network, at, room, 0
        vars(self).update(_regraft=vars(network)["_regraft"])

    def get_classifier(self) -> nn.Module:
        """As timm does."""
        return head(self.inner)

    def forward(self, pictures: Tensor) -> Tensor:
        """Answer, or not."""
        if self.training and len(pictures) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen += self.training
        outputs: Tensor = self.inner(pictures)
        return outputs * (float("nan") if self.training and self.seen == self.at else 1.0)


def diverge_as(ranks: Ranks, cache: Path, folder: Path) -> None:
    """Train while rank 1 alone computes nonsense in the second epoch."""
    network = Spoilt(build(PLAN, NAMES), at=0 if ranks.leads else 6)
    with pytest.raises(Diverged) as caught:
        fit(network, PLAN, *examples(cache), folder, "cpu", ranks=ranks)
    (folder / f"{ranks.rank}.txt").write_text(str(caught.value))


def test_nonsense_in_one_process_ends_them_all(cache: Path, tmp_path: Path) -> None:
    """A NaN of one rank is the same error, with epoch and step, in every rank."""
    in_ranks(2, diverge_as, cache, tmp_path)
    said = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert len(said) == 1
    assert "epoch 2, step 2" in said.pop()


def squeeze_as(ranks: Ranks, cache: Path, folder: Path) -> None:
    """Train where three pictures fit, until it is known that two are to be taken at once."""
    plan = replace(PLAN, batch_norm="eval")
    network = Spoilt(build(plan, NAMES), room=3)
    with pytest.raises(SmallerParts) as caught:
        fit(network, plan, *examples(cache), folder / "first", "cpu", ranks=ranks)
    ranks = replace(ranks, micro_batch=caught.value.micro_batch)
    network = Spoilt(build(plan, NAMES), room=3)
    fitted = fit(network, plan, *examples(cache), folder / "second", "cpu", ranks=ranks)
    assert fitted.machine["micro_batch"] == 2
    if ranks.leads:
        save(network.inner, folder / "squeezed.safetensors", plan, NAMES)


def test_out_of_memory_splits_every_share(cache: Path, tmp_path: Path) -> None:
    """All begin anew with smaller parts, whose gradients add up to those of the plan's batch."""
    plan = replace(PLAN, batch_norm="eval")
    weights, _ = alone(plan, cache, tmp_path / "alone")
    in_ranks(2, squeeze_as, cache, tmp_path)
    theirs = load(tmp_path / "squeezed.safetensors").network.state_dict()
    moved = distance(weights, build(plan, NAMES).state_dict())
    assert distance(weights, theirs) < 1e-5 * moved


# --- processes of their own ---


def ranks_of(job: Path) -> dict[int, int]:
    """Process ids of the ranks that live and train in this folder."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if str(job).encode() in words and b"torch.distributed.run" not in words:
                told = dict(
                    one.partition(b"=")[::2]
                    for one in (process / "environ").read_bytes().split(b"\0")
                )
                found[int(told[b"RANK"])] = int(process.name)
        except (OSError, KeyError):
            continue  # it has just ended, or is only about to become a rank
    return found


def test_a_killed_rank_ends_the_run_which_goes_on_with_the_same_bits(
    cache: Path, tmp_path: Path
) -> None:
    """One clear line names the rank and its signal; run again, nothing shows that it was killed."""
    plan = replace(PLAN, epochs=4, warmup_epochs=1.0)
    job, heard = tmp_path / "job", list[Epoch]()

    def listen(epoch: Epoch) -> None:
        heard.append(epoch)
        if epoch.number == 2:
            os.kill(ranks_of(job)[1], signal.SIGKILL)

    def train(on_epoch: Callable[[Epoch], None], on_step: Callable[[int, int], None]) -> Any:
        network = build(plan, NAMES)
        return fit_by(
            2, network, plan, *examples(cache), cache, job, "cpu", on_epoch, on_step
        )

    with pytest.raises(BrokenOff, match=r"rank 1 was ended by SIGKILL") as caught:
        train(listen, lambda done, total: None)
    assert "\n" not in str(caught.value)
    assert ranks_of(job) == {}
    steps: list[tuple[int, int]] = []
    fitted = train(heard.append, lambda done, total: steps.append((done, total)))
    weights, epochs = together(2, plan, cache, tmp_path / "together")
    state = fitted.network.state_dict()
    assert [key for key in weights if not torch.equal(weights[key], state[key])] == []
    assert_alike(list(fitted.epochs), epochs, rel=1e-12)
    assert set(heard) == set(fitted.epochs)
    # the epoch in which the rank was killed is trained again, those before it are not
    assert steps == [(done, 16) for done in range(steps[0][0], 17)]
    assert steps[0][0] in (9, 13)
    assert fitted.machine["processes"] == 2


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ({"kind": "Diverged", "message": "epoch 2, step 3: the loss is nan"}, Diverged),
        ({"kind": "SmallerParts", "message": "out of memory", "micro_batch": 4}, SmallerParts),
        ({"kind": "KeyError", "message": "two\nlines"}, BrokenOff),
        (None, BrokenOff),
    ],
)
def test_what_a_rank_said_is_what_is_raised(
    word: dict[str, Any] | None, error: type[Exception], tmp_path: Path
) -> None:
    """The rank's own error if it is one of ours, else one line with the best reason there is."""
    (tmp_path / "processes.log").write_text("torchrun: error: no such thing\n")
    if word is not None:
        (tmp_path / "failed-1.json").write_text(json.dumps({"rank": 1, **word}))
    found = distributed._failure(tmp_path)
    assert type(found) is error
    assert "\n" not in str(found)
    reason = "no such thing" if word is None else word["message"].split()[0]
    assert reason in str(found)


def train_forever(cache: Path, job: Path) -> None:
    """Train until killed."""
    plan = replace(PLAN, epochs=10_000)
    fit_by(2, build(plan, NAMES), plan, *examples(cache), cache, job, "cpu")


def test_nobody_outlives_the_process_that_asked(cache: Path, tmp_path: Path) -> None:
    """Whoever started the ranks is killed with -9 in the middle, and they end too."""
    job = tmp_path / "job"
    context = multiprocessing.get_context("forkserver")
    asking = context.Process(target=train_forever, args=(cache, job))
    asking.start()
    until((job / "resume.safetensors").exists)
    assert set(ranks_of(job)) == {0, 1}
    asking.kill()
    asking.join()
    until(lambda: not ranks_of(job))


@pytest.mark.parametrize(("gigabytes", "expected"), [("1", 2), ("0.000001", 1)])
def test_a_night_trains_in_processes(
    gigabytes: str,
    expected: int,
    database: Database,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With REGRAFT_PROCESSES=2 the step ends with a trained version and all its epochs; it is
    trained by one where the pixel cache is too small, since ranks do not read S3.
    """
    import intakes
    import nights

    from records import versions
    from tasks import checkpoints, snapshot
    from tasks.training import train_version, write_candidate

    monkeypatch.setenv("REGRAFT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("REGRAFT_DEVICE", "cpu")
    monkeypatch.setenv("REGRAFT_PROCESSES", "2")
    monkeypatch.setenv("REGRAFT_CACHE_GIGABYTES", gigabytes)
    nights.tiny_library(tmp_path)
    intakes.take_in(database)
    plan = nights.TINY_PLAN
    run_id = intakes.begin(database)
    digest = snapshot.freeze_snapshot.fn(run_id, plan)
    candidate = write_candidate.fn(run_id, "nightly", digest, plan, None)
    train_version.fn(run_id, candidate)
    with database.transaction() as session:
        version = versions.get(session, candidate)
    assert version.state == "trained"
    rows = intakes.query(database, "SELECT number, train_loss FROM epochs ORDER BY number")
    assert [row.number for row in rows] == list(range(1, plan.epochs + 1))
    assert rows[-1].train_loss < rows[0].train_loss
    assert checkpoints.load(candidate).class_names == nights.CLASSES
    [machine] = intakes.query(database, "SELECT machine FROM versions")
    assert machine.machine["processes"] == expected
    assert list((tmp_path / "training").iterdir()) == []

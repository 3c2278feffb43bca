"""Networks by timm name: build, graft a fresh head, freeze, save and load.

The head is found by identity (`get_classifier`), its keys by looking up its own tensors, so that
no rule here depends on what an architecture calls its layers. A network remembers its class names
and normalisation, because a head without its ordered names is a random guess.
"""

import difflib
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models import group_parameters
from torch import Tensor, nn

from vision.memory import out_of_memory
from vision.plan import BadPlan, Plan

logger = logging.getLogger(__name__)

Colour = tuple[float, float, float]
Tensors = dict[str, Tensor]

# safetensors keeps its metadata in an unordered map: one entry, or equal networks get unequal bytes
METADATA_KEY = "regraft"
MEMORY = "_regraft"


class BadCheckpoint(ValueError):
    """Weights that must not be used; the message names the file or keys and the mend."""


@dataclass(frozen=True)
class Remembered:
    """What a network knows about itself beside its weights."""

    architecture: str
    class_names: tuple[str, ...]
    mean: Colour
    std: Colour
    input_size: tuple[int, int]  # height and width that the network is sure to take


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as loaded; the plan is resolved: mean and std are set."""

    network: nn.Module
    class_names: tuple[str, ...]
    plan: Plan


def build(plan: Plan, class_names: Sequence[str], weights: Path | None = None) -> nn.Module:
    """Create the plan's network with a fresh head, started from `plan.weights` if it names some.

    weights: the file on this machine that holds those, where `plan.weights` is no path of its own.
    The random start is a function of `plan.seed`. Raises `BadPlan` for an architecture or an
    argument that timm does not know, for a network that cannot answer the plan's pictures and for
    what needs a parent, `BadCheckpoint` for weights that do not fit.
    """
    if plan.recipe == "inherit":
        raise BadPlan("recipe='inherit': there is no parent whose head could be kept; train the "
                      "first version with recipe='all'")
    if plan.shrinks:
        raise BadPlan(f"shrink={plan.shrink:g}, perturb={plan.perturb:g}: there is no parent whose "
                      "weights could be changed; leave both out of the first version's plan")
    network = _create(plan, class_names, pretrained=plan.weights == "hub")
    _try_out(network, plan)
    if plan.weights is not None and plan.weights != "hub":
        try:
            tensors = safetensors.torch.load_file(weights or plan.weights)
        except (OSError, SafetensorError) as error:
            raise BadCheckpoint(f"weights={plan.weights}: not a readable safetensors file "
                                f"({error}); put a sound one there, or name another") from None
        _load_backbone(network, tensors, f"weights={plan.weights}")
    return network


def warm_start(parent: Loaded, plan: Plan, class_names: Sequence[str]) -> nn.Module:
    """Create the plan's network with the parent's backbone and a fresh head.

    The head is fresh also where the number of classes happens to be the same, but for recipe
    `inherit`: there the parent's rows are kept for classes of the same name. Weights that come
    from the parent are shrunk and perturbed if the plan says so, running statistics are not. Where
    the plan gives no mean and std, or leaves the network open, the parent's apply. Raises `BadPlan`
    if the plan describes another network than the parent's or one that cannot answer its pictures,
    or keeps rows of which there are none, `BadCheckpoint` if more or less than the head's own
    tensors is new.
    """
    if plan.recipe == "scratch":
        raise BadPlan("recipe='scratch': it starts at random; leave the parent out")
    plan = plan.settled(parent.plan)
    if plan.architecture != parent.plan.architecture:
        raise BadPlan(f"architecture={plan.architecture!r}: the parent is "
                      f"{parent.plan.architecture}; use that, or recipe='scratch'")
    if plan.arguments != parent.plan.arguments:
        raise BadPlan(f"arguments={plan.arguments!r}: the parent was built with "
                      f"{parent.plan.arguments!r}; use those, or recipe='scratch'")
    network = _create(plan, class_names, pretrained=False)
    _try_out(network, plan)
    theirs: Tensors = parent.network.state_dict()
    if plan.recipe == "inherit":
        _inherit_rows(network, theirs, parent.class_names, plan)
    if plan.shrinks:
        theirs = _shrunk_backbone(theirs, network, plan)
    _load_backbone(network, theirs, "the parent")
    if plan.mean is None:
        before = _remembered(parent.network)
        _remember(network, replace(_remembered(network), mean=before.mean, std=before.std))
    return network


def inherited(plan: Plan, before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Return the classes whose rows of the head a child keeps, in the order of its outputs."""
    known = set(before) if plan.recipe == "inherit" else set()
    return [name for name in now if name in known]


def graft(
    network: nn.Module, class_names: Sequence[str], dropout: float, seed: int = 0
) -> nn.Module:
    """Replace the head, in place, by a fresh one for these classes; returns the network."""
    names = _checked(class_names)
    device = next(network.parameters()).device
    with _seeded(seed):
        _fresh_head(network, len(names))
    network.to(device)
    if isinstance(getattr(network, "drop_rate", None), float):
        network.drop_rate = dropout  # type: ignore[assignment]
    for module in head_dropouts(network):
        module.p = dropout
    _remember(network, replace(_remembered(network), class_names=names))
    return network


def distances(network: nn.Module) -> dict[nn.Parameter, int]:
    """How many blocks follow each parameter of the backbone: 0 in the last, most in the stem."""
    found = blocks(network)
    of_head = set(head(network).parameters())
    behind = {
        parameter: len(found) - 1 - index
        for index, block in enumerate(found) for parameter in block
    }
    return {
        parameter: behind.get(parameter, len(found))
        for parameter in network.parameters() if parameter not in of_head
    }


def head(network: nn.Module) -> nn.Module:
    """Return the layer that gives one number per class; raises `BadPlan` where there is not one."""
    found = network.get_classifier()  # type: ignore[operator]
    if not isinstance(found, nn.Module) or not list(found.parameters()):
        raise BadPlan(f"architecture={_name(network)!r}: it has no single classifier layer; "
                      "use another architecture")
    return found


def head_keys(network: nn.Module) -> set[str]:
    """Names of the head's own tensors in the network's state dict."""
    own = {id(tensor) for tensor in head(network).state_dict(keep_vars=True).values()}
    return {
        key for key, tensor in network.state_dict(keep_vars=True).items() if id(tensor) in own
    }


def head_dropouts(network: nn.Module) -> list[nn.Dropout]:
    """Return the dropout layers that belong to the head and not to the backbone."""
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Dropout) and name.split(".")[0] in ("head", "head_drop")
    ]


def head_dropout(network: nn.Module) -> float:
    """Share of the features that are dropped before the head in training, 0 to 1."""
    layers = head_dropouts(network)
    rate = layers[-1].p if layers else getattr(network, "drop_rate", 0.0)
    return float(rate) if isinstance(rate, int | float) else 0.0


def class_names_of(network: nn.Module) -> tuple[str, ...]:
    """Class names in the order of the network's outputs."""
    return _remembered(network).class_names


def normalisation(network: nn.Module, plan: Plan) -> tuple[Colour, Colour]:
    """Mean and std per colour, for pixels in 0 to 1: the plan's, else the network's own."""
    if plan.mean is not None and plan.std is not None:
        return plan.mean, plan.std
    remembered = _remembered(network)
    return remembered.mean, remembered.std


def blocks(network: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of each block in forward order, by timm's own grouping; stem and head left out.

    What lies behind the last block and is not the head (a last norm or convolution) is counted to
    the last block, since it adapts with it.
    """
    groups = group_parameters(network, network.group_matcher(coarse=False))  # type: ignore[operator]
    of_head = head_keys(network)
    parameters = dict(network.named_parameters())
    found: list[list[nn.Parameter]] = []
    for names in groups.values():
        kept = [parameters[name] for name in names if name not in of_head]
        if len(kept) < len(names) and found:
            found[-1].extend(kept)
        elif kept:
            found.append(kept)
    return found[1:]


def freeze_backbone(network: nn.Module) -> None:
    """Let nothing but the head learn."""
    network.requires_grad_(False)
    head(network).requires_grad_(True)


def freeze_all_but(network: nn.Module, last_blocks: int) -> None:
    """Let the head and the last so many blocks learn; raises `BadPlan` for none or too many."""
    found = blocks(network)
    if not 1 <= last_blocks <= len(found):
        raise BadPlan(f"unfreeze={last_blocks}: {_name(network)} has {len(found)} blocks; "
                      f"use 1 to {len(found)}")
    freeze_backbone(network)
    for block in found[len(found) - last_blocks:]:
        for parameter in block:
            parameter.requires_grad_(True)


def target_layer(network: nn.Module) -> nn.Module:
    """Return the layer whose map is explained: the last one that still knows where things are.

    It is found by running the backbone once on an empty picture: the module that finishes last
    with a map of more than one place. For networks of tokens it is the first norm of the last
    block, because behind the last attention only the class token matters. Raises `BadPlan` where
    the network has neither.
    """
    tokens = getattr(network, "blocks", None)
    if hasattr(network, "num_prefix_tokens") and tokens is not None and len(tokens) > 0:
        layer = getattr(tokens[-1], "norm1", None)
        if isinstance(layer, nn.Module):
            return layer
    finished: list[nn.Module] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[1:3]) > 1:
            finished.append(module)

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        with _evaluating(network), torch.no_grad():
            first = next(network.parameters())
            size = _remembered(network).input_size
            picture = torch.zeros(1, 3, *size, device=first.device, dtype=first.dtype)
            network.forward_features(picture)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    if not finished:
        raise BadPlan(f"architecture={_name(network)!r}: no layer keeps a map of the picture, so "
                      "Grad-CAM has nothing to show; use a convolutional network")
    layer = finished[-1]
    while isinstance(layer, nn.Sequential):  # its last member has the same output and a name
        layer = layer[-1]
    return layer


def save(network: nn.Module, path: Path, plan: Plan, class_names: Sequence[str]) -> str:
    """Write a checkpoint with all that is needed to use it; returns the sha256 of its bytes.

    Equal weights, plan and names give equal bytes. The file appears complete or not at all.
    Raises `BadCheckpoint` for weights that are not finite or names that are not the network's,
    `BadPlan` for a plan that leaves the network open.
    """
    names = _checked(class_names)
    if names != class_names_of(network):
        raise BadCheckpoint("class_names are not the network's own, in its order: use "
                            "class_names_of(network)")
    if plan.architecture is None:
        raise BadPlan(f"architecture=None: the network is {_name(network)}; save it with "
                      "plan.settled(the parent's plan)")
    mean, std = normalisation(network, plan)
    tensors = {}
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadCheckpoint(f"{key} holds NaN or infinite weights: such a network is not saved")
        # copied, because tensors that share memory are refused by the format
        tensors[key] = tensor.detach().to("cpu", copy=True).contiguous()
    facts = {
        "class_names": list(names),
        "class_names_sha256": _names_digest(names),
        "architecture": plan.architecture,
        "arguments": plan.arguments,
        "image_size": plan.image_size,
        "crop": plan.crop,
        "interpolation": plan.interpolation,
        "mean": list(mean),
        "std": list(std),
        "plan": plan.to_dict(),
    }
    return write_tensors(path, tensors, facts)


def load(path: Path, digest: str | None = None) -> Loaded:
    """Read a checkpoint written by `save`, refusing any whose bytes are not those of `digest`.

    Raises `BadCheckpoint` for a wrong digest, damaged bytes, class names that do not match their
    hash, or keys that do not fit; `BadPlan` for an architecture this timm does not know.
    """
    body = path.read_bytes()
    found = hashlib.sha256(body).hexdigest()
    if digest is not None and found != digest:
        raise BadCheckpoint(f"{path}: its sha256 is {found}, not {digest}; fetch it again")
    tensors, facts = read_tensors(body, str(path))
    try:
        class_names = tuple(facts["class_names"])
        hashed = facts["class_names_sha256"]
        plan = replace(
            Plan.from_dict(facts["plan"]), mean=tuple(facts["mean"]), std=tuple(facts["std"])
        )
    except (KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path}: no regraft checkpoint ({error}); "
                            "use it as weights instead") from None
    if _names_digest(class_names) != hashed:
        raise BadCheckpoint(f"{path}: its class names do not match their hash; fetch it again")
    network = _create(plan, class_names, pretrained=False)
    _load_exactly(network, tensors, str(path), set(network.state_dict()))
    return Loaded(network.eval(), class_names, plan)


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """Write safetensors aside, sync and rename; returns the sha256 of the bytes."""
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    body = safetensors.torch.save(tensors, metadata={METADATA_KEY: text})
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.aside")
    try:
        with aside.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the new name must outlive a power loss too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return hashlib.sha256(body).hexdigest()


def read_tensors(body: bytes, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of `write_tensors`; raises `BadCheckpoint` naming `what`."""
    try:
        tensors = safetensors.torch.load(body)
        (length,) = struct.unpack("<Q", body[:8])
        header = json.loads(body[8:8 + length])
        facts = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
    except (SafetensorError, struct.error, ValueError) as error:
        raise BadCheckpoint(f"{what}: damaged safetensors ({error}); fetch it again") from None
    return tensors, facts


def _create(plan: Plan, class_names: Sequence[str], pretrained: bool) -> nn.Module:
    names = _checked(class_names)
    if not timm.is_model(plan.timm_name):
        raise BadPlan(f"architecture={plan.timm_name!r}: timm {timm.__version__} does not know "
                      f"it{_nearest(plan.timm_name)}")
    arguments = {"drop_rate": plan.dropout, **plan.arguments}
    settings = timm.get_pretrained_cfg(plan.timm_name)
    if settings is not None and settings.fixed_input_size:
        arguments.setdefault("img_size", plan.image_size)
    with _seeded(plan.seed):
        network = _timm_create(plan, arguments, len(names), pretrained)
        _fresh_head(network, len(names))
    own: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    mean, std = plan.mean or _three(own["mean"]), plan.std or _three(own["std"])
    # networks of a fixed size take the plan's pictures only, all others those they were made for
    square = arguments.get("img_size")
    input_size = (square, square) if isinstance(square, int) else tuple(own["input_size"][1:])
    _remember(network, Remembered(plan.timm_name, names, mean, std, input_size))
    return network


def _fresh_head(network: nn.Module, classes: int) -> None:
    """Put in a new head that first gives every class nearly the same share.

    Some architectures start theirs so large for few classes (EfficientNet: one by the root of the
    number of classes) that the first loss is ten times chance, and its gradients spoil the
    backbone before the head has learned anything.
    """
    network.reset_classifier(classes)  # type: ignore[operator]
    layer = head(network)
    for name, parameter in layer.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(parameter, std=0.01)
        else:
            nn.init.zeros_(parameter)


def _timm_create(
    plan: Plan, arguments: dict[str, Any], classes: int, pretrained: bool
) -> nn.Module:
    try:
        network = timm.create_model(
            plan.timm_name, pretrained=pretrained, num_classes=classes, **arguments
        )
    except TypeError as error:
        if "drop_rate" in str(error) and "drop_rate" in arguments:
            logger.warning("%s has no dropout of its own: dropout=%g is left out",
                           plan.timm_name, plan.dropout)
            rest = {key: value for key, value in arguments.items() if key != "drop_rate"}
            return _timm_create(plan, rest, classes, pretrained)
        raise BadPlan(f"arguments={plan.arguments!r}: {plan.timm_name} does not take them "
                      f"({error})") from None
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadCheckpoint(f"weights='hub': no weights for {plan.timm_name} could be had "
                            f"({line}); give a safetensors file") from None
    if not isinstance(network, nn.Module):
        raise BadPlan(f"architecture={plan.timm_name!r}: timm made no network of it")
    return network


def _try_out(network: nn.Module, plan: Plan) -> None:
    """Raise `BadPlan` unless it answers a picture: timm checks arguments only when they are used.

    Not all of them agree with each other, with the image size and with a single classifier. What
    finds no memory is left to training, which knows what to do about it.
    """
    classes = len(class_names_of(network))
    try:
        with _evaluating(network), torch.no_grad():
            shape = tuple(network(torch.zeros(1, 3, plan.image_size, plan.image_size)).shape)
        problem = None if shape == (1, classes) else f"it gives numbers of shape {shape}"
    except Exception as error:  # whatever a layer says of what it is given
        if out_of_memory(error):
            return
        problem = " ".join(f"{type(error).__name__}: {error}".split())
    if problem:
        raise BadPlan(f"{plan.architecture} with arguments={plan.arguments!r} and image_size="
                      f"{plan.image_size} cannot tell {classes} classes ({problem}); change one "
                      "of the three")


def _shrunk(theirs: Tensor, fresh: Tensor, plan: Plan) -> Tensor:
    """The parent's weights pulled towards a fresh start (Ash & Adams 2020), the head's too."""
    return theirs.to(fresh) * plan.shrink + fresh.detach() * plan.perturb


def _shrunk_backbone(theirs: Mapping[str, Tensor], network: nn.Module, plan: Plan) -> Tensors:
    """The parent's tensors, its backbone's weights shrunk; other shapes are refused at loading."""
    of_head = head_keys(network)
    learned = {key: one for key, one in network.named_parameters() if key not in of_head}
    return {
        key: _shrunk(tensor, learned[key], plan)
        if key in learned and learned[key].shape == tensor.shape else tensor
        for key, tensor in theirs.items()
    }


def _inherit_rows(
    network: nn.Module, theirs: Mapping[str, Tensor], before: Sequence[str], plan: Plan
) -> None:
    """Put the parent's rows of the head where this network has the classes of the same names."""
    now = class_names_of(network)
    kept = inherited(plan, before, now)
    if not kept:
        raise BadPlan(f"recipe='inherit': the parent knows none of these {len(now)} classes; use "
                      "recipe='all'")
    mine = torch.tensor([now.index(name) for name in kept])
    old = torch.tensor([list(before).index(name) for name in kept])
    own = network.state_dict()
    for key in sorted(head_keys(network)):
        rows, parents = own[key], theirs.get(key)
        if parents is None or len(parents) != len(before) or parents.shape[1:] != rows.shape[1:]:
            raise BadCheckpoint(f"the parent has no row for each of its classes in {key}: use "
                                "recipe='all'")
        rows[mine] = _shrunk(parents[old], rows[mine], plan)


def _load_backbone(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load all but the head; afterwards exactly the head's own tensors are new."""
    new = head_keys(network)
    _load_exactly(
        network,
        {key: tensor for key, tensor in tensors.items() if key not in new},
        what,
        set(network.state_dict()) - new,
    )


def _load_exactly(
    network: nn.Module, tensors: Mapping[str, Tensor], what: str, wished: set[str]
) -> None:
    own = network.state_dict()
    # a counter that some libraries do not write; eval mode never reads it
    missing = {
        key for key in wished - set(tensors) if not key.endswith("num_batches_tracked")
    }
    unexpected = set(tensors) - wished
    name = _name(network)
    if missing:
        raise BadCheckpoint(f"{what} lacks {_some(missing)} of {name}: use weights of the same "
                            "architecture and arguments")
    if unexpected:
        raise BadCheckpoint(f"{what} has {_some(unexpected)}, which {name} does not: use weights "
                            "of the same architecture and arguments")
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise BadCheckpoint(f"{what} has {key} of shape {tuple(tensor.shape)}, {name} needs "
                                f"{tuple(own[key].shape)}: use the same architecture, arguments "
                                "and image size")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadCheckpoint(f"{what} has NaN or infinite weights in {key}: use another")
    network.load_state_dict(dict(tensors), strict=False)


def _checked(class_names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(class_names)
    if isinstance(class_names, str) or len(names) < 2 or not all(
        isinstance(name, str) and name for name in names
    ):
        raise BadPlan(f"class_names={class_names!r}: use two or more names")
    if len(set(names)) != len(names):
        raise BadPlan(f"class_names={names!r}: use each name once")
    return names


def _names_digest(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def _remember(network: nn.Module, facts: Remembered) -> None:
    # not through nn.Module's own __setattr__, which is for weights and layers
    vars(network)[MEMORY] = facts


def _remembered(network: nn.Module) -> Remembered:
    facts = vars(network).get(MEMORY)
    if not isinstance(facts, Remembered):
        raise BadCheckpoint("the network has no class names: make it with build, warm_start or "
                            "load")
    return facts


def _name(network: nn.Module) -> str:
    facts = vars(network).get(MEMORY)
    return facts.architecture if isinstance(facts, Remembered) else type(network).__name__


def _three(values: Sequence[float]) -> Colour:
    red, green, blue = values
    return (float(red), float(green), float(blue))


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.6)
    return f"; near are {', '.join(near)}" if near else "; see timm.list_models()"


def _some(keys: set[str]) -> str:
    listed = sorted(keys)
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(listed[:4]) + more


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw the random start from this seed and leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

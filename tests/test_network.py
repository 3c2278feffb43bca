"""Networks by name: the right layers, fresh heads by class name, and checkpoints to rely on."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from vision.network import (
    BadCheckpoint,
    Loaded,
    blocks,
    build,
    class_names_of,
    distances,
    freeze_all_but,
    freeze_backbone,
    graft,
    head,
    head_dropouts,
    head_keys,
    load,
    normalisation,
    read_tensors,
    save,
    target_layer,
    warm_start,
    write_tensors,
)
from vision.plan import LATER, BadPlan, Plan

NAMES = ("cat", "dog", "emu")
TINY = Plan(architecture="test_efficientnet", image_size=64)
REAL_WEIGHTS = (
    Path(__file__).parents[2]
    / "shared/data/weights/mobilenetv2_100_coral_dequant.timm.safetensors"
)


def name_of(network: nn.Module, layer: nn.Module) -> str:
    """Return the layer's name inside the network."""
    return str(next(name for name, module in network.named_modules() if module is layer))


def head_weight(network: nn.Module) -> Tensor:
    """Return the head's weight, [classes, features]."""
    weight = head(network).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def changed(network: nn.Module, amount: float) -> nn.Module:
    """Move every weight and statistic, as training would."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(amount)
    return network


@pytest.mark.parametrize(
    ("architecture", "head_name", "target", "count"),
    [
        ("resnet50", "fc", "layer4.2", 16),
        ("inception_v4", "last_linear", "features.21", 19),
        ("mobilenetv2_100", "classifier", "bn2", 17),
        ("efficientnet_b0", "classifier", "bn2", 16),
        ("vit_tiny_patch16_224", "head", "blocks.11.norm1", 12),
        ("densenet121", "classifier", "features.norm5", 58),
    ],
)
def test_each_named_architecture_has_its_head_target_and_warm_start(
    architecture: str, head_name: str, target: str, count: int
) -> None:
    """The networks of the bake-off, a ViT and a DenseNet run, explain, freeze and hand on."""
    plan = Plan(architecture=architecture, image_size=96, dropout=0.4)
    parent = changed(build(plan, NAMES), 1e-3)
    assert name_of(parent, head(parent)) == head_name
    assert head_keys(parent) == {f"{head_name}.weight", f"{head_name}.bias"}
    assert name_of(parent, target_layer(parent)) == target
    assert len(blocks(parent)) == count
    child = warm_start(Loaded(parent, NAMES, plan), plan, ("gnu", "cat", "dog"))
    before, after = parent.state_dict(), child.state_dict()
    new = {key for key in before if not torch.equal(before[key], after[key])}
    assert new == head_keys(child)
    with torch.inference_mode():
        outputs = child.eval()(torch.zeros(1, 3, 96, 96))
    assert outputs.shape == (1, 3)
    assert outputs.isfinite().all()


@pytest.mark.parametrize(
    ("architecture", "target"),
    [
        ("test_resnet", "layer4.0"),
        ("test_efficientnet", "bn2"),
        ("test_convnext", "norm_pre"),
        ("test_byobnet", "final_conv"),
        ("test_nfnet", "final_act"),
        ("test_maxvit", "norm"),
        ("test_vit", "blocks.5.norm1"),
    ],
)
def test_any_other_architecture_has_a_target_layer_too(architecture: str, target: str) -> None:
    """The last layer that knows places is found by running, and nothing is changed by that."""
    network = build(Plan(architecture=architecture, image_size=96), NAMES).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert name_of(network, target_layer(network)).startswith(target)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def test_the_same_number_of_other_classes_gets_a_fresh_head() -> None:
    """Two classes swapped for two others: nothing of the old head is left."""
    parent = build(TINY, NAMES)
    head_weight(parent).fill_(7.0)
    child = warm_start(Loaded(parent, NAMES, TINY), TINY, ("gnu", "yak", "elk"))
    assert class_names_of(child) == ("gnu", "yak", "elk")
    assert float(head_weight(child).abs().max()) < 1
    graft(parent, ("gnu", "yak", "elk"), dropout=0.1)
    assert float(head_weight(parent).abs().max()) < 1
    assert class_names_of(parent) == ("gnu", "yak", "elk")


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_vit", "test_byobnet"])
def test_known_classes_keep_their_rows_by_name(architecture: str) -> None:
    """With inherit, rows follow their class to its new place; new ones are fresh, old ones gone."""
    plan = Plan(architecture=architecture, image_size=96, recipe="inherit")
    parent = changed(build(replace(plan, recipe="all"), NAMES), 0.5)
    child = warm_start(Loaded(parent, NAMES, plan), plan, ("ant", "emu", "cat"))
    theirs = parent.state_dict()
    for key, rows in child.state_dict().items():
        if key not in head_keys(child):
            assert torch.equal(rows, theirs[key])
            continue
        assert torch.equal(rows[1], theirs[key][2])  # emu
        assert torch.equal(rows[2], theirs[key][0])  # cat
        assert float(rows[0].abs().max()) < 0.1  # ant, as every fresh head starts
    assert class_names_of(child) == ("ant", "emu", "cat")


def test_what_cannot_be_inherited_is_refused() -> None:
    """No parent, or one that knows none of the classes: the message names the mend."""
    inherit = replace(TINY, recipe="inherit")
    with pytest.raises(BadPlan, match="no parent whose head could be kept; train the first"):
        build(inherit, NAMES)
    with pytest.raises(BadPlan, match="no parent whose weights could be changed; leave both out"):
        build(replace(TINY, shrink=0.5), NAMES)
    parent = Loaded(build(TINY, NAMES), NAMES, TINY)
    with pytest.raises(BadPlan, match="knows none of these 2 classes; use recipe='all'"):
        warm_start(parent, inherit, ("gnu", "yak"))


@pytest.mark.parametrize("recipe", ["all", "inherit"])
def test_a_parent_is_shrunk_and_perturbed_as_the_plan_says(recipe: str) -> None:
    """Every weight is shrink times the parent's plus perturb times a fresh start by the seed."""
    plan = replace(TINY, recipe=recipe, shrink=0.5, perturb=0.1, seed=4)  # type: ignore[arg-type]
    parent = changed(build(replace(TINY, seed=9), NAMES), 0.2)
    child = warm_start(Loaded(parent, NAMES, TINY), plan, NAMES)
    fresh = build(replace(TINY, seed=4), NAMES)
    learned = dict(fresh.named_parameters())
    theirs = parent.state_dict()
    for key, tensor in child.state_dict().items():
        if recipe == "all" and key in head_keys(child):
            assert torch.equal(tensor, learned[key])
        elif key in learned:
            assert torch.allclose(tensor, 0.5 * theirs[key] + 0.1 * learned[key].detach())
        else:  # running statistics stay the parent's
            assert torch.equal(tensor, theirs[key])


def test_distances_count_the_blocks_behind() -> None:
    """0 in the last block and what follows it, one more for each block before, most in the stem."""
    network = build(Plan(image_size=64), NAMES)
    found = distances(network)
    named = {name: found[one] for name, one in network.named_parameters() if one in found}
    assert named["conv_head.weight"] == named["blocks.6.0.conv_pw.weight"] == 0
    assert named["blocks.5.2.conv_pw.weight"] == 1
    assert named["blocks.0.0.conv_dw.weight"] == 16
    assert named["conv_stem.weight"] == named["bn1.weight"] == 17
    assert set(dict(network.named_parameters())) - set(named) == head_keys(network)


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_vit", "test_convnext"])
def test_dropout_is_the_plans_after_building_and_after_grafting(architecture: str) -> None:
    """The head's dropout is set through timm and set again on a graft."""

    def rates(network: nn.Module) -> set[float]:
        found = {module.p for module in head_dropouts(network)}
        rate = getattr(network, "drop_rate", None)
        return found | ({rate} if isinstance(rate, float) else set())

    network = build(Plan(architecture=architecture, image_size=64, dropout=0.35), NAMES)
    assert rates(network) == {0.35}
    assert rates(graft(network, ("a", "b"), dropout=0.15)) == {0.15}
    again = warm_start(
        Loaded(network, ("a", "b"), Plan(architecture=architecture, image_size=64)),
        Plan(architecture=architecture, image_size=64, dropout=0.25), NAMES,
    )
    assert rates(again) == {0.25}


def test_a_fresh_head_gives_every_class_nearly_the_same_share() -> None:
    """The first loss is that of chance, so the backbone is not torn by its gradients."""
    network = build(Plan(architecture="mobilenetv2_100", image_size=64), NAMES).eval()
    noise = torch.rand((4, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        shares = network(noise).softmax(dim=1)
    assert float((shares - 1 / 3).abs().max()) < 0.25


def test_the_random_start_is_the_seeds() -> None:
    """Same seed, same weights, and the caller's generator is left as it was."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = build(TINY, NAMES), build(TINY, NAMES)
    assert torch.equal(torch.rand(1), expected)
    other = build(replace(TINY, seed=1), NAMES)
    same = [torch.equal(a, b) for a, b in zip(
        first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(head_weight(first), head_weight(other))


def test_freezing_keeps_the_last_blocks_and_the_head() -> None:
    """Only the last blocks, what follows them, and the head can learn."""
    network = build(TINY, NAMES)
    freeze_backbone(network)
    learning = {name for name, one in network.named_parameters() if one.requires_grad}
    assert learning == head_keys(network)
    freeze_all_but(network, 1)
    learning = {name for name, one in network.named_parameters() if one.requires_grad}
    assert learning > head_keys(network)
    assert any(name.startswith("blocks.4") for name in learning)
    assert any(name.startswith("conv_head") for name in learning)
    assert not any(name.startswith(("blocks.3", "conv_stem")) for name in learning)


@pytest.mark.parametrize("count", [0, 18, -1])
def test_a_wrong_number_of_blocks_names_the_right_ones(count: int) -> None:
    """More blocks than there are, or none, is refused with the number there are."""
    network = build(Plan(image_size=64), NAMES)
    with pytest.raises(BadPlan, match=f"unfreeze={count}: mobilenetv2_100 has 17 blocks; use 1 "):
        freeze_all_but(network, count)


def test_unknown_architectures_and_arguments_are_refused_by_name() -> None:
    """A misspelt network is answered with near names, an argument with its own."""
    with pytest.raises(BadPlan, match="mobilenetv2_100"):
        build(Plan(architecture="mobilenetv2_10"), NAMES)
    with pytest.raises(BadPlan, match="pad_typ"):
        build(Plan(architecture="test_resnet", arguments={"pad_typ": "same"}), NAMES)
    with pytest.raises(BadPlan, match="single classifier"):
        build(Plan(architecture="levit_128s", image_size=224), NAMES)
    for architecture, arguments, size in (
        ("test_resnet", {"global_pool": ""}, 64),
        ("test_efficientnet", {"global_pool": ""}, 64),
        ("vit_tiny_patch16_224", {"img_size": 96}, 64),
        ("inception_v4", {}, 32),
    ):
        plan = Plan(architecture=architecture, arguments=arguments, image_size=size)
        with pytest.raises(BadPlan, match=f"{architecture} with .* cannot tell 3 classes") as told:
            build(plan, NAMES)
        assert "\n" not in str(told.value)
    for names in (("cat",), ("cat", "cat"), ("cat", ""), "cat"):
        with pytest.raises(BadPlan, match="class_names"):
            build(TINY, names)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """Weights, names, plan and normalisation survive; equal networks give equal bytes."""
    plan = replace(TINY, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    network = changed(build(plan, NAMES), 0.01).eval()
    path = tmp_path / "folder" / "one.safetensors"
    digest = save(network, path, plan, NAMES)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    last = network.to(memory_format=torch.channels_last)
    assert save(last, tmp_path / "two.safetensors", plan, NAMES) == digest
    found = load(path, digest)
    assert found.class_names == NAMES == class_names_of(found.network)
    assert found.plan == plan
    assert normalisation(found.network, TINY) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    picture = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(found.network(picture), network(picture), atol=1e-6)
    assert sorted(one.name for one in tmp_path.rglob("*.*")) == [
        "one.safetensors", "two.safetensors"
    ]


def test_a_checkpoint_remembers_the_networks_own_normalisation(tmp_path: Path) -> None:
    """A plan that leaves mean and std open is stored and loaded with them resolved."""
    digest = save(build(TINY, NAMES), tmp_path / "one.safetensors", TINY, NAMES)
    found = load(tmp_path / "one.safetensors", digest)
    own = timm.get_pretrained_cfg("test_efficientnet")
    assert own is not None
    assert (found.plan.mean, found.plan.std) == (own.mean, own.std)
    parent = Loaded(found.network, NAMES, replace(found.plan, mean=(0.1,) * 3, std=(0.2,) * 3))
    assert normalisation(warm_start(parent, TINY, NAMES), TINY) == normalisation(
        found.network, TINY
    )


def test_damaged_bytes_are_never_loaded(tmp_path: Path) -> None:
    """One flipped bit, a cut file or other class names are refused, each by its own sentence."""
    path = tmp_path / "one.safetensors"
    digest = save(build(TINY, NAMES), path, TINY, NAMES)
    body = bytearray(path.read_bytes())
    flipped = bytearray(body)
    flipped[-5] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(BadCheckpoint, match="sha256"):
        load(path, digest)
    path.write_bytes(body[: len(body) // 2])
    with pytest.raises(BadCheckpoint, match="damaged"):
        load(path)
    path.write_bytes(bytes(body).replace(b'\\"emu\\"', b'\\"gnu\\"'))
    with pytest.raises(BadCheckpoint, match="class names"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(BadCheckpoint, match="damaged"):
        load(path)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
    with pytest.raises(BadCheckpoint, match="no regraft checkpoint"):
        load(path)


def test_a_checkpoint_that_lacks_weights_is_not_loaded(tmp_path: Path) -> None:
    """Missing keys are named, though the file is whole and has the digest that is asked for."""
    path = tmp_path / "one.safetensors"
    save(build(TINY, NAMES), path, TINY, NAMES)
    tensors, facts = read_tensors(path.read_bytes(), "it")
    for key in ("bn1.weight", "classifier.bias"):
        del tensors[key]
    digest = write_tensors(path, tensors, facts)
    with pytest.raises(BadCheckpoint, match=r"lacks bn1\.weight, classifier\.bias of test_eff"):
        load(path, digest)


def test_a_checkpoint_of_before_is_still_loaded(tmp_path: Path) -> None:
    """One whose plan lacks the fields that came later has their defaults."""
    path = tmp_path / "one.safetensors"
    save(build(TINY, NAMES), path, TINY, NAMES)
    tensors, facts = read_tensors(path.read_bytes(), "it")
    facts["plan"] = {name: one for name, one in facts["plan"].items() if name not in LATER}
    found = load(path, write_tensors(path, tensors, facts))
    assert replace(found.plan, mean=None, std=None) == TINY


def test_nothing_unsound_is_saved(tmp_path: Path) -> None:
    """NaN weights and foreign class names never become a file."""
    network = build(TINY, NAMES)
    with pytest.raises(BadCheckpoint, match="class_names"):
        save(network, tmp_path / "one.safetensors", TINY, NAMES[::-1])
    changed(network, float("nan"))
    with pytest.raises(BadCheckpoint, match="NaN"):
        save(network, tmp_path / "one.safetensors", TINY, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_weights_start_the_backbone_whatever_head_they_have(tmp_path: Path) -> None:
    """A file with another head, or none, gives its backbone; a lacking backbone is refused."""
    path = tmp_path / "weights.safetensors"
    source = changed(build(TINY, ("a", "b", "c", "d", "e")), 1e-3)
    own = head_keys(source)
    whole = {key: value.clone() for key, value in source.state_dict().items()}
    plan = replace(TINY, weights=str(path))
    for kept in (whole, {key: value for key, value in whole.items() if key not in own}):
        safetensors.torch.save_file(kept, path)
        network = build(plan, NAMES)
        assert all(
            torch.equal(value, whole[key])
            for key, value in network.state_dict().items() if key not in own
        )
        assert head_weight(network).shape[0] == 3
    safetensors.torch.save_file({key: whole[key] for key in list(whole)[3:]}, path)
    with pytest.raises(BadCheckpoint, match=r"lacks .*conv_stem\.weight"):
        build(plan, NAMES)
    safetensors.torch.save_file({**whole, "extra": torch.zeros(1)}, path)
    with pytest.raises(BadCheckpoint, match="has extra"):
        build(plan, NAMES)
    safetensors.torch.save_file({**whole, "bn1.bias": torch.zeros(3)}, path)
    with pytest.raises(BadCheckpoint, match=r"bn1\.bias of shape"):
        build(plan, NAMES)
    safetensors.torch.save_file({**whole, "bn1.bias": whole["bn1.bias"] * float("nan")}, path)
    with pytest.raises(BadCheckpoint, match=r"NaN or infinite weights in bn1\.bias: use another"):
        build(plan, NAMES)
    path.write_text("<html>")
    with pytest.raises(BadCheckpoint, match="not a readable"):
        build(plan, NAMES)
    with pytest.raises(BadCheckpoint, match=r"nowhere\.safetensors"):
        build(replace(TINY, weights="/nowhere.safetensors"), NAMES)


def test_a_parent_of_another_kind_is_refused() -> None:
    """Another architecture, other arguments or a scratch recipe take no parent."""
    parent = Loaded(build(TINY, NAMES), NAMES, TINY)
    with pytest.raises(BadPlan, match="test_resnet"):
        warm_start(parent, replace(TINY, architecture="test_resnet"), NAMES)
    with pytest.raises(BadPlan, match="arguments"):
        warm_start(parent, replace(TINY, arguments={"pad_type": "same"}), NAMES)
    with pytest.raises(BadPlan, match="scratch"):
        warm_start(parent, replace(TINY, recipe="scratch"), NAMES)


def test_real_weights_fit() -> None:
    """ImageNet weights of a network with 1,000 classes start one with three."""
    if not REAL_WEIGHTS.exists():
        pytest.skip("no ImageNet weights beside the checkout")
    plan = Plan(arguments={"pad_type": "same"}, weights=str(REAL_WEIGHTS), image_size=64)
    stored = safetensors.torch.load_file(REAL_WEIGHTS)
    network = build(plan, NAMES)
    assert torch.equal(network.state_dict()["conv_stem.weight"], stored["conv_stem.weight"])
    with pytest.raises(BadCheckpoint, match="efficientnet_b0"):
        build(replace(plan, architecture="efficientnet_b0"), NAMES)

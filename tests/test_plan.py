"""Plans are checked when written, and have one digest however they were spelled."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from flows.run import Asked
from vision.plan import ARCHITECTURE, LATER, Augmentation, BadPlan, Geometry, Plan, Way


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, ["epochs=0", "1 to"]),
        ({"epochs": True}, ["epochs=True"]),
        ({"epochs": 3.0}, ["epochs=3.0", "whole"]),
        ({"learning_rate": "0.9"}, ["learning_rate='0.9'", "number"]),
        ({"learning_rate": float("nan")}, ["learning_rate=nan"]),
        ({"learning_rate": float("inf")}, ["learning_rate=inf"]),
        ({"learning_rate": -1e-3}, ["learning_rate=-0.001"]),
        ({"learning_rate": True}, ["learning_rate=True"]),
        ({"backbone_learning_rate": 0}, ["backbone_learning_rate=0"]),
        ({"gradient_clip": 0.0}, ["gradient_clip=0.0"]),
        ({"dropout": 1.0}, ["dropout=1.0"]),
        ({"recipe": "two_phase"}, ["recipe='two_phase'", "'two-phase'"]),
        ({"schedule": "plateau"}, ["schedule='plateau'", "'constant'"]),
        ({"optimizer": None}, ["optimizer=None", "'adamw'"]),
        ({"precision": "float16"}, ["precision='float16'"]),
        ({"channels_last": 1}, ["channels_last=1", "True or False"]),
        ({"architecture": " resnet50"}, ["architecture=' resnet50'"]),
        ({"architecture": ""}, ["architecture=''"]),
        ({"weights": 5}, ["weights=5"]),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5, 0.5)}, ["mean=(0.5, 0.5)", "three"]),
        ({"mean": (0.5, 0.5, float("nan")), "std": (0.5, 0.5, 0.5)}, ["mean=", "three"]),
        ({"std": (0.0, 0.5, 0.5), "mean": (0.5, 0.5, 0.5)}, ["std=(0.0"]),
        ({"mean": (0.5, 0.5, 0.5)}, ["mean is set and std is not", "both"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"seed": 2**32}, ["seed=4294967296"]),
        ({"crop": 0.0}, ["crop=0.0"]),
        ({"image_size": 8}, ["image_size=8"]),
        ({"arguments": {"num_classes": 3}}, ["num_classes", "class list"]),
        ({"arguments": {"drop_rate": 0.1}}, ["drop_rate", "dropout"]),
        ({"arguments": {"sizes": (1, 2)}}, ["arguments=", "JSON"]),
        ({"arguments": {"rate": float("nan")}}, ["arguments=", "JSON"]),
        ({"arguments": []}, ["arguments=[]"]),
        ({"cutoff": 40, "most": 39}, ["most=39", "cutoff=40"]),
        ({"epochs": 2, "warmup_epochs": 2}, ["warmup_epochs=2.0", "epochs=2"]),
        ({"head_views": 0}, ["head_views=0"]),
        ({"recipe": "two-phase", "epochs": 5}, ["head_epochs=5", "both phases"]),
        ({"recipe": "two-phase", "head_epochs": 1}, ["warmup_epochs=1.0", "1 epochs"]),
        ({"recipe": "scratch", "weights": "hub"}, ["weights='hub'", "at random"]),
        ({"batch_size": 1}, ["batch_size=1", "batch_norm='eval'"]),
        ({"recipe": "inherit", "weights": "hub"}, ["weights='hub'", "its parent"]),
        ({"effective_beta": 1.0}, ["effective_beta=1.0", "number"]),
        ({"layer_decay": 0.0}, ["layer_decay=0.0"]),
        ({"ema_decay": 1.0}, ["ema_decay=1.0"]),
        ({"shrink": 0.0}, ["shrink=0.0"]),
        ({"shrink": 0.5, "recipe": "scratch"}, ["shrink=0.5", "no parent", "leave it out"]),
        ({"perturb": 0.1, "batch_norm": "eval"}, ["perturb=0.1", "batch_norm='train'"]),
        ({"shrink": 0.5, "recipe": "two-phase"}, ["shrink=0.5", "head phase", "'all'"]),
        ({"mixup": -1}, ["mixup=-1"]),
        ({"mixup": 0.2, "batch_size": 1, "batch_norm": "eval"}, ["mixup=0.2", "batch_size=2"]),
        ({"cutmix": 1, "batch_size": 1, "batch_norm": "eval"}, ["cutmix=1.0", "no other"]),
        ({"augmentation": {"flip": 1}}, ["flip=1"]),
        ({"augmentation": {"scale": 0.0}}, ["scale=0.0"]),
        ({"augmentation": None}, ["augmentation=None"]),
        ({"augmentation": {"rotate": 3}}, ["'rotate'", "'rotation'"]),
        ({"augmentation": {"zoom_out": 0.5}}, ["zoom_out=0.5", "1 to 2"]),
        ({"augmentation": {"shift": 1}}, ["shift=1", "0 to 0.5"]),
        ({"class_augmentation": {"okapi": {"rotate": 3}}}, ["'rotate'", "'rotation'"]),
        ({"class_augmentation": {"okapi": 3}}, ["mapping"]),
        ({"class_augmentation": []}, ["class_augmentation=[]"]),
        ({"class_augmentation": {"": Augmentation()}}, ["class_augmentation", "class names"]),
        ({"targeted": 1}, ["targeted=1", "True or False"]),
        ({"way": "fast"}, ["way='fast'", "use a Way"]),
        ({"way": {"thread": 2}}, ["'thread'", "'threads'"]),
        ({"way": {"threads": 0}}, ["threads=0", "1 to"]),
        ({"way": {"micro_batch": 0}}, ["micro_batch=0", "1 to"]),
        ({"way": {"features": ""}}, ["features=''"]),
        ({"way": {}, "precision": "bfloat16"}, ["precision='bfloat16'", "float32", "leave way"]),
        ({"way": {}, "channels_last": True}, ["channels_last=True", "False", "leave way"]),
        ({"learning_rat": 1e-3}, ["'learning_rat'", "'learning_rate'"]),
        ({"zzz": 1}, ["'zzz'", "architecture"]),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(
    values: dict[str, Any], words: list[str]
) -> None:
    """Every bad value gives one line with field, value and mend."""
    with pytest.raises(BadPlan) as caught:
        Plan.from_dict(values)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"class_weights": "none", "effective_beta": 0.5}, ["effective_beta=0.5", "'none' has no"]),
        ({"effective_beta": 0.9}, ["effective_beta=0.9", "class_weights='effective-number'"]),
        ({"unfreeze": 9}, ["unfreeze=9", "recipe='all' has one phase", "recipe='two-phase'"]),
        ({"recipe": "scratch", "head_epochs": 3}, ["head_epochs=3", "recipe='scratch'"]),
        ({"recipe": "inherit", "head_views": None}, ["head_views=None", "recipe='inherit'"]),
        ({"recipe": "two-phase", "mixup": 0.2, "head_views": 7}, ["head_views=7", "leave it out"]),
        ({"recipe": "two-phase", "cutmix": 1, "head_views": 1}, ["head_views=1", "mixup or cut"]),
    ],
)  # fmt: skip
def test_what_a_plan_would_ignore_is_refused_and_what_is_stored_is_read(
    values: dict[str, Any], words: list[str]
) -> None:
    """A field without effect is one line for whoever asks, here and on Prefect's pages.

    Stored before it was refused, it is the plan that it was, down to its digest.
    """
    stored = Plan.from_dict(values)
    assert Plan.from_dict(stored.to_dict()).digest() == stored.digest()
    assert set(stored.ignored()) <= set(values)
    assert stored.heeded(asked=["epochs"]) == stored
    with pytest.raises(BadPlan) as caught:
        stored.heeded()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    with pytest.raises(ValidationError, match=re.escape(words[0])):
        TypeAdapter(Asked).validate_python(values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"recipe": "two-phase", "unfreeze": 9, "head_epochs": 3, "head_views": 9},
        {"recipe": "two-phase", "head_views": None, "mixup": 0.2},
        {"recipe": "two-phase", "mixup": 0.2, "cutmix": 1.0},
        {"class_weights": "effective-number", "effective_beta": 0.5},
        {"recipe": "scratch", "head_epochs": 5},
    ],
)
def test_what_a_plan_heeds_may_be_asked_for(values: dict[str, Any]) -> None:
    """A field at its default, or one that has an effect, is nothing to complain about."""
    assert Plan.from_dict(values).heeded() == TypeAdapter(Asked).validate_python(values)


def test_no_mapping_is_no_plan() -> None:
    """A list or None is refused as a plan, not taken for an empty one."""
    values: list[Any] = [None, [], "all"]
    for value in values:
        with pytest.raises(BadPlan, match="mapping"):
            Plan.from_dict(value)


def test_a_plan_survives_json() -> None:
    """A plan written to JSON and read back is equal and has the same digest."""
    plan = Plan(
        arguments={"pad_type": "same"}, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.5),
        augmentation=Augmentation(blur=0.1), most=None,
        class_augmentation={"okapi": Augmentation(rotation=30)}, targeted=True,
        way=Way("bfloat16", True, 2, features="eager float32"),
    )
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.digest() == plan.digest()
    assert hash(again) == hash(plan)


def test_equal_plans_have_equal_digests_and_others_do_not() -> None:
    """The digest sees values, not spellings: 1 is 1.0, a list is a tuple."""
    spelled = {"warmup_epochs": 1, "mean": [0, 0, 0], "std": [1, 1, 1]}
    exact = Plan(warmup_epochs=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert Plan.from_dict(spelled).digest() == exact.digest()
    digests = {Plan().digest(), Plan(seed=1).digest(), Plan(dropout=0.1).digest(),
               Plan(augmentation=Augmentation(flip=False)).digest(), exact.digest()}
    assert len(digests) == 5


def test_every_field_says_what_it_means() -> None:
    """No field is left unexplained, in the list that people print and on Prefect's pages."""
    for cls in (Plan, Augmentation, Way):
        assert [one.name for one in fields(cls) if not one.metadata.get("description")] == []
    told = {name: (value, meaning) for name, value, meaning in Plan(dropout=0.4).told()}
    assert set(told) > {one.name for one in fields(Plan)}
    assert told["dropout"] == ("0.4", Plan.__dataclass_fields__["dropout"].metadata["description"])
    flip = Augmentation.__dataclass_fields__["flip"].metadata["description"]
    assert told["augmentation.flip"] == ("true", flip)
    shown = TypeAdapter(Plan).json_schema()["properties"]
    assert shown["dropout"]["description"] == told["dropout"][1]


def test_a_plan_of_before_is_the_same_plan() -> None:
    """Stored without the fields that came later, a plan is read, and has the digest it had."""
    first = Plan("mobilenetv2_100")  # it named the network that is left open today
    stored = first.to_dict()
    for name in LATER:
        group, _, inner = name.rpartition(".")
        del (stored[group] if group else stored)[inner]
    old = Plan.from_dict(stored)
    assert old == first
    # what the first version of this program stored with it
    assert old.digest() == "44f17d7d2a05069b33b12e9bbdf557ab7b2ed266859cc72d609c4eaf5ff4c6dd"
    assert len({old.digest(), Plan(ema_decay=0.0).digest(), Plan(mixup=0.1).digest()}) == 3


def test_a_class_may_be_bent_in_its_own_way() -> None:
    """Classes that are named have their own augmentation, all others the plan's."""
    own = Augmentation(rotation=30)
    plan = Plan(class_augmentation={"okapi": own})
    assert plan.augmentation_of(["lion", "okapi"]) == [plan.augmentation, own]
    assert Plan().augmentation_of(["lion", "okapi"]) == Plan().augmentation
    assert plan.digest() != Plan().digest()


def test_what_is_missing_has_its_default() -> None:
    """An older plan without newer fields is read with their defaults."""
    assert Plan.from_dict({}) == Plan()
    assert Plan.from_dict({"augmentation": {"blur": 0.5}}).augmentation == Augmentation(blur=0.5)


def test_head_epochs_only_bind_the_recipe_that_has_a_head_phase() -> None:
    """A short run with the default recipe is no contradiction."""
    assert Plan(epochs=2).head_epochs == 5
    assert not Plan(epochs=2).needs_start
    assert Plan(recipe="two-phase").needs_start


def test_geometry_tells_what_is_stored() -> None:
    """Side and name of the stored squares follow from size, crop and interpolation."""
    geometry = Plan(image_size=224, crop=0.875).geometry
    assert geometry == Geometry(224, 0.875, "bilinear")
    assert geometry.side == 256
    assert geometry.name == "256px-bilinear-2"
    assert Geometry(224, 0.875, "bicubic").name != geometry.name


def test_an_open_network_is_the_parents() -> None:
    """With it come its arguments and how its pictures are cut, unless the plan says otherwise."""
    parent = Plan("resnet18", arguments={"pad_type": "same"}, image_size=96, crop=1.0,
                  interpolation="bicubic", epochs=7)  # fmt: skip
    same = Plan("resnet18", arguments={"pad_type": "same"}, image_size=96, crop=1.0,
                interpolation="bicubic")  # fmt: skip
    assert Plan().settled(parent) == same
    assert Plan(image_size=224).settled(parent).image_size == 224
    assert Plan().settled() == Plan(ARCHITECTURE)
    named = Plan("resnet50")
    assert named.settled(parent) == named.settled() == named


def test_a_flow_parameter_is_validated_like_a_plan() -> None:
    """Pydantic, through which flows get their parameters, accepts and refuses the same."""
    adapter = TypeAdapter(Plan)
    plan = Plan(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
                class_augmentation={"okapi": Augmentation(rotation=30)}, way=Way())  # fmt: skip
    assert adapter.validate_python(json.loads(json.dumps(asdict(plan)))) == plan
    for bad in ({"epochs": 0}, {"learning_rat": 1}, {"augmentation": {"rotate": 1}},
                {"way": {"thread": 1}}):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


def test_plans_and_answers_import_no_torch() -> None:
    """Records and the command line read plans and answers without waiting for torch."""
    code = "import sys, vision.plan, vision.answers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

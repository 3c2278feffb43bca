"""Plans are checked when written, and have one digest however they were spelled."""

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from vision.plan import Augmentation, BadPlan, Geometry, Plan


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
        ({"augmentation": {"flip": 1}}, ["flip=1"]),
        ({"augmentation": {"scale": 0.0}}, ["scale=0.0"]),
        ({"augmentation": None}, ["augmentation=None"]),
        ({"augmentation": {"rotate": 3}}, ["'rotate'", "'rotation'"]),
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


def test_a_flow_parameter_is_validated_like_a_plan() -> None:
    """Pydantic, through which flows get their parameters, accepts and refuses the same."""
    adapter = TypeAdapter(Plan)
    plan = Plan(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert adapter.validate_python(json.loads(json.dumps(asdict(plan)))) == plan
    for bad in ({"epochs": 0}, {"learning_rat": 1}, {"augmentation": {"rotate": 1}}):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


def test_plans_and_answers_import_no_torch() -> None:
    """Records and the command line read plans and answers without waiting for torch."""
    code = "import sys, vision.plan, vision.answers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

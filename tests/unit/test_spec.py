"""The experiment spec: what it takes, what it refuses, and what its values mean."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.errors import SpecError
from tasks.domain.schedule import CosineSchedule, ExponentialSchedule, ListSchedule, StepSchedule
from tasks.domain.spec import ExperimentSpec, validate_spec
from tasks.domain.spec_fields import SpecBlock, blocks_in, is_unused
from tasks.domain.spec_grounding_dino import GroundingDinoSpec


def boxes_spec(**grounding_dino: Any) -> dict[str, Any]:
    """A complete spec for boxes, with more keys in its `grounding_dino` block."""
    block = {"checkpoint": "fake", "dataset": {"image_dir": "images", "class_names": ["car"]}, **grounding_dino}
    return {"autolabel_type": "grounding_dino", "results_dir": "results", "grounding_dino": block}


def detection(**grounding_dino: Any) -> GroundingDinoSpec:
    return validate_spec(boxes_spec(**grounding_dino)).grounding_dino


def problems_of(data: Mapping[str, Any]) -> list[str]:
    """The lines of the error's message below the first, which counts them."""
    with pytest.raises(SpecError) as refused:
        validate_spec(data)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


def one_problem_of(data: Mapping[str, Any]) -> str:
    (problem,) = problems_of(data)
    return problem


# --- what a schedule and its thresholds mean


def test_the_scheduler_of_tao_lists_the_thresholds() -> None:
    scheduler = [{"conf_threshold": 0.5, "nms_threshold": 0.0}, {"conf_threshold": 0.4, "nms_threshold": 0.7}]
    assert detection(iteration_scheduler=scheduler).schedule == ListSchedule((0.5, 0.4))


@pytest.mark.parametrize(
    ("annealing", "schedule"),
    [
        ({"schedule": "step", "start": 0.5, "drop": 0.1, "floor": 0.2}, StepSchedule(0.5, 0.1, 1, 0.2)),
        ({"schedule": "exponential", "start": 0.5, "gamma": 0.8, "floor": 0.2}, ExponentialSchedule(0.5, 0.8, 0.2)),
        ({"schedule": "cosine", "start": 0.5, "floor": 0.2, "iterations": 4}, CosineSchedule(0.5, 0.2, 4)),
    ],
)
def test_annealing_names_a_formula(annealing: dict[str, Any], schedule: object) -> None:
    assert detection(annealing=annealing).schedule == schedule


def test_without_a_schedule_there_is_one_iteration_as_in_tao() -> None:
    block = detection()
    assert (block.schedule, block.nms_threshold(0)) == (ListSchedule((0.5,)), None)


def test_without_a_schedule_an_aggregation_that_is_asked_for_still_counts() -> None:
    assert detection(aggregation={"iou": 0.6}).nms_threshold(0) == 0.6


def test_the_nms_threshold_of_an_iteration_goes_before_that_of_the_aggregation() -> None:
    scheduler = [{"conf_threshold": 0.5, "nms_threshold": 0.7}, {"conf_threshold": 0.4}]
    block = detection(iteration_scheduler=scheduler, aggregation={"method": "nms", "iou": 0.6})
    assert [block.nms_threshold(0), block.nms_threshold(1)] == [0.7, 0.6]


def test_an_nms_threshold_of_zero_is_off_as_in_tao() -> None:
    scheduler = [{"conf_threshold": 0.5, "nms_threshold": 0.0}]
    assert detection(iteration_scheduler=scheduler, aggregation={"iou": 0.6}).nms_threshold(0) is None


def test_annealing_suppresses_by_the_aggregation_in_every_iteration() -> None:
    block = detection(annealing={"schedule": "cosine", "start": 0.5, "floor": 0.2, "iterations": 4})
    assert [block.nms_threshold(iteration) for iteration in range(4)] == [0.7] * 4


def test_boxes_fused_by_wbf_meet_at_its_iou_whatever_tao_says_about_nms() -> None:
    scheduler = [{"conf_threshold": 0.5, "nms_threshold": 0.0}]
    assert detection(iteration_scheduler=scheduler, aggregation={"method": "wbf"}).nms_threshold(0) == 0.55


def test_dbscan_has_no_iou() -> None:
    assert detection(aggregation={"method": "dbscan"}).nms_threshold(0) is None


def test_candidates_are_kept_below_the_keep_floor_when_the_schedule_goes_there() -> None:
    low = detection(iteration_scheduler=[{"conf_threshold": 0.02}, {"conf_threshold": 0.3}])
    high = detection(iteration_scheduler=[{"conf_threshold": 0.3}])
    assert (low.floor, high.floor) == (0.02, 0.05)


# --- images and names


def test_one_folder_or_several_are_the_roots_of_the_images() -> None:
    one = validate_spec(boxes_spec())
    several = validate_spec(boxes_spec(dataset={"image_dir": ["a", "s3://b/c"], "class_names": ["car"]}))
    assert (one.image_roots, several.image_roots) == (("images",), ("a", "s3://b/c"))


def test_masks_for_given_boxes_look_at_the_folder_that_tao_names() -> None:
    mal = {"checkpoint": "mal.pth", "inference": {"ann_path": "boxes.json", "img_dir": "images"}}
    assert validate_spec({"results_dir": "results", "mal": mal}).image_roots == ("images",)


def test_spaces_around_a_class_name_are_no_part_of_it() -> None:
    dataset = {"image_dir": "images", "class_names": [" traffic light ", "car"]}
    assert detection(dataset=dataset).dataset.class_names == ("traffic light", "car")


@pytest.mark.parametrize(
    "again", ["bus stop", " bus stop", "Bus Stop", "bus stop.", "bus.stop", "bus  stop ?", "BUß STOP"]
)
def test_names_that_differ_in_case_separators_or_spaces_are_one_class_and_both_are_named(again: str) -> None:
    first = "buss stop" if "ß" in again else "bus stop"
    problem = one_problem_of(boxes_spec(dataset={"image_dir": "images", "class_names": [first, again]}))
    assert problem.startswith(f'grounding_dino.dataset.class_names.1: found "{again.strip()}", expected each name once')
    assert f"'{first}' is asked already" in problem


def test_names_of_separators_alone_are_no_duplicates_but_left_to_the_prompter() -> None:
    dataset = {"image_dir": "images", "class_names": ["?", "..."]}
    assert detection(dataset=dataset).dataset.class_names == ("?", "...")


def test_a_class_name_is_not_blank() -> None:
    problem = one_problem_of(boxes_spec(dataset={"image_dir": "images", "class_names": ["car", " "]}))
    assert problem == 'grounding_dino.dataset.class_names.1: found "", expected a name that is not blank'


def test_a_class_called_no_has_to_be_quoted_because_yaml_reads_false() -> None:
    problem = one_problem_of(boxes_spec(dataset={"image_dir": "images", "class_names": ["yes", False]}))
    assert problem.startswith("grounding_dino.dataset.class_names.1: found false, expected text (in quotes")


# --- what is refused


def test_a_run_needs_a_place_for_its_results() -> None:
    assert one_problem_of({**boxes_spec(), "results_dir": ""}).startswith("results_dir: found nothing")


def test_boxes_need_a_detector_images_and_names() -> None:
    paths = [line.partition(":")[0] for line in problems_of({"autolabel_type": "grounding_dino", "results_dir": "r"})]
    names = ["checkpoint", "dataset.image_dir", "dataset.class_names"]
    assert paths == [f"grounding_dino.{name}" for name in names]


def test_masks_alone_need_a_checkpoint_boxes_and_images() -> None:
    """MAL-13: MAL does not detect; users asked why it wants boxes."""
    paths = [line.partition(":")[0] for line in problems_of({"results_dir": "r"})]
    assert paths == ["mal.checkpoint", "mal.inference.ann_path", "mal.inference.img_dir"]


def test_boxes_then_masks_need_a_detector_and_a_mal_checkpoint_and_no_boxes() -> None:
    paths = [line.partition(":")[0] for line in problems_of({**boxes_spec(), "autolabel_type": "grounding_dino+mal"})]
    assert paths == ["mal.checkpoint"]


def test_classes_and_noun_chunks_exclude_each_other() -> None:
    dataset = {"image_dir": "images", "class_names": ["car"], "noun_chunk_path": "chunks.jsonl"}
    assert one_problem_of(boxes_spec(dataset=dataset)).endswith("(grounding), not both")


def test_annealing_and_the_scheduler_of_tao_exclude_each_other() -> None:
    annealing = {"schedule": "step", "start": 0.5, "drop": 0.1, "floor": 0.2}
    problem = one_problem_of(boxes_spec(annealing=annealing, iteration_scheduler=[{"conf_threshold": 0.5}]))
    assert problem.startswith("grounding_dino.annealing: ")


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("iteration_scheduler", {"iteration_scheduler": []}),
        ("iteration_scheduler.0.conf_threshold", {"iteration_scheduler": [{"conf_threshold": 1.5}]}),
        ("iteration_scheduler.0.conf_threshold", {"iteration_scheduler": [{"conf_threshold": float("nan")}]}),
        (
            "iteration_scheduler.0.nms_threshold",
            {"iteration_scheduler": [{"conf_threshold": 0.5, "nms_threshold": -1}]},
        ),
        ("annealing.floor", {"annealing": {"schedule": "step", "start": 0.3, "drop": 0.1, "floor": 0.4}}),
        ("annealing.drop", {"annealing": {"schedule": "step", "start": 0.3, "drop": 0, "floor": 0.1}}),
        ("annealing.floor", {"annealing": {"schedule": "exponential", "start": 0.3, "gamma": 0.9, "floor": 0}}),
        ("annealing.gamma", {"annealing": {"schedule": "exponential", "start": 0.3, "gamma": 1, "floor": 0.1}}),
        ("annealing.iterations", {"annealing": {"schedule": "cosine", "start": 0.3, "floor": 0.1, "iterations": 0}}),
        ("annealing", {"annealing": {"schedule": "linear"}}),
        ("annealing", {"annealing": {"start": 0.3}}),
        ("aggregation", {"aggregation": {"method": "soft-nms"}}),
        ("aggregation.iou", {"aggregation": {"iou": 0}}),
        ("aggregation.eps", {"aggregation": {"method": "nms", "eps": 0.3}}),
        ("aggregation.eps", {"aggregation": {"method": "dbscan", "eps": 1.0}}),
        ("aggregation.iou", {"aggregation": {"method": "dbscan", "iou": 0.7}}),
        ("termination.patience", {"termination": {"patience": 2}}),
        ("reprompt", {"reprompt": "some"}),
        ("score", {"score": "median"}),
        ("precision", {"precision": "int8"}),
        ("keep_floor", {"keep_floor": 2}),
        ("model.max_text_len", {"model": {"max_text_len": 512}}),
        ("model.log_scale", {"model": {"log_scale": 0.5}}),
        ("dataset.image_dir", {"dataset": {"image_dir": [], "class_names": ["car"]}}),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_at_its_path(path: str, block: dict[str, Any]) -> None:
    assert one_problem_of(boxes_spec(**block)).startswith(f"grounding_dino.{path}: ")


@pytest.mark.parametrize(
    ("path", "top_level"),
    [
        ("gpu_ids.0", {"gpu_ids": [-1]}),
        ("gpu_ids.1", {"gpu_ids": [0, 0]}),
        ("gpu_ids", {"gpu_ids": []}),
        ("batch_size", {"batch_size": 0}),
        ("batch_size", {"batch_size": True}),
        ("batch_size", {"batch_size": 4.0}),
        ("shard_size", {"shard_size": 0}),
        ("num_workers", {"num_workers": "many"}),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_at_its_path(path: str, top_level: dict[str, Any]) -> None:
    assert one_problem_of({**boxes_spec(), **top_level}).startswith(f"{path}: ")


def test_an_nms_threshold_beside_another_method_is_refused() -> None:
    block = {
        "iteration_scheduler": [{"conf_threshold": 0.5, "nms_threshold": 0.7}],
        "aggregation": {"method": "dbscan"},
    }
    problem = one_problem_of(boxes_spec(**block))
    assert problem.startswith("grounding_dino.iteration_scheduler.0.nms_threshold: ")


def test_d31_an_iteration_without_nms_threshold_takes_that_of_the_aggregation() -> None:
    assert detection(iteration_scheduler=[{"conf_threshold": 0.4}]).nms_threshold(0) == 0.7


def test_d31_an_iteration_without_conf_threshold_is_named_before_the_run() -> None:
    problem = one_problem_of(boxes_spec(iteration_scheduler=[{"conf_threshold": 0.5}, {"nms_threshold": 0.7}]))
    path = "grounding_dino.iteration_scheduler.1.conf_threshold"
    assert problem == f"{path}: found nothing, expected a value (required)"


# --- what is accepted


@pytest.mark.parametrize("empty", [None, {}])
def test_a_block_without_keys_is_one_of_defaults(empty: object) -> None:
    assert detection(model=empty, aggregation=empty, termination=empty) == detection()


def test_empty_text_in_a_key_that_is_empty_by_default_is_none() -> None:
    dataset = {"image_dir": "images", "class_names": ["car"], "noun_chunk_path": ""}
    assert detection(dataset=dataset).dataset.noun_chunk_path is None


def test_the_keys_that_nothing_reads_are_named_and_a_whole_block_once() -> None:
    model = {"backbone": "resnet_50", "text_encoder_type": "bert-base-uncased"}
    spec = validate_spec({**boxes_spec(model=model, train={"optim": {"lr": 1e-4}}), "num_gpus": 1})
    assert spec.unused_keys() == ["grounding_dino.model.backbone", "grounding_dino.train", "num_gpus"]


def test_a_spec_of_keys_that_are_all_read_has_no_unused_ones() -> None:
    assert (
        validate_spec(boxes_spec(annealing={"schedule": "step", "start": 1, "drop": 1, "floor": 0})).unused_keys() == []
    )


def test_in_a_block_that_nothing_reads_no_key_is_read() -> None:
    def read_inside_unused(block: type[SpecBlock], *, unused: bool) -> list[str]:
        found = []
        for name, field in block.model_fields.items():
            below = unused or is_unused(field)
            inner = blocks_in(field.annotation)
            found += [name] if unused and not is_unused(field) else []
            found += [key for part in inner for key in read_inside_unused(part, unused=below)]
        return found

    assert read_inside_unused(ExperimentSpec, unused=False) == []


def test_a_spec_survives_the_json_of_a_flow_parameter() -> None:
    for block in ({}, {"aggregation": {"method": "wbf"}}, {"iteration_scheduler": [{"conf_threshold": 0.4}]}):
        spec = validate_spec(boxes_spec(**block))
        assert ExperimentSpec.model_validate_json(spec.model_dump_json()) == spec


def test_secrets_are_not_in_the_representation_of_a_spec() -> None:
    spec = validate_spec({**boxes_spec(), "storage_options": {"secret": "hunter2"}})
    assert "hunter2" not in repr(spec) + str(spec)


def test_secrets_are_not_in_the_json_of_a_flow_parameter() -> None:
    options = {"key": "hunter2", "client_kwargs": {"tokens": ["hunter2"]}}
    spec = validate_spec({**boxes_spec(), "storage_options": options})
    assert spec.model_dump(mode="json")["storage_options"] == {"key": "***", "client_kwargs": {"tokens": ["***"]}}
    assert spec.model_dump()["storage_options"] == spec.storage_options == options


URL, SHOWN = "s3://me:hunter2@host/a b", "s3://me:***@host/a b"


def spec_with_passwords() -> ExperimentSpec:
    dataset = {"image_dir": [URL, "images"], "noun_chunk_path": URL}
    mal = {"inference": {"img_dir": URL, "ann_path": URL}}
    places = {"results_dir": URL, "cache_dir": URL, "mal": mal}
    return validate_spec({**boxes_spec(dataset=dataset), **places})


def test_passwords_in_urls_are_not_in_the_json_of_a_flow_parameter() -> None:
    spec = spec_with_passwords()
    told = spec.model_dump(mode="json")
    assert "hunter2" not in json.dumps(told) + spec.model_dump_json()
    assert (told["results_dir"], told["grounding_dino"]["dataset"]["image_dir"]) == (SHOWN, [SHOWN, "images"])


def test_passwords_in_urls_stay_in_the_spec_that_a_run_works_with() -> None:
    spec = spec_with_passwords()
    assert spec.image_roots == (URL, "images")
    assert spec.model_dump()["results_dir"] == spec.results_dir == URL


def test_a_password_in_a_url_is_in_no_message() -> None:
    dataset = {"image_dir": "images", "class_names": ["car"], "noun_chunk_path": URL}
    assert f'found "{SHOWN}", expected' in one_problem_of(boxes_spec(dataset=dataset))


def test_a_checkpoint_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = {"text_encoder_type": "~/bert"}
    block = detection(checkpoint="~/model.pth", model=model)
    assert (block.checkpoint, block.model.text_encoder_type) == (f"{tmp_path}/model.pth", f"{tmp_path}/bert")


@pytest.mark.parametrize(
    "checkpoint", ["IDEA-Research/grounding-dino-tiny", "./a/../~b.pth", "~no-such-user/model.pth"]
)
def test_any_other_checkpoint_stays_as_it_is(checkpoint: str) -> None:
    assert detection(checkpoint=checkpoint).checkpoint == checkpoint

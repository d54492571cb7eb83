"""Specs as YAML text, and overrides from the command line."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import SpecError
from tasks.domain.spec import ExperimentSpec
from tasks.formats.spec_yaml import parse_spec, spec_as_dict

TEXT = """
autolabel_type: grounding_dino
results_dir: results
grounding_dino:
  checkpoint: fake
  dataset:
    image_dir: images
    class_names: [car]
  iteration_scheduler:
    - {conf_threshold: 0.5, nms_threshold: 0.7}
    - {conf_threshold: 0.4}
"""


def parse(text: str, *overrides: str) -> ExperimentSpec:
    return parse_spec(text, overrides, source="spec.yaml")


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as refused:
        parse(text, *overrides)
    return str(refused.value)


# --- the text


def test_the_error_names_the_source() -> None:
    assert error_of("results_dir: 3").startswith("spec.yaml has ")


def test_what_is_not_yaml_is_told_with_its_line() -> None:
    assert "line 2, column 11: this is not YAML" in error_of("results_dir: [a\nbatch_size: 4\n")


def test_an_unprintable_character_is_not_yaml() -> None:
    assert "this is not YAML" in error_of("results_dir: a\x07b")


def test_a_key_that_stands_twice_is_refused() -> None:
    assert "line 2: the key results_dir is already in line 1" in error_of("results_dir: a\nresults_dir: b\n")


def test_a_key_that_stands_twice_in_one_line_is_refused() -> None:
    message = error_of(TEXT.replace("{conf_threshold: 0.4}", "{conf_threshold: 0.95, conf_threshold: 0.3}"))
    assert "line 11: the key conf_threshold is already in the same line; remove one of the two" in message


def test_a_key_that_stands_twice_in_an_override_is_refused_under_its_name() -> None:
    message = error_of(TEXT, "grounding_dino.iteration_scheduler=[{conf_threshold: 0.9, conf_threshold: 0.3}]")
    assert "grounding_dino.iteration_scheduler: the key conf_threshold is already in the same line" in message


def test_a_key_that_overrides_one_of_a_merged_block_stands_once() -> None:
    scheduler = """
  iteration_scheduler:
    - &first {conf_threshold: 0.5, nms_threshold: 0.7}
    - &second {<<: *first, conf_threshold: 0.4}
    - {<<: *second, conf_threshold: 0.3}
"""
    spec = parse(TEXT.partition("  iteration_scheduler")[0] + scheduler)
    entries = [(entry.conf_threshold, entry.nms_threshold) for entry in spec.grounding_dino.iteration_scheduler or ()]
    assert entries == [(0.5, 0.7), (0.4, 0.7), (0.3, 0.7)]


def test_an_empty_file_is_a_spec_without_keys() -> None:
    assert "results_dir: found nothing" in error_of("")


def test_two_documents_are_not_a_spec() -> None:
    assert "this is not YAML" in error_of(f"{TEXT}\n---\n{TEXT}")


def test_an_exponent_makes_a_number_also_without_a_point() -> None:
    assert parse(TEXT + "  keep_floor: 2e-2\n").grounding_dino.keep_floor == 0.02


# --- overrides


def test_an_override_has_the_type_that_yaml_gives_it() -> None:
    spec = parse(TEXT, "batch_size=8", "grounding_dino.visualize=false", "grounding_dino.keep_floor=0.1")
    assert (spec.batch_size, spec.grounding_dino.visualize, spec.grounding_dino.keep_floor) == (8, False, 0.1)


def test_d25_spaces_and_quotes_in_an_override_stay_as_they_are() -> None:
    spec = parse(TEXT, 'grounding_dino.dataset.class_names=["traffic light", "fire truck"]')
    assert spec.grounding_dino.dataset.class_names == ("traffic light", "fire truck")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text != "???"))
def test_d25_any_text_survives_in_yaml_quotes(text: str) -> None:
    quoted = yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=False)
    assert parse(TEXT, f"results_dir={quoted}").results_dir == text


def test_the_value_of_an_override_may_hold_the_sign_between_key_and_value() -> None:
    assert parse(TEXT, "results_dir=s3://bucket/a=b").results_dir == "s3://bucket/a=b"


def test_a_number_in_an_override_is_an_index_into_a_list() -> None:
    spec = parse(TEXT, "grounding_dino.iteration_scheduler.0.conf_threshold=0.45")
    assert [entry.conf_threshold for entry in spec.grounding_dino.iteration_scheduler or ()] == [0.45, 0.4]


def test_an_override_makes_the_blocks_that_it_needs() -> None:
    assert parse(TEXT, "grounding_dino.termination.max_iterations=3").grounding_dino.termination.max_iterations == 3


def test_an_override_without_a_value_takes_a_key_out() -> None:
    spec = parse(
        TEXT,
        "grounding_dino.iteration_scheduler=",
        "grounding_dino.annealing={schedule: step, start: 0.5, drop: 0.1, floor: 0.3}",
    )
    assert spec.grounding_dino.schedule.lowest == 0.3


def test_a_later_override_goes_before_an_earlier_one() -> None:
    assert parse(TEXT, "batch_size=8", "batch_size=2").batch_size == 2


def test_an_override_changes_one_use_of_a_yaml_anchor_and_not_the_others() -> None:
    text = TEXT + "  termination: &stop {max_iterations: 2}\n"
    text = text.replace("- {conf_threshold: 0.4}", "- &low {conf_threshold: 0.4}\n    - *low")
    spec = parse(text, "grounding_dino.iteration_scheduler.2.conf_threshold=0.3")
    assert [entry.conf_threshold for entry in spec.grounding_dino.iteration_scheduler or ()] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("batch_size", "batch_size: found an override that is not of the form key.sub=value"),
        ("=3", "found an override that is not of the form key.sub=value"),
        ("a..b=3", "a..b: found an override that is not of the form key.sub=value"),
        ("batch_size=[3", "batch_size: the value of this override is not YAML"),
        ("batch_size.x=3", "batch_size.x: found x below a value that is not a block of keys"),
        ("grounding_dino.iteration_scheduler.2.conf_threshold=1", "expected an index into a list of 2, counted from 0"),
        ("grounding_dino.iteration_scheduler.x=1", "expected an index into a list of 2, counted from 0"),
        ("batch_sise=3", "batch_sise: unknown key; did you mean batch_size?"),
        ("+batch_size=3", "+batch_size: unknown key; did you mean batch_size?"),
    ],
)
def test_an_override_that_cannot_be_meant_is_named(override: str, problem: str) -> None:
    assert problem in error_of(TEXT + "batch_size: 4\n", override)


def test_problems_of_text_overrides_and_values_are_told_together() -> None:
    message = error_of("results_dir: a\nresults_dir: b\n", "batch_size", "num_workers=many")
    assert all(path in message for path in ("line 2: ", "batch_size: ", "num_workers: ", "mal.checkpoint: "))


def test_bad_yaml_does_not_hide_a_bad_override() -> None:
    message = error_of("results_dir: [a", "batch_size")
    assert message.startswith("spec.yaml has 2 problems:")


# --- secrets


@pytest.mark.parametrize(
    "override", ["storage_options.secret hunter2", "storage_options={secret: [hunter2", "storage_options=hunter2"]
)
def test_secrets_of_an_override_are_in_no_message(override: str) -> None:
    assert "hunter2" not in error_of(TEXT, override)


def test_a_line_with_a_secret_that_is_not_yaml_is_not_shown() -> None:
    assert "hunter2" not in error_of("storage_options:\n  secret: 'hunter2\n")


def test_secrets_are_masked_in_what_is_written_down() -> None:
    spec = parse(TEXT + "storage_options: {key: hunter2, client_kwargs: {urls: [hunter2]}}\n")
    assert spec_as_dict(spec)["storage_options"] == {"key": "***", "client_kwargs": {"urls": ["***"]}}


def test_passwords_in_urls_are_masked_in_what_is_written_down() -> None:
    url, shown = "s3://me:hunter2@host/bucket", "s3://me:***@host/bucket"
    overrides = [f"{key}={url}" for key in ("results_dir", "cache_dir", "mal.inference.img_dir")]
    spec = parse(TEXT, *overrides, f"grounding_dino.dataset.image_dir=[{url}, images]")
    written = spec_as_dict(spec)
    assert "hunter2" not in str(written)
    assert (written["results_dir"], spec.results_dir) == (shown, url)


def test_a_password_in_a_broken_override_is_in_no_message() -> None:
    assert "hunter2" not in error_of(TEXT, "results_dir s3://me:hunter2@host/bucket")


# --- writing


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["grounding_dino.iteration_scheduler="],
        ["grounding_dino.aggregation={method: dbscan, eps: 0.2}", "grounding_dino.iteration_scheduler="],
        ["grounding_dino.train.optim.lr=1e-5", "num_gpus=2"],
        ['grounding_dino.dataset.image_dir=["ä b", "c: d", "- e"]'],
    ],
)
def test_a_spec_that_is_written_down_reads_back_the_same(overrides: list[str]) -> None:
    spec = parse(TEXT, *overrides)
    assert parse(yaml.safe_dump(spec_as_dict(spec))) == spec


def test_keys_that_nothing_reads_are_written_down_only_if_they_were_set() -> None:
    written = spec_as_dict(parse(TEXT, "grounding_dino.model.num_queries=300"))["grounding_dino"]
    assert isinstance(written, dict)
    assert (written["model"], "train" in written) == (
        {"text_encoder_type": None, "max_text_len": 256, "log_scale": None, "num_queries": 300},
        False,
    )

"""The two shapes of TAO Auto-Label specs for boxes, run as they are, and what the readers of TAO then get."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.formats.odvg import load_odvg

pytestmark = pytest.mark.prefect

CAT, DOG = (10, 10, 60, 50), (80, 10, 140, 50)

# The keys of the file that TAO ships, with its placeholders; the dataset's own keys follow.
SHIPPED = """\
gpu_ids: [0]
num_gpus: 1
batch_size: 4
num_workers: 8
results_dir: ???
autolabel_type: "grounding_dino"
grounding_dino:
  checkpoint: ???
  results_dir: null
  visualize: True
  iteration_scheduler:
    - conf_threshold: 0.5
      nms_threshold: 0.0
    - conf_threshold: 0.4
      nms_threshold: 0.0
  model:
    backbone: swin_tiny_224_1k
    num_queries: 900
    num_feature_levels: 4
    dec_layers: 6
    enc_layers: 6
    dropout_ratio: 0.0
    dim_feedforward: 2048
    loss_types: ['labels', 'boxes']
    log_scale: null
    max_text_len: 256
    class_embed_bias: False
  train:
    activation_checkpoint: True
    optim: {lr: 2e-4}
  dataset:
    augmentation: {fixed_padding: True, test_random_resize: 800}
    image_dir: ???
"""
CLOSED_SET = SHIPPED + "    class_names: ???\n"
PHRASES = SHIPPED + "    noun_chunk_path: ???\n"


@pytest.fixture(scope="module")
def label(tmp_path_factory, paint_picture, autolabel):
    """Runs a spec over two pictures, a cat and a fainter dog in one of them: its results_dir."""

    def labelled(spec: str, asked: str) -> Path:
        folder = tmp_path_factory.mktemp("tao")
        paint_picture(folder / "images" / "sub" / "both.jpg.png", [("cat", 0.9, CAT), ("dog", 0.45, DOG)])
        paint_picture(folder / "images" / "nothing.png", [])
        (folder / "spec.yaml").write_text(spec)
        captions = [("sub/both.jpg.png", "a cat chases a dog"), ("nothing.png", "")]
        (folder / "chunks.jsonl").write_text(
            "".join(
                json.dumps({"file_name": key, "caption": caption, "noun_chunks": ["cat", "dog"]}) + "\n"
                for key, caption in captions
            )
        )
        filled_in = ["results_dir=results", "grounding_dino.checkpoint=fake", "grounding_dino.dataset.image_dir=images"]
        done = autolabel("generate", "-e", "spec.yaml", *filled_in, f"grounding_dino.dataset.{asked}", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("not used here: ")
        return folder / "results"

    return labelled


@pytest.fixture(scope="module")
def closed_set(label) -> Path:
    return label(CLOSED_SET, "class_names=[cat, dog]")


@pytest.fixture(scope="module")
def phrases(label) -> Path:
    return label(PHRASES, "noun_chunk_path=chunks.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_of_a_closed_set_is_an_image_with_instances(closed_set):
    empty, both = lines(closed_set / "final_annotation.jsonl")
    assert empty == {"file_name": "nothing.png", "height": 150, "width": 200, "detection": {"instances": []}}
    assert {**both, "detection": None} == {
        "file_name": "sub/both.jpg.png",
        "height": 150,
        "width": 200,
        "detection": None,
    }
    assert [{**instance, "score": None} for instance in both["detection"]["instances"]] == [
        {"bbox": [10, 10, 60, 50], "category": "cat", "label": 0, "score": None},
        {"bbox": [80, 10, 140, 50], "category": "dog", "label": 1, "score": None},
    ]


def test_the_label_map_of_a_closed_set_counts_from_zero(closed_set):
    assert json.loads((closed_set / "labelmap.json").read_text()) == {"0": "cat", "1": "dog"}


def test_a_line_of_phrase_grounding_is_a_caption_with_regions(phrases):
    empty, both = lines(phrases / "final_annotation.jsonl")
    assert (empty["grounding"]["caption"], empty["grounding"]["regions"]) == ("", [])
    assert both["grounding"]["caption"] == "a cat chases a dog"
    assert [(region["bbox"], region["phrase"]) for region in both["grounding"]["regions"]] == [
        ([10, 10, 60, 50], "cat"),
        ([80, 10, 140, 50], "dog"),
    ]


def test_phrase_grounding_has_no_label_map(phrases):
    assert not (phrases / "labelmap.json").exists()


@pytest.mark.parametrize("shape", ["closed_set", "phrases"])
def test_the_final_file_is_read_back_whole(shape, request):
    results = request.getfixturevalue(shape)
    entries = load_odvg((results / "final_annotation.jsonl").read_bytes(), "final_annotation.jsonl")
    assert [(entry.file_name, len(entry.regions)) for entry in entries] == [("nothing.png", 0), ("sub/both.jpg.png", 2)]


@pytest.mark.parametrize("shape", ["closed_set", "phrases"])
def test_every_iteration_leaves_what_it_added_and_what_remains(shape, request):
    results = request.getfixturevalue(shape)
    block, items = {"closed_set": ("detection", "instances"), "phrases": ("grounding", "regions")}[shape]
    added = [
        [len(line[block][items]) for line in lines(results / f"auto_label{k}" / "autolabelled.jsonl")] for k in (0, 1)
    ]
    remaining = [
        [line["noun_chunks"] for line in lines(results / f"auto_label{k}" / "remaining.jsonl")] for k in (0, 1)
    ]
    assert added == [[0, 1], [0, 1]]
    assert remaining == [[["cat", "dog"], ["dog"]], [["cat", "dog"]]]


def test_a_box2seg_spec_is_refused_before_anything_is_written_but_its_status(tmp_path, autolabel):
    (tmp_path / "box2seg.yaml").write_text(
        """\
gpu_ids: [0]
batch_size: 4
results_dir: results
autolabel_type: "mal"
mal:
  checkpoint: mal.pth
  dataset: {crop_size: 512}
  model: {arch: "vit-mae-base/16"}
  inference: {ann_path: boxes.json, img_dir: images, label_dump_path: out.json}
"""
    )
    done = autolabel("generate", "-e", "box2seg.yaml", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["status.json"]

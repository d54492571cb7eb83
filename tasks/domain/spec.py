"""The experiment spec: everything that a run is asked to do, checked once at the door.

A TAO Auto-Label spec is one of ours: its keys keep their names, places and meanings. Ours stand beside them. A key says
*what* is labelled or, at the top level, *where and how fast*; `docs/spec.md` is made from the docstrings below.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    StrictStr,
)

from tasks.domain.spec_fields import (
    Count,
    NonNegativeInt,
    Refusal,
    Tao,
    Unused,
    refuse,
)
from tasks.domain.spec_grounding_dino import GroundingDinoSpec
from tasks.domain.spec_mal import MalSpec
from tasks.domain.spec_problems import Problem, examine, shown, spec_error
from tasks.domain.spec_root import SpecRoot

# What each pipeline reads; the block of the other one may hold anything well-formed, placeholders too.
_BLOCKS = {
    "grounding_dino": ("grounding_dino",),
    "mal": ("mal",),
    "grounding_dino+mal": ("grounding_dino", "mal"),
}


def _each_once(gpu_ids: tuple[int, ...]) -> tuple[int, ...]:
    repeated = [index for index, gpu in enumerate(gpu_ids) if gpu in gpu_ids[:index]]
    refuse(Refusal((index,), gpu_ids[index], "each GPU once") for index in repeated)
    return gpu_ids


class ExperimentSpec(SpecRoot):
    """A run: which pipeline, where its results go, and how fast."""

    autolabel_type: Tao[Literal["grounding_dino", "mal", "grounding_dino+mal"]] = "mal"
    """`grounding_dino`: text to boxes. `mal`: boxes to masks. `grounding_dino+mal`: boxes, then their masks. TAO has
    the first two; `mal` is its default."""
    gpu_ids: Tao[Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_each_once)]] = (0,)
    """Index of the GPU to use: a list as in TAO, of which the first one is used. This version runs on one GPU, and
    without one on the CPU."""
    num_gpus: Unused[Count] = 1
    """TAO's launcher reads it. Here the first of `gpu_ids` says which GPU is used."""
    batch_size: Tao[Count] = 4
    """Images (text to boxes) or boxes (boxes to masks) per forward pass. Never changes a label."""
    num_workers: Tao[NonNegativeInt] = 8
    """Images that are read and decoded ahead. Never changes a label."""
    results_dir: Tao[StrictStr] = ""
    """Where the results go: a local path (relative to where the command runs) or an fsspec URL. Required."""
    cache_dir: StrictStr | None = None
    """Where the artifacts of the steps are kept for reuse, path or fsspec URL. Empty: `cache` in `results_dir`."""
    shard_size: Count = 64
    """Images that one task handles and one artifact holds, on average: a task worth tens of seconds. Never changes a
    label."""
    grounding_dino: Tao[GroundingDinoSpec] = Field(default_factory=GroundingDinoSpec)
    mal: Tao[MalSpec] = Field(default_factory=MalSpec)

    def requirements(self) -> Iterator[Refusal]:
        """What the pipeline that is asked for lacks."""
        return _missing(self)

    def blocks_not_read(self) -> frozenset[str]:
        """The block of the other pipeline, where only one is asked for."""
        return frozenset({"grounding_dino", "mal"}.difference(_BLOCKS[self.autolabel_type]))

    @property
    def image_roots(self) -> tuple[str, ...]:
        """The folders of the images, as given: local paths or fsspec URLs."""
        if self.autolabel_type == "mal":
            return (self.mal.inference.img_dir,)
        image_dir = self.grounding_dino.dataset.image_dir or ()
        return (image_dir,) if isinstance(image_dir, str) else image_dir

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoints of the models that are asked."""
        asked = {"grounding_dino": self.grounding_dino.checkpoint, "mal": self.mal.checkpoint}
        return tuple(str(asked[block]) for block in _BLOCKS[self.autolabel_type])

    @property
    def makes_boxes(self) -> bool:
        """Whether a detector is asked."""
        return "grounding_dino" in _BLOCKS[self.autolabel_type]

    @property
    def makes_masks(self) -> bool:
        """Whether a segmenter is asked."""
        return "mal" in _BLOCKS[self.autolabel_type]


def validate_spec(data: Mapping[str, Any]) -> ExperimentSpec:
    """The spec that `data` makes. Raises SpecError with every problem in it."""
    spec, problems = examine_spec(data)
    if spec is None:
        raise spec_error("The spec", problems)
    return spec


def examine_spec(data: object) -> tuple[ExperimentSpec | None, tuple[Problem, ...]]:
    """The spec that `data` makes and no problem, or None and every problem."""
    if not isinstance(data, Mapping):
        return None, (Problem("", f"found {shown((), data)}, expected a block of keys"),)
    return examine(ExperimentSpec, data)


def _missing(spec: ExperimentSpec) -> Iterator[Refusal]:
    if not spec.results_dir:
        yield Refusal(("results_dir",), None, "a folder or URL for the results")
    if spec.makes_boxes:
        yield from _missing_for_boxes(spec.grounding_dino)
    if spec.makes_masks:
        yield from _missing_for_masks(spec)


def _missing_for_boxes(block: GroundingDinoSpec) -> Iterator[Refusal]:
    if not block.checkpoint:
        expected = "a detector, e.g. IDEA-Research/grounding-dino-tiny or bundled:grounding_dino_scenes"
        yield Refusal(("grounding_dino", "checkpoint"), None, expected)
    dataset = block.dataset
    if not dataset.image_dir:
        expected = "the folder of the images, or a list of folders"
        yield Refusal(("grounding_dino", "dataset", "image_dir"), None, expected)
    if dataset.class_names and dataset.noun_chunk_path:
        expected = "`class_names` (detection) or `noun_chunk_path` (grounding), not both"
        yield Refusal(("grounding_dino", "dataset", "noun_chunk_path"), dataset.noun_chunk_path, expected)
    if not dataset.class_names and not dataset.noun_chunk_path:
        expected = "`class_names` (detection) or `noun_chunk_path` (grounding)"
        yield Refusal(("grounding_dino", "dataset", "class_names"), None, expected)


def _missing_for_masks(spec: ExperimentSpec) -> Iterator[Refusal]:
    because = f"(`autolabel_type` is {spec.autolabel_type})"
    inference = spec.mal.inference
    if not spec.mal.checkpoint:
        examples = "e.g. bundled:mal_scenes, or with `segmenter: sam` facebook/sam-vit-base, with `sam2` "
        expected = f"a segmenter {because}, {examples}facebook/sam2.1-hiera-tiny"
        yield Refusal(("mal", "checkpoint"), None, expected)
    if spec.autolabel_type == "mal" and not inference.ann_path:
        yield Refusal(("mal", "inference", "ann_path"), None, f"the COCO JSON with the boxes {because}")
    if spec.autolabel_type == "mal" and not inference.img_dir:
        yield Refusal(("mal", "inference", "img_dir"), None, f"the folder of the images {because}")

"""The experiment spec: everything that a run is asked to do, checked once at the door.

A TAO Auto-Label spec is one of ours: its keys keep their names, places and meanings. Ours stand beside them. A key says
*what* is labelled or, at the top level, *where and how fast*; `docs/spec.md` is made from the docstrings below.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    StrictStr,
    field_serializer,
    model_serializer,
    model_validator,
)

from tasks.domain.spec_fields import (
    PLACEHOLDER,
    REQUIREMENT,
    Count,
    NonNegativeInt,
    Refusal,
    SpecBlock,
    Tao,
    Unused,
    is_unused,
    refuse,
)
from tasks.domain.spec_grounding_dino import GroundingDinoSpec
from tasks.domain.spec_mal import MalSpec
from tasks.domain.spec_problems import Problem, examine, masked, shown, spec_error, without_passwords

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


class ExperimentSpec(SpecBlock):
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
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Passed to fsspec for every URL: credentials, endpoints. Its values are secrets and shown nowhere."""
    shard_size: Count = 64
    """Images that one task handles and one artifact holds, on average: a task worth tens of seconds. Never changes a
    label."""
    grounding_dino: Tao[GroundingDinoSpec] = Field(default_factory=GroundingDinoSpec)
    mal: Tao[MalSpec] = Field(default_factory=MalSpec)

    @field_serializer("storage_options", when_used="json")
    def _without_secrets(self, options: Mapping[str, Any]) -> Any:
        # Prefect keeps the JSON of a flow's parameters in its database and shows it in its UI.
        return masked(options)

    @model_serializer(mode="wrap", when_used="json")
    def _without_passwords(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return without_passwords(serialize(self))

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        refuse([*_placeholders(self), *_missing(self)], REQUIREMENT)
        return self

    @property
    def image_roots(self) -> tuple[str, ...]:
        """The folders of the images, as given: local paths or fsspec URLs."""
        if self.autolabel_type == "mal":
            return (self.mal.inference.img_dir,)
        image_dir = self.grounding_dino.dataset.image_dir or ()
        return (image_dir,) if isinstance(image_dir, str) else image_dir

    def unused_keys(self) -> list[str]:
        """The keys that the user has set and that nothing here reads, dotted and sorted.

        A block of which nothing is read stands for all of its keys.
        """
        return sorted(_unused(self, ""))


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


def _placeholders(spec: ExperimentSpec) -> Iterator[Refusal]:
    other_blocks = {"grounding_dino", "mal"} - set(_BLOCKS[spec.autolabel_type])
    for loc in _placeholders_in(spec, ()):
        if loc[0] not in other_blocks:
            yield Refusal(loc, PLACEHOLDER, "your own value")


def _placeholders_in(value: object, loc: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if value == PLACEHOLDER:
        yield loc
    elif isinstance(value, SpecBlock):
        for name, field in type(value).model_fields.items():
            if not is_unused(field):
                yield from _placeholders_in(getattr(value, name), (*loc, name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _placeholders_in(item, (*loc, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _placeholders_in(item, (*loc, key))


def _missing(spec: ExperimentSpec) -> Iterator[Refusal]:
    if not spec.results_dir:
        yield Refusal(("results_dir",), None, "a folder or URL for the results")
    if "grounding_dino" in _BLOCKS[spec.autolabel_type]:
        yield from _missing_for_boxes(spec.grounding_dino)
    if "mal" in _BLOCKS[spec.autolabel_type]:
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
        yield Refusal(("mal", "checkpoint"), None, f"a MAL checkpoint {because}")
    if spec.autolabel_type == "mal" and not inference.ann_path:
        yield Refusal(("mal", "inference", "ann_path"), None, f"the COCO JSON with the boxes {because}")
    if spec.autolabel_type == "mal" and not inference.img_dir:
        yield Refusal(("mal", "inference", "img_dir"), None, f"the folder of the images {because}")


def _unused(block: SpecBlock, prefix: str) -> Iterator[str]:
    for name in block.model_fields_set:
        value = getattr(block, name)
        if is_unused(type(block).model_fields[name]):
            yield prefix + name
        elif isinstance(value, SpecBlock):
            yield from _unused(value, f"{prefix}{name}.")

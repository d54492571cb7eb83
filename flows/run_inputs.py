"""What a run of the loop works with, made from its spec; everything that can be refused early is refused here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from flows.settings import settings_for
from tasks.domain.aggregation import AggregationRules, Dbscan, Nms, Wbf
from tasks.domain.annotations import Record
from tasks.domain.errors import SpecError
from tasks.domain.iteration import Termination
from tasks.domain.schedule import Schedule
from tasks.domain.spec import ExperimentSpec
from tasks.export import Export
from tasks.formats.noun_chunks import load_noun_chunks
from tasks.forwarding import Place
from tasks.image_files import ImageSource
from tasks.infer import Question
from tasks.models import DetectorConfig, Prompter, load_prompter, refuse_device
from tasks.store import ArtifactStore, Folder

PACKAGES = ("autolabel-flow", "numpy", "pillow", "prefect", "pycocotools", "scikit-learn", "torch", "transformers")


@dataclass(frozen=True)
class RunInputs:
    """Everything that the loop hands to its steps.

    `classes` are the class names of detection mode, empty in grounding mode; `records` are the captions of grounding
    mode by image key, empty in detection mode.
    """

    spec: ExperimentSpec
    prompter: Prompter
    store: ArtifactStore
    export: Export
    question: Question
    place: Place
    classes: tuple[str, ...]
    records: Mapping[str, tuple[Record, ...]]

    @property
    def schedule(self) -> Schedule:
        """The annealing of the confidence threshold."""
        return self.spec.grounding_dino.schedule

    @property
    def termination(self) -> Termination:
        """When to stop before the schedule does."""
        asked = self.spec.grounding_dino.termination
        return Termination(asked.max_iterations, asked.min_new_labels, asked.patience)

    def rules(self, iteration: int) -> AggregationRules:
        """How the detections of `iteration` join the labels.

        Detections of all iterations are grouped anew each time, so the strictest `nms_threshold` so far holds: what an
        iteration suppressed does not come back in a later one that is laxer.
        """
        asked = self.spec.grounding_dino.aggregation
        match asked.method:
            case "nms":
                so_far = map(self.spec.grounding_dino.nms_threshold, range(iteration + 1))
                method: Nms | Dbscan | Wbf = Nms(min((iou for iou in so_far if iou is not None), default=None))
            case "dbscan":
                method = Dbscan(asked.eps, asked.min_samples, asked.box)
            case "wbf":
                method = Wbf(asked.iou)
        return AggregationRules(method, asked.cross_class_iou)


def inputs_of(spec: ExperimentSpec) -> RunInputs:
    """The inputs of a run.

    Raises:
        SpecError: the spec asks for no boxes, or a device or precision that cannot be had.
        CheckpointError: the detector's files cannot be used.
        PromptError: a class name or noun chunk cannot be asked.
        FormatError: the prompt file does not follow its format.
    """
    _refuse_without_boxes(spec)
    settings = settings_for(spec)
    detector = _detector(spec)
    refuse_device(detector, settings.device)
    prompter = load_prompter(detector)
    records = _records(spec)
    classes = tuple(spec.grounding_dino.dataset.class_names)
    _refuse_unaskable(prompter, [classes, *(r.phrases for rs in records.values() for r in rs)])
    results = Folder(spec.results_dir, spec.storage_options)
    store = store_of(spec)
    source = source_of(spec, store)
    return RunInputs(
        spec=spec,
        prompter=prompter,
        store=store,
        export=Export(store, results, source, classes, spec.grounding_dino.visualize, spec.makes_masks),
        question=Question(detector, prompter.digest, spec.grounding_dino.floor, spec.grounding_dino.reprompt),
        place=Place(source, settings.device, settings.batch_size, settings.read_ahead),
        classes=classes,
        records=records,
    )


def store_of(spec: ExperimentSpec) -> ArtifactStore:
    """Where the artifacts of a run are kept."""
    return ArtifactStore(spec.cache_dir or f"{spec.results_dir.rstrip('/')}/cache", spec.storage_options)


def source_of(spec: ExperimentSpec, store: ArtifactStore) -> ImageSource:
    """The images of a run, without what runs have left among them."""
    return ImageSource(spec.image_roots, spec.storage_options, excluded=(spec.results_dir, store.uri))


def _refuse_without_boxes(spec: ExperimentSpec) -> None:
    if not spec.makes_boxes:
        raise SpecError(
            f"autolabel_type: found {spec.autolabel_type!r}, expected 'grounding_dino' or 'grounding_dino+mal', which "
            "make boxes"
        )


def _detector(spec: ExperimentSpec) -> DetectorConfig:
    asked = spec.grounding_dino
    augmentation = asked.dataset.augmentation
    return DetectorConfig(
        checkpoint=str(asked.checkpoint),
        precision=asked.precision,
        score=asked.score,
        shortest_edge=augmentation.test_random_resize,
        longest_edge=augmentation.random_resize_max_size,
        mean=augmentation.input_mean,
        std=augmentation.input_std,
        tokenizer=asked.model.text_encoder_type,
        architecture="log_scale_auto" if asked.model.log_scale == "auto" else None,
    )


def _records(spec: ExperimentSpec) -> dict[str, tuple[Record, ...]]:
    path = spec.grounding_dino.dataset.noun_chunk_path
    if path is None:
        return {}
    folder, slash, name = path.replace("\\", "/").rpartition("/")
    data = Folder(folder or slash or ".", spec.storage_options).read(name)
    return load_noun_chunks(data, path)


def _refuse_unaskable(prompter: Prompter, prompts: Sequence[Sequence[str]]) -> None:
    """Ask for the captions of all distinct phrases at once, so that one message names every bad one."""
    prompter.captions(list(dict.fromkeys(phrase for prompt in prompts for phrase in prompt)))


def versions() -> dict[str, str]:
    """The installed version of every package that has a part in the labels."""
    return {name: version(name) for name in PACKAGES}

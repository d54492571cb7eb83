"""Boxes, then their masks; and which flow a spec asks for."""

from dataclasses import dataclass

from prefect import State, flow

from flows.auto_label import auto_label
from flows.mask_inputs import mask_inputs_of
from flows.run_inputs import store_of
from flows.segment_masks import segment_masks
from flows.sole_run import sole_run
from flows.task_runs import ONE_AT_A_TIME
from tasks.domain.spec import ExperimentSpec
from tasks.domain.summary import MaskRecord, RunRecord
from tasks.results import refuse_foreign_results
from tasks.storage.folder import Folder


@dataclass(frozen=True)
class LabelledDataset:
    """What the detection left in `run.json`, and what the masks added to it."""

    boxes: RunRecord
    masks: MaskRecord


@flow(name="label-dataset", task_runner=ONE_AT_A_TIME, persist_result=False)
def label_dataset(spec: ExperimentSpec) -> LabelledDataset:
    """Label the images of the spec with boxes, and give the boxes masks."""
    results = Folder(spec.results_dir, spec.storage_options)
    with sole_run(results, store_of(spec), refuse_foreign_results):
        mask_inputs_of(spec)  # a segmenter that cannot be used is told before the detection takes its hours
        boxes = auto_label(spec)
        return LabelledDataset(boxes, segment_masks(spec, boxes.labels))


def run_flow(spec: ExperimentSpec) -> State[RunRecord] | State[MaskRecord] | State[LabelledDataset]:
    """The final state of the flow that the spec asks for."""
    match spec.autolabel_type:
        case "grounding_dino":
            return auto_label(spec, return_state=True)
        case "mal":
            return segment_masks(spec, return_state=True)
        case "grounding_dino+mal":
            return label_dataset(spec, return_state=True)

"""What a person at a terminal sees of masks: what came of every box, and at what price."""

from typing import TYPE_CHECKING

from flows.console import output, print_run
from tasks.domain.summary import ImageStates, MaskRecord, RunRecord

if TYPE_CHECKING:  # at run time they would import Prefect, which must wait until the server's address is known
    from flows.label_dataset import LabelledDataset
    from flows.mask_plan import MaskPlan


def print_result(result: "RunRecord | MaskRecord | LabelledDataset") -> ImageStates:
    """What a run brought, whatever it made; the states in which its images ended."""
    if isinstance(result, RunRecord):
        print_run(result)
        return result.images
    if isinstance(result, MaskRecord):
        print_masks(result)
        return result.images
    print_run(result.boxes)
    print_masks(result.masks)
    return result.masks.images


def print_masks(record: MaskRecord) -> None:
    """How many boxes got a mask, why the others have none, what was forwarded, and in which states the images are."""
    summary, counts = record.masks, record.masks.counts
    reasons = ", ".join(f"{number} {kind}" for kind, number in counts.without_mask.items())
    output.print(
        f"masks: {counts.masks} of {counts.boxes} boxes{f'; without a mask: {reasons}' if reasons else ''}\n"
        f"boxes forwarded: {summary.boxes_forwarded} in {summary.seconds:.1f} s; "
        f"shards: {summary.shards}, {summary.reused_shards} of them reused"
    )
    states = record.images
    output.print(f"images: {states.labelled} labelled, {states.empty} empty, {states.failed} failed")


def print_mask_plan(plan: "MaskPlan | None") -> None:
    """What making masks would take now."""
    if plan is None:
        output.print("masks: how many boxes there will be depends on answers that are not known yet")
        return
    output.print(
        f"masks: {plan.boxes} boxes in {plan.images} images, {plan.boxes_without} of them can get none; "
        f"shards: {plan.shards}, {plan.reused_shards} of them reused\n"
        f"a run forwards {plan.boxes_to_forward} boxes now"
    )

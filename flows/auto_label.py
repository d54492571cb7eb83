"""The iteration loop: infer, aggregate, check termination, anneal the threshold, and again."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from prefect import flow, tags

from flows.run_inputs import RunInputs, inputs_of, versions
from flows.status_file import status_file
from flows.task_runs import ONE_AT_A_TIME, in_batches
from tasks.aggregate import Bar, aggregate
from tasks.anneal_threshold import anneal_threshold
from tasks.check_termination import check_termination
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.iteration import StopReason
from tasks.domain.spec import ExperimentSpec
from tasks.domain.summary import IterationSummary, RunRecord, summarise
from tasks.export import export_iteration, export_labels
from tasks.formats.spec_yaml import spec_as_dict
from tasks.index_images import index_images
from tasks.infer import infer
from tasks.progress import begin
from tasks.results import refuse_foreign_results
from tasks.shard_images import shard_images
from tasks.store import Folder


@dataclass(frozen=True)
class Shard:
    """Where a shard stands: its labels, the candidates last seen, and the candidates that tell of failed images."""

    images: int
    annotations: ArtifactRef
    candidates: ArtifactRef | None = None
    failed: tuple[ArtifactRef, ...] = ()


@flow(name="auto-label", task_runner=ONE_AT_A_TIME, persist_result=False)
def auto_label(spec: ExperimentSpec) -> RunRecord:
    """Label the images of the spec with boxes, and leave labels, pictures and the run record in its `results_dir`."""
    results = Folder(spec.results_dir, spec.storage_options)
    refuse_foreign_results(results)
    with status_file(results):
        run = inputs_of(spec)
        index = index_images.submit(run.place.source, run.store).result()
        dataset = shard_images.submit(run.store, index, run.records, run.classes, spec.shard_size).result()
        shards, iterations, stop = iterate(run, [Shard(shard.images, shard.annotations) for shard in dataset.shards])
        failed = list(chain.from_iterable(shard.failed for shard in shards))
        labels = [shard.annotations for shard in shards]
        delivered = export_labels.submit(run.export, dataset.failures, labels, failed, len(iterations)).result()
        record = RunRecord(
            spec=spec_as_dict(spec),
            digests={"detector": run.question.digest},
            versions=versions(),
            iterations=tuple(iterations),
            stop_reason=stop,
            images=delivered.images,
            device=run.place.device,
            without_prompt=dataset.without_prompt,
            undrawn=delivered.undrawn,
            labels=delivered.labels,
        )
        run.export.results.write("run.json", json.dumps(record.to_json(), indent=2).encode())
        return record


def iterate(run: RunInputs, shards: list[Shard]) -> tuple[list[Shard], list[IterationSummary], StopReason]:
    """Run iterations until one is the last: the shards as they stand then, what each brought, and why it stopped."""
    done: list[IterationSummary] = []
    threshold = run.schedule.threshold(0)
    while True:
        iteration = len(done)
        with tags(f"iteration-{iteration}"):
            shards, summary = run_iteration(run, shards, iteration, threshold)
            done.append(summary)
            export_iteration.submit(run.export, iteration, [shard.annotations for shard in shards]).result()
            stop = check_termination.submit(
                [summary.progress for summary in done],
                run.termination,
                iteration=iteration,
                at_floor=run.schedule.ends_after(iteration),
            ).result()
            if stop is not None:
                return shards, done, stop
            threshold = anneal_threshold.submit(run.schedule, iteration).result()


def run_iteration(
    run: RunInputs, shards: Sequence[Shard], iteration: int, threshold: float
) -> tuple[list[Shard], IterationSummary]:
    """Infer and aggregate every shard: the shards as they stand then, and what the iteration brought."""
    started = time.perf_counter()
    begin("infer", sum(shard.images for shard in shards))
    asked = [(shard.annotations, shard.candidates) for shard in shards]
    answering = [
        infer.submit(run.store, batch, run.question, run.place, iteration, name) for name, batch in in_batches(asked)
    ]
    answered = list(chain.from_iterable(future.result() for future in answering))
    bar = Bar(iteration, threshold, run.rules(iteration), run.classes)
    found = [(shard.annotations, answer.candidates) for shard, answer in zip(shards, answered, strict=True)]
    joining = [aggregate.submit(run.store, batch, bar, name) for name, batch in in_batches(found)]
    labelled = list(chain.from_iterable(future.result() for future in joining))
    after = [
        Shard(
            shard.images,
            now.annotations,
            answer.candidates,
            (*shard.failed, *([answer.candidates] if answer.failures else [])),
        )
        for shard, answer, now in zip(shards, answered, labelled, strict=True)
    ]
    return after, summarise(
        iteration,
        threshold,
        [shard.counts for shard in labelled],
        run.classes,
        forwards=sum(answer.forwards for answer in answered),
        reused=sum(answer.reused for answer in answered),
        seconds=round(time.perf_counter() - started, 3),
    )

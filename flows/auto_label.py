"""The iteration loop: infer, aggregate, check termination, anneal the threshold, and again."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from prefect import flow, tags

from flows.run_inputs import RunInputs, inputs_of, store_of, versions
from flows.sole_run import SoleRun, sole_run
from flows.task_runs import ONE_AT_A_TIME, in_batches, unwalked
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
from tasks.storage.folder import Folder


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
    with sole_run(results, store_of(spec), refuse_foreign_results) as sole:
        run = inputs_of(spec)
        sole.register()
        index = index_images.submit(run.indexer).result()
        records = unwalked(run.records)
        dataset = shard_images.submit(run.store, index, records, run.classes, spec.shard_size).result()
        unlabelled = [Shard(shard.images, shard.annotations) for shard in dataset.shards]
        sole.needs([*index, *(shard.annotations for shard in unlabelled)])
        shards, iterations, stop = iterate(run, sole, unlabelled)
        failed = list(chain.from_iterable(shard.failed for shard in shards))
        labels = [shard.annotations for shard in shards]
        sole.refuse_if_lost()
        delivered = export_labels.submit(run.export, dataset.failures, labels, failed, len(iterations)).result()
        sole.needs([delivered.labels])
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
        sole.refuse_if_lost()
        run.export.results.write("run.json", json.dumps(record.to_json(), indent=2).encode())
        return record


def iterate(
    run: RunInputs, sole: SoleRun, shards: list[Shard]
) -> tuple[list[Shard], list[IterationSummary], StopReason]:
    """Run iterations until one is the last: the shards as they stand then, what each brought, and why it stopped."""
    done: list[IterationSummary] = []
    threshold = run.schedule.threshold(0)
    while True:
        iteration = len(done)
        with tags(f"iteration-{iteration}"):
            shards, summary = run_iteration(run, shards, iteration, threshold)
            done.append(summary)
            sole.needs(ref for shard in shards for ref in (shard.annotations, shard.candidates) if ref)
            sole.refuse_if_lost()
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
        infer.submit(run.store, batch, run.question, run.place, run.recall, iteration, name)
        for name, batch in in_batches(asked)
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

"""The iteration loop: infer, aggregate, check termination, anneal the threshold, and again."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar, cast

from prefect import flow, tags
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.run_inputs import RunInputs, inputs_of, versions
from flows.settings import TASKS_PER_STEP
from flows.status_file import status_file
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

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Where a shard stands: its labels, the candidates last seen, and the candidates that tell of failed images."""

    images: int
    annotations: ArtifactRef
    candidates: ArtifactRef | None = None
    failed: tuple[ArtifactRef, ...] = ()


# One thread: torch keeps all cores busy by itself. Prefect's runner does not fit Prefect's annotation for it.
ONE_AT_A_TIME = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=1))


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


def in_batches(shards: Sequence[T]) -> Iterator[tuple[str, Sequence[T]]]:
    """Consecutive batches of shards, a task run each, with the names that people read in the UI."""
    size = max(1, math.ceil(len(shards) / TASKS_PER_STEP))
    for start in range(0, len(shards), size):
        batch = shards[start : start + size]
        yield f"shards {start + 1}-{start + len(batch)} of {len(shards)}", batch


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

"""One run at a time in a results_dir, and its course in status.json, in the lines that TAO's automation reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import ArtifactError, ClaimedError
from tasks.formats.status import Status, status_line
from tasks.progress import stopping_together
from tasks.registered_runs import RegisteredRun, RunRegister
from tasks.storage.claims import Claim, claim, owner_of
from tasks.storage.folder import Folder
from tasks.store import ArtifactStore

STATUS_FILE = "status.json"


# What is claimed already further out, by where it is: a flow or command that runs another flow has its folders for it.
_held: ContextVar[Mapping[tuple[str, ...], Claim]] = ContextVar("the claims of the run that this one is a part of")
# A flow that another one runs is a part of that one's course, which goes on after it.
_is_told: ContextVar[bool] = ContextVar("a flow further out tells the course of the run", default=False)


@dataclass
class SoleRun:
    """The run that alone writes to `results`, its `store`, which others may share, and its claims of both."""

    results: Folder
    store: ArtifactStore
    claims: tuple[Claim, ...]
    _registered: RegisteredRun | None = None

    @property
    def cache(self) -> Folder:
        """The folder of the store."""
        return Folder(self.store.uri, self.store.storage_options)

    def register(self) -> None:
        """Keep from now on what this run makes; to be called before the first artifact, by a flow that makes some."""
        self._registered = RunRegister(self.store).begin(self.results.uri, str(_of_flow_run("flow_name")))

    def needs(self, refs: Iterable[ArtifactRef]) -> None:
        """Keep these artifacts in the cache for the next run of this flow over `results`."""
        if self._registered is not None:
            self._registered.needs(refs)

    def finish(self) -> None:
        """Let go of what only earlier runs of this flow needed."""
        if self._registered is not None:
            self._registered.finish()

    def refuse_if_lost(self) -> None:
        """Raise LostClaimError where another process has taken a folder of the run over.

        To be asked before something goes to `results`, where it would mix with what the other run writes.
        """
        for held in self.claims:
            held.refuse_if_lost()


@contextmanager
def sole_run(results: Folder, store: ArtifactStore, *refusals: Callable[[Folder], None]) -> Iterator[SoleRun]:
    """Run a flow with `results` for itself, and tell its course in status.json there.

    Files that killed processes were writing are deleted in both folders. Then it writes STARTED and, at the end,
    SUCCESS or, with the reason, FAILURE; nothing of an earlier run stays. Inside another such context nothing is
    deleted or written: a run has one course.

    Args:
        results: results_dir. A run that is refused changes nothing there.
        store: The cache, which other runs may share.
        refusals: Called with `results`; each raises an error for a folder that the flow may not write to.

    Raises:
        ClaimedError: another run works in `results`, or somebody has the store for themselves.
    """
    what = f"autolabel run {str(_of_flow_run('name'))!r}"
    cache = Folder(store.uri, store.storage_options)
    with (
        claimed("results_dir", results, what, exclusive=True) as alone,
        claimed("cache_dir", cache, what, exclusive=False) as beside_others,
    ):
        for refuse in refusals:
            refuse(results)
        run = SoleRun(results, store, (alone, beside_others))
        with _course(run), _ending_its_tasks(), stopping_together():
            yield run
            run.finish()


@contextmanager
def _ending_its_tasks() -> Iterator[None]:
    """Wait, after an error or Ctrl-C, for the tasks that are at work: they write where another run may come next."""
    try:
        yield
    except BaseException:
        # Imported here, as in `_of_flow_run`.
        from prefect.context import FlowRunContext
        from prefect.task_runners import ThreadPoolTaskRunner

        context = FlowRunContext.get()
        if context is not None and isinstance(context.task_runner, ThreadPoolTaskRunner):
            context.task_runner.cancel_all()
        raise


@contextmanager
def claimed(key: str, folder: Folder, what: str, *, exclusive: bool) -> Iterator[Claim]:
    """Have a folder, alone or beside others; one that is had further out is not claimed again.

    Args:
        key: What the spec calls the folder.
        folder: The folder.
        what: Who asks, as the refusals of others name it.
        exclusive: Whether alone.

    Raises:
        ClaimedError: somebody has it in a way that excludes this one.
    """
    held, place = _held.get({}), folder.place
    if place in held:
        yield held[place]
        return
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(claim(folder, exclusive=exclusive, owner=owner_of(what)))
        except ClaimedError as error:
            raise ClaimedError(f"{key}: {error}") from error
        before = _held.set({**held, place: mine})
        try:
            yield mine
        finally:
            _held.reset(before)


def _of_flow_run(attribute: str) -> object:
    """What Prefect knows of the flow run that asks."""
    # Imported here, where a flow has long imported it: the command line may not before it knows the server's address.
    from prefect.runtime import flow_run

    return getattr(flow_run, attribute)


@contextmanager
def _course(run: SoleRun) -> Iterator[None]:
    """Clean up after killed runs, and tell the course of this one, unless a flow further out does."""
    if _is_told.get():
        yield
        return
    run.refuse_if_lost()
    for folder in (run.results, run.cache):
        folder.delete_temporaries()
    run.results.delete_tree(STATUS_FILE)
    _tell(run, Status.STARTED, "Starting AutoLabel Flow.")
    outer = _is_told.set(True)
    try:
        yield
    except BaseException as error:
        # The reason matters more than that it could not be told, and the file of who took the folder over is theirs.
        with suppress(ArtifactError, ClaimedError):
            _tell(run, Status.FAILURE, _reason(error))
        raise
    finally:
        _is_told.reset(outer)
    _tell(run, Status.SUCCESS, "AutoLabel Flow finished successfully.")


def _reason(error: BaseException) -> str:
    if isinstance(error, Exception):
        return f"{type(error).__name__}: {error}"
    how = "interrupted" if isinstance(error, KeyboardInterrupt) else "terminated"
    return f"The run was {how}; the same command goes on where it stopped."


def _tell(run: SoleRun, status: Status, message: str) -> None:
    run.refuse_if_lost()
    run.results.append(STATUS_FILE, status_line(status, message, datetime.now().astimezone()))

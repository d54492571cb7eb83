"""Runs the command line again and again, and ends it at chosen moments: the driver behind test_kills.py.

    python kill_points.py LOG

It prints {"ready": true}. Every line of its input then is an attempt as JSON; for each, a process of its own is forked,
which has Prefect and the flows imported already (a start costs 1.5 s otherwise), and a line with its exit status is
printed when it has ended:

    {"arguments": ["generate", "-e", "spec.yaml"], "folder": "...", "output": "out.txt"}   -> {"status": 0}
    {..., "at": {"event": "infer half-write results/cache/candidates/3f/.tmp-", "count": 1, "signal": "SIGKILL"}}
    {..., "at": {"event": "append before-write results/status.json", "count": 1, "fill": "/small/disk/filler"}}
    {..., "kill_after": 1.25}                                                              -> {"status": -9}
    {..., "seconds_per_forward": 0.2}                                                      with models that take a while

An *event* is a moment at which a process may die with consequences: before a file is opened, before, in the middle of
and after each write to it, before and after it is renamed or deleted, before and after the fake models are asked. Its
name says in which step it was, what happened, and where; the names of temporary files, which are random, and those in
the register of runs, which follow from the folder, are cut short. `count` says at which event of that name the process
gets the signal, or finds the disk full.

LOG gets a line for every attempt, for every event, for the one that was asked for, and, before each call of a fake
model, for how much it is asked: nothing of that is lost in a kill, as each line is one system call.
"""

import builtins
import errno
import hashlib
import io
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn, Self, TypeAlias

# The functions of `os` that change what is on disk, with the product's use of pathlib, shutil and fsspec in mind.
RENAMES = ("replace", "rename", "link")
CHANGES = (*RENAMES, "unlink", "remove", "rmdir", "mkdir", "truncate")
VARIABLE = re.compile(r"(\.tmp-|/cache/runs/).*")

Place: TypeAlias = str | bytes | os.PathLike[str]  # a path, or the digest of a question


class KillPoints:
    """Counts and logs the events of this process, and disturbs it at the one that is asked for."""

    def __init__(self, log: str, attempt: Mapping[str, Any]) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._folder = os.getcwd()  # noqa: PTH109  events are named relative to it
        self._at = attempt.get("at", {})
        self._seconds_per_forward = attempt.get("seconds_per_forward", 0)
        self._seen: Counter[str] = Counter()

    def note(self, line: str) -> None:
        """Append a line to the log."""
        os.write(self._log, f"{line}\n".encode())

    def reach(self, what: str, where: Place) -> None:
        """An event happens: log it, and disturb if it is the one. Nothing outside the product's steps is an event."""
        step = step_of(sys._getframe())
        if step is None:
            return
        event = f"{step} {what} {self._place(where)}"
        self.note(f"event {event}")
        self._seen[event] += 1
        if event == self._at.get("event") and self._seen[event] == self._at["count"]:
            self.note(f"disturbed {event}")
            if "fill" in self._at:
                fill_disk(self._at["fill"])
            else:
                os.kill(os.getpid(), signal.Signals[self._at["signal"]])

    def _place(self, where: Place) -> str:
        return VARIABLE.sub(r"\1", os.path.relpath(os.fsdecode(where), self._folder))

    def install(self) -> None:
        """Make the events of this process happen; only a fork of the driver is patched so."""
        for name in CHANGES:
            setattr(os, name, self._around(name, getattr(os, name)))
        builtins.open = io.open = self._opening(io.open)
        from tasks.models.fake import FakeDetector, FakeSegmenter

        FakeDetector.detect = self._asking("detector", FakeDetector.detect, _captions)  # type: ignore[method-assign]
        FakeSegmenter.segment = self._asking("segmenter", FakeSegmenter.segment, _boxes)  # type: ignore[method-assign]

    def _around(self, name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Any, *more: Any, **options: Any) -> Any:
            where = more[0] if name in RENAMES else path
            self.reach(f"before-{name}", where)
            done = change(path, *more, **options)
            self.reach(f"after-{name}", where)
            return done

        return changed

    def _opening(self, open_file: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set("wax+") & set(mode) or step_of(sys._getframe()) is None:
                return open_file(file, mode, *more, **options)
            self.reach("open", file)
            return WrittenFile(open_file(file, mode, *more, **options), file, self)

        return opened

    def _asking(self, model: str, ask: Callable[..., Any], price: Callable[..., int]) -> Callable[..., Any]:
        def asked(self_: Any, images: Sequence[Any], what: Sequence[Any], **options: Any) -> Any:
            question = hashlib.sha256(repr(([image.tobytes() for image in images], what)).encode()).hexdigest()[:12]
            self.note(f"forward {model} {price(self_, what)}")
            self.reach("before-forward", question)
            time.sleep(self._seconds_per_forward)
            answers = ask(self_, images, what, **options)
            self.reach("after-forward", question)
            return answers

        return asked


class WrittenFile:
    """A file opened for writing; half of the bytes of a write are on disk when a process dies in its middle."""

    def __init__(self, file: Any, path: Place, points: KillPoints) -> None:
        self._file, self._path, self._points = file, path, points

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._points.reach("before-write", self._path)
        self._file.write(data[:half])
        self._file.flush()
        self._points.reach("half-write", self._path)
        self._file.write(data[half:])
        self._file.flush()
        self._points.reach("after-write", self._path)
        return len(data)

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fill_disk(path: str) -> None:
    """Leave no room on the disk of the file `path`, which takes all of it."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(file)


def step_of(frame: FrameType | None) -> str | None:
    """The step that runs: the outermost function on the stack that is of a module of `tasks`; None outside of them."""
    step = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("tasks."):
            step = frame.f_code.co_name
        frame = frame.f_back
    return step


def _captions(detector: Any, prompts: Sequence[Any]) -> int:
    return sum(len(detector.captions(prompt)) for prompt in prompts)


def _boxes(segmenter: Any, boxes: Sequence[Any]) -> int:
    return sum(map(len, boxes))


def live(attempt: dict[str, Any], log: str) -> NoReturn:
    """Run a command line with kill points in this process."""
    from flows.cli import main

    os.chdir(attempt["folder"])
    output = os.open(attempt["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    points = KillPoints(log, attempt)
    points.note("attempt begins")
    points.install()
    sys.argv = ["autolabel", *attempt["arguments"]]
    main()


def serve(log: str) -> None:
    """Fork a process for every attempt of the input."""
    from flows.local_server import ensure_server

    ensure_server()
    for name in ("console", "label_dataset", "mask_console", "spec_files"):
        import_module(f"flows.{name}")
    # Several shards in a task run, as where there are more shards than here.
    vars(import_module("flows.task_runs"))["TASKS_PER_STEP"] = 2
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        attempt = json.loads(line)
        child = os.fork()
        if child == 0:
            live(attempt, log)
        if "kill_after" in attempt:
            time.sleep(attempt["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])

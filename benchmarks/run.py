"""A run from its steps to its tables, whatever is measured: the worker, the record, the failures."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.recorder import DocumentRecorder
from benchmarks.results import Document
from benchmarks.supervisor import Step, Supervisor, WorkerFailed


def run(
    program: str,
    run_worker: Callable[..., None],
    steps: Sequence[Step],
    recorder: DocumentRecorder,
    render: Callable[[Document], str],
) -> None:
    """Measures `steps` in processes that call `run_worker(connection, steps, folder=...)`, records what comes
    out, and prints it. `folder` is for files, and is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        worker = partial(run_worker, folder=Path(folder))
        try:
            Supervisor(worker, recorder.on_result, recorder.on_ready).run(steps)
        except WorkerFailed as error:
            print(f"{program}: {error}", file=sys.stderr)
    recorder.progress.close()
    if recorder.document["environment"]:  # absent if no worker could start
        print(render(recorder.document))

"""Collects results in the document, saves it after each, and tells the progress."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import method
from benchmarks.progress import Progress
from benchmarks.results import Document, ShapeRecord
from benchmarks.shapes import Shape
from benchmarks.supervisor import Step


def shape_record(shape: Shape, dtype: str) -> ShapeRecord:
    kv_bytes = shape.kv_bytes(method.ELEMENT_BYTES[dtype])
    return {
        "set": shape.set_name,
        "name": shape.name,
        "twin_of": shape.twin_of,
        "batch": shape.batch,
        "query_heads": shape.heads.query,
        "kv_heads": shape.heads.kv,
        "head_dim": shape.heads.dim,
        "q_len": shape.q_len,
        "lengths": list(shape.lengths) if shape.ragged else shape.max_tokens,
        "kv_bytes": kv_bytes,
        "copies": method.copies_for(kv_bytes),
        "results": {},
    }


class DocumentRecorder(ABC):
    """What all runs share: a document that is kept on disk, and how many of its parts are done."""

    def __init__(self, document: Document, path: Path | None, parts: int) -> None:
        self.document = document
        self.path = path
        self.progress = Progress(parts)

    def on_ready(self, environment: dict[str, Any]) -> None:
        self.document["environment"] = environment
        self.progress.note(f"worker ready on {environment['gpu']}")

    @abstractmethod
    def on_result(self, step: Step, result: dict[str, Any]) -> None: ...

    def save(self) -> None:
        if self.path is not None:
            draft = self.path.with_name(self.path.name + ".part")
            draft.write_text(json.dumps(self.document, indent=1) + "\n")
            os.replace(draft, self.path)  # whoever reads it, or stops us, finds a whole file


class Recorder(DocumentRecorder):
    """The parts of a run are its shapes."""

    def __init__(self, document: Document, steps: Sequence[Step], path: Path | None) -> None:
        self.shapes = {record["name"]: record for record in document["shapes"]}
        self.steps_left = {name: sum(step.shape == name for step in steps) for name in self.shapes}
        super().__init__(document, path, len(self.shapes))

    def on_result(self, step: Step, result: dict[str, Any]) -> None:
        record = self.shapes[step.shape]
        record["results"][step.implementation] = result
        self.save()
        self.steps_left[step.shape] -= 1
        if self.steps_left[step.shape] == 0:
            self.progress.finish(step.shape, outcomes(record))


def outcomes(record: ShapeRecord) -> str:
    """Time, and time in a model, or what happened instead."""
    words = []
    for name, result in record["results"].items():
        us = [
            f"{of['median_us']:.1f}"
            for of in (result, result.get(method.IN_MODEL))
            if of and "median_us" in of
        ]
        words.append(f"{name} {' '.join(us) or result['status']}")
    return ", ".join(words)

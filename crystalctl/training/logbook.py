"""What a training run tells: metrics.jsonl for machines, a progress line for people."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol


class Progress(Protocol):
    """Where progress goes; the command line brings a rich display, a library call none."""

    def update(self, record: Mapping[str, Any]) -> None:
        """Called with every record as it is logged."""
        ...


class Logbook:
    """Appends records to ``metrics.jsonl``; inactive on all processes but the first."""

    def __init__(self, path: Path, *, active: bool, progress: Progress | None) -> None:
        self.path = path
        self.active = active
        self.progress = progress

    def truncate(self, step: int) -> None:
        """Drop records after ``step``: a resumed run writes those again."""
        if not self.active or not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            with suppress(ValueError):  # a killed run may leave half a line
                if json.loads(line)["step"] <= step:
                    kept.append(line)
        self.path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, record: Mapping[str, Any]) -> None:
        """One line of JSON, and the same to the display."""
        if not self.active:
            return
        stamped = {**record, "time": round(time.time(), 1)}
        with self.path.open("a") as handle:
            handle.write(json.dumps(stamped) + "\n")
        if self.progress is not None:
            self.progress.update(record)

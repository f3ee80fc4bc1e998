"""Checkpoints of a training: written as it goes, found again by the next attempt, never half.

transformers' trainer writes and reads them: the adapter, the optimiser, the schedule, the random numbers' states. Here
it is decided when, which one counts, and what else goes in: the rows of the log and of the trajectory, and what the
training took so far. A checkpoint counts once its list of files is there; the list is written last.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WHOLE = "whole.json"
ROWS = "rows.json"
_LOCK = "lock"
_NAME = re.compile(r"checkpoint-[0-9]+")
_LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one training in `folder`, one at least every `minutes` (0: every step).

    All attempts at a training share the folder; nothing else is kept in it. `carried` is what the checkpoint that was
    taken up says of the steps before it: {"step", "seconds", "counts"}.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self._seconds = folder, 60 * minutes
        self.carried: dict[str, Any] = {"step": 0, "seconds": 0.0, "counts": {}}
        self.spent: Callable[[], dict[str, Any]] = dict
        self._lock: int | None = None

    def take_up(self, trainer: Any) -> str | None:
        """The newest whole checkpoint of a training divided as this one is, its rows given to `trainer`; None without.

        Every other one is removed. Waits until no process of an earlier attempt is at work in the folder any more.
        """
        from accelerate.utils import broadcast_object_list

        found: list[str | None] = [None]
        if trainer.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            found = [self._newest(layout_of(trainer))]
        broadcast_object_list(found)
        if found[0] is None:
            return None
        rows = json.loads((Path(found[0]) / ROWS).read_text(encoding="utf-8"))
        self.carried = {"step": rows["log"][-1]["step"], **rows["spent"]}
        trainer.step_rows, trainer.trajectory = rows["log"], rows["trajectory"]
        return found[0]

    def release(self) -> None:
        """Lets another process work in the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def callback(self, trainer: Any) -> Any:
        """What makes `trainer` write checkpoints here."""
        from accelerate.utils import broadcast_object_list
        from transformers import TrainerCallback

        checkpoints, wanted_every = self, self._seconds

        class Saving(TrainerCallback):
            last, any_yet = time.monotonic(), False

            def on_train_begin(self, args, state, control, **kwargs):
                self.last, self.any_yet = time.monotonic(), state.global_step > 0

            def on_step_end(self, args, state, control, **kwargs):
                # Of a training long enough to have one, the end too: what follows can take long.
                ended = state.global_step >= state.max_steps and self.any_yet
                # Clocks differ, and all processes save together.
                due = [time.monotonic() - self.last >= wanted_every or ended]
                broadcast_object_list(due)
                control.should_save = due[0]

            def on_save(self, args, state, control, **kwargs):
                checkpoints.complete(trainer)
                self.last, self.any_yet = time.monotonic(), True

        return Saving()

    def complete(self, trainer: Any) -> None:
        """Adds the rows to the checkpoint that `trainer` just wrote, declares it whole and removes the one before."""
        spent = self.spent()
        trainer.accelerator.wait_for_everyone()
        if not trainer.accelerator.is_main_process:
            return
        checkpoint = self.folder / f"checkpoint-{trainer.state.global_step}"
        rows = {"log": trainer.step_rows, "trajectory": trainer.trajectory, "spent": spent}
        (checkpoint / ROWS).write_text(json.dumps(rows), encoding="utf-8")
        files = {str(path.relative_to(checkpoint)): _sha256_on_disk(path) for path in _files(checkpoint)}
        unfinished = checkpoint / f"{WHOLE}.tmp"
        unfinished.write_text(json.dumps({"layout": layout_of(trainer), "files": files}), encoding="utf-8")
        _sha256_on_disk(unfinished)
        os.replace(unfinished, checkpoint / WHOLE)
        for other in self._all():
            if other != checkpoint:
                shutil.rmtree(other)

    def _all(self) -> list[Path]:
        """Every checkpoint, whole or not, the newest first."""
        # What somebody put beside them is not this training's to judge or to remove.
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)

    def _newest(self, layout: dict[str, Any]) -> str | None:
        newest = None
        for checkpoint in self._all():
            why_not = "a newer one is whole" if newest else _why_not(checkpoint, layout)
            if why_not:
                _LOG.warning("%s is not taken up: %s", checkpoint, why_not)
                shutil.rmtree(checkpoint)
            else:
                newest = str(checkpoint)
        return newest


def layout_of(trainer: Any) -> dict[str, Any]:
    """How a training is divided: a checkpoint is taken up by one divided alike, for the same numbers to come."""
    return {
        "processes": trainer.accelerator.num_processes,
        "distributed": trainer.accelerator.distributed_type.value,
        "pass_size": trainer.args.per_device_train_batch_size,
    }


def _why_not(checkpoint: Path, layout: dict[str, Any]) -> str:
    """Why a checkpoint can't be taken up; empty when it can."""
    try:
        record = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
        made_by, files = record["layout"], dict(record["files"])
    except FileNotFoundError:
        return "its writing was interrupted"
    except (ValueError, KeyError, TypeError):
        return f"its list of files, {WHOLE}, can't be read"
    if made_by != layout:
        return f"it was made by a training divided as {made_by}, this one is {layout}"
    for name, digest in files.items():
        path = checkpoint / name
        if not path.is_file() or _sha256_on_disk(path) != digest:
            return f"its {name} is not what was written"
    return ""


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256_on_disk(path: Path) -> str:
    """The file's hash, once it is on the disk itself."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()

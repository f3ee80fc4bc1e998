"""Keeps a catalogue up to date while the server runs: a cheap look a request, and a thread that reads what changed."""

import logging
import threading
import time
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import dagster as dg
import pyarrow as pa
import yaml
from sqlalchemy.exc import SQLAlchemyError

from m3po_dagster.current import read_heads
from m3po_dagster.inspector import text
from m3po_dagster.inspector.answers import AnswerLists
from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.fronts import Fronts, build_fronts, file_name, front_key
from m3po_dagster.inspector.reading import Reader
from m3po_dagster.inspector.tokens import Decoder, decoder
from m3po_dagster.inspector.tune import Tuner
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.storage.store import ArtifactStore

CACHE_FOLDER = "inspector"
CACHE_BYTES = 2 << 30
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_WAIT = 0.1
"""A request waits this long for a change to be read; then it shows the state before it."""

SECONDS_TO_NEXT_TRY = 30.0
"""What could not be read is tried again after this long, or at once when something changes."""

_EXPLAINED = (OSError, ValueError, pa.ArrowException, RuntimeError, SQLAlchemyError)
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)
_LOG = logging.getLogger(__name__)


class Watch:
    """The current catalogue, and the fronts of its recipes.

    `progress` says what is being read, empty when nothing is; `problem` why the last reading failed. `decoder` turns
    the base model's tokens into text; None until its tokenizer is loaded. `tuner` and `answers` are made ready for the
    first request before anybody asks.
    """

    def __init__(self, study_path: Path, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        self.study_path, self.store = study_path, store
        self.progress, self.problem = "", ""
        self._instance = instance
        self._reader = Reader(study_path, store)
        self.decoder: Decoder | None = None
        self.tuner, self.answers = Tuner(), AnswerLists()
        self._catalogue: Catalogue | None = None
        self._fronts: dict[str, Fronts] = {}
        self._seen: object = None
        self._looked, self._again = float("-inf"), float("inf")
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._catalogue_read = threading.Event()

    def catalogue(self) -> Catalogue | None:
        """The state to show; None while the first one is being read, or when it can't be (see `problem`)."""
        if self._look():
            self._catalogue_read.wait(SECONDS_TO_WAIT)
        return self._catalogue

    def fronts(self, catalogue: Catalogue, settings: SelectionSettings) -> list[Fronts] | None:
        """The fronts of every scored shard for settings of rule m3p; None while they are being built."""
        wanted = [self._fronts.get(file_name(shard, settings)) for shard in catalogue.shards if shard.scored]
        return None if any(front is None for front in wanted) else wanted

    def settle(self, timeout: float = 600.0) -> None:
        """Looks now and waits until everything is read and built. Raises TimeoutError."""
        self._looked = float("-inf")
        self._look()
        worker = self._worker
        if worker is not None:
            worker.join(timeout)
            if worker.is_alive():
                raise TimeoutError(f"still {self.progress} after {timeout:g} s")

    def look_soon(self) -> None:
        """The next request reads anew what changed, also in the store, however short ago the last one did."""
        self._looked = self._again = float("-inf")

    def _look(self) -> bool:
        """Whether something changed that is not read yet; starts reading it."""
        with self._lock:
            working = self._worker is not None and self._worker.is_alive()
            if working or time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
                return working
            self._looked = time.monotonic()
            try:
                state = self._state()
            except SQLAlchemyError as error:
                self.problem = f"Dagster's event log can't be asked: {error}"
                return False
            if state == self._seen and time.monotonic() < self._again:
                return False
            self._seen, self._again = state, float("inf")
            self._catalogue_read.clear()
            self._worker = threading.Thread(target=self._read, name="inspector-reader", daemon=True)
            self._worker.start()
            return True

    def _state(self) -> object:
        """Changes when the study file, one that it extends, or the event log does."""
        return self._instance.event_log_storage.get_maximum_record_id(), _file_states(self.study_path)

    def _read(self) -> None:
        try:
            self.problem = ""
            self._report("reading Dagster's event log")
            heads = read_heads(self._instance)
            self._catalogue = self._reader.read(heads, self._report)
            self._catalogue_read.set()
        except Exception as error:  # noqa: BLE001  (a thread has nobody to raise to: the pages show it)
            self._failed("", error)
        else:
            self._prepare(self._catalogue)
        finally:
            self._catalogue_read.set()
            self.progress = ""

    def _prepare(self, catalogue: Catalogue) -> None:
        """What the first request of a page needs. One that fails does not keep the others from being made."""
        steps: tuple[tuple[str, Callable[[Catalogue], None]], ...] = (
            ("loading the model's tokenizer", self._load_decoder),
            ("indexing candidates for the sliders", self._build_fronts),
            ("reading benchmark answers", self.answers.prepare),
        )
        for what, step in steps:
            self._report(what)
            try:
                step(catalogue)
            except Exception as error:  # noqa: BLE001  (see above)
                self._failed(f"{what}: ", error)

    def _load_decoder(self, catalogue: Catalogue) -> None:
        self.decoder = decoder(catalogue.study.model)

    def _failed(self, what: str, error: Exception) -> None:
        problem = what + (text.reason(error) or type(error).__name__)
        self.problem = f"{self.problem}; {problem}" if self.problem else problem
        self._again = time.monotonic() + SECONDS_TO_NEXT_TRY
        _LOG.warning("%s", problem, exc_info=None if isinstance(error, _EXPLAINED) else error)

    def _report(self, what: str) -> None:
        self.progress = what

    def _build_fronts(self, catalogue: Catalogue) -> None:
        each: dict[str, SelectionSettings] = {}
        for recipe in catalogue.study.recipes.values():
            if recipe.selection is not None and recipe.selection.rule == "m3p":
                each.setdefault(front_key(recipe.selection), recipe.selection)
        folder = self.store.cache_folder / CACHE_FOLDER
        kept: dict[str, Fronts] = {}
        for shard in catalogue.shards:
            if not shard.scored:
                continue
            lacking: dict[str, SelectionSettings] = {}
            for settings in each.values():
                name = file_name(shard, settings)
                front = self._fronts.get(name) or _load(folder / name)
                if front is None:
                    lacking[name] = settings
                else:
                    kept[name] = front
            if lacking:
                self._report(f"indexing shard {shard.name} for the sliders")
                try:
                    built = build_fronts(shard, list(lacking.values()))
                except pa.ArrowException as error:
                    read = ", ".join(
                        item.where("data.parquet") for item in (shard.candidates, shard.mas, shard.logprobs)
                    )
                    raise ValueError(f"one of {read} is damaged ({error}): run `m3po doctor store --repair`") from None
                for name, front in zip(lacking, built, strict=True):
                    _save(front, folder / name)
                    kept[name] = front
            self._fronts = {**self._fronts, **kept}
        self._fronts = kept
        for name, recipe in catalogue.study.recipes.items():
            if recipe.selection is not None and recipe.selection.rule == "m3p":
                self._report(f"computing the grid of {name}")
                self.tuner.prepare(catalogue, name, self.fronts(catalogue, recipe.selection))
        prune(folder, CACHE_BYTES)


def _load(path: Path) -> Fronts | None:
    if not path.is_file():
        return None
    try:
        fronts = Fronts.load(path)
        path.touch()
    except _DAMAGED as error:
        _LOG.warning("%s can't be used and is made again: %s", path, error)
        return None
    return fronts


def _save(fronts: Fronts, path: Path) -> None:
    """A cache that can't be written costs time at the next start, nothing else."""
    try:
        fronts.save(path)
    except OSError as error:
        _LOG.warning("%s can't be written: %s", path, error)


def prune(folder: Path, limit: int) -> None:
    """Removes the files used longest ago until those in `folder` have at most `limit` bytes."""
    files = sorted(folder.glob("fronts-*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > limit:
            path.unlink(missing_ok=True)


def _file_states(path: Path) -> list[tuple]:
    """Size and times of a study file and of those it extends."""
    states: list[tuple] = []
    followed: set[Path] = set()
    while path.resolve() not in followed:
        followed.add(path.resolve())
        try:
            stat = path.stat()
            states.append((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns))
            parent = _extends(path, stat.st_mtime_ns)
        except OSError as error:
            states.append((str(path), str(error)))
            break
        if parent is None:
            break
        path = path.parent / parent
    return states


@lru_cache(maxsize=64)
def _extends(path: Path, changed: int) -> str | None:
    """What a study file says it extends; `changed` is its time of change."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    parent = content.get("extends") if isinstance(content, dict) else None
    return parent if isinstance(parent, str) else None

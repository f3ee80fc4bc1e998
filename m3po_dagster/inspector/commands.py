"""The commands that the pages tell a person to run: pasted where the inspector was started, they do what was said."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.home import store_root
from m3po_dagster.storage.s3 import is_s3
from m3po_dagster.study import DEFAULT_STUDY, study_path


@dataclass(frozen=True)
class Commands:
    """`m3po` commands for the study file and the store that are shown; what a command finds by itself is left out."""

    study: Path
    store: str

    def run(self, recipe: str = "") -> str:
        """Brings the study, or one of its recipes, up to date."""
        return self._command("run", *(["--recipe", recipe] if recipe else []))

    def status(self) -> str:
        """Says what is not up to date, and why."""
        return self._command("status")

    def _command(self, verb: str, *more: str) -> str:
        study, default = self.study.absolute(), DEFAULT_STUDY.absolute()
        words = ["m3po", verb, *more]
        # `m3po ui` sets M3PO_STUDY for the inspector alone: the shell that a command is pasted into may not have it.
        if study != default or study_path().absolute() != default:
            words += ["--study", _near(study)]
        # `m3po run` has no option for it.
        chosen = [] if self._store_is_known() else [f"M3PO_STORE={shlex.quote(self._near_store())}"]
        return " ".join([*chosen, shlex.join(words)])

    def _store_is_known(self) -> bool:
        root = store_root()
        return root == self.store or (not is_s3(self.store) and root == Path(self.store).as_uri())

    def _near_store(self) -> str:
        return self.store if is_s3(self.store) else _near(Path(self.store))


def _near(path: Path) -> str:
    """The path as it is named from here: relative to the current folder when it lies there."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

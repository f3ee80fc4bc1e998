"""Where a project keeps things: the store, and Dagster's event log with telemetry off."""

import os
import re
from pathlib import Path

DEFAULT_HOME = ".m3po/dagster"
DEFAULT_STORE = ".m3po/store"
_LIKE_A_URL = re.compile(r"\w+:/")
SETTINGS = """\
# Nothing leaves this machine, and no dialog covers the page on a first visit.
telemetry:
  enabled: false
nux:
  enabled: false

# What this package warns of stands in a run's log too: memory that did not suffice, a model whose own code is run.
python_logs:
  managed_python_loggers: [m3po_dagster]

# Runs wait in a queue. Steps that load a model belong to the pool `model`: one run of them at a time is what one GPU
# (or a laptop) holds. The pool gives no run a GPU of its own: where there are more, Ray deals them out.
concurrency:
  runs:
    max_concurrent_runs: 3
  pools:
    granularity: run
    default_limit: 1

# A run that never came to start, or never came to stop, is given up, so that what it was for is started anew.
run_monitoring:
  enabled: true
  start_timeout_seconds: 120
  cancel_timeout_seconds: 120
"""


def store_root() -> str:
    """The store named by M3PO_STORE, or the one in the project folder; a folder comes back absolute.

    What looks like a URL comes back as it is: which of them name a store, and which are mistyped, the store knows.
    """
    root = os.environ.get("M3PO_STORE") or DEFAULT_STORE
    return root if _LIKE_A_URL.match(root) else str(Path(root).absolute())


def dagster_home() -> Path:
    """DAGSTER_HOME, or the one in the project folder."""
    return Path(os.environ.get("DAGSTER_HOME") or DEFAULT_HOME).absolute()


def ensure_home() -> Path:
    """Sets DAGSTER_HOME when it isn't set and gives it a dagster.yaml when it has none. Raises OSError if it can't."""
    home = dagster_home()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(SETTINGS, encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(home)
    return home

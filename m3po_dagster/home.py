"""Where Dagster keeps its event log: DAGSTER_HOME, or a folder of the project, with telemetry off."""

import os
from pathlib import Path

DEFAULT_HOME = ".m3po/dagster"
SETTINGS = """\
# Nothing leaves this machine, and no dialog covers the page on a first visit.
telemetry:
  enabled: false
nux:
  enabled: false
"""


def ensure_home() -> Path:
    """Sets DAGSTER_HOME when it isn't set and gives it a dagster.yaml when it has none. Raises OSError if it can't."""
    home = Path(os.environ.get("DAGSTER_HOME") or DEFAULT_HOME).absolute()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(SETTINGS, encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(home)
    return home

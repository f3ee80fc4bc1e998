"""Where this machine keeps copies of what lies in a bucket."""

import hashlib
import os
from pathlib import Path


def cache_folder(url: str) -> Path:
    """The folder of a bucket's copies: in $M3PO_CACHE, or in m3po in the user's cache folder ($XDG_CACHE_HOME)."""
    named = os.environ.get("M3PO_CACHE")
    root = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m3po"
    return root.absolute() / hashlib.sha256(url.encode()).hexdigest()[:16]

"""Where this machine keeps copies of what lies in buckets."""

import hashlib
import os
from pathlib import Path


def caches() -> Path:
    """The folder of all copies: $M3PO_CACHE, else m3po in the user's cache folder ($XDG_CACHE_HOME)."""
    named = os.environ.get("M3PO_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named).absolute() if named else Path(home, "m3po").absolute()


def cache_folder(url: str) -> Path:
    """The folder of a store's own: its artifacts, drafts and ledger."""
    return caches() / hashlib.sha256(url.encode()).hexdigest()[:16]

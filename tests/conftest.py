"""Shared fixtures."""

import os

# Before torch is imported anywhere: spinning OpenMP threads make small models slow on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hypothesis import settings

# A machine that is busy with something else fails no test.
settings.register_profile("counts, not seconds", deadline=None)
settings.load_profile("counts, not seconds")

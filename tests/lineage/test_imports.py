"""Lineage needs the store alone: no module of it imports Dagster or torch."""

import json
import pkgutil
import subprocess
import sys

from m3po_dagster import lineage


def test_no_module_imports_dagster_or_torch():
    names = [f"m3po_dagster.lineage.{module.name}" for module in pkgutil.iter_modules(lineage.__path__)]
    code = f"import json, sys, {', '.join(names)}; print(json.dumps([*sys.modules]))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert set(names) <= set(loaded) and not {"dagster", "torch", "transformers"} & set(loaded)

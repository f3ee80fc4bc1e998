"""What the exports load: nothing of Dagster, and neither torch nor `datasets` before they are needed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = [f"m3po_dagster.export.{path.stem}" for path in sorted((ROOT / "m3po_dagster" / "export").glob("*.py"))]
HEAVY = ("dagster", "torch", "transformers", "peft", "datasets", "huggingface_hub")


def test_the_modules_import_nothing_heavy():
    code = (
        "import importlib, sys\n"
        f"for name in {MODULES!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr

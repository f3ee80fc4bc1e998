"""`m3po ARGUMENTS` in this process, which notes every class that a pickle has looked up: NOTES gets them as JSON lines.

python run_watched.py NOTES ARGUMENTS...
"""

import json
import sys

notes = open(sys.argv[1], "a", encoding="utf-8")  # noqa: SIM115 - open to the end, as the hook is


def note(event: str, given: tuple) -> None:
    if event == "pickle.find_class":
        notes.write(json.dumps(given) + "\n")


sys.addaudithook(note)
sys.argv = ["m3po", *sys.argv[2:]]

from m3po_dagster.cli.main import main  # noqa: E402

main()

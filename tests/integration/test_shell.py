"""`m3po run` and `m3po status` as a shell sees them: what they print, and how they end."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

M3PO = str(Path(sys.executable).with_name("m3po"))


def m3po(project, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [M3PO, *arguments], env=project.environment() | environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_shard_by_itself_is_no_failure(fresh):
    ended = m3po(fresh, "run", "--shard", "s0")
    assert ended.returncode == 0, ended.stderr
    found = {item.part: item.state for item in fresh.standings()}
    assert found["preference_pairs", "m3po|s0"] == "fresh" and found["candidates", "s1"] == "missing"
    owed = ended.stderr.strip().splitlines()[-1].split("]")[0].strip("[ ").split("/")
    assert owed[0].strip() == owed[1], ended.stderr


def test_status_says_what_changed(copy_of_made, small_study):
    edited = deepcopy(small_study)
    edited["recipes"]["m3po"]["selection"]["alpha"] = 0.7
    edited["generation"]["max_new_tokens"] = 39
    copy_of_made.write(edited)
    said = m3po(copy_of_made, "status").stdout
    assert "stale    recipe_config[m3po]: selection.alpha was 0.5, now 0.7" in said
    assert "stale    candidates[s0]: max_new_tokens was 40, now 39" in said
    assert m3po(copy_of_made, "run", "--recipe", "m3po", "--asset", "recipe_config").returncode == 0
    said = m3po(copy_of_made, "status").stdout
    assert "stale    preference_pairs[m3po|s0]: recipe_config[m3po] has other content; waits for candidates[s0]" in said


@pytest.mark.parametrize("command", ["status", "run", "leaderboard"])
@pytest.mark.parametrize("broken", ["dagster.yaml", "history/runs.db"])
def test_an_event_log_that_can_not_be_read_is_a_sentence(fresh, command, broken):
    with fresh.instance() as instance:
        instance.get_runs(limit=1)
    (fresh.folder / "home" / broken).write_text("a: [" * 100)
    ended = m3po(fresh, command)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.startswith(f"error: Dagster's event log in {fresh.folder / 'home'} can't be read: ")


@pytest.mark.parametrize("root", ["ftp://host/x", "/etc/passwd"])
def test_a_store_that_can_not_be_opened_is_a_sentence(fresh, root):
    ended = m3po(fresh, "status", M3PO_STORE=root)
    assert ended.returncode == 1 and ended.stderr.startswith("error: ") and len(ended.stderr.splitlines()) == 1

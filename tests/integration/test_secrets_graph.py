"""A whole study with a judge that wants a key and repeats it: what is kept, logged and shown holds no secret."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from test_judged_graph import judged_by

from m3po_dagster.home import SETTINGS
from tests.integration.conftest import WEIGHTS, Project
from tests.loopback import Reply, error
from tests.security.hostile_models import with_own_model
from tests.served_judge import Received, ServedJudge

CANARIES = {
    name: f"canary-{number}-never-to-be-written-down"
    for number, name in enumerate(
        (
            "JUDGE_KEY",
            "OPENAI_API_KEY",
            "HF_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "DAGSTER_POSTGRES_PASSWORD",
        )
    )
}
SCRIPT = Path(__file__).with_name("run_watched.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Talkative(ServedJudge):
    """Says the headers it was sent wherever it can: in a refusal while `refuses`, in a failure once, in every grade."""

    refuses, failed = True, False

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if self.refuses:
            return error(401, f"no: you sent {dict(headers)}")
        with self.lock:
            fails, self.failed = not self.failed, True
        if fails:
            return error(500, f"broken: you sent {dict(headers)}", retry_after_ms="1")
        return super().answer(path, headers, body)

    def judge(self, received: Received) -> Reply:
        body = json.loads(super().judge(received).body)
        message = body["choices"][0]["message"]
        content = json.loads(message["content"])
        for grade in content["grades"]:
            grade["evidence"] = f"you sent {dict(received.headers)}"
        message["content"] = json.dumps(content)
        return Reply(body=json.dumps({**body, "debug": dict(received.headers)}).encode())


class Watched:
    """A study of a trusted model with a talkative judge, run twice: refused, then to its end."""

    def __init__(self, project: Project, settings: dict) -> None:
        self.project, self.marker = project, project.folder / "own-code-was-run"
        self.notes = project.folder / "pickles"
        model = with_own_model(WEIGHTS / "llava", project.folder / "model", self.marker)
        with Talkative(key=CANARIES["JUDGE_KEY"]) as server:
            study = judged_by(settings, server, scorer={"api_key_env": "JUDGE_KEY"})
            study["model"] |= {"path": str(model), "trust_remote_code": True}
            # One of each kind is enough, and two recipes are no more kinds than one.
            study["recipes"].pop("sft")
            study["benchmarks"].pop("chair")
            project.write(study)
            (project.folder / "home").mkdir()
            (project.folder / "home" / "dagster.yaml").write_text(SETTINGS)
            self.refused = self._run()
            server.refuses = False
            self.done = self._run()
        self.said = [received.headers for received in server.received]

    def _run(self) -> subprocess.CompletedProcess:
        environment = {
            **self.project.environment(),
            **CANARIES,
            "AWS_ACCESS_KEY_ID": "nobody",
            "HF_MODULES_CACHE": str(self.project.folder / "modules"),
        }
        script = [sys.executable, str(SCRIPT), str(self.notes), "run"]
        return subprocess.run(script, capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture(scope="module")
def watched(tmp_path_factory, small_study):
    return Watched(Project(tmp_path_factory.mktemp("watched")), small_study)


def test_it_ran_as_meant(watched):
    assert watched.refused.returncode != 0 and "Bearer ***" in watched.refused.stdout + watched.refused.stderr
    assert watched.done.returncode == 0, watched.done.stderr[-2000:]
    assert watched.said[0]["authorization"] == f"Bearer {CANARIES['JUDGE_KEY']}"
    kept = watched.project.ledger()
    assert len(kept) > 10 and all("Bearer ***" in row["reply"] for row in kept)


@pytest.mark.parametrize("name", CANARIES)
def test_no_secret_is_in_what_was_kept_or_shown(watched, name):
    secret = CANARIES[name].encode()
    files = [path for path in watched.project.folder.rglob("*") if path.is_file()]
    # Of each kind there is something: tables, ledger, event log, what steps printed.
    for part in ("store/mas_table", "store/ledger", "home/history", "home/storage"):
        assert [path for path in files if path.is_relative_to(watched.project.folder / part)], part
    assert [path for path in files if secret in path.read_bytes()] == []
    for run in (watched.refused, watched.done):
        assert secret not in (run.stdout + run.stderr).encode()


def test_code_that_a_study_trusts_is_told_in_the_runs_log(watched):
    assert watched.marker.exists()
    with watched.project.instance() as instance:
        told = {
            entry.step_key
            for run in instance.get_runs()
            for entry in instance.all_logs(run.run_id)
            if entry.level >= 30 and "trust_remote_code is on: the Python code in own.py" in entry.user_message
        }
    assert any("candidates" in key for key in told), told


def test_a_whole_study_looks_up_no_class_for_a_pickle(watched):
    assert watched.notes.read_text() == ""


def test_the_hook_sees_a_pickle(tmp_path):
    code = (
        "import pathlib, pickle, runpy, sys\n"
        f"sys.argv = ['run_watched.py', {str(tmp_path / 'notes')!r}, '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r})\n"
        "except SystemExit: pickle.loads(pickle.dumps(pathlib.Path))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
    assert json.loads((tmp_path / "notes").read_text()) == ["pathlib", "Path"]

"""`m3po inspect` as a command: it says what is wrong, and serves until it is told to stop."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from typer.testing import CliRunner

from m3po_dagster.cli.main import app

ROOT = Path(__file__).parents[2]


def environment(made_study) -> dict[str, str]:
    return {**os.environ, "DAGSTER_HOME": str(made_study.folder / "home")}


def options(made_study) -> list[str]:
    return ["inspect", "--no-open", "--study", str(made_study.path), "--store", str(made_study.store.root)]


def test_a_bad_study_and_a_taken_port_get_a_sentence(made_study):
    runner = CliRunner(env=environment(made_study))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = runner.invoke(app, [*options(made_study), "--port", port])
    assert result.exit_code == 1 and f"port {port} of 127.0.0.1 can't be used" in result.stderr
    assert "choose another with --port" in result.stderr
    made_study.path.write_text("name: [")
    result = runner.invoke(app, options(made_study))
    assert result.exit_code == 2 and "not valid YAML" in result.stderr


def test_it_serves_on_loopback_until_it_is_stopped(made_study):
    command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()"]
    command += [*options(made_study), "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, env=environment(made_study), stdout=subprocess.PIPE, text=True)
    try:
        address = re.match(r"http://127\.0\.0\.1:(\d+)", server.stdout.readline())
        with urllib.request.urlopen(f"{address[0]}/static/style.css") as answer:
            assert answer.headers["content-type"].startswith("text/css") and "server" not in answer.headers
        listening = Path(f"/proc/{server.pid}/net/tcp").read_text()
        assert f"0100007F:{int(address[1]):04X} 00000000:0000 0A" in listening
    finally:
        server.send_signal(signal.SIGINT)
    assert server.wait(30) in (0, 130, -signal.SIGINT)


def test_starting_it_loads_no_torch(made_study):
    code = (
        "import sys\n"
        "from m3po_dagster.cli.main import app\n"
        "import m3po_dagster.inspector.server\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'peft', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr

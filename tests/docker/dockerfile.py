"""Dockerfiles read and carried out without an engine: stage by stage, the very commands, in a mount namespace.

What stands in for the base image is this machine's own Python and programs. A stage's files lie under /srv alone.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

ROOT = Path(__file__).parents[2]
BASE_PYTHON = "/srv/python"
"""Where the namespaces see this machine's Python: its own folder may be closed to users other than root."""
BASE_ENVIRONMENT = {
    "PATH": f"{BASE_PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LD_LIBRARY_PATH": f"{BASE_PYTHON}/lib",
}


@dataclass
class Stage:
    """One stage: its instructions in order, and what they leave a container with."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: dict(BASE_ENVIRONMENT))
    workdir: str = "/"
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, text) in order, comments dropped and continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word.upper(), text.strip()) for word, _, text in (line.partition(" ") for line in joined.splitlines())]


def stages(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile by name. Raises ValueError for an instruction that nothing here understands."""
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    given: dict[str, str] = {}
    for word, text in instructions(path):
        if word == "FROM":
            base, _, name = re.fullmatch(r"(\S+)(\s+AS\s+(\S+))?", text).groups()
            stage = found[name] = Stage(name, Template(base).substitute(given))
        elif word == "ARG":
            name, _, value = text.partition("=")
            (given if stage is None else stage.arguments)[name] = value
        elif word == "ENV":
            for pair in shlex.split(text):
                name, _, value = pair.partition("=")
                stage.environment[name] = Template(value).safe_substitute(stage.environment)
        elif word == "WORKDIR":
            stage.workdir = text
            stage.steps.append((word, text))
        elif word in ("RUN", "COPY"):
            stage.steps.append((word, text))
        elif word == "USER":
            stage.user = text
        elif word == "ENTRYPOINT":
            stage.entrypoint = json.loads(text)
        elif word == "CMD":
            stage.command = json.loads(text)
        elif word not in ("EXPOSE", "VOLUME"):
            raise ValueError(f"{path}: {word} is not carried out here")
    return found


def build(stage: Stage, folder: Path, others: dict[str, Path], arguments: dict[str, str]) -> None:
    """Carries out a stage; what the image would have under /srv is in `folder` then.

    `others`: the folders of stages that this one copies from. AssertionError where a command fails.
    """
    folder.mkdir(parents=True)
    workdir = "/"
    for word, text in stage.steps:
        if word == "WORKDIR":
            workdir = text
            _inside(folder, text).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = text.split()
            origin = ROOT
            if sources[0].startswith("--from="):
                origin = others[sources.pop(0).removeprefix("--from=")]
            for source in sources:
                place = _inside(folder, os.path.join(workdir, target))
                if target.endswith("/"):
                    place = place / Path(source).name
                _copy(_inside(origin, source) if source.startswith("/") else origin / source, place)
        else:
            run(folder, workdir, stage.environment | stage.arguments | arguments, text)


def run(folder: Path, workdir: str, environment: dict[str, str], text: str) -> str:
    """Carries out one RUN with `folder` as /srv; what it printed. AssertionError where it fails."""
    environment = environment | {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment.pop("PIP_NO_CACHE_DIR", None)  # an image is to hold no cache; a test may use the one there is
    given = shlex.join(f"{name}={value}" for name, value in environment.items())
    script = " && ".join(
        (
            f"mount --bind {shlex.quote(str(folder))} /srv",
            shlex.join(base_python(folder)),
            f"cd {workdir}",
            f"exec env -i {given} sh -c {shlex.quote(text)}",
        )
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, f"RUN {text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def base_python(folder: Path) -> list[str]:
    """The command that shows this machine's Python in a namespace where `folder` is /srv."""
    (folder / "python").mkdir(exist_ok=True)
    return ["mount", "--bind", sys.base_prefix, BASE_PYTHON]


def _inside(folder: Path, path: str) -> Path:
    assert path == "/srv" or path.startswith("/srv/"), f"{path}: images keep everything under /srv"
    return folder / path.removeprefix("/srv").lstrip("/")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        # Hard links: the environment has 2 GB, and nobody changes it.
        link = None if source.is_relative_to(ROOT) else os.link
        ignore = shutil.ignore_patterns("__pycache__") if link is None else None
        shutil.copytree(source, target, symlinks=True, copy_function=link or shutil.copy2, ignore=ignore)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)

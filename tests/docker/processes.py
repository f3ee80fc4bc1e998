"""The services of compose.yaml as processes, without an engine: the images' files, the very commands and variables.

Each service gets from the kernel what a container would: its own mounts with the image read-only, its own process ids,
the image's user without any capability, secrets under /run/secrets. All of them share one network that has only
loopback, where every service's name is 127.0.0.1.
"""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from tests.docker import compose_file
from tests.docker.dockerfile import Stage, base_python
from tests.integration.postgres import programs

_PREPARING = {
    os.path.realpath(found) for found in map(shutil.which, ("sh", "setpriv", "env", "unshare", "mount")) if found
}
"""What a service's first process is before it is the service's own program."""


class Network:
    """A network with nothing but loopback; `with Network(folder, names) as network`."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.hosts = folder / "hosts"
        self.hosts.write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *names)))

    def __enter__(self) -> "Network":
        script = "ip link set lo up && echo up && exec sleep infinity"
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout.readline() == "up\n"
        self.enter = ["nsenter", "--net", "-t", str(self._holder.pid), "--"]
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.wait()


class Service:
    """One service of the compose file over the files of its image."""

    def __init__(
        self, name: str, told: dict, stage: Stage, image: Path, network: Network, volumes: Path, secrets: Path
    ) -> None:
        """`image`: the folder that is the image's /srv; `volumes`: where named volumes lie."""
        self.name, self.told, self.stage, self.image = name, told, stage, image
        self.network, self.volumes, self.secrets = network, volumes, secrets
        self.log = volumes / f"{name}.log"
        self.environment = stage.environment | {key: str(value) for key, value in told.get("environment", {}).items()}
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the service as compose would."""
        words = [*self.stage.entrypoint, *(self.told.get("command") or self.stage.command)]
        script = " && ".join([*self._mounts(), f"cd {self.stage.workdir}", f"exec {self._as_user(words)}"])
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*self.network.enter, *isolated], stdout=log, stderr=log)

    def _mounts(self) -> list[str]:
        """What gives the process a container's file system, innermost last."""
        for _, target, _ in compose_file.mounts(self.told):
            inside = self.image / target.removeprefix("/srv/")
            if not inside.exists():
                inside.touch()  # an engine makes what is mounted over
        made = [f"mount --bind {shlex.quote(str(self.image))} /srv", shlex.join(base_python(self.image))]
        if self.told.get("read_only"):
            made += ["mount -o remount,bind,ro /srv"]
        made += [f"mount --bind {shlex.quote(str(self.network.hosts))} /etc/hosts"]
        for source, target, read_only in compose_file.mounts(self.told):
            path = compose_file.path_of(source) if compose_file.is_path(source) else self._volume(source, target)
            made += [f"mount --bind {shlex.quote(str(path))} {target}"]
            made += [f"mount -o remount,bind,ro {target}"] if read_only else []
        kept = shlex.quote(str(self.secrets))
        made += ["mkdir -p /run", "mount -t tmpfs tmpfs /run", "mkdir /run/secrets"]
        made += [f"cp -p {kept}/{name} /run/secrets/" for name in self.told.get("secrets", ())]
        options = "mode=1777,noexec,nosuid,nodev"  # an engine's own
        return made + [f"mount -t tmpfs -o {options} tmpfs {place}" for place in self.told.get("tmpfs", ())]

    def _volume(self, name: str, target: str) -> Path:
        """A named volume: what the image has there, with its owners, the first time it is used."""
        place = self.volumes / name
        if not place.exists():
            subprocess.run(["cp", "-a", str(self.image / target.removeprefix("/srv/")), str(place)], check=True)
        return place

    def _as_user(self, words: list[str]) -> str:
        user, group = self.stage.user.split(":")
        rights = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        given = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join(["setpriv", f"--reuid={user}", f"--regid={group}", *rights, "env", "-i", *given, *words])

    def run(self, words: list[str], seconds: float = 120) -> subprocess.CompletedProcess:
        """`docker compose exec`: a command beside the service's own, without the entrypoint."""
        inside = ["nsenter", "--mount", "--net", "--pid", "-t", str(self._first_process()), "--"]
        command = f"cd {self.stage.workdir} && exec {self._as_user(words)}"
        return subprocess.run([*inside, "sh", "-c", command], capture_output=True, text=True, timeout=seconds)

    def healthy(self) -> bool:
        """Whether the health check that the compose file names succeeds."""
        kind, *words = self.told["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(words).returncode == 0

    def until_healthy(self, seconds: float = 120) -> None:
        """Waits for the health check; AssertionError with the service's log where it never succeeds."""
        deadline = time.monotonic() + seconds
        while not (self.process.poll() is None and self._started() and self.healthy()):
            assert self.process.poll() is None, f"{self.name} ended\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy\n{self.log.read_text()[-4000:]}"
            time.sleep(0.5)

    def _started(self) -> bool:
        try:
            return os.readlink(f"/proc/{self._first_process()}/exe") not in _PREPARING
        except (IndexError, OSError):
            return False

    def _first_process(self) -> int:
        """The id, seen from here, of the process that is 1 in there."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def pause(self) -> None:
        """`docker pause`: nothing in there goes on until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, what: signal.Signals) -> None:
        first = psutil.Process(self._first_process())
        for process in (first, *first.children(recursive=True)):
            process.send_signal(what)

    def kill(self) -> None:
        """`docker kill`: the first process dies, and the kernel ends all others with it."""
        if self.process is not None and self.process.poll() is None:
            try:
                os.kill(self._first_process(), signal.SIGKILL)
            except IndexError:
                self.process.kill()
            self.process.wait(30)


class Database:
    """The service `postgres`: its image can't be had here, so this machine's Postgres stands in, told the same."""

    def __init__(self, told: dict, network: Network, secrets: Path) -> None:
        self.told, self.network, self.programs = told["environment"], network, programs()
        self.check = told["healthcheck"]["test"][1:]
        self.secret = secrets / Path(self.told["POSTGRES_PASSWORD_FILE"]).name
        # A folder of its own: the server refuses to run as root, and may not look into a test's folders.
        self.folder = Path(tempfile.mkdtemp(prefix="m3po-postgres-"))
        shutil.chown(self.folder, "postgres", "postgres")
        self.running = False

    def start(self) -> None:
        """A new cluster with the compose file's user, database and password, listening on loopback."""
        user, password = self.told["POSTGRES_USER"], self.folder / "password"
        shutil.copy(self.secret, password)
        shutil.chown(password, "postgres", "postgres")
        asked = self.told["POSTGRES_INITDB_ARGS"].split()
        self._server("initdb", "-U", user, f"--pwfile={password}", *asked)
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._server("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")
        self.running = True
        create = f"CREATE DATABASE {self.told['POSTGRES_DB']}"
        self._run("psql", f"--host={self.folder}", f"--username={user}", "--dbname=postgres", f"--command={create}")
        self._run(*self.check)

    def stop(self) -> None:
        """End the server; nothing of it is left."""
        if self.running:
            self._server("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def _server(self, program: str, *words: str) -> None:
        self._run(str(self.programs / program), "-D", str(self.folder / "data"), *words)

    def _run(self, *words: str) -> None:
        become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        command = [*self.network.enter, *become, *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

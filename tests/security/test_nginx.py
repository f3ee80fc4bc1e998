"""The nginx configuration of docs/security.md, taken from the page, before Dagster's real server and the inspector."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.loopback import LoopbackServer, Reply

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Unverified HTTPS request")]
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```nginx\n# (?P<name>[a-z0-9]+)\.conf.*?\n(?P<text>.*?)```", re.DOTALL)
DAGSTER, INSPECTOR = "dagster.example.com", "inspect.example.com"
OWN = {"Origin": f"https://{DAGSTER}"}
LOGIN = ("ann", "a-password")
MUTATION = {"query": "mutation { reloadWorkspace { __typename } }"}
QUERY = {"query": "{ version }"}
SCRIPTS = "/_next/static/"
"""Where the pages of Dagster's web interface have theirs."""


def blocks() -> dict[str, str]:
    """The page's configurations by name."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    return {found["name"]: found["text"] for found in BLOCK.finditer(text)}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def process(command: list[str], port: int, **how) -> Iterator[None]:
    """A server, from when it listens on the port until the end."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **how) as server:
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert server.poll() is None, server.stderr.read()[-2000:]
                    assert time.monotonic() < deadline, f"{command[0]} does not listen"
                    time.sleep(0.1)
            yield
        finally:
            server.terminate()
            server.communicate(timeout=30)


@pytest.fixture(scope="module")
def dagster(tmp_path_factory) -> Iterator[int]:
    """Port of Dagster's own web server, over no code location."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    program = str(Path(sys.executable).with_name("dagster-webserver"))
    command = [program, "-h", "127.0.0.1", "-p", str(port), "--empty-workspace"]
    with process(command, port, env={**os.environ, "DAGSTER_HOME": str(home)}):
        yield port


@pytest.fixture(scope="module")
def inspector(tmp_path_factory) -> Iterator[int]:
    """Port of the inspector, over a study of which nothing was made."""
    folder, port = tmp_path_factory.mktemp("inspected"), free_port()
    program = "from m3po_dagster.cli.main import main; main()"
    command = [sys.executable, "-c", program, "inspect", "--port", str(port), "--no-open"]
    folders = {"DAGSTER_HOME": str(folder / "home"), "M3PO_STORE": str(folder / "store")}
    with process(command, port, cwd=ROOT, env={**os.environ, **folders}):
        yield port


@contextmanager
def nginx(folder: Path, configuration: str, ports: Mapping[int, int]) -> Iterator[int]:
    """nginx with a configuration of the page, its upstreams on other ports, its files in `folder`; gives its port."""
    if shutil.which("nginx") is None:
        if os.environ.get("M3PO_REQUIRE_NGINX"):
            pytest.fail("M3PO_REQUIRE_NGINX is set and nginx is not installed (Debian: nginx-light)")
        pytest.skip("nginx is not installed (Debian: nginx-light)")
    port = free_port()
    certificate = ["-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem", "-subj", f"/CN={DAGSTER}"]
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *certificate]
    subprocess.run(openssl, check=True, capture_output=True)
    hashed = subprocess.run(["openssl", "passwd", "-apr1", LOGIN[1]], check=True, capture_output=True, text=True)
    (folder / "dagster.htpasswd").write_text(f"{LOGIN[0]}:{hashed.stdout}")
    text = configuration.replace("listen 443", f"listen 127.0.0.1:{port}")
    text = text.replace("/etc/nginx/tls/", f"{folder}/").replace("/etc/nginx/", f"{folder}/")
    for named, real in ports.items():
        text = text.replace(f"127.0.0.1:{named}", f"127.0.0.1:{real}")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nuser root;\npid {folder}/pid;\nerror_log {folder}/errors;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}\n}}\n"
    )
    with process(["nginx", "-c", str(folder / "nginx.conf"), "-e", f"{folder}/errors"], port):
        yield port


@pytest.fixture(scope="module")
def front(tmp_path_factory, dagster, inspector):
    with nginx(tmp_path_factory.mktemp("front"), blocks()["dagster"], {3000: dagster, 3001: inspector}) as port:
        yield port


def ask(port: int, method: str, path: str, host: str = DAGSTER, login=LOGIN, headers=None, **more):
    return requests.request(
        method, f"https://127.0.0.1:{port}{path}",
        headers={"Host": host, **(headers or {})}, auth=login, verify=False, timeout=60, allow_redirects=False, **more,
    )  # fmt: skip


def test_dagster_alone_does_what_any_page_says(dagster):
    """Why a proxy checks Origin and Host: a picture's address and another site's form are enough."""
    elsewhere = {"Host": "rebound.example.org", "Origin": "https://elsewhere.example.org"}
    for method in ("GET", "POST"):
        answer = requests.request(
            method, f"http://127.0.0.1:{dagster}/graphql", params=MUTATION, headers=elsewhere, timeout=60
        )
        assert answer.json()["data"]["reloadWorkspace"]["__typename"] == "Workspace"


def test_nobody_comes_in_without_a_login(front):
    for host in (DAGSTER, INSPECTOR):
        for login in (None, ("ann", "wrong"), ("eve", LOGIN[1])):
            for path in ("/", "/server_info"):
                assert ask(front, "GET", path, host, login).status_code == 401
            for path in ("/graphql", "/report_asset_materialization/a"):
                assert ask(front, "POST", path, host, login, OWN, params=MUTATION).status_code == 401


def test_who_has_one_sees_dagster_and_acts(front):
    page = ask(front, "GET", "/")
    assert page.status_code == 200 and SCRIPTS in page.text
    assert page.headers["X-Frame-Options"] == "DENY" and "max-age" in page.headers["Strict-Transport-Security"]
    answer = ask(front, "POST", "/graphql", headers=OWN, json=MUTATION)
    assert answer.json()["data"]["reloadWorkspace"]["__typename"] == "Workspace"


@pytest.mark.parametrize(
    ("method", "path", "headers", "more"),
    [
        ("GET", "/graphql", {}, {"params": MUTATION}),
        ("GET", "/graphql", OWN, {"params": MUTATION}),
        ("POST", "/graphql", {}, {"json": MUTATION}),
        ("POST", "/graphql", {"Origin": "https://elsewhere.example.org"}, {"params": MUTATION}),
        ("POST", "/graphql", {"Origin": f"https://{DAGSTER}.example.org"}, {"params": MUTATION}),
        ("POST", "/graphql", {"Origin": "null"}, {"params": MUTATION}),
        ("POST", "/report_asset_materialization/a", {}, {"json": {}}),
        ("POST", "/report_asset_check/a", {"Origin": "https://elsewhere.example.org"}, {"json": {}}),
        ("DELETE", "/", OWN, {}),
    ],
)
def test_another_page_can_not_act_with_the_login(front, method, path, headers, more):
    assert ask(front, method, path, headers=headers, **more).status_code == 403


@pytest.mark.parametrize("path", ["/graphql/", "//graphql", "/./graphql", "/%67raphql", "/x/../graphql", "/GraphQL"])
def test_no_other_spelling_of_the_path_acts(front, path):
    prepared = requests.Request(
        "GET", f"https://127.0.0.1:{front}/", params=MUTATION, headers={"Host": DAGSTER}, auth=LOGIN
    ).prepare()
    prepared.url = prepared.url.replace("/?", f"{path}?")
    with requests.Session() as session:
        answer = session.send(prepared, verify=False, timeout=60, allow_redirects=False)
    assert "reloadWorkspace" not in answer.text or answer.status_code == 403


def test_another_host_is_not_answered(front):
    assert ask(front, "GET", "/", "rebound.example.org").status_code == 421


def web_socket(port: int, origin: str) -> bytes:
    """The first line of the answer to a web socket of GraphQL, with a login."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    login = base64.b64encode(":".join(LOGIN).encode()).decode()
    asked = (
        f"GET /graphql HTTP/1.1\r\nHost: {DAGSTER}\r\nOrigin: {origin}\r\nAuthorization: Basic {login}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: graphql-ws\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain, context.wrap_socket(plain) as wrapped:
        wrapped.sendall(asked.encode())
        return wrapped.recv(4096).split(b"\r\n")[0]


def test_the_pages_own_web_socket_is_let_through_and_anothers_is_not(front):
    assert b" 101 " in web_socket(front, OWN["Origin"])
    assert b" 403 " in web_socket(front, "https://elsewhere.example.org")


def test_the_inspector_is_seen_and_takes_its_own_forms_alone(front):
    page = ask(front, "GET", "/", INSPECTOR)
    assert page.status_code == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
    form = {"name": "new"}
    own = ask(front, "POST", "/tune/save", INSPECTOR, headers={"Origin": f"https://{INSPECTOR}"}, data=form)
    # Past the check of where it comes from: it lacks the page's token.
    assert own.status_code == 403 and "load the page again" in own.text
    for origin in ("https://elsewhere.example.org", f"https://{DAGSTER}"):
        refused = ask(front, "POST", "/tune/save", INSPECTOR, headers={"Origin": origin}, data=form)
        assert refused.status_code == 403 and "own pages only" in refused.text


class SignedIn(LoopbackServer):
    """Answers as oauth2-proxy does: 202 for its cookie, else 401; a page to sign in."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []

    def answer_other(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        self.paths.append(path)
        if path.startswith("/oauth2/auth"):
            return Reply(202 if "_oauth2_proxy=good" in headers.get("cookie", "") else 401)
        return Reply(200, b"sign in here")


def test_single_sign_on_lets_in_who_has_its_cookie(tmp_path, dagster, inspector):
    found = blocks()
    without = re.sub(
        r"    auth_basic \"Dagster\";\n    auth_basic_user_file [^\n]*\n", found["oauth2"], found["dagster"]
    )
    assert "auth_request" in without
    with SignedIn() as accounts:
        proxy = int(accounts.base_url.rpartition(":")[2].removesuffix("/v1"))
        with nginx(tmp_path, without, {3000: dagster, 3001: inspector, 4180: proxy}) as port:
            for cookie in ({}, {"Cookie": "_oauth2_proxy=forged"}):
                answer = ask(port, "GET", "/runs?x=1", login=None, headers=cookie)
                assert answer.status_code == 302
                assert answer.headers["Location"].endswith(f"/oauth2/sign_in?rd=https://{DAGSTER}/runs?x=1")
                refused = ask(port, "POST", "/graphql", login=None, headers={**OWN, **cookie}, json=QUERY)
                assert refused.status_code == 302
            assert ask(port, "GET", "/oauth2/sign_in", login=None).text == "sign in here"
            cookie = {"Cookie": "_oauth2_proxy=good"}
            assert SCRIPTS in ask(port, "GET", "/", login=None, headers=cookie).text
            answer = ask(port, "POST", "/graphql", login=None, headers={**OWN, **cookie}, json=QUERY)
            assert json.loads(answer.text)["data"]["version"]
            foreign = {"Origin": "https://elsewhere.example.org", **cookie}
            assert ask(port, "POST", "/graphql", login=None, headers=foreign, json=QUERY).status_code == 403
    assert "/oauth2/auth" in {path.partition("?")[0] for path in accounts.paths}

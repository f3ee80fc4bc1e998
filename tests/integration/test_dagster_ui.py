"""The Dagster UI in a real browser: the graph, an asset's page, a run launched by clicking, and hostile text.

The real webserver and daemon serve the finished small study. Dagster's page may log errors that are not this project's,
so its console is not asserted on.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from m3po_dagster.assets.pictures import gallery
from m3po_dagster.current import read_heads
from m3po_dagster.graph import STAGES
from tests.integration.conftest import Project
from tests.integration.daemon import descendants

ROOT = Path(__file__).parents[2]
GROUPS = ("outside", "data", "generation", "scores", "selection", "training", "evaluation")
HOSTILE = (
    "![](http://evil.example/a.png) <img src='http://evil.example/b.png'> [x](http://evil.example) "
    "http://evil.example/c www.evil.example me@evil.example `| ~~x~~"
)
ASSET_OF_OTHERS = dg.AssetKey("shows_hostile_text")


@dataclass
class Server:
    """A running UI over a project."""

    project: object
    address: str


@pytest.fixture(scope="module")
def server(made, small_study, tmp_path_factory) -> Iterator[Server]:
    """`m3po ui` over a copy of the finished study in which one recipe was edited since."""
    folder = tmp_path_factory.mktemp("ui") / "project"
    shutil.copytree(made.folder, folder)
    project = Project(folder)
    recipe = small_study["recipes"]["m3po"]
    edited = {**recipe, "selection": {**recipe["selection"], "alpha": 4.0}}
    project.write({**small_study, "recipes": {**small_study["recipes"], "m3po": edited}})
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    with project.instance() as instance:
        shown = gallery(("instruction", "answer"), [(folder / "image.png", ("What is this?", HOSTILE))])
        instance.report_runless_asset_event(dg.AssetMaterialization(ASSET_OF_OTHERS, metadata={"pairs": shown}))
    (folder / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    m3po = str(Path(sys.executable).with_name("m3po"))
    command = [m3po, "ui", "--study", str(project.study_file), "--port", str(port)]
    with (folder / "ui.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=project.environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield _answering(Server(project, f"http://127.0.0.1:{port}"), process)
    finally:
        # The daemon and the code server have process groups of their own.
        for pid in [*descendants(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(30)


def _answering(server: Server, process: subprocess.Popen) -> Server:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(f"{server.address}/server_info", timeout=5).close()
            return server
        time.sleep(0.3)
    raise AssertionError((server.project.folder / "ui.log").read_text()[-4000:])


def materialisations(project, asset: str) -> list[tuple[str | None, str]]:
    """Partition and run of every materialisation of an asset, newest first."""
    with project.instance() as instance:
        records = instance.fetch_materializations(dg.AssetKey(asset), limit=1000).records
    return [(record.asset_materialization.partition, record.event_log_entry.run_id) for record in records]


def launch(page, server: Server, asset: str, partitions: dict[str, str]) -> str:
    """Materialises one partition through the asset page's dialog; returns the run's id once it has succeeded."""
    before = len(materialisations(server.project, asset))
    page.goto(f"{server.address}/assets/{asset}")
    page.get_by_role("button", name="Materialize").first.click()
    for number in range(len(partitions)):
        # A chosen partition takes the place of the words, so the first that is left is the next dimension.
        page.get_by_text("Select a partition or create one").first.click()
        name = list(partitions.values())[number]
        page.get_by_role("menuitem").filter(has=page.get_by_text(name, exact=True)).first.click()
        page.keyboard.press("Escape")
    page.get_by_role("button", name="Launch 1 run").click()
    deadline = time.monotonic() + 120
    while len(found := materialisations(server.project, asset)) == before:
        assert time.monotonic() < deadline, (server.project.folder / "ui.log").read_text()[-4000:]
        time.sleep(0.3)
    assert len(found) == before + 1 and found[0][0] == "|".join(partitions.values())
    with server.project.instance() as instance:
        while not (run := instance.get_run_by_id(found[0][1])).is_finished:
            assert time.monotonic() < deadline, run.status
            time.sleep(0.3)
    assert run.is_success
    return run.run_id


def test_the_graph_shows_every_asset_in_its_group(page, server):
    page.set_viewport_size({"width": 1900, "height": 1400})
    page.goto(f"{server.address}/asset-groups?expanded={','.join(f'global@global:{group}' for group in GROUPS)}")
    page.get_by_text("leaderboard", exact=True).first.wait_for()
    shown = page.locator("body").inner_text()
    assert [group for group in GROUPS if group not in shown] == []
    # A long name is shortened in the middle when the graph is seen from afar.
    assert [asset for asset in STAGES if asset not in shown and asset != "filtered_instructions"] == []


@pytest.mark.slow
def test_a_recipe_is_materialised_by_clicking(page, server):
    project = server.project
    with project.instance() as instance:
        old = read_heads(instance)["recipe_config", "m3po"]
    launch(page, server, "recipe_config", {"recipe": "m3po"})
    with project.instance() as instance:
        assert read_heads(instance)["recipe_config", "m3po"] != old
    run_id = launch(page, server, "preference_pairs", {"recipe": "m3po", "shard": "s1"})
    with project.instance() as instance:
        heads = read_heads(instance)
        assert instance.get_run_by_id(run_id).tags["dagster/partition"] == "m3po|s1"
    artifact = project.store.find("preference_pairs", "m3po|s1", heads["preference_pairs", "m3po|s1"].fingerprint)
    (used,) = (item for item in artifact.manifest.inputs.values() if item.asset == "recipe_config")
    assert used.fingerprint == heads["recipe_config", "m3po"].fingerprint


def test_an_asset_page_tells_what_it_is_and_links_to_the_inspector(page, server):
    page.goto(f"{server.address}/assets/preference_pairs?view=partitions&partition=m3po%7Cs0")
    # The page shows the latest partition until it knows the one that is asked for.
    page.locator("a[href='http://127.0.0.1:3001/prompts?recipe=m3po&shard=s0']").first.wait_for()
    page.get_by_text("[Show Markdown]").last.click()
    dialog = page.get_by_role("dialog")
    picture = dialog.locator("img").first
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth") >= 32
    assert "chosen, R_w" in dialog.inner_text()
    page.goto(f"{server.address}/assets/preference_pairs?view=overview")
    page.get_by_text("section 3.5").first.wait_for()
    shown = page.locator("body").inner_text()
    for expected in ("Row count", "Owners", "NumPy", "MAS(R_w) - MAS(R_l)", "m3po/section"):
        assert expected in shown


def test_hostile_text_beside_a_picture_asks_for_nothing_and_links_nowhere(page, server):
    """Dagster's own Markdown, which makes links of bare addresses, is the judge."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.address}/assets/{ASSET_OF_OTHERS.to_user_string()}?view=events")
    page.get_by_text("[Show Markdown]").first.click()
    region = page.get_by_role("dialog")
    region.get_by_text("evil.example").first.wait_for()
    assert region.locator("a[href*='evil']").count() == 0
    assert region.locator("img[src^='http']").count() == 0
    assert region.locator("img[src^='data:image/webp']").count() == 1
    assert region.locator("del, code, em").count() == 0
    assert "![](" in region.inner_text() and "`| ~~x~~" in region.inner_text().replace("\u2060", "")
    assert [url for url in asked if "evil" in url] == []

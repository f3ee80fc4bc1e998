"""The inspector over a study that Dagster really ran: its numbers are those of the graph's own tables."""

import html
import re

import dagster as dg
import pyarrow.compute as pc
import pytest
from starlette.testclient import TestClient

from m3po_dagster.assets.pairs import joined
from m3po_dagster.current import held_heads
from m3po_dagster.inspector.app import build_app
from m3po_dagster.inspector.links import BASE_VARIABLE
from m3po_dagster.inspector.reselect import picks
from m3po_dagster.inspector.watch import Watch
from m3po_dagster.method.selection import select_pairs

PORT = 3001


@pytest.fixture(scope="module")
def client(made) -> TestClient:
    """The pages of the run study, all read."""
    with made.instance() as instance:
        watch = Watch(made.study_file, made.store, instance)
        client = TestClient(build_app(watch, PORT), base_url=f"http://127.0.0.1:{PORT}")
        watch.settle()
        client.watch, client.project, client.heads = watch, made, held_heads(instance, made.store)
        yield client


def artifacts(client, asset: str) -> dict:
    """The current artifacts of an asset by partition."""
    store = client.project.store
    return {part[1]: store.find(*part, head.fingerprint) for part, head in client.heads.items() if part[0] == asset}


def k(candidate_id: str) -> int:
    return int(candidate_id.rpartition(":")[2])


def test_nothing_is_missing_and_the_counts_are_the_tables(client):
    page = client.get("/").text
    prompts = sum(len(item.table()) for item in artifacts(client, "filtered_instructions").values())
    assert f"{prompts} prompts in 2 of 2 shards; 3 recipes" in page
    assert "not complete yet" not in page and "up to date" not in page
    pairs = sum(len(item.table()) for name, item in artifacts(client, "preference_pairs").items() if "m3po|" in name)
    assert f'<a href="/prompts?recipe=m3po&amp;reason=pair">{pairs}</a>' in page


def test_every_pair_of_the_store_is_marked_on_its_prompt(client):
    seen = 0
    for name, artifact in artifacts(client, "preference_pairs").items():
        recipe = name.split("|")[0]
        for row in artifact.table().slice(0, 4).to_pylist():
            page = client.get(f"/prompts/{row['prompt_id']}?recipe={recipe}").text
            marks = dict(re.findall(r'<article class="candidate (chosen|rejected)" id="k(\d+)"', page))
            expected = {"chosen": str(k(row["chosen_id"]))}
            if row["rejected_id"] is not None:
                expected["rejected"] = str(k(row["rejected_id"]))
            assert marks == expected
            seen += 1
    assert seen > 8


def test_tokens_spell_every_answer(client):
    """All answers of the tiny model have token log-probs, which sum to the log-prob shown."""
    table = next(iter(artifacts(client, "candidates").values())).table()
    prompt = table["prompt_id"][0].as_py()
    page = client.get(f"/prompts/{prompt}?order=k").text
    mine = table.filter(pc.equal(table["prompt_id"], prompt)).to_pylist()
    shaded = re.findall(r'<div class="text shaded" dir="auto">(.*?)</div>', page)
    assert len(shaded) == len(mine)
    for row, tokens in zip(mine, shaded, strict=True):
        pieces = re.findall(r'<span class="p(\d)" title="([^"]*)">(.*?)</span>', tokens)
        assert len(pieces) == row["n_tokens"]
        assert row["text"] in html.unescape("".join(piece for _, _, piece in pieces))
        total = sum(float(logp.replace("\u2212", "-")) for _, logp, _ in pieces)
        assert total == pytest.approx(row["sum_logp"], abs=6e-4 * len(pieces))


@pytest.mark.parametrize("point", [{}, {"alpha": 0.0}, {"alpha": 1.7, "delta": 0.0}, {"delta": 0.9}])
def test_the_sliders_over_the_whole_study_are_select_pairs(client, point):
    catalogue = client.watch.catalogue()
    moved = catalogue.study.recipes["m3po"].selection.model_copy(update=point)
    fronts = client.watch.fronts(catalogue, moved)
    tables = [artifacts(client, name) for name in ("candidates", "mas_table", "logprob_table")]
    total = 0
    for shard, front, entries in zip(catalogue.shards, fronts, picks(fronts, moved), strict=True):
        result = select_pairs(joined(*(each[shard.name] for each in tables)), moved)
        expected = {row["prompt_id"]: (k(row["chosen_id"]), k(row["rejected_id"])) for row in result.pairs.to_pylist()}
        rows = zip(front.prompt, front.winner, front.k[entries], strict=True)
        assert {shard.prompt_ids[int(at)].as_py(): (int(won), int(lost)) for at, won, lost in rows} == expected
        total += len(expected)
    page = client.get("/tune", params={"recipe": "m3po", **point}).text
    assert f"of {total} pairs change" in page


def test_answers_are_the_store_s_and_right_and_wrong_the_benchmark_s(client):
    answers = {recipe: item.table("answers") for recipe, item in artifacts(client, "benchmark_scores").items()}
    base, trained = (answers[name].to_pylist() for name in ("base", "m3po"))
    differ = [a["question_id"] for a, b in zip(base, trained, strict=True) if a["answer"] != b["answer"]]
    for benchmark in ("pope", "chair"):
        expected = [a for a in base if a["benchmark"] == benchmark and a["question_id"] in differ]
        page = client.get(f"/answers?recipe=m3po&benchmark={benchmark}&show=differs").text
        assert f"{len(expected)} question" in page
    scores = {
        (row["recipe"], row["metric"]): row["value"]
        for item in artifacts(client, "benchmark_scores").values()
        for row in item.table().to_pylist()
        if row["benchmark"] == "pope"
    }

    def count(address: str) -> int:
        found = re.search(r'<p role="status">([\d,]+) question', client.get(address).text)
        return int(found[1].replace(",", ""))

    everything = count("/answers?recipe=m3po&benchmark=pope")
    right, wrong = (count(f"/answers?recipe=m3po&benchmark=pope&show={show}") for show in ("right", "wrong"))
    gained = (scores["m3po", "random/accuracy"] - scores["base", "random/accuracy"]) / 100 * everything
    assert right - wrong == pytest.approx(gained, abs=1e-6)


def test_images_of_prompts_and_of_benchmarks(client):
    page = client.get("/prompts").text
    for address in re.findall(r'src="(/images/[^"]*)"', page)[:3]:
        assert client.get(html.unescape(address)).headers["content-type"] == "image/png"
    page = client.get("/answers?benchmark=chair").text
    address = re.search(r'src="(/benchmark-images/[^"]*)"', page)[1]
    assert client.get(html.unescape(address)).headers["content-type"] == "image/png"


def test_a_link_keeps_its_address_until_the_asset_is_made_again(copy_of_made, monkeypatch):
    """What `m3po ui --inspector-port` sets counts for what is materialised then, found in the store or not."""
    key = dg.AssetKey("candidates")

    def link(instance: dg.DagsterInstance) -> tuple[str, bool]:
        records = instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=["s0"]), limit=1).records
        metadata = records[0].asset_materialization.metadata
        return metadata["inspector"].url, metadata["reused"].value

    with copy_of_made.instance() as instance:
        assert link(instance) == ("http://127.0.0.1:3001/prompts?shard=s0", False)
        monkeypatch.setenv(BASE_VARIABLE, "http://127.0.0.1:34581")
        assert link(instance) == ("http://127.0.0.1:3001/prompts?shard=s0", False)
        job = copy_of_made.definitions().resolve_implicit_global_asset_job_def()
        config = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        assert job.execute_in_process(
            run_config=config, instance=instance, partition_key="s0", asset_selection=[key]
        ).success
        assert link(instance) == ("http://127.0.0.1:34581/prompts?shard=s0", True)

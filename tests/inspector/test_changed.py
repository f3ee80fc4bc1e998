"""The prompts that a moved point changes: which losers they had and get, what these say, and how little is read."""

import html
import re

import pytest
from made_study import some_prompts

from m3po_dagster.inspector import candidate_texts
from m3po_dagster.inspector.candidate_texts import CandidateTexts
from m3po_dagster.inspector.changed import changed_prompts
from m3po_dagster.inspector.reselect import picks

POINT = "/tune?recipe=m3po&alpha=0&delta=0.1"  # the setting of recipe `plain`


def losers(study, recipe: str) -> dict[str, tuple[int, str]]:
    """k and text of each R_l that the store's pairs of a recipe name."""
    found = {}
    for (asset, partition), head in study.heads.items():
        if asset == "preference_pairs" and partition.startswith(f"{recipe}|"):
            pairs = study.store.find(asset, partition, head.fingerprint).table()
            shard = ("candidates", partition.partition("|")[2])
            answers = study.store.find(*shard, study.heads[shard].fingerprint).table(columns=["candidate_id", "text"])
            texts = dict(zip(answers["candidate_id"].to_pylist(), answers["text"].to_pylist(), strict=True))
            for row in pairs.select(["prompt_id", "rejected_id"]).to_pylist():
                name = row["rejected_id"]
                found[row["prompt_id"]] = int(name.rpartition(":")[2]), texts[name]
    return found


def moved(catalogue, watch, count: int = 20, skip: int = 0, texts: CandidateTexts | None = None):
    """`changed_prompts` from the saved m3po to the point, with no text kept from before."""
    saved = catalogue.study.recipes["m3po"].selection
    fronts = watch.fronts(catalogue, saved)
    points = (saved, saved.model_copy(update={"alpha": 0.0}))
    picked = [picks(fronts, point) for point in points]
    return changed_prompts(catalogue, texts or CandidateTexts(), fronts, *picked, skip, count)


def test_every_row_names_its_picture_its_shard_and_both_losers(complete):
    page = complete.get(POINT).text
    before, after = losers(complete.study, "m3po"), losers(complete.study, "plain")
    rows = re.findall(r'<li><a class="row" href="/prompts/(prompt\d+)\?.*?</a></li>', page, re.DOTALL)
    assert rows == sorted(name for name in before if before[name] != after[name]) and len(rows) == 4
    for name in rows:
        row = re.search(rf'href="/prompts/{name}\?.*?</a>', page, re.DOTALL)[0]
        said = re.findall(r'R<sub>l</sub> (was|here)</span> (\d+) <q dir="auto">([^<]*)</q>', row)
        assert [(where, int(k), html.unescape(text)) for where, k, text in said] == [
            ("was", *before[name]),
            ("here", *after[name]),
        ]
        assert f"<span>{'s0' if int(name[-3:]) < 6 else 's1'}</span>" in row
        picture = html.unescape(re.search(r'<img src="(/images/[^"]*)"', row)[1])
        assert picture.startswith(f"/images/{name}?small=1")
        assert complete.get(picture).headers["content-type"] == "image/png"


def test_long_and_hostile_answers_are_cut_and_shown_as_text(made_study, client):
    prompts = some_prompts(1)
    for answer in prompts[0].answers[1:]:
        answer.text = f"<script>{answer.text}</script>\u202e" + "x" * 500
    made_study.add_shard("s0", prompts)
    client.watch.settle()
    page = client.get(POINT).text
    shown = re.findall(r'<q dir="auto">([^<]*)</q>', page)
    assert len(shown) == 2
    for text in shown:
        assert text.startswith("&lt;script&gt;answer ") and "\u2039U+202E\u203a" in text and text.endswith("x …")
        assert len(html.unescape(text)) < 220


def test_pages_follow_each_other_over_the_shards(complete):
    catalogue = complete.watch.catalogue()
    everything = [item.prompt_id for item in moved(catalogue, complete.watch)]
    assert len(everything) == 4
    for size in (1, 2, 3):
        pages = [moved(catalogue, complete.watch, size, skip) for skip in range(0, 4, size)]
        assert [item.prompt_id for page in pages for item in page] == everything
    assert moved(catalogue, complete.watch, 3, 4) == []


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """How many rows each read takes."""
    asked, read_rows = [], candidate_texts.read_rows
    monkeypatch.setattr(candidate_texts, "read_rows", lambda *words: asked.append(words[2]) or read_rows(*words))
    return asked


@pytest.mark.parametrize(("rows", "taken"), [(1 << 14, [21, 21]), (21, [21, 21]), (20, [5, 5, 5, 5])])
def test_prompts_that_lie_close_share_a_read(complete, monkeypatch, reads, rows, taken):
    """In each shard two prompts change, 0 and 4 of 6: these and all between them have 21 rows."""
    catalogue = complete.watch.catalogue()
    expected = moved(catalogue, complete.watch)
    reads.clear()
    monkeypatch.setattr(candidate_texts, "_ROWS_A_READ", rows)
    assert moved(catalogue, complete.watch) == expected
    assert reads == taken


def test_texts_are_read_once_and_anew_when_they_change(made_study, client, reads):
    prompts, texts = some_prompts(1), CandidateTexts()
    made_study.add_shard("s0", prompts)
    client.watch.settle()
    first, again = (moved(client.watch.catalogue(), client.watch, texts=texts) for _ in range(2))
    assert first == again and reads == [5]
    prompts[0].answers[4].text = "another answer"
    made_study.add_shard("s0", prompts)
    client.watch.settle()
    (now,) = moved(client.watch.catalogue(), client.watch, texts=texts)
    assert (now.after.k, now.after.text) == (4, "another answer") and reads == [5, 5]


def test_a_damaged_file_of_texts_is_named(made_study, client):
    made_study.add_shard("s0", some_prompts(1))
    client.watch.settle()
    path = client.watch.catalogue().shards[0].candidates.path("data.parquet")
    path.write_bytes(b"x" * path.stat().st_size)
    answer = client.get(POINT)
    assert answer.status_code == 500 and f"{path} can&#39;t be read or is damaged" in answer.text

"""The pages over made studies: what they show, what they find, what they say when something is missing."""

import re

import pytest
from made_study import Answer, Asked, some_prompts


def shown(client, address: str, status: int = 200) -> str:
    answer = client.get(address)
    assert answer.status_code == status, answer.text
    return answer.text


def listed(page: str) -> list[str]:
    """The prompts of a list, in order."""
    return re.findall(r'<a class="row" href="/prompts/([^?"]*)\?', page)


def test_the_overview_counts_by_shard_recipe_and_reason(complete):
    page = shown(complete, "/")
    assert "12 prompts in 2 of 2 shards; 4 recipes" in page
    assert '<a href="/prompts?recipe=m3po&amp;reason=pair">8</a>' in page
    assert '<a href="/prompts?recipe=m3po&amp;reason=one_distinct_candidate">4 one distinct candidate</a>' in page
    assert '<a href="/prompts?recipe=sft&amp;reason=pair">12</a>' in page
    assert "not complete yet" in page and "no benchmark answers yet of 2 of 4 recipes (sft, plain)" in page


def test_filters_search_and_order(complete):
    assert listed(shown(complete, "/prompts")) == [f"prompt{n:03d}" for n in range(12)]
    assert listed(shown(complete, "/prompts?shard=s1")) == [f"prompt{n:03d}" for n in range(6, 12)]
    assert listed(shown(complete, "/prompts?q=PICTURE+7")) == ["prompt007"]
    assert listed(shown(complete, "/prompts?q=prompt00")) == [f"prompt{n:03d}" for n in range(10)]
    assert len(listed(shown(complete, "/prompts?q=Red.p"))) == 12
    assert listed(shown(complete, "/prompts?reason=none")) == ["prompt002", "prompt005", "prompt008", "prompt011"]
    assert listed(shown(complete, "/prompts?reason=one_distinct_candidate&shard=s0")) == ["prompt002", "prompt005"]
    assert len(listed(shown(complete, "/prompts?recipe=sft&reason=pair"))) == 12
    by_best = listed(shown(complete, "/prompts?sort=-best"))
    assert by_best == sorted(by_best)
    assert "No prompt fits" in shown(complete, "/prompts?q=nothing+like+it")
    # `plain` has alpha 0, so its gap is the widest there is: 4 steps of 0.13.
    assert len(listed(shown(complete, "/prompts?recipe=plain&gap_min=0.519&gap_max=0.521"))) == 8
    assert listed(shown(complete, "/prompts?recipe=plain&gap_min=0.53")) == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/prompts?recipe=other", "there is no recipe &#39;other&#39;"),
        ("/prompts?shard=s9", "there is no shard"),
        ("/prompts?sort=loud", "there is no sort"),
        ("/prompts?gap_min=much", "gap_min: &#39;much&#39; is no number"),
        ("/prompts?gap_min=nan", "is no number"),
        ("/prompts?page=-1", "is no page number"),
        ("/prompts?q=" + "a" * 501, "at most 500 characters"),
        ("/tune?recipe=other", "there is no recipe"),
        ("/tune?recipe=m3po&alpha=-1", "alpha: Input should be greater than or equal to 0"),
        ("/tune?recipe=m3po&delta=x", "delta: &#39;x&#39; is no number"),
        ("/answers?benchmark=other", "there is no benchmark"),
        ("/answers?seed=-1", "is no seed"),
        ("/answers?show=all", "there is no filter"),
    ],
)
def test_a_query_that_makes_no_sense_gets_a_sentence(complete, address, words):
    assert words in shown(complete, address, 400)


def test_a_page_beyond_the_last_is_the_last(complete):
    assert len(listed(shown(complete, "/prompts?page=99999"))) == 12


def test_what_is_not_there_is_a_page_too(complete):
    assert "has no prompt nobody" in shown(complete, "/prompts/nobody", 404)
    assert "There is no such page" in shown(complete, "/other", 404)
    assert "has no candidate 77" in shown(complete, "/prompts/prompt000/answers/77", 404)


def test_a_prompt_with_its_pair_marked_and_its_neighbours(complete):
    page = shown(complete, "/prompts/prompt001?recipe=m3po&reason=pair")
    assert "2 of 8" in page and "What is in picture 1?" in page
    assert '<a href="/prompts/prompt000?recipe=m3po&amp;reason=pair" rel="prev"' in page
    assert '<a href="/prompts/prompt003?recipe=m3po&amp;reason=pair" rel="next"' in page
    chosen = re.search(r'<article class="candidate chosen" id="k(\d)"', page)
    rejected = re.search(r'<article class="candidate rejected" id="k(\d)"', page)
    assert chosen[1] == "0" and rejected[1] == "4"
    assert "Chosen by sft, plain." in page
    assert "Rejected by plain." in page[page.index('id="k4"') :]


def test_equation_2_on_the_page_picks_what_is_marked(complete):
    for number in (0, 1, 3, 4, 6):
        page = shown(complete, f"/prompts/prompt{number:03d}?recipe=m3po")
        scores = {}
        for article in page.split("<article")[1:]:
            k = int(re.search(r'id="k(\d+)"', article)[1])
            found = re.search(r"<dt>S</dt><dd>([^<]*)</dd>", article)
            if found:
                scores[k] = float(found[1].replace("\u2212", "-"))
        marked = int(re.search(r'class="candidate rejected" id="k(\d)"', page)[1])
        assert len(scores) == 4 and scores[marked] == max(scores.values())


def test_a_prompt_without_a_pair_says_why(complete):
    assert "No pair for recipe m3po: one distinct candidate (1 scored)." in shown(
        complete, "/prompts/prompt002?recipe=m3po"
    )


def test_links_to_the_base_recipe_show_the_prompts(complete):
    """The base model's adapter links here like every other."""
    page = shown(complete, "/prompts?recipe=base")
    assert len(listed(page)) == 12 and "R<sub>w</sub>" not in page
    assert "R<sub>w</sub> chosen" not in shown(complete, "/prompts/prompt000?recipe=base")


def test_the_point_of_the_sliders_is_marked_on_the_prompt(complete):
    page = shown(complete, "/prompts/prompt000?recipe=m3po&alpha=0.0&delta=0.1")
    assert "At alpha 0 and delta 0.1 R<sub>l</sub> would be candidate 4." in page
    assert "at the moved setting" in page


def test_unscored_cut_and_commented_candidates(made_study, client):
    answers = [
        Answer("good", 0.9, words="It names every <b>thing</b>."),
        Answer("refused by the judge", None),
        Answer("cut short", 0.4, finish_reason="length"),
    ]
    made_study.add_shard("s0", [Asked("p", "What?", answers)])
    client.watch.settle()
    page = shown(client, "/prompts/p?recipe=m3po")
    assert "The judge&#39;s words" in page or "The judge's words" in page
    assert "It names every &lt;b&gt;thing&lt;/b&gt;." in page
    assert '<span class="tag bad">refused</span>' in page and "cut at the token limit" in page


def test_tokens_are_shaded_with_the_models_tokenizer(made_study, client):
    ids, logps = [16, 26, 5, 2], [-0.05, -0.3, None, -9.0]
    spelled, other = Answer("There is.", 0.9, token_ids=ids, token_logps=logps), Answer("not these tokens", 0.1)
    made_study.add_shard("s0", [Asked("p", "What?", [spelled, other])])
    client.watch.settle()
    page = shown(client, "/prompts/p?recipe=m3po&order=k")
    shaded = re.search(r'<div class="text shaded" dir="auto">(.*?)</div>', page)[1]
    assert re.findall(r'<span class="(\w+)"', shaded) == ["p0", "p1", "unknown", "p5"]
    assert re.findall(r">([^<>]+)</span>", shaded)[:3] == ["There", " is", "."]
    assert 'title="\u22129.000"' in shaded
    assert page.count("shaded") == 1 and "not these tokens" in page


def test_it_is_said_that_there_are_no_log_probs_of_tokens(made_study, client):
    made_study.token_logps = False
    made_study.add_shard("s0", some_prompts(1))
    client.watch.settle()
    assert "shaded: no candidate here has log-probs of its tokens." in shown(client, "/prompts/prompt000?recipe=m3po")


def test_links_to_the_next_prompt_keep_order_and_point_and_lead_back_to_tune(complete):
    page = shown(complete, "/prompts/prompt001?recipe=m3po&order=k&alpha=0.0&delta=0.1")
    for neighbour in ("prompt000", "prompt002"):
        assert f'<a href="/prompts/{neighbour}?recipe=m3po&amp;order=k&amp;alpha=0.0&amp;delta=0.1"' in page
    assert '<a href="/tune?recipe=m3po&amp;alpha=0.0&amp;delta=0.1">Back to Tune' in page
    assert '<input type="hidden" name="alpha" value="0.0">' in page


def test_without_the_tokenizer_the_text_is_shown_and_it_is_said(made_study, client):
    made_study.settings["model"] = {"path": str(made_study.folder / "nowhere"), "device": "cpu"}
    made_study.write()
    made_study.add_shard("s0", [Asked("p", "What?", [Answer("the text itself", 0.9), Answer("y", 0.1)])])
    client.watch.settle()
    page = shown(client, "/prompts/p?recipe=m3po")
    assert "Tokens can&#39;t be shaded" in page or "Tokens can't be shaded" in page
    assert "the text itself" in page and "shaded" not in page.split("<main")[1].replace("be shaded", "")


def test_answers_side_by_side(complete):
    def ids(address: str) -> list[str]:
        return re.findall(r"random/(\d)", shown(complete, address))

    assert ids("/answers?recipe=m3po&benchmark=pope") == ["0", "1", "2", "3"]
    assert ids("/answers?recipe=m3po&show=differs") == ["0", "1"]
    assert ids("/answers?recipe=m3po&show=right") == ["1"]
    assert ids("/answers?recipe=m3po&show=wrong") == ["0"]
    assert ids("/answers?recipe=m3po&seed=1&show=right") == ["2"]
    assert ids("/answers?recipe=m3po&q=CAT+3") == ["3"]
    page = shown(complete, "/answers?recipe=m3po")
    assert page.count('<span class="tag good">right</span>') == 2 + 2
    assert "has no adapter of seed 5; it has 0, 1" in shown(complete, "/answers?recipe=m3po&seed=5")
    assert "There are no benchmark answers of sft yet" in shown(complete, "/answers?recipe=sft")


def test_a_recipe_of_another_rule_has_no_sliders(complete):
    assert "its rule is best_only, and it takes the best answer and no loser" in shown(complete, "/tune?recipe=sft")
    assert "selects no pairs" in shown(complete, "/tune?recipe=base")


def test_the_sliders_page(complete):
    page = shown(complete, "/tune?recipe=m3po&alpha=0&delta=0.1")
    changed = int(re.search(r"<strong>(\d+)</strong> of 8 pairs change", page)[1])
    # Of the prompts with a pair those of an even number have unlikely losers: 0, 4, 6, 10.
    assert listed(page) == ["prompt000", "prompt004", "prompt006", "prompt010"] and changed == 4
    assert page.count("<svg") == 7 and page.count("<polyline") == 7 * 4
    assert "<strong>0</strong> of 8 pairs change" in shown(complete, "/tune?recipe=m3po")
    assert "Every pair is that of the saved setting." in shown(complete, "/tune?recipe=m3po")
    point = shown(complete, "/tune/point?recipe=m3po&alpha=0&delta=0.1")
    assert "<html" not in point and f"<strong>{changed}</strong> of 8 pairs change" in point


def test_nothing_made_yet(client):
    client.watch.settle()
    page = shown(client, "/")
    assert "0 prompts in 0 of 2 shards" in page
    assert "filtered_instructions was not made yet for 2 of 2 shards (s0, s1): their prompts can&#39;t be shown" in page
    assert "No prompt fits" in shown(client, "/prompts")
    assert "of 0 pairs change" in shown(client, "/tune?recipe=m3po")
    assert "There are no benchmark answers of base yet" in shown(client, "/answers")


def test_a_half_made_study_is_shown_as_far_as_it_goes(made_study, client):
    prompts = some_prompts(3)
    filtered = made_study.add_prompts("s0", prompts)
    client.watch.settle()
    assert listed(shown(client, "/prompts")) == ["prompt000", "prompt001", "prompt002"]
    assert "There are no candidates of this prompt" in shown(client, "/prompts/prompt000")
    candidates = made_study.add_candidates("s0", prompts, filtered)
    client.watch.settle()
    page = shown(client, "/prompts/prompt000")
    assert "log-prob a token" in page and "No pair for recipe m3po: pairs not made." in page
    assert "mas_table was not made yet for 2 of 2 shards" in shown(client, "/prompts")
    mas = made_study.add_mas("s0", prompts, candidates)
    logprobs = made_study.add_logprobs("s0", candidates)
    client.watch.settle()
    assert "of 2 pairs change" in shown(client, "/tune?recipe=m3po&alpha=0")
    assert "Recipe m3po has no pairs yet in 2 of 2 shards (s0, s1): run `" in shown(client, "/")
    made_study.add_pairs("m3po", "s0", candidates, mas, logprobs)
    client.watch.settle()
    assert "R<sub>w</sub> chosen" in shown(client, "/prompts/prompt000")


def test_scores_of_older_candidates_are_not_shown_with_newer_ones(made_study, client):
    prompts = some_prompts(3)
    made_study.add_shard("s0", prompts, recipes=["m3po"])
    client.watch.settle()
    assert "R<sub>w</sub> chosen" in shown(client, "/prompts/prompt000")
    prompts[0].answers[0].text = "a new answer"
    made_study.add_candidates("s0", prompts, made_study.add_prompts("s0", prompts))
    client.watch.settle()
    page = shown(client, "/prompts/prompt000")
    assert "a new answer" in page and "R<sub>w</sub> chosen" not in page and "pairs not made" in page
    assert "was made from something older" in shown(client, "/")


def test_pairs_of_an_older_judge_are_said_to_be_out_of_date(made_study, client):
    prompts = some_prompts(3)
    made_study.add_shard("s0", prompts)
    filtered = made_study.add_prompts("s0", prompts)
    prompts[0].answers[0].mas = 0.11
    made_study.add_mas("s0", prompts, made_study.add_candidates("s0", prompts, filtered))
    client.watch.settle()
    assert "not up to date in s0" in shown(client, "/")


def test_pairs_of_an_edited_recipe_are_said_to_be_of_the_old_one(small):
    assert "up to date" not in shown(small, "/") + shown(small, "/prompts/prompt000?recipe=m3po")
    recipes = small.study.settings["recipes"]
    edited = {**recipes["m3po"], "selection": {**recipes["m3po"]["selection"], "alpha": 5}}
    small.study.settings["recipes"] = {**recipes, "m3po": edited}
    small.study.write()
    small.watch.settle()
    sentence = "Recipe m3po was edited since its results were made (selection.alpha was 0.5, now 5.0)"
    for address in ("/", "/prompts", "/tune?recipe=m3po", "/answers"):
        assert sentence in shown(small, address)
    page = shown(small, "/prompts/prompt000?recipe=m3po")
    assert "pair is not up to date: the recipe was edited since: selection.alpha was 0.5, now 5.0." in page
    assert "up to date" not in shown(small, "/prompts/prompt000?recipe=plain")


def test_what_another_base_model_made_is_said_to_be_out_of_date(small):
    small.study.report("base_model", "", "1" * 64, "another model")
    small.watch.settle()
    page = shown(small, "/")
    assert "candidates is not up to date for s0: its inputs, settings or code changed since." in page
    assert "mas_table is not up to date for s0: something that it stands on is not up to date." in page
    assert "filtered_instructions is not up to date" not in page


def test_other_scores_under_the_same_fingerprint_are_read_anew(made_study, client):
    prompts = some_prompts(3)
    made_study.add_shard("s0", prompts)
    client.watch.settle()
    assert "of 2 pairs change" in shown(client, "/tune?recipe=m3po")
    before = client.watch.catalogue()
    prompts[0].answers[0].mas, prompts[0].answers[4].mas = 0.2, 0.95
    made_study.add_shard("s0", prompts)
    client.watch.settle()
    after = client.watch.catalogue()
    assert after.shards[0].mas.fingerprint == before.shards[0].mas.fingerprint
    assert (before.recipes["m3po"].chosen[0], after.recipes["m3po"].chosen[0]) == (0, 4)
    (fronts,) = client.watch.fronts(after, after.study.recipes["m3po"].selection)
    assert fronts.winner[list(fronts.prompt).index(0)] == 4
    page = shown(client, "/prompts/prompt000?recipe=m3po")
    assert '<article class="candidate chosen" id="k4"' in page


def test_answers_made_anew_under_the_same_fingerprint_are_read_anew(made_study, client):
    question = [{"question_id": "q", "image_uri": "red.png", "question": "A cat?", "expected": "yes"}]
    made_study.add_answers("base", {0: ["No."]}, question)
    client.watch.settle()
    assert "No." in shown(client, "/answers")
    first = made_study.heads["benchmark_scores", "base"]
    made_study.add_answers("base", {0: ["Yes, two."]}, question)
    assert made_study.heads["benchmark_scores", "base"].fingerprint == first.fingerprint
    client.watch.settle()
    assert "Yes, two." in shown(client, "/answers")


def test_an_edited_study_file_is_noticed(small):
    small.study.settings["recipes"] = {
        **small.study.settings["recipes"],
        "late": small.study.settings["recipes"]["m3po"],
    }
    small.study.write()
    small.watch.settle()
    assert "late" in shown(small, "/")
    small.study.path.write_text("name: [broken")
    small.watch.settle()
    page = shown(small, "/")
    assert "The latest state can&#39;t be read" in page or "The latest state can't be read" in page
    assert "1 prompt in" in page
    small.study.write()
    small.watch.settle()
    assert "be read:" not in shown(small, "/")


def test_a_study_that_another_one_extends_is_watched_too(small):
    parent = small.study.path.with_name("parent.yaml")
    parent.write_text(small.study.path.read_text())
    small.study.path.write_text("extends: ./parent.yaml\n")
    small.watch.settle()
    assert "1 prompt in" in shown(small, "/")
    parent.write_text(parent.read_text().replace("name: made", "name: renamed"))
    small.watch.settle()
    assert "renamed" in shown(small, "/")


def test_what_did_not_change_is_not_read_again(small, monkeypatch):
    from m3po_dagster.inspector import reading

    read = []
    monkeypatch.setattr(reading, "read_shard", lambda *args: read.append(args[0]))
    small.study.settings["description"] = "another one"
    small.study.write()
    small.watch.settle()
    assert "another one" in shown(small, "/") and read == []


def test_the_index_is_kept_and_a_damaged_one_is_made_again(small, caplog):
    from m3po_dagster.inspector.watch import CACHE_FOLDER, Watch

    files = sorted((small.study.store.cache_folder / CACHE_FOLDER).iterdir())
    assert len(files) == 1  # both recipes of rule m3p share them
    times = [path.stat().st_ino for path in files]
    again = Watch(small.study.path, small.study.store, small.study.instance)
    again.settle()
    assert [path.stat().st_ino for path in files] == times
    files[0].write_bytes(b"not an index")
    third = Watch(small.study.path, small.study.store, small.study.instance)
    third.settle()
    selection = third.catalogue().study.recipes["m3po"].selection
    assert len(third.fronts(third.catalogue(), selection)) == 1
    assert "can't be used and is made again" in caplog.text


def test_an_artifact_removed_from_the_store_is_said_once_then_the_rest_is_shown(small):
    import shutil

    shutil.rmtree(small.study.store.root / "candidates")
    page = shown(small, "/prompts/prompt000", 500)
    assert "A file of the store that was there before is gone." in page and "rrno" not in page
    shown(small, "/")  # the next request reads anew
    small.watch.settle()
    assert "There are no candidates of this prompt" in shown(small, "/prompts/prompt000")
    assert "candidates was not made yet for" in shown(small, "/")


def test_damaged_answers_are_named_and_the_sliders_work(made_study, client):
    made_study.add_shard("s0", some_prompts(1))
    question = [{"question_id": "q", "image_uri": "red.png", "question": "A cat?", "expected": "yes"}]
    path = made_study.add_answers("base", {0: ["No."]}, question).path("answers.parquet")
    path.write_bytes(b"x" * path.stat().st_size)
    client.watch.settle()
    page = shown(client, "/tune?recipe=m3po")
    assert "of 1 pairs change" in page and "being built" not in page
    assert f"reading benchmark answers: {path} can&#39;t be read or is damaged" in page


def test_an_index_that_fails_is_not_said_to_be_built(made_study, client):
    made_study.add_shard("s0", some_prompts(1))
    candidates = made_study.heads["candidates", "s0"].fingerprint
    path = made_study.store.find("candidates", "s0", candidates).path("data.parquet")
    client.watch.settle()
    client.watch._fronts = {}
    for cached in (made_study.store.root / ".cache" / "inspector").iterdir():
        cached.unlink()
    path.write_bytes(b"x" * path.stat().st_size)
    client.watch.look_soon()
    client.watch.settle()
    page = shown(client, "/tune?recipe=m3po")
    assert "There is no index for the sliders" in page and "being built" not in page and "refresh" not in page
    assert "indexing candidates for the sliders: " in page and str(path) in page


def test_the_first_seed_that_there_is_is_shown(made_study, client):
    question = [{"question_id": "q", "image_uri": "a/red.png", "question": "A cat?", "expected": "yes"}]
    made_study.add_answers("base", {7: ["No."]}, question)
    made_study.add_answers("m3po", {7: ["Yes."]}, question)
    client.watch.settle()
    page = shown(client, "/answers?recipe=m3po&q=RED")
    assert "1 question" in page and "Yes." in page and "no adapter of seed" not in page

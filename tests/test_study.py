"""Study files: what is read, what is refused, and in which words."""

import json
from pathlib import Path

import pytest
import yaml

from m3po_dagster.derived_recipes import grid
from m3po_dagster.identity import portable
from m3po_dagster.study import Study, load_study
from m3po_dagster.study_errors import StudyError
from m3po_dagster.study_reference import missing_paths, reference

ROOT = Path(__file__).parents[1]
SOURCE = "dataset.sources.easy_scenes"
FORMATS = "'llava_instruct', 'sharegpt4v', 'jsonl', 'rlaif_v', 'huggingface', 'webdataset'"
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


def changed(tmp_path, *replacements: tuple[str, str]) -> Path:
    text = (ROOT / "studies" / "easy_scenes.yaml").read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path):
    study = load_study(path)
    assert study.recipes["base"].trains is False
    assert len(study.shards) < 100


def test_the_leaderboard_study_extends_the_demo():
    demo, board = (load_study(ROOT / "studies" / f"{name}.yaml") for name in ("easy_scenes", "easy_scenes_leaderboard"))
    assert board.dataset == demo.dataset and board.generation == demo.generation and board.judge == demo.judge
    assert set(demo.recipes) < set(board.recipes)
    assert board.recipes["m3po"].seeds == (0, 1, 2) and board.recipes["m3po"].training == demo.recipes["m3po"].training


@pytest.mark.parametrize("name", ["easy_scenes_leaderboard", "llava15_7b_tables"])
def test_the_studies_of_the_papers_tables_have_every_row_and_the_controls(name):
    study = load_study(ROOT / "studies" / f"{name}.yaml")
    tables = {"alpha": ([0, 0.1, 0.25, 0.5, 0.75, 1], None), "delta": (None, [0, 0.1, 0.2, 0.3])}
    for alphas, deltas in tables.values():
        assert [point.name for point in grid(study, "m3po", alphas, deltas) if not point.same_as] == []
    assert study.aliases() == {}
    rules = {recipe.selection.rule for recipe in study.recipes.values() if recipe.selection}
    assert rules >= {"best_only", "every_answer", "vanilla", "reward_max_min", "m3p", "sweet_spot", "margin_pairs"}
    assert rules >= {"random", "flipped", "longest"}
    assert all(recipe.seeds == (0, 1, 2) for recipe in study.recipes.values() if recipe.trains)
    # What is compared is trained alike.
    trainings = [
        study.recipes[key].training for key in ("m3po", "vanilla", "rm_dpo", "m3po_a1", "sweet_spot", "longest")
    ]
    assert all(one == trainings[0] for one in trainings)


def test_the_papers_study_has_its_training_settings_and_a_safe_variant():
    study = load_study(ROOT / "studies" / "llava15_7b.yaml")
    paper, safe = study.recipes["m3po"].training, study.recipes["m3po_safe"].training
    assert (paper.learning_rate, paper.batch_size, paper.warmup_ratio, paper.epochs) == (5e-5, 8, 0.05, 1)
    assert safe == paper.model_copy(update={"learning_rate": 5e-6, "preset": "safe"})
    larger = load_study(ROOT / "studies" / "llava15_13b.yaml")
    assert larger.model.path != study.model.path and larger.recipes.keys() == study.recipes.keys()
    assert {name: one.training for name, one in larger.recipes.items()} == {
        name: one.training for name, one in study.recipes.items()
    }


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("alpha: 0.5", "alpha: -1", ["recipes.m3po.selection.alpha", "greater than or equal to 0", "found -1"]),
        (
            "delta: 0.1",
            "detla: 0.1",
            ["recipes.m3po.selection.detla: unknown key", "Did you mean 'delta'", "Allowed here"],
        ),
        ("n: 32", "n: many", ["generation.n", "valid integer", "found 'many'"]),
        ("kind: scene_judge", "kind: oracle", ["judge.scorers.0.kind: there is no 'oracle'; name one of", "'clip'"]),
        (
            "kind: scene_judge",
            "min_coverage: 0",
            ["judge.scorers.0.kind: is missing; name one of", "'clip'", "'ensemble'"],
        ),
        ("kind: dpo, beta", "beta", ["recipes.m3po.training.kind: is missing; name one of 'dpo', 'sft', 'rlhf'"]),
        ("{rule: best_only}", "{rule: every_answer}", ["recipes.sft", "rule every_answer", "kind rlhf", "kind sft"]),
        (
            "training: &sft {kind: sft, learning_rate: 2.0e-3}",
            "training: {kind: rlhf}",
            ["recipes.sft", "needs for its proxy reward", "rule best_only meets kind rlhf"],
        ),
        (
            "{rule: best_only}\n    training: &sft {kind: sft, learning_rate: 2.0e-3}",
            "{rule: every_answer}\n    training: {kind: rlhf, answers: 6, answers_at_once: 5}",
            ["recipes.sft.training", "samples batch_size x answers = 48 answers", "answers_at_once (5)"],
        ),
        ("format: llava_instruct\n", "take: 3\n", [f"{SOURCE}.format: is missing; name one of {FORMATS}"]),
        ("format: llava_instruct", "format: csv", [f"{SOURCE}.format: there is no 'csv'; name one of {FORMATS}"]),
        ("format: llava_instruct", "format: jsonl\n      take: 0", [f"{SOURCE}.take: Input should be greater"]),
        (
            "format: llava_instruct",
            "format: webdataset\n      folders: {a: b}",
            [f"{SOURCE}.folders: unknown key. Allowed here: by, format, image_root, path, seed, take"],
        ),
        ("rule: vanilla", "rule: vanila", ["recipes.vanilla.selection.rule", "vanila", "m3p"]),
        ("{rule: vanilla}", "{rule: vanilla, alpha: 1}", ["recipes.vanilla.selection", "does not use alpha"]),
        ("shards: 4", "shards: 100", ["dataset.shards", "99"]),
        ("name: easy_scenes\n", "name: 'a|b'\n", ["name", "pattern"]),
        ("  base:\n", "  basis:\n", ["base", "compare"]),
        (
            "      format: llava_instruct\n",
            "      format: llava_instruct\n      folders: 5\n",
            ["dataset.sources.easy_scenes.folders: Input should be a valid dict", "found 5"],
        ),
        (
            "      format: llava_instruct\n",
            "      format: jsonl\n      fetch_from: ['http://a.org/']\n",
            ["dataset.sources.easy_scenes.fetch_from.0: write it as host or host:port, here a.org, found"],
        ),
        (
            "      format: llava_instruct\n",
            "      format: jsonl\n      fetchfrom: [a.org]\n",
            ["dataset.sources.easy_scenes.fetchfrom: unknown key. Did you mean 'fetch_from'?", "Allowed here: by, "],
        ),
        (
            "  near_duplicate: false\n",
            "  language: null\n",
            ["filters.language: write its settings, ", "or false, found None"],
        ),
        (
            "kind: dpo, beta",
            "kind: dpo, learning_rat: 1, beta",
            ["training.learning_rat: unknown key", "'learning_rate'"],
        ),
    ],
)
def test_an_error_names_file_key_and_what_is_allowed(tmp_path, old, new, wanted):
    path = changed(tmp_path, (old, new))
    with pytest.raises(StudyError) as caught:
        load_study(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    for piece in wanted:
        assert piece in message
    assert "discriminator" not in message and "expected tags" not in message


@pytest.mark.parametrize(
    "scorer",
    [
        "{kind: llm_judge, model: m, base_url: 'https://me:secret@host/v1'}",
        "{kind: llm_judge, model: m, base_url: 'https://me:secret/and secret@host/v1'}",
        "{kind: llm_judge, model: m, base_url: 'https://me:12/secret@host/v1'}",
        "{kind: llm_judge, model: m, base_url: 'me:secret@host/v1'}",
        "{kind: llm_judge, model: m, base_url: 'https://host/v1?key=secret'}",
        "{kind: llm_judge, model: m, base_url: 'host/v1?key=secret'}",
        "{kind: llm_jugde, base_url: 'https://secret@host/v1', model: m}",
        "{base_url: 'https://secret@host/v1'}",
    ],
)
def test_an_error_leaves_out_an_address_that_may_hold_a_key(tmp_path, scorer):
    scorers = (ROOT / "studies" / "easy_scenes.yaml").read_text().split("  scorers:\n")[1].split("\n\n")[0]
    with pytest.raises(StudyError, match=r"judge\.scorers\.0") as error:
        load_study(changed(tmp_path, (scorers, f"    - {scorer}")))
    assert "secret" not in str(error.value)


def test_the_documented_adaptive_n_is_valid_and_a_fixed_one_is_a_number(tmp_path):
    page = (ROOT / "docs" / "adaptive-n.md").read_text()
    example = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])["generation"]
    study = load_study(changed(tmp_path, ("n: 32", f"n: {json.dumps(example['n'])}")))
    assert study.generation.rounds == (8, 8, 8, 8) and study.generation.most == 32
    assert study.generation.scorer.kind == "clip"
    fixed = load_study(ROOT / "studies" / "easy_scenes.yaml").generation
    assert fixed.scorer is None and fixed.rounds == (32,) and fixed.n == 32


@pytest.mark.parametrize(
    ("n", "wanted"),
    [
        ("{first: 40, scorer: &s {kind: clip, model: m}}", ["generation.n: first is 40, above max, which is 32"]),
        ("{first: 8}", ["generation.n.scorer: Field required"]),
        ("{first: 0, scorer: {kind: clip, model: m}}", ["generation.n.first", "greater than or equal to 1"]),
        ("2000", ["generation.n: Input should be less than or equal to 1024, found 2000"]),
        ("[8, 32]", ["generation.n: Input should be a valid integer"]),
    ],
)
def test_a_wrong_n_is_explained(tmp_path, n, wanted):
    with pytest.raises(StudyError) as caught:
        load_study(changed(tmp_path, ("n: 32", f"n: {n}")))
    for piece in wanted:
        assert piece in str(caught.value)


def test_the_generator_is_transformers_by_default_and_by_name(tmp_path):
    named = load_study(changed(tmp_path, ("generation:\n", "generator: transformers\ngeneration:\n"))).generator
    assert named == load_study(ROOT / "studies" / "easy_scenes.yaml").generator and named.kind == "transformers"


SERVER = "{kind: server, base_url: 'http://127.0.0.1:8000/v1/', model: llava, version: 0.33.0, dtype: bfloat16}"


def test_a_server_is_named_with_its_engine(tmp_path):
    server = load_study(changed(tmp_path, ("generation:\n", f"generator: {SERVER}\ngeneration:\n"))).generator
    assert (server.base_url, server.numerics) == ("http://127.0.0.1:8000/v1", "vllm-0.33.0/bfloat16")
    assert server.choices_a_request is None and server.model_copy(update={"engine": "sglang"}).choices_a_request == 1


@pytest.mark.parametrize(
    ("generator", "wanted"),
    [
        ("vllm", ["generator", "'transformers', 'server'"]),
        ("server", ["generator.base_url", "generator.version"]),
        (SERVER.replace("version: 0.33.0, ", ""), ["generator.version", "declare"]),
        (SERVER.replace("llava", "llava, engine: tgi"), ["generator.engine", "vllm"]),
        (SERVER.replace("8000/v1", "8000/v1?key=secret"), ["generator.base_url", "not shown"]),
    ],
)
def test_a_generator_that_can_not_be_is_refused(tmp_path, generator, wanted):
    with pytest.raises(StudyError) as caught:
        load_study(changed(tmp_path, ("generation:\n", f"generator: {generator}\ngeneration:\n")))
    message = str(caught.value)
    assert all(piece in message for piece in wanted) and "secret" not in message


def test_the_engine_has_left_the_sampling_section(tmp_path):
    with pytest.raises(StudyError, match=r"generation\.engine: unknown key"):
        load_study(changed(tmp_path, ("generation:\n", "generation:\n  engine: transformers\n")))


def test_every_problem_is_told_at_once(tmp_path):
    path = changed(tmp_path, ("n: 32", "n: 0"), ("alpha: 0.5", "alpha: x"))
    with pytest.raises(StudyError) as caught:
        load_study(path)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("- 1", "a study is a mapping"),
        ("name: [", "not valid YAML"),
        ("name: a\nname: b", "'name' stands twice"),
        ("extends: study.yaml", "extends itself"),
        ("extends: nowhere.yaml", "no such study file"),
        ("extends: 3", "name one study file"),
    ],
)
def test_files_that_are_no_study(tmp_path, text, wanted):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError, match=wanted):
        load_study(path)


def test_a_merged_mapping_may_be_overridden(tmp_path):
    path = changed(tmp_path, ("training: *dpo", "training: {<<: *dpo, learning_rate: 1.0e-6}"))
    assert load_study(path).recipes["m3po_alpha0"].training.learning_rate == 1e-6


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="can't be read"):
        load_study(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StudyError, match="no such study file; name one with --study"):
        load_study(tmp_path / "nothing.yaml")


def test_the_schema_describes_every_field():
    schema = Study.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    undescribed = [
        (section.get("title"), name)
        for section in sections
        for name, field in section.get("properties", {}).items()
        if not field.get("description")
    ]
    assert undescribed == []
    assert all(section.get("additionalProperties") is False for section in sections if "properties" in section)


def test_the_committed_reference_is_the_generated_one():
    assert (ROOT / "docs" / "study-file.md").read_text() == reference(), (
        "run: m3po study reference --out docs/study-file.md"
    )


def test_every_section_of_the_reference_is_described():
    headings = [line for line in reference().split("\n## ")[1:] if not line.split("\n")[2].strip()]
    assert headings == []


def test_the_reference_writes_values_as_yaml_has_them():
    assert "or `false` |" in reference() and "False" not in reference()


def test_missing_files_are_listed_by_key(tmp_path):
    path = changed(tmp_path, ("path: ../data/easy_scenes/instructions/llava_instruct.json", "path: ./nowhere.json"))
    assert missing_paths(load_study(path))["dataset.sources.easy_scenes.path"] == str(tmp_path / "nowhere.json")


def test_an_identity_does_not_depend_on_where_the_project_lies(tmp_path):
    text = (ROOT / "studies" / "easy_scenes.yaml").read_text()
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name / "studies"
        folder.mkdir(parents=True)
        (folder / "study.yaml").write_text(text)
        study = load_study(folder / "study.yaml")
        found.append(json.dumps([portable(study.dataset), portable(study.model)]))
    assert found[0] == found[1]
    assert str(tmp_path) not in found[0]


def test_a_model_in_a_bucket_is_refused_and_not_taken_for_a_hub_s(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(f"extends: {ROOT / 'studies' / 'easy_scenes.yaml'}\nmodel: {{path: 's3://my-bucket/model'}}\n")
    with pytest.raises(StudyError, match=r"model\.path: s3://my-bucket/model: model folders stay on this machine"):
        load_study(path)

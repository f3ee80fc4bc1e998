"""What the package's source must not do, and no linter knows of: read pickles, trust code, listen to everybody."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "m3po_dagster"
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
READERS = {"torch.load": "weights_only", "numpy.load": "allow_pickle", "np.load": "allow_pickle"}
EVERY_INTERFACE = {"0.0.0.0", "::", "[::]"}


def problems(source: str) -> list[str]:
    """One line for each place that breaks a rule."""
    return [f"line {node.lineno}: {what}" for node in ast.walk(ast.parse(source)) for what in _broken(node)]


def _broken(node: ast.AST):
    if isinstance(node, ast.Import | ast.ImportFrom):
        named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        yield from (f"imports {name}" for name in named if name.partition(".")[0] in PICKLES)
    if isinstance(node, ast.Constant) and node.value in EVERY_INTERFACE:
        yield f"names every interface, {node.value}"
    if isinstance(node, ast.Call):
        yield from _broken_call(ast.unparse(node.func), node.keywords)


def _broken_call(name: str, keywords: list[ast.keyword]):
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
    safe = {"weights_only": "True", "allow_pickle": "False"}
    if (word := READERS.get(name)) and given.get(word) != safe[word]:
        yield f"{name} without {word}={safe[word]}"
    if given.get("trust_remote_code") == "True":
        yield "trust_remote_code=True, whatever the study says"
    if not name.endswith(".from_pretrained"):
        return
    # `**source` is what `loading_from` gives, which says whether the code is trusted.
    owner = name.rpartition(".")[0]
    if owner.rpartition(".")[2].lower().startswith("auto") and not {"trust_remote_code", None} & given.keys():
        yield f"{name} doesn't say whether code is trusted, and transformers would ask on a terminal"
    if ("AutoModel" in owner or owner == "auto_class") and given.get("use_safetensors") != "True":
        yield f"{name} without use_safetensors=True"


def test_no_file_of_the_package_breaks_a_rule():
    files = sorted(PACKAGE.rglob("*.py"))
    found = {str(path): told for path in files if (told := problems(path.read_text(encoding="utf-8")))}
    assert len(files) > 300 and found == {}


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("AutoProcessor.from_pretrained(path)", "doesn't say whether code is trusted"),
        ("transformers.AutoConfig.from_pretrained(path, revision=None)", "doesn't say whether code is trusted"),
        ("AutoModelForImageTextToText.from_pretrained(path, **source)", "without use_safetensors=True"),
        ("auto_class.from_pretrained(path, use_safetensors=None, **source)", "without use_safetensors=True"),
        ("AutoConfig.from_pretrained(path, trust_remote_code=True)", "whatever the study says"),
        ("serve(host='0.0.0.0')", "names every interface"),
    ],
)
def test_a_source_that_breaks_one_is_found(source, what):
    (found,) = problems(source)
    assert found.startswith("line 1: ") and what in found

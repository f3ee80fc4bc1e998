"""Benchmarks by their layout: to train on one is to spoil it, so a file that looks like one is named and refused."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkLayout:
    """A published layout; `keys` are those that together tell it, `hint` says where such a file belongs."""

    name: str
    keys: frozenset[str]
    hint: str


_STUDY_POPE = "name it in the study as a benchmark: benchmarks: {pope: {kind: pope, labels: {...}, image_root: ...}}"
_STUDY_MME = "give the release's folder to the study as a benchmark: benchmarks: {mme: {kind: mme, root: ...}}"
_STUDY_CHAIR = "name it in the study as a benchmark: benchmarks: {chair: {kind: chair, ...}}"
_NO_ROLE = "it measures a model; leave it out of the training data"

RECORDS = (
    BenchmarkLayout("POPE's labelled questions", frozenset({"image", "text", "label"}), _STUDY_POPE),
    BenchmarkLayout("CHAIR's descriptions", frozenset({"image", "text", "objects"}), _STUDY_CHAIR),
    BenchmarkLayout("MIA-Bench", frozenset({"instruction", "components", "component_weight"}), _NO_ROLE),
    BenchmarkLayout("VizWiz-VQA's annotations", frozenset({"image", "question", "answers", "answerable"}), _NO_ROLE),
    BenchmarkLayout("VizWiz-VQA's annotations", frozenset({"image", "question", "answers", "answer_type"}), _NO_ROLE),
    BenchmarkLayout(
        "a question file of LLaVA's evaluation (LLaVA-Bench, POPE or MME in that form)",
        frozenset({"question_id", "image", "text"}),
        _NO_ROLE,
    ),
)
"""Layouts of a record, the telling ones first."""

DOCUMENTS = (
    BenchmarkLayout(
        "COCO's annotations",
        frozenset({"images", "annotations"}),
        "they describe images and instruct nobody; LLaVA-Instruct's files hold conversations about the same images",
    ),
    BenchmarkLayout("VQA's questions or annotations", frozenset({"data_subtype", "task_type"}), _NO_ROLE),
)
"""Layouts of a file that is one JSON object."""

COLUMNS = (
    BenchmarkLayout(
        "POPE in the columns of lmms-eval", frozenset({"question_id", "question", "answer", "image_source"}), _NO_ROLE
    ),
    BenchmarkLayout(
        "MME in the columns of lmms-eval", frozenset({"question_id", "question", "answer", "category"}), _NO_ROLE
    ),
    BenchmarkLayout(
        "VizWiz-VQA in the columns of lmms-eval",
        frozenset({"question_id", "question", "answers", "category"}),
        _NO_ROLE,
    ),
)
"""Layouts of a table."""

MME_FOLDER = BenchmarkLayout("MME's release", frozenset(), _STUDY_MME)


def benchmark_of(keys: Collection[str], layouts: tuple[BenchmarkLayout, ...]) -> BenchmarkLayout | None:
    """The first of the layouts whose keys are all among `keys`; None when it is no known benchmark."""
    return next((layout for layout in layouts if layout.keys <= set(keys)), None)

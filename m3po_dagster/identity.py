"""Identities of what lies outside the graph: dataset files, base model, judge, benchmarks, recipes.

An identity is what the thing *is* (hashes, settings), never where it lies. The dataset's holds the times of its images,
which saves hashing them to see that nothing changed; where only times differ, source_dataset is read again and, its
content being the same, nothing follows.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from m3po_dagster.datasets.settings import AnySource
from m3po_dagster.method.alignment.calibration import CALIBRATION_FILE, CalibrationEntry, Identity
from m3po_dagster.method.alignment.known_pairs import known_pair_files
from m3po_dagster.s3_files.ahead import side_by_side
from m3po_dagster.s3_files.path import S3Path, as_path
from m3po_dagster.settings import Settings
from m3po_dagster.storage.fingerprint import canonical_json
from m3po_dagster.storage.s3 import is_s3
from m3po_dagster.study import Recipe, ScorerSettings, Study

NO_WEIGHTS = ("README.md", CALIBRATION_FILE)
"""Files of a model folder that are no part of the model; a calibration counts by its own version."""

NO_IMAGES = frozenset({".txt", ".json", ".jsonl", ".csv", ".parquet", ".arrow", ".tar", ".zip", ".gz", ".md"})
"""What may lie among a dataset's images and is none."""

FileHash = Callable[[Path], str]


class Identities:
    """Computes identities, each at most once: make a new one to look again.

    `file_hash` gives the sha256 of a file; a cache keyed by path, size and modification time keeps this cheap.
    """

    def __init__(self, file_hash: FileHash):
        self.file_hash = file_hash
        self._known: dict[str, dict] = {}

    def dataset(self, study: Study) -> dict:
        """Each source's settings, the bytes of its files, and name, size and time of every image in its folders."""
        return self._once("dataset", lambda: self._dataset(study))

    def model(self, study: Study) -> dict:
        """Config, weights, processor and numerics of the base model."""
        return self._once("model", lambda: self._model(study))

    def sampling_scorer(self, study: Study) -> dict:
        """Settings and weights of what scores between the rounds of an adaptive N; empty with a fixed one."""
        return self._once("sampling_scorer", lambda: self._sampling_scorer(study))

    def judge(self, study: Study) -> dict:
        """Each scorer's settings and weights; of a served one what is asked for, whatever the endpoint then answers.

        The known pairs that check the judge come with it: their outcome is part of what it scores.
        """
        return self._once("judge", lambda: self._judge(study))

    def served_judge(self, study: Study) -> dict:
        """Which served scorers are asked the probe set, and how; empty without one."""
        served = {scorer.name: _asked(scorer) for scorer in study.judge.assessors if scorer.served}
        return {"scorers": served, "repeats": study.judge.probe_repeats} if served else {}

    def benchmarks(self, study: Study) -> dict:
        """Every benchmark's questions, labels and images."""
        return self._once("benchmarks", lambda: self._benchmarks(study))

    def recipe(self, study: Study, name: str) -> dict:
        """As `recipe_identity`."""
        return recipe_identity(study.recipes[name])

    def _once(self, name: str, compute: Callable[[], dict]) -> dict:
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]

    def _dataset(self, study: Study) -> dict:
        from m3po_dagster.datasets.images import generation
        from m3po_dagster.datasets.readers import source_files

        sources = {}
        for name, source in study.dataset.sources.items():
            existing(source.path, f"dataset.sources.{name}.path")
            sources[name] = {
                "settings": portable(source),
                "files": {str(index): self.file_hash(path) for index, path in enumerate(source_files(source))},
                "images": _listing(name, source),
                "written": generation(source),
            }
        # Of duplicates the first is kept, so the order counts. Which turns are asked is the filter's business.
        settings = portable(study.dataset, exclude={"sources", "turns"})
        return {"settings": settings, "order": list(sources), "sources": sources}

    def _model(self, study: Study) -> dict:
        # Where no code of the model's own is run, as ever, nothing is said of it: what was made before stays found.
        unsaid = set() if study.model.trust_remote_code else {"trust_remote_code"}
        settings = portable(study.model, exclude={"device", "device_map", "path", *unsaid})
        return {"settings": settings, "files": self.weights(study.model.path)}

    def _sampling_scorer(self, study: Study) -> dict:
        scorer = study.generation.scorer
        if scorer is None:
            return {}
        for one in scorer.members or (scorer,):
            self.refuse_foreign_fit(one, {})
        return self._scorer(scorer)

    def _judge(self, study: Study) -> dict:
        scorers, fitted = {}, study.judge.fitted()
        for scorer in study.judge.assessors:
            self.refuse_foreign_fit(scorer, fitted)
        for scorer in study.judge.calibrated().scorers:
            scorers[scorer.name] = self._scorer(scorer)
        # No scorer is called so: a scorer's name has no space.
        known = study.judge.quality.known_pairs
        return scorers | ({} if known is None else {"known pairs": self._known_pairs(known)})

    def _scorer(self, scorer: ScorerSettings) -> dict:
        return {**scorer.identity(), **self._behind(scorer)}

    def _behind(self, scorer: ScorerSettings) -> dict:
        """What a scorer's values stand on beside its settings: hashes of its model, and its members."""
        found: dict = {}
        if scorer.local_model is not None:
            found["files"] = self.weights(scorer.local_model)
        if scorer.weights_file is not None:
            found["weights"] = self.file_hash(existing(scorer.weights_file, "pretrained"))
        if scorer.members:
            found["members"] = {member.name: self._scorer(member) for member in scorer.members}
        return found

    def _known_pairs(self, path: Path) -> str:
        """Hash of the file and its images, wherever they lie."""
        hashes = [self.file_hash(file) for file in known_pair_files(path)]
        return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()

    def refuse_foreign_fit(self, scorer: ScorerSettings, fitted: Mapping[str, CalibrationEntry]) -> None:
        """Raises ValueError where a scorer's calibration was fitted on other raw values than it gives now."""
        fit = scorer.calibration_entry(fitted).fit
        if fit is not None and fit.model != self.raw_scale(scorer):
            raise ValueError(
                f"scorer '{scorer.name}': its calibration was fitted on another model or under other settings (study "
                f"{fit.study}, {fit.model} where this is {self.raw_scale(scorer)}). Fit it anew with `m3po judge "
                "calibrate`, or go back to what it was fitted on"
            )

    def raw_scale(self, scorer: ScorerSettings) -> str:
        """Hash of what decides a scorer's raw values: model files and settings, not its column, weight or map."""
        # Any map would do: it is left out, but a scorer that has none yet has no identity either.
        known = scorer.model_copy(update={"calibration": Identity()}).identity()
        settings = {key: value for key, value in known["settings"].items() if key not in ("name", "weight")}
        scale = {**known, "calibration": None, "settings": settings, **self._behind(scorer)}
        return hashlib.sha256(canonical_json(scale).encode()).hexdigest()[:16]

    def _benchmarks(self, study: Study) -> dict:
        from m3po_dagster.evaluation.registry import load_questions

        found = {}
        for name, settings in study.benchmarks.items():
            asked = load_questions(settings)
            images = list(dict.fromkeys(existing(item.image_path, f"benchmarks.{name}") for item in asked))
            remote = any(isinstance(path, S3Path) for path in images)
            hashes = dict(zip(images, side_by_side(self.file_hash, images, remote), strict=True))
            questions = [[item.question_id, item.text, item.expected, hashes[item.image_path]] for item in asked]
            digest = hashlib.sha256(canonical_json(questions).encode()).hexdigest()
            files = {key: self.file_hash(path) for key, path in named_paths(settings.model_dump()) if path.is_file()}
            found[name] = {
                # Who judges, and how, is the scores' business: another judge asks no question again.
                "settings": portable(settings, exclude={"judge", "margin"}),
                "files": files,
                "questions": len(questions),
                "sha256": digest,
            }
            # But for the files of a judge that is loaded here, which only a look outside can tell.
            judge = getattr(settings, "judge", None)
            if getattr(judge, "local_model", None) is not None:
                found[name]["judge files"] = self._behind(judge)
        return found

    def weights(self, model: str) -> dict:
        """Hashes of a local model folder's files; a hub id is its own identity (pin its revision)."""
        # A model is loaded from a folder wherever there is one of its name.
        if not is_local(model) and not Path(model).is_dir():
            return {"hub": model}
        folder = existing(model, "model")
        files = sorted(file for file in folder.rglob("*") if file.is_file() and _counts(file.relative_to(folder)))
        return {str(file.relative_to(folder)): self.file_hash(file) for file in files}


def _listing(name: str, source: AnySource) -> str:
    """Hash of name, size and time of the images in a source's folders; in a bucket of name, size and ETag.

    What is hidden, or plainly something else, is no part of it. A folder of a prefix that isn't there holds no images:
    downloads in parts are usual.
    """
    from m3po_dagster.datasets.images import image_folders, writes_images

    images = []
    for prefix, folder in image_folders(source).items():
        if not prefix and not writes_images(source):
            existing(folder, f"dataset.sources.{name}.image_root")
        if isinstance(folder, S3Path):
            images += [
                (prefix, relative, found.size, found.etag)
                for relative, found in folder.files()
                if PurePosixPath(relative).suffix.lower() not in NO_IMAGES
            ]
            continue
        for place, folders, files in os.walk(folder):
            folders[:] = [child for child in folders if not child.startswith(".")]
            for file in files:
                path = Path(place, file)
                if not file.startswith(".") and path.suffix.lower() not in NO_IMAGES and path.is_file():
                    status = path.stat()
                    images.append((prefix, str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(canonical_json(sorted(images)).encode()).hexdigest()


def _asked(scorer: ScorerSettings) -> dict:
    """What a served scorer is asked and of whom; its share of MAS and its map are no part of that."""
    found = scorer.identity()
    settings = {key: value for key, value in found["settings"].items() if key != "weight"}
    return {**found, "settings": settings, "calibration": None}


def _counts(file: Path) -> bool:
    """Whether a file of a model folder is part of the model: not its card, nor anything hidden."""
    return file.name not in NO_WEIGHTS and not any(part.startswith(".") for part in file.parts)


def is_local(model: str) -> bool:
    """Whether a study names a model folder (an absolute path once loaded) and not a hub id."""
    return Path(model).is_absolute()


def existing(path: str | Path, key: str) -> Path:
    """The path, or FileNotFoundError that names it, the study's key and what to do."""
    found = as_path(path)
    if not found.exists():
        raise FileNotFoundError(
            f"{found} does not exist ({key} of the study). Correct the path; "
            "the embedded world's files are written by `m3po world write`."
        )
    return found


def named_paths(settings: Mapping, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Key and path of everything that dumped settings name by path."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from named_paths(value, f"{prefix}{key}.")
        elif isinstance(value, Path):
            yield f"{prefix}{key}", value


def recipe_identity(recipe: Recipe) -> dict:
    """A recipe's settings; its description does not count, nor what changes no weight of its adapter."""
    training = {} if recipe.training is None else {"training": recipe.training.identity()}
    return portable(recipe, exclude={"description"}) | training


def portable(settings: Settings, exclude: set[str] | None = None) -> dict:
    """The settings with every absolute path cut to its last name: a path says where a thing is, not what it is."""
    return _without_paths(settings.model_dump(mode="json", exclude=exclude))


def _without_paths(value):
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and (is_s3(value) or Path(value).is_absolute()):
        return Path(value).name
    return value

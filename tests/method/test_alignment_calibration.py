"""Calibrations: monotone, into [0, 1], frozen, refused when they make no sense."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from m3po_dagster.method.alignment.calibration import (
    CalibrationEntry,
    FitRecord,
    Identity,
    Linear,
    Quantile,
    ZScore,
    fit,
    read_calibrations,
    write_calibrations,
)

values = st.floats(-1e6, 1e6)
samples = st.lists(values, min_size=5, max_size=200).filter(lambda v: np.ptp(v) > 1e-3)


def fitted(sample: list[float], kind: str):
    if kind == "linear":
        return fit(sample, "linear", 0.0, 1.0)
    return fit(sample, kind)


@given(samples, st.sampled_from(["linear", "zscore", "quantile"]), st.lists(values, min_size=2, max_size=20))
def test_every_map_is_monotone_and_lands_in_the_unit_interval(sample, kind, raw):
    mapped = [fitted(sample, kind).apply(value) for value in sorted(raw)]
    assert all(0.0 <= value <= 1.0 for value in mapped)
    assert all(a <= b for a, b in pairwise(mapped))


@given(samples)
def test_a_quantile_map_gives_the_share_of_the_sample_below(sample):
    calibration = fit(sample, "quantile")
    assert calibration.apply(min(sample)) == 0.0
    assert calibration.apply(max(sample)) == 1.0


def test_a_quantile_map_is_the_empirical_distribution_between_knots():
    sample = np.random.default_rng(0).exponential(size=5000)
    calibration = fit(sample, "quantile")
    for value in (0.1, 0.5, 1.0, 3.0):
        assert calibration.apply(value) == pytest.approx((sample < value).mean(), abs=2e-3)


def test_knots_that_many_values_share_get_the_middle_rank():
    assert Quantile(knots=(0.0, 1.0, 1.0, 1.0, 2.0)).apply(1.0) == pytest.approx(0.5)


def test_linear_runs_between_the_quantiles_of_the_sample():
    sample = np.random.default_rng(1).normal(0.25, 0.05, 999)
    calibration = fit(sample)
    low, high = np.quantile(sample, [0.05, 0.95])
    assert (calibration.low, calibration.high) == (low, high)
    assert calibration.apply(low - 1) == 0.0
    assert calibration.apply(high + 1) == 1.0
    assert calibration.apply((low + high) / 2) == pytest.approx(0.5)


def test_zscore_is_the_normal_distribution():
    calibration = ZScore(mean=2.0, sd=0.5)
    assert calibration.apply(2.0) == pytest.approx(0.5)
    assert calibration.apply(2.5) == pytest.approx(0.8413447, abs=1e-6)
    assert calibration.apply(-1e9) == 0.0


def test_identity_passes_probabilities_and_refuses_the_rest():
    assert Identity().apply(0.25) == 0.25
    for value in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match="another calibration"):
            Identity().apply(value)


def test_a_sample_without_spread_or_with_nan_is_refused():
    for kind in ("linear", "zscore", "quantile"):
        with pytest.raises(ValueError, match="nothing to calibrate"):
            fit([0.3] * 10, kind)
    with pytest.raises(ValueError, match="nothing to calibrate"):
        fit([0.0] + [0.3] * 98 + [1.0])
    with pytest.raises(ValueError, match="finite"):
        fit([0.1, math.nan, 0.3])


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Linear, {"low": 1.0, "high": 1.0}),
        (Linear, {"low": math.inf, "high": 1.0}),
        (ZScore, {"mean": 0.0, "sd": 0.0}),
        (Quantile, {"knots": (1.0, 0.0)}),
        (Linear, {"low": 0.0, "high": 1.0, "slope": 2.0}),
    ],
)
def test_senseless_maps_are_refused(kind, fields):
    with pytest.raises(ValidationError):
        kind(**fields)


@given(samples)
def test_a_file_gives_back_the_same_maps_and_versions(tmp_path_factory, sample):
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    written = {kind: fitted(sample, kind) for kind in ("linear", "zscore", "quantile")} | {"id": Identity()}
    write_calibrations(path, written)
    read = read_calibrations(path)
    assert {name: entry.map for name, entry in read.items()} == written
    assert {name: entry.map.version for name, entry in read.items()} == {n: c.version for n, c in written.items()}
    assert {entry.fit for entry in read.values()} == {None}


def test_versions_differ_exactly_when_maps_do():
    maps = [Identity(), Linear(low=0, high=1), Linear(low=0, high=1.5), ZScore(mean=0, sd=1)]
    assert len({calibration.version for calibration in maps}) == len(maps)
    assert Linear(low=0, high=1).version == Linear(low=0.0, high=1.0).version


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"clip": {"kind": "linear", "low": 0.1}}', r"calibration\.json: clip\.linear\.high"),
        ('{"clip": {"map": {"kind": "linear", "low": 0.1}}}', r"calibration\.json: clip\.map\.linear\.high"),
        ('{"clip": {"map": {"kind": "identity"}, "fit": {}}}', r"calibration\.json: clip\.fit\.model"),
        ('{"clip": {"kind": "rank"}}', r"calibration\.json: clip: .*'rank'"),
        ('{"clip": 3}', r"calibration\.json: clip"),
        ("[1]", r"calibration\.json: a calibration file is an object"),
        ("{", r"calibration\.json: not valid JSON"),
    ],
)
def test_a_broken_file_names_file_scorer_and_field(tmp_path, content, message):
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_calibrations(path)


def record(**changed) -> FitRecord:
    given = {"model": "0123", "study": "s", "shards": {"s0": "v"}, "seed": 0, "prompts": 2, "values": 9}
    return FitRecord(**{**given, "unscored": {}, "tails": 0.05, "quantiles": {"0": 0.1, "1": 0.9}, **changed})


def test_the_record_of_a_fit_is_kept_and_is_no_part_of_the_version(tmp_path):
    calibration = Linear(low=0.1, high=0.9)
    first, second = (CalibrationEntry(map=calibration, fit=record(seed=seed)) for seed in (0, 1))
    write_calibrations(tmp_path / "file.json", {"first": first, "second": second, "by_hand": calibration})
    read = read_calibrations(tmp_path / "file.json")
    assert read == {"first": first, "second": second, "by_hand": CalibrationEntry(map=calibration)}
    assert {entry.map.version for entry in read.values()} == {calibration.version}
    assert list(tmp_path.iterdir()) == [tmp_path / "file.json"]


def test_a_file_that_can_not_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_calibrations(path, {"clip": Identity()})
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_calibrations(path, {"clip": Linear(low=0, high=1)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@given(samples, st.sampled_from(["linear", "zscore", "quantile"]), st.floats(1e-3, 1e6))
def test_a_value_outside_the_sample_gets_no_less_than_its_end(sample, kind, beyond):
    """Linear and quantile maps are flat out there; a z-score goes on towards 0 and 1."""
    calibration = fitted(sample, kind)
    below, above = calibration.apply(min(sample) - beyond), calibration.apply(max(sample) + beyond)
    if kind == "zscore":
        assert 0.0 <= below <= calibration.apply(min(sample)) < calibration.apply(max(sample)) <= above <= 1.0
    else:
        assert (below, above) == (0.0, 1.0)

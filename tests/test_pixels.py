"""Pixel metrics agree with a count over every threshold, with scikit-learn and with anomalib."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from hdsweep import pixels
from hdsweep.data import fingerprint, make_if_absent
from hdsweep.errors import UndefinedMetric
from hdsweep.execute import Job, origin_of, run_trial
from hdsweep.identity import digest
from hdsweep.method import load_dataset, load_method
from hdsweep.metrics import STORED, STORED_PIXEL, definitions, evaluate_pixels
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord
from tests.conftest import Run

Case = tuple[np.ndarray, np.ndarray]

# A deadline would fail on a busy machine; 50 draws of mostly tied scores meet every branch.
sampled = settings(max_examples=50, deadline=None)

# Few distinct values make ties the rule; floats of any size make them the exception.
SCORES = st.one_of(
    st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, np.inf]), st.floats(-1e6, 1e6, width=32)
)
PERCENTS = st.one_of(st.sampled_from([0.1, 5.0, 30.0, 100.0]), st.integers(1, 100).map(float))


@st.composite
def cases(draw: st.DrawFn, scores: st.SearchStrategy[float] = SCORES) -> Case:
    shape = tuple(draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))))
    mask = draw(arrays(np.bool_, shape))
    assume(mask.any() and not mask.all())
    return draw(arrays(np.float32, shape, elements=scores)), mask


def rank(maps: np.ndarray, mask: np.ndarray) -> pixels.Ranking:
    return pixels.rank(maps, range(len(maps)), lambda n: mask[n])


def all_values(maps: np.ndarray, mask: np.ndarray) -> list[float]:
    found = rank(maps, mask)
    limits = (0.1, 5, 30, 100)
    return [pixels.auroc(found), pixels.ap(found), *(pixels.aupro(found, x) for x in limits)]


def regions_of(mask: np.ndarray) -> list[list[tuple[int, int, int]]]:
    """Pixels of each region, filled from pixel to pixel."""
    left = {tuple(map(int, index)) for index in np.argwhere(mask)}
    regions = []
    while left:
        region = [left.pop()]
        for n, y, x in region:
            near = {(n, y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            region.extend(near)
        regions.append(region)
    return regions


def counted_aupro(maps: np.ndarray, mask: np.ndarray, percent: float) -> float:
    """By definition, in fractions: the overlap of every region at every threshold."""
    regions, limit = regions_of(mask), Fraction(str(percent)) / 100
    curve = [(Fraction(0), Fraction(0))]
    for threshold in np.unique(maps)[::-1]:
        over = maps >= threshold
        overlap = [Fraction(sum(int(over[p]) for p in region), len(region)) for region in regions]
        fpr = Fraction(int((over & ~mask).sum()), int((~mask).sum()))
        curve.append((fpr, sum(overlap, Fraction(0)) / len(regions)))
    total = Fraction(0)
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 < x1 and x0 < limit:
            end = min(x1, limit)
            height = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            total += (end - x0) * (y0 + height) / 2
    return float(total / limit)


# --- against other computations -------------------------------------------------------------------


@sampled
@given(cases(), PERCENTS)
def test_aupro_is_that_of_a_count_over_every_threshold(case: Case, percent: float) -> None:
    # A mean of up to a hundred rounded numbers below 1: 1e-12 is far above their rounding.
    found = pixels.aupro(rank(*case), percent)
    assert found == pytest.approx(counted_aupro(*case, percent), abs=1e-12)


@sampled
@given(cases(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 0.5])))
def test_pixel_auroc_and_ap_are_those_of_scikit_learn(case: Case) -> None:
    maps, mask = case
    found, flat = rank(maps, mask), (mask.ravel(), maps.ravel())
    assert pixels.auroc(found) == pytest.approx(roc_auc_score(*flat), abs=1e-12)
    assert pixels.ap(found) == pytest.approx(average_precision_score(*flat), abs=1e-12)


@pytest.mark.slow  # importing anomalib takes 10 s
@pytest.mark.filterwarnings("ignore")  # of the libraries it imports
@pytest.mark.parametrize("levels", [0, 7])
@pytest.mark.parametrize("percent", [5.0, 30.0, 100.0])
def test_aupro_is_that_of_anomalib(percent: float, levels: int) -> None:
    import torch
    from anomalib.metrics.aupro import _AUPRO

    random = np.random.default_rng(0)
    mask = random.random((6, 32, 40)) < 0.02
    mask[:, 5:9, 7:20] |= random.random((6, 1, 1)) < 0.5
    maps = (random.random(mask.shape) + 0.4 * mask).astype(np.float32)
    if levels:  # ties within and across classes
        maps = np.floor(maps * levels).astype(np.float32)
    theirs = _AUPRO(fpr_limit=percent / 100)
    theirs.update(torch.from_numpy(maps), torch.from_numpy(mask.astype(np.int64)))
    # They add up 7680 shares in single precision, each sum within 6e-8: 1e-5 is above that drift.
    assert pixels.aupro(rank(maps, mask), percent) == pytest.approx(
        float(theirs.compute()), abs=1e-5
    )


@sampled
@given(cases(st.integers(-50, 50).map(float)))
def test_an_increasing_transformation_changes_no_bit_of_any_metric(case: Case) -> None:
    maps, mask = case
    before = all_values(maps, mask)
    for changed in (np.exp(maps / 10), maps**3, 1e-3 * maps - 7, maps.astype(np.float16)):
        assert all_values(changed, mask) == before


@sampled
@given(cases())
def test_every_metric_is_a_rate(case: Case) -> None:
    assert all(0 <= value <= 1 for value in all_values(*case))


@sampled
@given(cases(), st.randoms(use_true_random=False))
def test_neither_the_order_of_images_nor_their_orientation_matters(case: Case, random: Any) -> None:
    maps, mask = case
    before, order = all_values(maps, mask), list(range(len(maps)))
    random.shuffle(order)
    assert all_values(maps[order][:, ::-1], mask[order][:, ::-1]) == before
    assert all_values(maps.transpose(0, 2, 1), mask.transpose(0, 2, 1)) == before


# --- by hand --------------------------------------------------------------------------------------


def squares() -> np.ndarray:
    """Two regions of 1 and of 9 pixels, in two images of 100."""
    mask = np.zeros((2, 10, 10), dtype=bool)
    mask[0, 0, 0] = mask[1, 4:7, 4:7] = True
    return mask


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_a_perfect_a_constant_and_an_inverted_map(dtype: type) -> None:
    mask = squares()
    perfect = mask.astype(dtype)
    assert all_values(perfect, mask) == [1, 1, 1, 1, 1, 1]
    # A straight line from (0, 0) to (1, 1), so half of the limit.
    constant = all_values(np.ones_like(perfect), mask)
    assert constant == pytest.approx([0.5, 10 / 200, 0.0005, 0.025, 0.15, 0.5], abs=1e-12)
    # Nothing is found before the last threshold, which finds all.
    inverted = all_values(-perfect, mask)
    assert inverted == pytest.approx([0, 10 / 200, 0, 0, 0, 0], abs=1e-12)


def test_a_small_region_weighs_as_much_as_a_large_one() -> None:
    mask = squares()
    large = np.where(mask & (np.arange(2) == 1)[:, None, None], 2.0, 0.0)
    large[0, 0, 0] = -1  # the small one is found last of all
    found = rank(large, mask)
    # Up to 30 % of the normal pixels the curve is flat at a half; all of these are tied at 0.
    assert pixels.aupro(found, 30) == 0.5
    assert pixels.auroc(found) == 0.9


def test_pixels_that_touch_at_a_corner_are_one_region_and_images_never_share_one() -> None:
    mask = np.zeros((2, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[0, 3, 3] = mask[1, 3, 3] = True
    assert np.bincount(rank(np.zeros(mask.shape), mask).region).tolist() == [2, 1, 1]


def test_a_tie_across_the_classes_is_a_slope() -> None:
    # One region of two pixels: one above all, one tied with one of four normal pixels.
    maps = np.array([[[3.0, 2.0, 2.0, 1.0, 0.0, 0.0]]])
    mask = np.array([[[True, True, False, False, False, False]]])
    # The curve: (0, 1/2), (1/4, 1), (1, 1).
    found = rank(maps, mask)
    assert pixels.aupro(found, 25) == 0.75
    assert pixels.aupro(found, 100) == pytest.approx(1 - 0.25 / 4)
    assert pixels.aupro(found, 12.5) == 0.625  # at the limit on the slope the overlap is 3/4
    assert pixels.auroc(found) == (3.5 + 4) / 8
    assert pixels.ap(found) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_the_limit_is_met_exactly() -> None:
    # 1000 normal pixels; 29 of them score above the region: 2.9 % in decimals, not in floats.
    maps = np.concatenate([np.arange(1000.0), [970.5]]).reshape(1, 7, 143)
    mask = np.zeros(1001, dtype=bool)
    mask[-1] = True
    found = rank(maps, mask.reshape(maps.shape))
    assert pixels.aupro(found, 2.9) == 0
    assert pixels.aupro(found, 3) == pytest.approx(1 / 30)
    assert pixels.aupro(found, 100) == pytest.approx(0.971)
    for percent in (0, 100.5, np.nan):
        with pytest.raises(ValueError, match=r"percent is in \(0, 100\]"):
            pixels.aupro(found, percent)


def test_infinite_scores_are_the_most_extreme_ones() -> None:
    mask = squares()
    maps = np.where(mask, np.inf, -np.inf)
    assert all_values(maps, mask) == [1, 1, 1, 1, 1, 1]


def test_scores_in_double_precision_are_not_rounded_into_ties() -> None:
    mask = squares()
    assert all_values(1 + 1e-12 * mask, mask) == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("maps", "mask", "reason"),
    [
        ([1.0, 2.0], [True, True], "no normal pixel among 2"),
        ([1.0, 2.0], [False, False], "no anomalous pixel among 2"),
        ([1.0, np.nan], [True, False], "1 of 2 pixels are NaN"),
        ([np.nan, 1.0], [True, False], "1 of 2 pixels are NaN"),
    ],
)
def test_without_both_classes_or_with_nan_pixel_metrics_are_undefined(
    maps: list[float], mask: list[bool], reason: str
) -> None:
    with pytest.raises(UndefinedMetric, match=reason):
        rank(np.array([[maps]]), np.array([[mask]]))


# --- by group -------------------------------------------------------------------------------------


def masks_of(mask: np.ndarray) -> list[Callable[[], np.ndarray] | None]:
    return [lambda n=n: mask[n] for n in range(len(mask))]


def test_a_group_without_a_value_is_none_with_a_reason_and_spares_the_others() -> None:
    mask = np.zeros((8, 4, 4), dtype=bool)
    mask[[1, 3, 5], 1:3, 1:3] = True
    maps = mask + np.linspace(0, 0.5, 16).reshape(4, 4)
    maps[5, 0, :2] = np.nan
    masks = masks_of(mask)
    masks[3] = None  # image 7 has a mask without an anomalous pixel
    values, missing = evaluate_pixels(
        ["pixel_auroc", "aupro@30.0", "aupro@5"],
        [f"{n}.png" for n in range(8)],
        ["a", "a", "b", "b", "c", "c", "d", "d"],
        np.tile([False, True], 4),
        masks,
        maps,
    )
    assert values["pixel_auroc"] == {"a": 1.0, "b": None, "c": None, "d": None}
    assert list(values) == ["pixel_auroc", "aupro", "aupro@5"]
    reasons = {
        "b": "no mask for 1 of 1 anomalous images, 3.png first",
        "c": "2 of 32 pixels are NaN",
        "d": "no anomalous pixel among 32",
    }
    assert missing == dict.fromkeys(values, reasons)


def test_the_mask_of_a_normal_image_is_not_asked_for() -> None:
    mask = squares()
    values, _ = evaluate_pixels(
        ["pixel_ap"], ["0", "1"], ["a", "a"], np.array([False, True]),
        [lambda: pytest.fail("read"), lambda: mask[1]], mask.astype(np.float32),
    )  # fmt: skip
    assert values["pixel_ap"]["a"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((10, 9), dtype=bool), r"1\.png: .* has shape \(10, 9\) and type bool"),
        (np.zeros((10, 10), dtype=np.uint8), r"1\.png: .* \(10, 10\) and type uint8"),
    ],
)
def test_a_mask_that_does_not_fit_the_maps_is_a_bug_that_names_the_image(
    wrong: np.ndarray, words: str
) -> None:
    maps, label = np.zeros((2, 10, 10), dtype=np.float32), np.array([False, True])
    with pytest.raises(ValueError, match=words):
        evaluate_pixels(
            ["aupro"], ["0.png", "1.png"], ["a", "a"], label, [None, lambda: wrong], maps
        )


def test_a_group_needs_no_more_memory_than_is_promised() -> None:
    random = np.random.default_rng(0)
    maps = random.random((120, 64, 64), dtype=np.float32)
    mask = np.zeros(maps.shape, dtype=bool)
    mask[::4, 10:20, 10:30] = True
    rank(maps[:4], mask[:4])  # imports scipy
    tracemalloc.start()
    try:
        found = rank(maps, mask)
        values = [pixels.auroc(found), pixels.ap(found), pixels.aupro(found, 30)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert min(values) > 0
    overhead = 2**19  # maps and masks of one image, and interpreter objects
    assert peak < 4 * maps.size + 80 * np.count_nonzero(mask) + overhead


# --- in a trial -----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Any:
    dataset = load_dataset("tests.methods.maps")
    store = Store(tmp_path / "results")

    def run(masks: str = "all", **knobs: Any) -> TrialRecord:
        where = {"root": tmp_path / "images", "make": {"items": 8}, "masks": masks}
        data = dataset.params.model_validate(where)
        make_if_absent(dataset, data, print)
        content = fingerprint(dataset, data)
        params = load_method("tests.methods.maps").params.model_validate(knobs)
        identity = {"params": params.identity(), "masks": masks, "data": content}
        trial = Trial(
            digest(identity), "tests.methods.maps", 1, params.model_dump(mode="json"),
            "tests.methods.maps", data.model_dump(mode="json"), content, 1, identity,
        )  # fmt: skip
        job = Job(trial, "test", 0, 1)
        return run_trial(job, store, origin_of(job), capture=True)

    run.store = store  # type: ignore[attr-defined]
    return run


def test_a_trial_with_maps_and_masks_has_pixel_metrics_beside_the_others(
    run: Any, tmp_path: Path
) -> None:
    record = run()
    assert record.status == "ok", record.error
    assert list(record.metrics) == [*STORED, *STORED_PIXEL]
    assert record.definitions == definitions([*STORED, *STORED_PIXEL])
    assert record.missing == {}
    for group in ("x", "y"):
        images = sorted((tmp_path / "images" / group).glob("00?.npy"))
        maps = np.stack([np.load(path)[0, 2:-2, 2:-2] for path in images])
        mask = np.zeros(maps.shape, dtype=bool)
        for n in range(1, 8, 2):
            mask[n] = np.load(images[n].with_name(f"{images[n].stem}_mask.npy"))[2:-2, 2:-2]
        expected = roc_auc_score(mask.ravel(), maps.ravel())
        assert record.metrics["pixel_auroc"][group] == pytest.approx(expected, abs=1e-12)
        for name, percent in (("aupro", 30.0), ("aupro@5", 5.0)):
            counted = counted_aupro(maps, mask, percent)
            assert record.metrics[name][group] == pytest.approx(counted, abs=1e-12)
    kept = {path.name for path in run.store.trial_dir(record.id).rglob("*")}
    assert "maps.npy" not in kept
    half = run(way="half")  # eleven bits of a brightness below 2 move few pixels past others
    assert half.metrics["aupro"]["x"] == pytest.approx(record.metrics["aupro"]["x"], abs=0.01)


@pytest.mark.parametrize(
    ("masks", "way"), [("none", "maps"), ("no reader", "maps"), ("all", "none")]
)
def test_without_masks_or_without_maps_a_trial_has_no_pixel_metrics(
    run: Any, masks: str, way: str
) -> None:
    record = run(masks=masks, way=way)
    assert record.status == "ok"
    assert list(record.metrics) == list(record.definitions) == list(STORED)
    assert record.missing == {}


def test_a_group_that_lacks_a_mask_is_missing_and_never_zero(run: Any) -> None:
    record = run(masks="some")
    for name in STORED_PIXEL:
        assert record.metrics[name]["x"] > 0
        assert record.metrics[name]["y"] is None
        assert record.missing[name] == {"y": "no mask for 1 of 4 anomalous images, y/001.npy first"}
    assert record.metrics["auroc"]["y"] is not None


def test_maps_that_are_nan_leave_the_metric_missing(run: Any) -> None:
    record = run(way="nan")
    assert record.metrics["aupro"]["x"] is None
    assert record.missing["aupro"] == {"x": "3 of 1152 pixels are NaN"}
    assert record.metrics["aupro"]["y"] > 0


@pytest.mark.parametrize("masks", ["all", "none"])
@pytest.mark.parametrize(
    ("way", "words"),
    [
        (
            "too few",
            "maps have shape (15, 12, 12); give one map (height, width) for each of the 16",
        ),
        ("one channel", "maps have shape (16, 1, 12, 12)"),
        ("integers", "maps are of type int64; give float16, float32 or float64"),
        ("objects", "maps.npy is not a readable .npy file"),
        ("truncated", "maps.npy is not a readable .npy file"),
        ("text", "maps.npy is not a readable .npy file"),
        ("empty", "maps.npy is not a readable .npy file"),
        ("archive", "maps.npy is an archive, not one .npy array"),
        ("absent", "maps.npy is not a readable .npy file: [Errno 2]"),
        ("array", "maps are a ndarray, not AnomalyMaps"),
    ],
)
def test_maps_that_break_the_contract_are_a_failed_trial(
    run: Any, way: str, words: str, masks: str
) -> None:
    record = run(way=way, masks=masks)
    assert record.status == "failed"
    assert words in record.error["message"]
    assert record.metrics == {}
    assert not (run.store.trial_dir(record.id) / "predictions.parquet").exists()


@pytest.mark.parametrize(("way", "found"), [("uncropped", "(16, 16)"), ("numbers", "type uint8")])
def test_a_mask_brought_to_another_grid_is_a_failed_trial(run: Any, way: str, found: str) -> None:
    record = run(way=way)
    assert record.status == "failed"
    assert record.error["message"].startswith("ValueError: x/001.npy: the mask on the maps' grid")
    assert found in record.error["message"]


def test_a_mask_that_cannot_be_read_is_named_and_costs_its_groups_pixel_metrics(run: Any) -> None:
    record = run(masks="damaged")
    assert record.status == "ok"
    assert record.metrics["aupro"]["x"] is None
    assert record.missing["aupro"]["x"].endswith("x/001_mask.npy: not an image")
    assert record.metrics["auroc"]["x"] is not None


def test_a_report_shows_pixel_metrics_and_says_why_there_are_none(
    hdsweep: Run, tmp_path: Path
) -> None:
    (tmp_path / "pixels.yaml").write_text(
        "name: pixels\n"
        "question: Are the faults found where they are?\n"
        "method: tests.methods.maps\n"
        "data: {name: tests.methods.maps, root: images, make: {items: 8}}\n"
        "seeds: [1]\n"
        "arms: {drawn: {way: maps}, undrawn: {way: none}}\n"
        "resources: {gpus: 0, cpus: 1}\n"
        "report: {metrics: [auroc, pixel_auroc, 'aupro@30[group=x]'], baseline: undrawn}\n"
    )
    done = hdsweep("run", "pixels.yaml", "--inline")
    assert done.returncode == 0, done.stderr
    done = hdsweep("report", "--metric", "aupro", "--metric", "aupro@10", "--format", "json")
    assert done.returncode == 0, done.stderr
    tables = json.loads(done.stdout)["tables"]
    assert [(table["metric"], table["is_rate"]) for table in tables] == [
        ("aupro", True),
        ("aupro@10", True),
    ]
    drawn, undrawn = tables[0]["rows"]
    assert all(0 < cell["mean"] <= 1 for cell in drawn["cells"].values())
    for cell in undrawn["cells"].values():
        assert cell["mean"] is None
    assert undrawn["cells"]["x"]["missing"][0]["reason"].startswith("the trial has no pixel")
    reason = tables[1]["rows"][0]["cells"]["x"]["missing"][0]["reason"]
    assert "pixel_auroc, pixel_ap, aupro, aupro@5; the maps are not kept" in reason
    assert "8-connected" in hdsweep("report").stdout

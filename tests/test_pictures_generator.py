"""The synthetic pictures: as hard as their documentation says, and the same every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from trainables.data.mvtec import CATEGORIES
from trainables.data.synthetic.pictures import (
    KINDS,
    Params,
    Picture,
    Split,
    pictures,
    write_mvtec,
    write_visa,
)

Floats = NDArray[np.float64]
Write = Callable[[Params, Path], None]

SMALL = Params(categories=("bottle", "tile"), size=(32, 48), train=3, good=2, defect=2)
SPLITS: tuple[Split, ...] = ("train normal", "test normal", "test anomalous")
GOLDEN_MEANS = [113.599, 55.756, 103.238, 63.452, 118.719, 54.950]


def made(params: Params, category: str, split: Split) -> list[Picture]:
    return list(pictures(params, category, split))


def pixels(found: list[Picture]) -> Floats:
    """Shape (n, height, width, 3)."""
    return np.stack([one.pixels for one in found]).astype(np.float64)


def box_mean(x: Floats) -> Floats:
    """Mean of 3 x 3 pixels, of the same shape."""
    p = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = x.shape[1:3]
    shifted = [p[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.mean(shifted, axis=0)


def auroc(good: Floats, bad: Floats) -> float:
    below = np.searchsorted(np.sort(good), bad, side="left")
    below_or_equal = np.searchsorted(np.sort(good), bad, side="right")
    return float((below + below_or_equal).mean() / (2 * len(good)))


@lru_cache
def figures(severity: float, categories: tuple[str, ...] = CATEGORIES) -> dict[str, float]:
    """Mean AUROC over categories, of the statistics that the generator's docstring names."""
    params = Params(categories=categories, severity=severity)
    found: dict[str, list[float]] = {}
    for category in categories:
        train, good, bad = (made(params, category, split) for split in SPLITS)
        smooth = box_mean(pixels(train))
        mean, std = smooth.mean(0), smooth.std(0) + 2  # of 255, for a pixel that hardly changes

        def z(of: list[Picture], mean: Floats = mean, std: Floats = std) -> Floats:
            return np.sqrt((((box_mean(pixels(of)) - mean) / std) ** 2).mean(-1))

        of_good, of_bad = z(good), z(bad)
        kinds = np.array([one.kind for one in bad])
        masks = np.stack([one.mask for one in bad])
        top_good, top_bad = of_good.max((1, 2)), of_bad.max((1, 2))
        for name, value in {
            "all": auroc(top_good, top_bad),
            **{kind: auroc(top_good, top_bad[kinds == kind]) for kind in KINDS},
            "pixels": auroc(of_bad[~masks], of_bad[masks]),
            "brightest": auroc(pixels(good).max((1, 2, 3)), pixels(bad).max((1, 2, 3))),
            "darkest": auroc(-pixels(good).min((1, 2, 3)), -pixels(bad).min((1, 2, 3))),
        }.items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def digest(root: Path) -> str:
    """Names and bytes of all that is below ``root``."""
    sha = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        sha.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def written(write: Write, params: Params, root: Path) -> Path:
    root.mkdir()
    write(params, root)
    return root


# Difficulty


def test_defects_are_as_hard_to_find_as_documented() -> None:
    # The pictures are the same every time; the tolerance is the rounding of what is documented.
    found = figures(1.0)
    documented = {"all": 0.84, "missing": 0.97, "scratch": 0.73, "spot": 0.84, "pixels": 0.88}
    assert {name: found[name] for name in documented} == pytest.approx(documented, abs=0.01)


def test_a_single_pixel_finds_no_defect() -> None:
    found = figures(1.0)
    assert found["brightest"] == pytest.approx(0.53, abs=0.01)
    assert found["darkest"] == pytest.approx(0.53, abs=0.01)


def test_a_severer_defect_is_easier_to_find_and_one_of_severity_0_cannot_be_seen() -> None:
    some = CATEGORIES[:4]
    none, mild, severe = (figures(severity, some)["pixels"] for severity in (0.0, 0.5, 2.0))
    assert none == pytest.approx(0.5, abs=0.06)  # masks lie on the body, which varies more
    assert none < mild < severe
    quiet = Params(categories=("tile",), severity=0.0, size=32)
    loud = quiet.model_copy(update={"severity": 1.0})
    for normal, bad in zip(
        made(quiet, "tile", "test anomalous"), made(loud, "tile", "test anomalous"), strict=True
    ):
        assert np.array_equal(normal.mask, bad.mask)
        assert not np.array_equal(normal.pixels, bad.pixels)


# Masks


@pytest.mark.parametrize("category", CATEGORIES[:6])
def test_a_mask_covers_what_the_defect_changes(category: str) -> None:
    # The same picture with and without its defect, noise and all, differs by the defect alone. Its
    # edge is a ramp of one pixel, whose fainter half is outside the mask.
    there = Params(categories=(category,), size=64, defect=6)
    absent = there.model_copy(update={"severity": 0.0})
    for bad, normal in zip(
        made(there, category, "test anomalous"), made(absent, category, "test anomalous"),
        strict=True,
    ):  # fmt: skip
        change = np.abs(bad.pixels.astype(int) - normal.pixels).max(-1)
        assert bad.mask.dtype == np.bool_
        assert bad.mask.shape == (64, 64)
        assert 3 <= bad.mask.sum() < 64 * 64 / 10
        assert change[bad.mask].mean() > 10
        near = np.pad(bad.mask, 1)
        grown = np.any([near[i : i + 64, j : j + 64] for i in range(3) for j in range(3)], axis=0)
        assert change[~grown].max() == 0


def test_normal_pictures_have_empty_masks() -> None:
    for split in SPLITS[:2]:
        assert not any(one.mask.any() or one.kind for one in made(SMALL, "tile", split))


@pytest.mark.parametrize("size", [16, (16, 64), (200, 33)])
def test_every_size_has_defects_to_find(size: int | tuple[int, int]) -> None:
    params = Params(categories=("tile",), size=size, defect=4)
    for one in made(params, "tile", "test anomalous"):
        assert one.pixels.shape == (*params.shape, 3)
        assert one.mask.any()


# The same every time


@pytest.mark.parametrize("write", [write_mvtec, write_visa])
def test_the_same_params_write_the_same_bytes(tmp_path: Path, write: Write) -> None:
    one = written(write, SMALL, tmp_path / "one")
    assert digest(one) == digest(written(write, SMALL, tmp_path / "two"))
    assert Params.model_validate(json.loads((one / "synthetic.json").read_text())) == SMALL


@pytest.mark.parametrize("change", [{"seed": 2}, {"severity": 0.5}, {"size": (32, 49)}])
def test_other_params_draw_other_pictures(change: dict[str, object]) -> None:
    one = made(SMALL, "tile", "test anomalous")
    other = made(SMALL.model_copy(update=change), "tile", "test anomalous")
    assert not np.array_equal(one[-1].pixels, other[-1].pixels)


def test_the_pictures_of_the_default_seed_have_not_drifted() -> None:
    # Rounded, because the last bit of sin differs between machines.
    found = [
        float(one.pixels[..., 1].mean())
        for split in SPLITS
        for one in (made(SMALL, "bottle", split)[0], made(SMALL, "tile", split)[-1])
    ]
    assert found == pytest.approx(GOLDEN_MEANS, abs=0.01)


def test_a_longer_split_and_more_categories_leave_the_other_pictures_as_they_are() -> None:
    longer = SMALL.model_copy(
        update={"categories": ("new", "tile"), "train": 9, "good": 4, "defect": 3}
    )
    for split in SPLITS:
        more = {(one.kind, one.index): one for one in made(longer, "tile", split)}
        for one in made(SMALL, "tile", split):
            assert np.array_equal(one.pixels, more[one.kind, one.index].pixels)
            assert np.array_equal(one.mask, more[one.kind, one.index].mask)


def test_no_two_pictures_are_the_same_and_categories_look_different() -> None:
    params = Params(categories=CATEGORIES, size=16, train=2, good=2, defect=2)
    found = [one.pixels.tobytes() for c in CATEGORIES for s in SPLITS for one in made(params, c, s)]
    assert len(set(found)) == len(found) == 15 * (2 + 2 + 3 * 2)
    colours = [pixels(made(params, c, "train normal")).mean((0, 1, 2)) for c in CATEGORIES]
    apart = [np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(apart) > 2  # of 255


# The two layouts


def test_both_layouts_hold_the_same_pictures_and_masks(tmp_path: Path) -> None:
    mvtec = written(write_mvtec, SMALL, tmp_path / "mvtec")
    visa = written(write_visa, SMALL, tmp_path / "visa")

    def read(path: Path) -> NDArray[np.uint8]:
        return np.asarray(Image.open(path))

    for index, kind in enumerate(KINDS):
        one = read(mvtec / f"tile/test/{kind}/001.png")
        name = f"{2 * index + 1:03d}"
        other = read(visa / f"tile/Data/Images/Anomaly/{name}.JPG")
        assert np.abs(one.astype(int) - other).mean() < 5  # of 255: JPEG costs 3 in grain
        mask = read(mvtec / f"tile/ground_truth/{kind}/001_mask.png")
        assert np.unique(mask).tolist() == [0, 255]
        assert np.array_equal(
            mask // 255 * (index + 1), read(visa / f"tile/Data/Masks/Anomaly/{name}.png")
        )


def test_the_layouts_are_as_published(tmp_path: Path) -> None:
    mvtec = written(write_mvtec, SMALL, tmp_path / "mvtec")
    names = {p.relative_to(mvtec).as_posix() for p in (mvtec / "tile").rglob("*") if p.is_file()}
    assert names == {
        *(f"tile/train/good/00{i}.png" for i in range(3)),
        *(f"tile/test/good/00{i}.png" for i in range(2)),
        *(f"tile/test/{kind}/00{i}.png" for kind in KINDS for i in range(2)),
        *(f"tile/ground_truth/{kind}/00{i}_mask.png" for kind in KINDS for i in range(2)),
    }
    visa = written(write_visa, SMALL, tmp_path / "visa")
    lines = (visa / "split_csv/1cls.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * (3 + 2 + 6)
    assert lines[0] == "object,split,label,image,mask"
    assert lines[1] == "bottle,train,normal,bottle/Data/Images/Normal/0000.JPG,"
    assert lines[-1] == (
        "tile,test,anomaly,tile/Data/Images/Anomaly/005.JPG,tile/Data/Masks/Anomaly/005.png"
    )
    for line in lines[1:]:
        assert all((visa / name).is_file() for name in line.split(",")[3:] if name)
    with Image.open(visa / "tile/Data/Images/Normal/0004.JPG") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"categories": ()},
        {"categories": ("../x",)},
        {"size": 15},
        {"size": (64, 64, 3)},
        {"size": 64.5},
        {"train": 0},
        {"defect": 10_001},
        {"severity": -0.1},
        {"severity": float("nan")},
        {"seed": -1},
        {"pictures": 5},
    ],
)
def test_params_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=str(next(iter(wrong)))):
        Params.model_validate({"categories": ("tile",), **wrong})

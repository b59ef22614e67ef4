"""Whole-slide images: tiles that are read lazily, their tissue, their labels, and what is refused.

Slides of known pixels are written with tifffile; OpenSlide reads them.
"""

from __future__ import annotations

import gc
import itertools
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image
from pydantic import ValidationError

from hdsweep.data import fingerprint
from hdsweep.method import Check, Data, DataError, Item, load_dataset
from tests.conftest import Run
from trainables.data import pyramids
from trainables.data.annotations import read_annotations, shares, within
from trainables.data.pyramids import Tissue, find_tissue
from trainables.data.slides import Params
from trainables.data.synthetic.slides import Params as Make
from trainables.data.synthetic.slides import Slide, slide_of

DATASET = load_dataset("slides")
MAKE = Make(train=2, normal=1, anomalous=2, size=(500, 780), tile=64)
TILE = 64
SLIDE = "test/anomalous/slide_000.tiff"
XML = "test/anomalous/slide_000.xml"
NORMAL = "test/normal/slide_000.tiff"
PINK = (214, 140, 190)
GLASS = (243, 242, 245)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides")
    assert DATASET.generator is not None
    DATASET.generator.write(MAKE, root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "slides"))


def params(root: Path, **values: object) -> Params:
    return Params.model_validate({"root": root, "tile": TILE, **values})


def load(root: Path, **values: object) -> Data:
    return DATASET.load(params(root, **values))


def check(root: Path, **values: object) -> Check:
    return DATASET.check(params(root, **values))


def only(lines: tuple[str, ...], part: str) -> str:
    """The one line that contains ``part``."""
    found = [line for line in lines if part in line]
    assert len(found) == 1, (part, lines)
    return found[0]


def corner(item: Item) -> tuple[int, int]:
    return int(item.facts["x"]), int(item.facts["y"])


def in_bytes(read: NDArray[np.float32]) -> NDArray[np.uint8]:
    """As stored: (height, width, 3)."""
    return np.rint(read * 255).astype(np.uint8).transpose(1, 2, 0)


def write_slide(path: Path, *levels: NDArray[np.uint8], **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for number, pixels in enumerate(levels):
            file.write(
                pixels,
                **{
                    "tile": (64, 64),
                    "photometric": "rgb",
                    "compression": "adobe_deflate",
                    "subfiletype": int(number > 0),
                    "metadata": None,
                    **options,
                },
            )


def painted(height: int, width: int, *islands: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Glass, and pink rectangles: top, left, bottom, right."""
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    for top, left, bottom, right in islands:
        pixels[top:bottom, left:right] = PINK
    return pixels


def smaller(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every fourth pixel."""
    return np.ascontiguousarray(pixels[::4, ::4])


def asap(*polygons: object, group: str = "None", kind: str = "Polygon") -> str:
    """Boundaries of points (x, y), as ASAP writes them."""
    drawn = "".join(
        f'<Annotation Name="region {n}" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
        + "".join(
            f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>'
            for k, (x, y) in enumerate(points)  # type: ignore[arg-type, var-annotated]
        )
        + "</Coordinates></Annotation>"
        for n, points in enumerate(polygons)
    )
    return f"<ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>"


def aperio(*regions: object, attributes: str = 'Type="0"') -> str:
    """Boundaries of points (x, y), as ImageScope writes them."""
    drawn = "".join(
        f'<Region Id="{n}" {attributes}><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)  # type: ignore[attr-defined]
        + "</Vertices></Region>"
        for n, points in enumerate(regions)
    )
    return f"<Annotations><Annotation><Regions>{drawn}</Regions></Annotation></Annotations>"


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Slides that are tissue from edge to edge of 4 x 6 tiles, with one boundary."""
    root = tmp_path / "plain"
    for number, split in enumerate(("train/normal", "test/normal", "test/anomalous")):
        pixels = painted(256, 384, (0, 0, 256, 384))
        pixels[0, number] = GLASS  # no two are the same
        write_slide(root / split / "a.tif", pixels, smaller(pixels))
    (root / "test/anomalous/a.xml").write_text(asap(box(64, 64, 128, 128)))
    return root


def labels(root: Path, **values: object) -> set[tuple[int, int]]:
    """Corners of the anomalous tiles."""
    return {corner(item) for item in load(root, **values).test if item.is_anomaly}


# --- Reading --------------------------------------------------------------------------------------


def test_a_tile_is_the_pixels_that_were_written_there(pristine: Path) -> None:
    data = load(pristine)
    stored = {p: tifffile.imread(p, key=0) for p in {item.path for item in data.test}}
    for item in data.test:
        read = data.read(item)
        assert (read.shape, read.dtype) == ((3, TILE, TILE), np.float32)
        assert read.flags.c_contiguous
        x, y = corner(item)
        assert np.array_equal(in_bytes(read), stored[item.path][y : y + TILE, x : x + TILE])


def test_tiles_are_named_by_their_slide_and_place(pristine: Path) -> None:
    data = load(pristine)
    assert data.groups == ("tile",)
    assert len({item.name for item in (*data.train, *data.test)}) == len(data.train + data.test)
    for item in (*data.train, *data.test):
        x, y = corner(item)
        slide = item.path.relative_to(pristine).with_suffix("").as_posix()
        assert item.name == f"{slide}/x{x}_y{y}"
        assert item.group == "tile"
        assert item.part_of == (None if slide.startswith("train") else slide)
        assert x % TILE == y % TILE == 0
        assert x + TILE <= 780
        assert y + TILE <= 500


def test_the_wholes_are_the_test_slides_labelled_by_their_folder(pristine: Path) -> None:
    data = load(pristine)
    assert [(w.name, w.is_anomaly, w.group) for w in data.wholes] == [
        ("test/normal/slide_000", False, "slide"),
        ("test/anomalous/slide_000", True, "slide"),
        ("test/anomalous/slide_001", True, "slide"),
    ]
    assert {item.part_of for item in data.test} == {whole.name for whole in data.wholes}
    for whole in data.wholes:
        found = {item.is_anomaly for item in data.test if item.part_of == whole.name}
        assert found == ({True, False} if whole.is_anomaly else {False})


def test_another_scale_is_read_from_the_level_that_has_it(pristine: Path) -> None:
    data = load(pristine, tile=16, downsample=4)
    levels = {p: tifffile.imread(p, key=1) for p in {item.path for item in data.train}}
    assert data.train
    for item in data.train:
        x, y = corner(item)
        stored = levels[item.path][y // 4 : y // 4 + 16, x // 4 : x // 4 + 16]
        assert np.array_equal(in_bytes(data.read(item)), stored)


@pytest.mark.parametrize(("downsample", "key", "factor"), [(2, 0, 2), (8, 1, 2)])
def test_a_scale_between_two_levels_is_averaged_down_from_the_larger(
    pristine: Path, downsample: int, key: int, factor: int
) -> None:
    data = load(pristine, tile=16, downsample=downsample, min_tissue=0.4)
    assert data.train
    for item in data.train:
        x, y = (place * factor // downsample for place in corner(item))
        side = 16 * factor
        stored = tifffile.imread(item.path, key=key)[y : y + side, x : x + side]
        mean = stored.reshape(16, factor, 16, factor, 3).mean(axis=(1, 3))
        assert np.abs(data.read(item).transpose(1, 2, 0) * 255 - mean).max() <= 1  # it rounds twice


def test_what_is_transparent_is_white_and_no_tissue(tmp_path: Path) -> None:
    pixels = np.zeros((256, 256, 4), np.uint8)  # black, as the space around a scan is
    pixels[64:192, 64:192] = (*PINK, 255)
    path = tmp_path / "a.tif"
    write_slide(path, pixels, np.ascontiguousarray(pixels[::4, ::4]), extrasamples=["assocalpha"])
    read = in_bytes(pyramids.read_square(path, 32, 64, 64, 1))
    assert (read[:, :32] == 255).all()
    assert (read[:, 32:] == PINK).all()
    tissue = find_tissue(path)
    assert tissue.mask.sum() == 32 * 32
    assert tissue.mask[16:48, 16:48].all()


def test_a_level_that_is_off_by_part_of_a_pixel_has_the_scale(tmp_path: Path) -> None:
    large, small = painted(258, 386), painted(64, 96, (0, 0, 64, 96))  # 4.03 times as large
    write_slide(tmp_path / "a.tif", large, small)
    assert (in_bytes(pyramids.read_square(tmp_path / "a.tif", 0, 0, 16, 4)) == PINK).all()
    assert (in_bytes(pyramids.read_square(tmp_path / "a.tif", 0, 0, 16, 3)) == GLASS).all()


def test_many_threads_read_what_one_reads_from_more_slides_than_stay_open(
    pristine: Path, tmp_path: Path
) -> None:
    path = next((pristine / "train/normal").iterdir())
    copies = [shutil.copy(path, tmp_path / f"{n}.tiff") for n in range(24)]
    places = [(Path(c), 64 * k, 64 * (k % 3)) for k in range(10) for c in copies]

    def read(place: tuple[Path, int, int]) -> bytes:
        return pyramids.read_square(*place, 64, 1).tobytes()

    alone = [read((path, x, y)) for _, x, y in places]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, places)) == alone
    names = [str(one._filename) for one in gc.get_objects() if type(one) is OpenSlide]
    still_open = [name for name in names if name.startswith(str(tmp_path))]
    assert 0 < len(still_open) <= pyramids._OPEN < len(copies)


def test_a_forked_process_reads_with_slides_of_its_own(pristine: Path) -> None:
    code = f"""
import os
from pathlib import Path
from trainables.data import pyramids
path = Path({str(pristine / SLIDE)!r})
read = lambda: pyramids.read_square(path, 192, 192, 64, 1).tobytes()
before, slide = read(), pyramids._pool.get(path)
child = os.fork()
if child == 0:
    os._exit(0 if read() == before and pyramids._pool.get(path) is not slide else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert read() == before and pyramids._pool.get(path) is slide
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_slide_that_was_replaced_is_read_anew(plain: Path) -> None:
    data = load(plain)
    before = data.read(data.train[0])
    pixels = np.full((256, 384, 3), (190, 90, 160), np.uint8)
    write_slide(plain / "new.tif", pixels, smaller(pixels))
    (plain / "new.tif").replace(data.train[0].path)
    assert not np.array_equal(data.read(data.train[0]), before)


def test_the_data_can_be_sent_to_worker_processes(pristine: Path) -> None:
    data = load(pristine)
    copy: Data = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.read(copy.test[3]), data.read(data.test[3]))


def test_importing_the_data_set_imports_no_library_of_pictures() -> None:
    code = (
        "import sys; from hdsweep.method import load_dataset;"
        "load_dataset('slides'); load_dataset('mhist');"
        "print(sorted({'torch', 'PIL', 'openslide', 'cv2', 'tifffile', 'defusedxml', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def blot(path: Path, page: int) -> None:
    """Overwrite the pixels of one level, whose place in the file is kept."""
    with tifffile.TiffFile(path) as tiff:
        spans = list(
            zip(tiff.pages[page].dataoffsets, tiff.pages[page].databytecounts, strict=True)
        )
    with path.open("r+b") as file:
        for offset, size in spans:
            file.seek(offset)
            file.write(bytes(size))


def test_slides_are_cut_into_tiles_without_their_largest_level(root: Path) -> None:
    before = load(root)
    victim = root / SLIDE
    blot(victim, 0)
    data = load(root)
    assert [item.name for item in data.test] == [item.name for item in before.test]
    damaged = next(item for item in data.test if item.path == victim)
    for _ in range(2):  # OpenSlide says nothing more of a slide that failed, unless opened anew
        with pytest.raises(DataError, match=re.escape(str(victim))):
            data.read(damaged)
    with pytest.raises(DataError, match="copy it again"):
        DATASET.verify(victim)
    other = next(item for item in data.test if item.path != victim)
    assert data.read(other).shape == (3, TILE, TILE)


# --- Tissue ---------------------------------------------------------------------------------------


def truth(slide: Slide, x: int, y: int, lesion: bool = False) -> float:
    """Share of a tile that was painted as tissue, or as altered."""
    grid = np.arange(TILE, dtype=np.float32) + 0.5
    at_y, at_x = np.meshgrid(y + grid, x + grid, indexing="ij")
    blobs = slide.lesions if lesion else slide.islands
    return float(np.max([blob.depth(at_y, at_x) > 0 for blob in blobs], axis=0).mean())


def test_tiles_are_where_tissue_was_painted(pristine: Path) -> None:
    data = load(pristine, train_tiles=None)
    assert data.train
    for index in range(MAKE.train):
        slide = slide_of(MAKE, "train/normal", index)
        name = f"slide_{index:03d}.tiff"
        used = {corner(item) for item in data.train if item.path.name == name}
        for x in range(0, 780 - TILE + 1, TILE):
            for y in range(0, 500 - TILE + 1, TILE):
                share = truth(slide, x, y)
                if share < 0.45 or share > 0.85:  # lumina of glands are no tissue
                    assert ((x, y) in used) == (share > 0.5), (x, y, share)


def test_a_larger_share_of_tissue_leaves_fewer_tiles(pristine: Path) -> None:
    found = [
        {item.name for item in load(pristine, min_tissue=share).test} for share in (0.1, 0.5, 0.9)
    ]
    assert found[0] > found[1] > found[2]


def test_shares_of_tissue_are_exact_on_cells_that_are_cut() -> None:
    mask = np.random.default_rng(1).random((13, 17)) < 0.5
    tissue = Tissue(mask, (4.0, 3.0))
    x, y = np.array([0, 5, 17, 40]), np.array([0, 7, 30, 41])
    fine = np.kron(mask, np.ones((4, 3)))
    found = tissue.shares(x, y, 10)
    for row, top in enumerate(y):
        for column, left in enumerate(x):
            expected = fine[top : top + 10, left : left + 10].mean()
            assert found[row, column] == pytest.approx(expected, abs=1e-9)


def test_the_threshold_parts_values_as_otsu_says() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(20, 6, 900), rng.normal(120, 25, 400)])
    values = values.clip(0, 255).astype(np.uint8)
    spread = [
        sum(
            part.size * part.var()
            for part in (values[values <= t], values[values > t])
            if part.size
        )
        for t in range(256)
    ]
    best = np.flatnonzero(np.isclose(spread, np.min(spread)))
    assert best[0] <= pyramids._otsu(values) <= best[-1]


def test_a_slide_without_glass_is_all_tissue_and_one_of_glass_has_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(-3, 4, (512, 512, 3))
    for name, colour in (("full", PINK), ("empty", GLASS), ("black", (4, 4, 4))):
        pixels = (np.asarray(colour) + noise).astype(np.uint8)
        write_slide(tmp_path / f"{name}.tif", pixels, smaller(pixels))
    assert find_tissue(tmp_path / "full.tif").mask.all()
    assert not find_tissue(tmp_path / "empty.tif").mask.any()
    assert not find_tissue(tmp_path / "black.tif").mask.any()


def test_what_is_transparent_does_not_shift_the_threshold(tmp_path: Path) -> None:
    pixels = np.zeros((256, 256, 4), np.uint8)
    pixels[:64] = (250, 230, 250, 255)  # stained glass
    pixels[:64, :64] = (250, 205, 250, 255)
    path = tmp_path / "a.tif"
    write_slide(path, pixels, np.ascontiguousarray(pixels[::4, ::4]), extrasamples=["assocalpha"])
    mask = find_tissue(path).mask
    assert mask[:16, :16].all()
    assert mask.sum() == 16 * 16


def test_tissue_is_found_by_strips_in_a_level_that_is_reduced(tmp_path: Path) -> None:
    half = painted(2500, 3001, (500, 1000, 1250, 2000))
    path = tmp_path / "a.tif"
    write_slide(path, np.repeat(np.repeat(half, 2, 0), 2, 1), half)
    tissue = find_tissue(path)
    assert tissue.mask.shape == (1250, 1501)
    assert tissue.cell == pytest.approx((4, 4), rel=1e-3)
    assert tissue.mask.sum() == 375 * 500
    assert tissue.mask[250:625, 500:1000].all()


def test_a_slide_without_smaller_levels_is_read_where_it_is_small(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", painted(256, 256, (0, 0, 128, 256)))
    assert find_tissue(tmp_path / "a.tif").mask.mean() == 0.5


def test_a_large_slide_without_smaller_levels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = np.broadcast_to(np.uint8([255, 255, 255]), (64, 20_000, 3))
    write_slide(path, np.ascontiguousarray(pixels))
    with pytest.raises(DataError, match=r"smallest level is 64 x 20000 .*'vips tiffsave"):
        find_tissue(path)


# --- Labels ---------------------------------------------------------------------------------------


def test_a_tile_is_anomalous_when_so_much_of_it_is_altered(pristine: Path) -> None:
    data = load(pristine, min_tissue=0.2)
    for index in range(MAKE.anomalous):
        slide = slide_of(MAKE, "test/anomalous", index)
        tiles = [item for item in data.test if item.part_of == f"test/anomalous/slide_{index:03d}"]
        assert {item.is_anomaly for item in tiles} == {True, False}
        for item in tiles:
            share = truth(slide, *corner(item), lesion=True)
            if abs(share - 0.5) > 0.02:  # a 16 x 16 count against a 64 x 64 one
                assert item.is_anomaly == (share > 0.5), (item.name, share)


def clipped_area(points: NDArray[np.float64], side: float) -> float:
    """Exact area of a polygon within the square at the origin: Sutherland-Hodgman, then Gauss."""
    for axis, bound, sign in ((0, 0.0, 1), (0, side, -1), (1, 0.0, 1), (1, side, -1)):
        kept: list[NDArray[np.float64]] = []
        for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
            depth_a, depth_b = sign * (a[axis] - bound), sign * (b[axis] - bound)
            if depth_a >= 0:
                kept.append(a)
            if (depth_a > 0 > depth_b) or (depth_a < 0 < depth_b):
                kept.append(a + (b - a) * depth_a / (depth_a - depth_b))
        if not kept:
            return 0.0
        points = np.array(kept)
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_the_share_of_a_tile_is_its_area_within_the_boundary(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tiles = np.arange(5) * 10.0
    for _ in range(20):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        away = rng.uniform(5, 24, 12)
        points = np.stack([25 + away * np.cos(angle), 25 + away * np.sin(angle)], axis=1)
        path = tmp_path / "a.xml"
        path.write_text(asap(points.tolist()))
        found = shares(read_annotations(path).boundaries, (), tiles, tiles, 10.0)
        length = np.hypot(*(points - np.roll(points, -1, axis=0)).T).sum()
        exact = np.array([[clipped_area(points - (x, y), 10) / 100 for x in tiles] for y in tiles])
        # Each crossing of a grid line shifts a point's worth at most, and most of them cancel.
        assert np.abs(found - exact).max() < 0.04
        assert abs(found.sum() - exact.sum()) < 0.01 * length / 10


def test_points_lie_within_a_polygon_as_another_library_says() -> None:
    rng = np.random.default_rng(1)
    x, y = np.sort(rng.uniform(0, 50, 60)), rng.uniform(0, 50, 70)
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    for _ in range(10):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        away = rng.uniform(3, 24, 9)
        points = np.stack([25 + away * np.cos(angle), 25 + away * np.sin(angle)], axis=1)
        expected = Outline([*points, points[0]]).contains_points(grid).reshape(70, 60)
        assert np.array_equal(within(points, x, y), expected)
        assert np.array_equal(within(points[::-1], x, y), expected)


@pytest.mark.parametrize(("share", "is_anomaly"), [(0.25, True), (0.5, True), (0.5001, False)])
def test_exactly_the_share_is_enough(plain: Path, share: float, is_anomaly: bool) -> None:
    (plain / "test/anomalous/a.xml").write_text(asap(box(64, 64, 128, 96)))  # half of a tile
    assert ((64, 64) in labels(plain, min_anomalous=share)) == is_anomaly


ONE = {(64, 64)}
TWO = {(64, 64), (128, 64)}
DRAWN: dict[str, tuple[str, set[tuple[int, int]]]] = {
    "ASAP": (asap(box(64, 64, 128, 128)), ONE),
    "ASAP, a rectangle": (asap(box(64, 64, 128, 128), kind="Rectangle"), ONE),
    "Aperio": (aperio(box(64, 64, 128, 128)), ONE),
    "Aperio, a rectangle": (aperio(box(64, 64, 128, 128), attributes='Type="1"'), ONE),
    "two": (asap(box(64, 64, 128, 128), box(128, 64, 192, 128)), TWO),
    "overlapping": (asap(box(64, 64, 160, 128), box(100, 64, 192, 128)), TWO),
    "two halves of a tile": (asap(box(64, 64, 84, 128), box(84, 64, 104, 128)), ONE),
    "the other way round": (asap(box(64, 64, 128, 128)[::-1]), ONE),
    "closed twice": (asap([*box(64, 64, 128, 128), (64, 64)]), ONE),
    "the whole slide": (
        asap(box(0, 0, 384, 256)),
        {(64 * c, 64 * r) for c in range(6) for r in range(4)},
    ),
    "crossing itself": (asap([(64, 64), (192, 128), (192, 64), (64, 128)]), TWO),
    "out of order": (
        asap([(64, 64), (128, 128), (128, 64), (64, 128)])
        .replace('Order="1"', 'Order="9"')
        .replace('Order="2"', 'Order="1"')
        .replace('Order="3"', 'Order="10"'),
        ONE,
    ),
    "a hole of Aperio": (
        aperio(box(64, 64, 192, 128)).replace(
            "</Regions>",
            '<Region NegativeROA="1"><Vertices>'
            + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in box(128, 64, 192, 128))
            + "</Vertices></Region></Regions>",
        ),
        ONE,
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_boundaries_of_both_formats_label_the_tiles_within(plain: Path, name: str) -> None:
    text, expected = DRAWN[name]
    (plain / "test/anomalous/a.xml").write_text(text)
    assert labels(plain) == expected


def test_a_group_can_be_named_as_holes(plain: Path) -> None:
    path = plain / "test/anomalous/a.xml"
    path.write_text(
        asap(box(64, 64, 192, 128), group="Tumor").replace(
            "</Annotations>", asap(box(128, 64, 192, 128), group="Exclusion")[31:-19]
        )
    )
    assert [one.group for one in read_annotations(path).boundaries] == ["Tumor", "Exclusion"]
    assert labels(plain) == TWO
    assert "in groups Exclusion, Tumor" in only(check(plain).warnings, "groups")
    assert labels(plain, holes=["Exclusion"]) == ONE
    with pytest.raises(
        DataError, match=r"the group 'Exclusoin' of 'holes'; did you mean 'Exclusion'"
    ):
        load(plain, holes=["Exclusoin"])
    assert "'Exclusoin'" in only(check(plain, holes=["Exclusoin"]).problems, "of 'holes'")
    with pytest.raises(DataError, match=r"every boundary is in a group of 'holes'"):
        load(plain, holes=["Exclusion", "Tumor"])


def test_dots_mark_nothing_and_are_counted(plain: Path) -> None:
    path = plain / "test/anomalous/a.xml"
    dot = asap([(3, 3)], kind="Dot")[31:-19]
    path.write_text(path.read_text().replace("</Annotations>", dot))
    assert labels(plain) == ONE
    assert only(check(plain).warnings, "enclose nothing").startswith("1 annotations")


# --- What is refused ------------------------------------------------------------------------------

BAD_XML: dict[str, tuple[str, str]] = {
    "two points": (asap([(1, 1), (9, 9)]), r"boundary 1 \('region 0'\) has 2 points.*at least 3"),
    "the second": (asap(box(1, 1, 9, 9), [(1, 1)]), r"boundary 2 \('region 1'\) has 1 points"),
    "on a line": (asap([(1, 1), (5, 5), (9, 9)]), "encloses no area, its 3 points lie on a line"),
    "nan": (asap([(1, 1), ("nan", 5), (9, 1)]), "a point with X = 'nan', which is no finite"),
    "infinite": (aperio([(1, 1), (5, "inf"), (9, 1)]), "a point with Y = 'inf'"),
    "a word": (asap([(1, 1), ("1,5", 5), (9, 1)]), "a point with X = '1,5'"),
    "no X": (asap(box(1, 1, 9, 9)).replace("X=", "x="), "a point with X = None"),
    "to the right": (
        asap([(1, 1), (384.5, 5), (9, 20)]),
        r"boundary 1 \('region 0'\): point 2 of 3 is at \(384.5, 5\), and the slide is 384 x 256",
    ),
    "above": (aperio([(1, 1), (30, 50), (9, -0.5)]), r"boundary 1: point 3 of 3 is at \(9, -0.5\)"),
    "damaged": (asap(box(1, 1, 9, 9))[:-9], "cannot be read as XML"),
    "empty": ("", "cannot be read as XML"),
    "another format": ("<svg/>", "the outermost element is <svg>, not <ASAP_Annotations>"),
    "no boundary": (asap(), "no boundary is drawn; draw"),
    "holes only": (aperio(box(1, 1, 9, 9), attributes='NegativeROA="1"'), "no boundary is drawn"),
    "dots only": (asap([(1, 1)], kind="Dot"), "no boundary is drawn, only 1 dots"),
    "an ellipse": (aperio(box(1, 1, 9, 9), attributes='Type="2"'), "boundary 1 is an ellipse"),
    "of no kind": (asap(box(1, 1, 9, 9), kind="Blob"), "is of Type 'Blob'; draw it again as one"),
    "entities": (
        '<!DOCTYPE x [<!ENTITY a "b">]><Annotations>&a;</Annotations>',
        "it declares entities",
    ),
}


@pytest.mark.parametrize("name", BAD_XML)
def test_boundaries_that_cannot_be_are_named(plain: Path, name: str) -> None:
    text, message = BAD_XML[name]
    path = plain / "test/anomalous/a.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        load(plain)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    assert only(check(plain).problems, str(path)) == str(raised.value)


def test_boundaries_are_verified_by_themselves(plain: Path) -> None:
    path = plain / "test/anomalous/a.xml"
    DATASET.verify(path)
    path.write_text(asap([(1, 1), (9, 9)]))
    with pytest.raises(DataError, match="has 2 points"):
        DATASET.verify(path)


def test_an_anomalous_slide_must_have_its_boundaries(root: Path) -> None:
    (root / XML).unlink()
    for look in (load, lambda root: DATASET.files(params(root))):
        with pytest.raises(DataError, match=r"the boundaries of slide_000\.tiff") as raised:
            look(root)
        assert str(raised.value).startswith(f"{root / XML}: no such file")
    assert only(check(root).problems, "boundaries").startswith(str(root / XML))


def _no_slide(path: Path) -> None:
    path.write_bytes(b"not a slide")


def _striped(path: Path) -> None:
    tifffile.imwrite(path, painted(256, 256), photometric="rgb")


def _picture(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path, "PNG")


@pytest.mark.parametrize("damage", [_no_slide, _striped, _picture])
def test_what_openslide_cannot_open_is_named_with_its_reason(
    root: Path, damage: Callable[[Path], None]
) -> None:
    damage(root / SLIDE)
    for look in (load, lambda root: DATASET.verify(root / SLIDE)):
        with pytest.raises(DataError, match=r"Unsupported or missing image file.*vips tiffsave"):
            look(root)
    assert str(root / SLIDE) in only(check(root).problems, "cannot open it")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97, 0.9999])
def test_a_slide_that_was_cut_off_is_noticed(root: Path, share: float) -> None:
    path = root / SLIDE
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=re.escape(str(path))):
        DATASET.verify(path)


def test_a_cut_that_openslide_does_not_notice_is_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (512, 512, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    write_slide(path, pixels, smaller(pixels))
    DATASET.verify(path)
    with tifffile.TiffFile(path) as tiff:
        spot = tiff.pages[0].dataoffsets[20]  # of 64, so that neither end of the level shows it
        tag = tiff.pages[0].tags["TileOffsets"].valueoffset + 20 * 4
        link = tiff.pages.next_page_offset
    whole = path.read_bytes()
    far = whole[:tag] + (len(whole) - 10).to_bytes(4, "little") + whole[tag + 4 :]
    assert int.from_bytes(whole[tag : tag + 4], "little") == spot
    path.write_bytes(far)
    pyramids.opened(path).close()
    with pytest.raises(DataError, match="the level of 512 x 512 pixels ends at byte"):
        DATASET.verify(path)
    path.write_bytes(whole[:link] + (len(whole) + 8).to_bytes(4, "little") + whole[link + 4 :])
    with pytest.raises(DataError, match=re.escape(str(path))):
        DATASET.verify(path)


def test_a_slide_without_tissue_is_named(root: Path) -> None:
    pixels = painted(256, 256, (0, 0, 64, 16))
    path = root / "train/normal/empty.tif"
    write_slide(path, pixels, smaller(pixels))
    expected = r"no tile of 64 x 64 pixels has 50 % of tissue, the most .* is 25 %; lower"
    with pytest.raises(DataError, match=expected):
        load(root)
    assert str(path) in only(check(root).problems, "of tissue")
    assert len(load(root, min_tissue=0.25).train) > 0


def test_a_slide_smaller_than_a_tile_is_named(plain: Path) -> None:
    with pytest.raises(DataError, match=r"it is 256 x 384 pixels .* lower 'tile' or 'downsample'"):
        load(plain, downsample=8)


def test_a_scale_far_from_every_level_is_refused(plain: Path) -> None:
    pixels = painted(640, 640, (0, 0, 640, 640))
    write_slide(plain / "train/normal/a.tif", np.tile(pixels, (16, 16, 1)))
    message = r"its levels are 1/1, so a tile of 512 pixels at 1/20 .* from 10240 x 10240; take"
    with pytest.raises(DataError, match=message):
        load(plain, tile=512, downsample=20)


def test_slides_of_one_stem_are_refused(root: Path) -> None:
    shutil.copy(root / NORMAL, root / "test/normal/slide_000.svs")
    with pytest.raises(DataError, match=r"slide_000.tiff: slide_000.svs has the same stem"):
        load(root)


def test_a_folder_without_slides_says_what_it_holds(root: Path) -> None:
    (root / NORMAL).rename(root / "test/normal/slide.zip")
    with pytest.raises(DataError, match=r"no slide \(.mrxs, .*the folder holds slide.zip"):
        load(root)


def test_the_folder_of_an_mrxs_slide_belongs_to_the_data(root: Path) -> None:
    path = root / "test/normal/m.1.mrxs"
    path.write_bytes(b"\xff\xd8 a preview")
    with pytest.raises(DataError, match=r"m\.1: no such folder, and m.1.mrxs keeps its pixels"):
        DATASET.files(params(root))
    parts = [path.with_suffix("") / "Slidedat.ini", path.with_suffix("") / "deep/Data0000.dat"]
    for part in parts:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"x")
    found = DATASET.files(params(root))
    assert {path, *parts} < set(found)
    assert list(found) == sorted(found)
    for one in (path, *parts):  # a part is verified with its slide
        with pytest.raises(DataError, match=r"m\.1\.mrxs: OpenSlide cannot"):
            DATASET.verify(one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_tissue": 0}, "greater than 0"),
        ({"min_anomalous": 1.5}, "less than or equal to 1"),
        ({"downsample": 1.5}, "integer"),
        ({"tile": 8}, "greater than or equal to 16"),
        ({"train_tiles": 0}, "greater than or equal to 1"),
    ],
)
def test_values_out_of_range_are_refused(values: Mapping[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        params(Path("x"), **values)


# --- Training tiles -------------------------------------------------------------------------------


def test_training_tiles_are_drawn_for_each_slide_and_larger_draws_hold_smaller_ones(
    pristine: Path,
) -> None:
    every = [item.name for item in load(pristine, train_tiles=None).train]
    few = [item.name for item in load(pristine, train_tiles=4).train]
    more = [item.name for item in load(pristine, train_tiles=9).train]
    other = [item.name for item in load(pristine, train_tiles=4, tiles_seed=1).train]
    assert len(few) == len(other) == 2 * 4
    assert set(few) < set(more) < set(every)
    assert set(few) != set(other)
    assert few == [name for name in every if name in set(few)]  # in the order of the slide
    assert [i.name for i in load(pristine, train_tiles=10**6).train] == every


def test_the_draw_does_not_depend_on_other_slides(root: Path) -> None:
    before = [i.name for i in load(root, train_tiles=4).train]
    shutil.copy(root / NORMAL, root / "train/normal/another.tiff")
    after = [i.name for i in load(root, train_tiles=4).train]
    assert [name for name in after if "another" not in name] == before
    shutil.copy(root / NORMAL, root / "train/normal/third.tiff")
    found = load(root, train_tiles=4).train
    places = [{corner(i) for i in found if i.path.stem == stem} for stem in ("another", "third")]
    assert places[0] != places[1]  # nor are the same places drawn on every slide


def test_test_tiles_are_never_drawn(pristine: Path) -> None:
    assert load(pristine, train_tiles=1).test == load(pristine, train_tiles=None).test


def test_loading_again_looks_at_no_slide_again(pristine: Path) -> None:
    one, other = load(pristine), load(pristine)
    assert one.train == other.train
    assert all(a is b for a, b in zip(one.test, other.test, strict=True))


# --- Fingerprint and check ------------------------------------------------------------------------


def test_other_boundaries_make_other_data(root: Path) -> None:
    before = fingerprint(DATASET, params(root))
    (root / XML).write_text(asap(box(100, 100, 300, 300)))
    assert fingerprint(DATASET, params(root)) != before
    assert labels(root) >= {(128, 128)}


def test_the_order_of_holes_is_no_part_of_identity() -> None:
    one, other = (params(Path("a"), holes=holes) for holes in (["b", "a"], ["a", "b", "a"]))
    assert one.identity() == other.identity()


def test_what_counts_as_a_tile_is_part_of_identity_and_the_folder_is_not() -> None:
    one = params(Path("a"), make={"train": 1})
    assert one.identity() == params(Path("b")).identity()
    for knob, value in (("tile", 32), ("min_tissue", 0.4), ("holes", ["x"]), ("tiles_seed", 1)):
        assert params(Path("a"), **{knob: value}).identity() != one.identity()


def test_a_check_counts_slides_tiles_and_boundaries(pristine: Path) -> None:
    found, data = check(pristine, train_tiles=7), load(pristine, train_tiles=None)
    assert found.problems == ()
    assert [row["split"] for row in found.rows] == [
        "train/normal",
        "test/normal",
        "test/anomalous",
    ]
    assert [row["slides"] for row in found.rows] == [2, 1, 2]
    assert found.rows[0]["tiles"] == len(data.train)
    assert found.rows[0]["used"] == 2 * 7
    assert sum(int(row["tiles"]) for row in found.rows[1:]) == len(data.test)
    assert [row["anomalous"] for row in found.rows] == [0, 0, sum(i.is_anomaly for i in data.test)]
    assert found.rows[2]["boundaries"] == 2
    assert {row["size"] for row in found.rows} == {"500x780"}
    assert {row["levels"] for row in found.rows} == {"2"}
    assert "synthetic" in only(found.warnings, "synthetic.json")


def test_a_slide_that_is_trained_and_tested_on_is_a_problem(root: Path) -> None:
    shutil.copy(root / NORMAL, root / "train/normal/again.tiff")
    line = only(check(root).problems, "the same slide")
    assert line.startswith("train/normal/again and test/normal/slide_000 are the same slide")
    shutil.copy(root / NORMAL, root / "test/normal/again.tiff")
    assert "1 of the slides in test/normal repeat" in only(check(root).warnings, "repeat")


def test_boundaries_that_nothing_reads_are_told(root: Path) -> None:
    shutil.copy(root / XML, (root / NORMAL).with_suffix(".xml"))
    shutil.copy(root / XML, root / "test/anomalous/lost.xml")
    warnings = check(root).warnings
    assert "slide_000.xml beside normal slides are not read" in only(warnings, "beside normal")
    assert "no slide has the boundaries lost.xml" in only(warnings, "no slide has")


def test_boundaries_that_label_no_tile_are_told(plain: Path) -> None:
    path = plain / "test/anomalous/a.xml"
    path.write_text(asap(box(64, 64, 128, 128), box(200, 200, 210, 210)))
    line = only(check(plain).warnings, "make no tile anomalous")
    assert "1 boundaries" in line
    assert "test/anomalous/a: boundary 2 ('region 1')" in line
    path.write_text(asap(box(200, 200, 210, 210)))
    assert only(check(plain).problems, "no test tile is anomalous")
    assert only(check(plain).warnings, "make no tile anomalous")
    assert check(plain, min_anomalous=0.01).problems == ()


def test_marked_tiles_of_glass_are_told(plain: Path) -> None:
    pixels = painted(256, 384, (0, 0, 256, 128))
    write_slide(plain / "test/anomalous/a.tif", pixels, smaller(pixels))
    (plain / "test/anomalous/a.xml").write_text(asap(box(64, 64, 192, 128)))
    assert labels(plain) == ONE
    line = only(check(plain).warnings, "are not tested")
    assert "50 % of tissue and are not tested: 1 of test/anomalous/a" in line


# --- The generator --------------------------------------------------------------------------------


def test_smaller_levels_are_means_of_the_larger_ones(pristine: Path) -> None:
    for path in (pristine / SLIDE, pristine / NORMAL):
        with tifffile.TiffFile(path) as tiff:
            levels = [page.asarray() for page in tiff.pages]
            assert [page.subfiletype for page in tiff.pages] == [0, 1]
            assert not {"Software", "DateTime"} & {tag.name for tag in tiff.pages[0].tags}
        assert [level.shape for level in levels] == [(500, 780, 3), (125, 195, 3)]
        for large, small in itertools.pairwise(levels):
            height, width = small.shape[:2]
            cut = large[: height * 4, : width * 4].reshape(height, 4, width, 4, 3)
            assert np.abs(cut.mean(axis=(1, 3)) - small).max() <= 0.5


def test_a_slide_does_not_depend_on_the_tiles_it_is_written_in_but_for_its_grain() -> None:
    slide = slide_of(MAKE, "test/anomalous", 0)
    y, x = int(slide.islands[0].y) - 100, int(slide.islands[0].x) - 100
    large = slide.square((y, x), 256)
    small = slide.square((y + 64, x + 64), 64)
    assert large is not None
    assert small is not None
    away = large[64:128, 64:128].astype(float) - small
    assert np.abs(away).mean() < 10  # two draws of grain, of 5.6 each, differ by 6.3
    assert np.abs(away.mean(axis=(0, 1))).max() < 1


def test_altered_tissue_cannot_be_told_without_severity() -> None:
    normal, none, some = (
        slide_of(MAKE.model_copy(update={"severity": severity}), "test/anomalous", 0)
        for severity in (0.0, 0.0, 1.0)
    )
    without = Slide(normal.key, normal.shape, normal.islands, (), 1.0)
    lesion = normal.lesions[0]
    spot = (int(lesion.y) - 32, int(lesion.x) - 32)
    pixels = [slide.square(spot, 64) for slide in (without, none, some)]
    assert all(one is not None for one in pixels)
    assert np.array_equal(pixels[0], pixels[1])  # type: ignore[arg-type]
    assert not np.array_equal(pixels[0], pixels[2])  # type: ignore[arg-type]


@pytest.mark.slow
def test_slides_of_the_default_size_have_tiles_of_both_labels(hdsweep: Run, tmp_path: Path) -> None:
    made = hdsweep("data", "make", "slides", tmp_path / "s", "--set", "train=1")
    assert made.returncode == 0, made.stderr
    data = DATASET.load(Params(root=tmp_path / "s"))
    for whole in data.wholes:
        labels = {item.is_anomaly for item in data.test if item.part_of == whole.name}
        assert labels == ({True, False} if whole.is_anomaly else {False})
    checked = hdsweep("data", "check", "slides", tmp_path / "s")
    assert checked.returncode == 0, checked.stdout

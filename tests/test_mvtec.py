"""Pictures in the layout of MVTec AD: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydantic import ValidationError

from hdsweep.data import fingerprint
from hdsweep.method import Check, Data, DataError, Item, load_dataset
from tests.conftest import Run
from trainables.data import mvtec
from trainables.data.mvtec import CATEGORIES, Make, Params

DATASET = load_dataset("mvtec")
SHAPE = (32, 48)
NAMES = ("bottle", "tile", "widget")  # the last is a user's own
VICTIM = "tile/test/scratch/001.png"
MASK = "tile/ground_truth/scratch/001_mask.png"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    generator = DATASET.generator
    assert generator is not None
    generator.write(Make(categories=NAMES, size=SHAPE, train=4, good=3, defect=2), root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "mvtec"))


def load(root: Path, **params: object) -> Data:
    return DATASET.load(Params.model_validate({"root": root, "categories": NAMES, **params}))


def check(root: Path, **params: object) -> Check:
    return DATASET.check(Params.model_validate({"root": root, "categories": NAMES, **params}))


def files(root: Path, **params: object) -> list[Path]:
    return list(DATASET.files(Params.model_validate({"root": root, "categories": NAMES, **params})))


def item(data: Data, name: str) -> Item:
    return next(item for item in (*data.train, *data.test) if item.name == name)


def only(lines: tuple[str, ...], part: str) -> str:
    """The one line that contains ``part``."""
    found = [line for line in lines if part in line]
    assert len(found) == 1, (part, lines)
    return found[0]


def gray(high: int, dtype: type[np.generic]) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """A ramp from 0 to ``high``."""
    return np.linspace(0, high, SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(dtype)


# Reading


def test_a_written_data_set_is_read_back_whole(pristine: Path) -> None:
    data = load(pristine)
    assert data.groups == NAMES
    assert len(data.train) == 3 * 4
    assert len(data.test) == 3 * (3 + 3 * 2)
    assert not any(item.is_anomaly or item.mask for item in data.train)
    for one in (*data.train, *data.test):
        assert one.name == one.path.relative_to(pristine).as_posix()
        assert one.name.startswith(f"{one.group}/")
        assert one.is_anomaly == ("/good/" not in one.name) == (one.mask is not None)
        read = data.read(one)
        assert (read.shape, read.dtype) == ((3, *SHAPE), np.float32)
        assert read.flags.c_contiguous
        stored = np.asarray(Image.open(one.path))
        assert np.array_equal(np.rint(read * 255), stored.transpose(2, 0, 1))


def test_a_mask_marks_what_is_not_black(pristine: Path) -> None:
    data = load(pristine)
    assert data.read_mask is not None
    for one in data.test:
        if one.mask is not None:
            mask = data.read_mask(one)
            assert (mask.shape, mask.dtype) == (SHAPE, np.bool_)
            assert np.array_equal(mask, np.asarray(Image.open(one.mask)) > 0)
            assert 0 < mask.sum() < mask.size / 4


def test_items_come_in_the_order_of_groups_and_each_once(pristine: Path) -> None:
    data = load(pristine)
    for items in (data.train, data.test):
        assert [i.group for i in items] == sorted((i.group for i in items), key=NAMES.index)
    assert len({i.name for i in (*data.train, *data.test)}) == 3 * 13


def test_files_are_the_sorted_pictures_and_masks_of_the_chosen_categories(pristine: Path) -> None:
    found = files(pristine, categories=["widget", "bottle"])
    assert found == sorted(found)
    assert {path.relative_to(pristine).parts[0] for path in found} == {"bottle", "widget"}
    assert len(found) == 2 * (4 + 3 + 6 + 6)
    assert sum("ground_truth" in path.parts for path in found) == 2 * 6


def test_another_mask_makes_another_data_set(root: Path) -> None:
    params = Params(root=root, categories=NAMES)
    before = fingerprint(DATASET, params)
    Image.fromarray(np.full(SHAPE, 255, np.uint8)).save(root / MASK)
    assert fingerprint(DATASET, params) != before


def test_the_data_can_be_sent_to_worker_processes(pristine: Path) -> None:
    data = load(pristine)
    copy: Data = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.read(copy.test[0]), data.read(data.test[0]))


def test_importing_the_data_sets_imports_no_torch_and_no_pillow() -> None:
    code = (
        "import sys; from hdsweep.method import load_dataset;"
        "load_dataset('mvtec'); load_dataset('visa');"
        "print(sorted({'torch', 'PIL', 'anomalib', 'cv2', 'ray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_other_formats_are_read_and_other_files_left_alone(root: Path) -> None:
    folder = root / "tile/train/good"
    Image.open(folder / "000.png").save(folder / "000.BMP")
    (folder / "000.png").unlink()
    Image.open(folder / "001.png").save(folder / "001.Jpeg")
    (folder / "001.png").unlink()
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._002.png").write_bytes(b"a file manager's")
    data = load(root)
    found = [i for i in data.train if i.group == "tile"]
    assert [i.path.name for i in found] == ["000.BMP", "001.Jpeg", "002.png", "003.png"]
    assert data.read(found[0]).shape == data.read(found[1]).shape == (3, *SHAPE)


def test_pictures_of_a_category_may_differ_in_size(root: Path) -> None:
    Image.new("RGB", (7, 5), (255, 0, 51)).save(root / "tile/train/good/000.png")
    data = load(root)
    read = data.read(item(data, "tile/train/good/000.png"))
    assert read.shape == (3, 5, 7)
    assert read[:, 0, 0] == pytest.approx([1.0, 0.0, 0.2])
    row = next(r for r in check(root).rows if (r["category"], r["split"])[0] == "tile")
    assert row["size"] == "32x48, 5x7"


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_keep_their_range(root: Path, suffix: str) -> None:
    pixels = gray(65535, np.uint16)
    path = root / f"tile/test/good/deep.{suffix}"
    Image.fromarray(pixels).save(path)
    data = load(root)
    read = data.read(item(data, f"tile/test/good/deep.{suffix}"))
    assert read == pytest.approx(np.repeat(pixels[None] / 65535, 3, axis=0), abs=1e-6)
    DATASET.verify(path)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_tiff_of_sixteen_bits_is_read_in_both_byte_orders(root: Path, byteorder: str) -> None:
    pixels, rgb = gray(65535, np.uint16), np.full((4, 4, 3), 0x8080, np.uint16)
    tifffile.imwrite(root / "tile/test/good/gray.tif", pixels, byteorder=byteorder)
    tifffile.imwrite(root / "tile/test/good/rgb.tif", rgb, byteorder=byteorder, photometric="rgb")
    data = load(root)
    read = data.read(item(data, "tile/test/good/gray.tif"))
    assert read[1] == pytest.approx(pixels / 65535, abs=1e-6)
    read = data.read(item(data, "tile/test/good/rgb.tif"))
    assert read == pytest.approx(0x80 / 255, abs=1e-6)  # colour loses its low bits, no more


def _palette() -> Image.Image:
    image = Image.new("P", SHAPE[::-1])
    image.putpalette([0, 0, 0, 255, 51, 0])
    image.putdata([i % 2 for i in range(SHAPE[0] * SHAPE[1])])
    return image


OTHER_MODES: dict[str, tuple[Callable[[Path], None], list[float]]] = {
    "gray": (lambda p: Image.new("L", SHAPE[::-1], 51).save(p), [0.2, 0.2, 0.2]),
    "gray and alpha": (lambda p: Image.new("LA", SHAPE[::-1], (51, 9)).save(p), [0.2, 0.2, 0.2]),
    "alpha": (lambda p: Image.new("RGBA", SHAPE[::-1], (255, 51, 0, 9)).save(p), [1.0, 0.2, 0.0]),
    "palette": (lambda p: _palette().save(p), [1.0, 0.2, 0.0]),
    "transparent palette": (
        lambda p: _palette().save(p, transparency=bytes([0, 128])),
        [1.0, 0.2, 0.0],
    ),
    "one bit": (lambda p: Image.new("1", SHAPE[::-1], 1).save(p), [1.0, 1.0, 1.0]),
    "float": (
        lambda p: tifffile.imwrite(p, np.full(SHAPE, 0.2, np.float32), photometric="minisblack"),
        [0.2, 0.2, 0.2],
    ),
    "CMYK": (
        lambda p: Image.new("CMYK", SHAPE[::-1], (0, 204, 255, 0)).save(p, "TIFF"),
        [1.0, 0.2, 0.0],
    ),
}


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_a_picture_stored_in_another_way_is_read_as_rgb(root: Path, mode: str) -> None:
    write, colour = OTHER_MODES[mode]
    suffix = "tiff" if mode in ("float", "CMYK") else "png"
    path = root / f"tile/test/good/other.{suffix}"
    write(path)
    data = load(root)
    read = data.read(item(data, f"tile/test/good/other.{suffix}"))
    assert (read.shape, read.dtype) == ((3, *SHAPE), np.float32)
    assert read[:, 3, 5] == pytest.approx(colour, abs=1e-6)
    DATASET.verify(path)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.eye(*SHAPE, dtype=np.uint8)),
        Image.fromarray(np.eye(*SHAPE, dtype=np.uint8) * 255).convert("1"),
        Image.fromarray(np.eye(*SHAPE, dtype=np.uint16)),
        Image.fromarray(np.eye(*SHAPE, dtype=np.uint8)[..., None] * np.uint8([0, 0, 1])),
        Image.fromarray(
            np.eye(*SHAPE, dtype=np.uint8)[..., None] * np.uint8([9, 0, 0, 0])
            + np.uint8([0, 0, 0, 255])
        ),
    ],
    ids=["one in 255", "one bit", "one in 65535", "a trace of blue", "opaque"],
)
def test_any_pixel_of_a_mask_that_is_not_black_is_anomalous(root: Path, image: Image.Image) -> None:
    image.save(root / MASK)
    data = load(root)
    assert data.read_mask is not None
    assert np.array_equal(data.read_mask(item(data, VICTIM)), np.eye(*SHAPE, dtype=np.bool_))


def test_a_mask_may_have_the_name_of_its_picture(root: Path) -> None:
    (root / MASK).rename(root / "tile/ground_truth/scratch/001.bmp")
    found = item(load(root), VICTIM).mask
    assert found == root / "tile/ground_truth/scratch/001.bmp"
    assert check(root).warnings[1:] == ()


def test_data_without_any_mask_can_be_used_without_pixel_metrics(root: Path) -> None:
    for name in NAMES:
        shutil.rmtree(root / name / "ground_truth")
    data = load(root)
    assert data.read_mask is None
    assert all(i.mask is None for i in data.test)
    assert len(files(root)) == 3 * 13
    found = check(root)
    assert found.problems == ()
    assert "6 of 6 anomalous pictures have no mask" in only(found.warnings, "category tile")


def test_a_single_missing_mask_is_a_warning(root: Path) -> None:
    (root / MASK).unlink()
    data = load(root)
    assert data.read_mask is not None
    assert item(data, VICTIM).mask is None
    with pytest.raises(DataError, match="no mask of this picture"):
        data.read_mask(item(data, VICTIM))
    found = check(root)
    assert found.problems == ()
    line = only(found.warnings, "no mask")
    assert line.startswith(f"category tile: 1 of 6 anomalous pictures have no mask ({VICTIM})")
    assert "ground_truth/<kind of defect>/<stem>_mask.png" in line


# Parameters


def test_published_categories_come_first_in_alphabetical_order_and_others_as_given() -> None:
    params = Params(root=Path("x"), categories=("zeta", "wood", "alpha", "bottle"))
    assert params.categories == ("bottle", "wood", "zeta", "alpha")
    assert Params(root=Path("x")).categories == CATEGORIES == tuple(sorted(CATEGORIES))
    assert len(CATEGORIES) == 15


def test_the_published_counts_add_up_to_the_published_totals() -> None:
    assert [sum(column) for column in zip(*mvtec.PUBLISHED.values(), strict=True)] == [
        3629,
        467,
        1258,
    ]


def test_root_and_make_are_no_part_of_identity() -> None:
    one = Params.model_validate({"root": "x", "categories": ["tile", "bottle"]})
    other = Params.model_validate(
        {"root": "y", "categories": ["bottle", "tile"], "make": {"seed": 3}}
    )
    assert one.identity() == other.identity() == {"categories": ["bottle", "tile"]}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"categories": ["tile", "wood", "tile"]}, "category tile is listed twice"),
        ({"categories": []}, "at least 1 item"),
        ({"categories": ["../tile"]}, "write the name of one folder"),
        ({"categories": [".."]}, "write the name of one folder"),
        ({"categories": [""]}, "write the name of one folder"),
        ({"categories": ["tile "]}, "write the name of one folder"),
        ({"categories": ["a[1]"]}, "write the name of one folder"),
        ({"categories": ["widget"], "make": {}}, "'make' writes no category widget"),
        ({"category": "tile"}, "category"),
        ({"root": "~nobody-at-all/x"}, "there is no such user"),
    ],
)
def test_params_that_make_no_sense_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Params.model_validate({"root": "x", **params})


def test_home_is_expanded_in_root(monkeypatch: pytest.MonkeyPatch, pristine: Path) -> None:
    monkeypatch.setenv("HOME", str(pristine.parent))
    assert len(load(Path("~") / pristine.name).train) == 3 * 4


# A layout that is not there


def test_a_missing_root_is_named_with_what_to_do(tmp_path: Path) -> None:
    for look in (load, check, files):
        with pytest.raises(DataError, match="no such folder") as caught:
            look(tmp_path / "nowhere")
        assert f"hdsweep data make mvtec {tmp_path / 'nowhere'}" in str(caught.value)
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="this is a file"):
        load(tmp_path / "data")


def test_a_missing_category_is_named_with_the_nearest(root: Path) -> None:
    with pytest.raises(DataError, match=r"tyle: no such folder; did you mean 'tile'\?"):
        load(root, categories=["tyle"])
    with pytest.raises(DataError, match=r"no such folder; known: bottle, tile, widget; list in"):
        load(root, categories=["zipper"])
    only(check(root, categories=["zipper", "tile"]).problems, "zipper: no such folder")


def test_a_root_without_folders_is_named_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "mvtec.tar.xz").write_bytes(b"")
    with pytest.raises(DataError, match=rf"; {tmp_path} holds mvtec.tar.xz; list in"):
        load(tmp_path)


@pytest.mark.parametrize("folder", ["train/good", "test/good", "test", "train"])
def test_a_missing_folder_is_named(root: Path, folder: str) -> None:
    shutil.rmtree(root / "tile" / folder)
    with pytest.raises(DataError, match=rf"tile/{folder}[a-z/]*: no such folder, .* holds "):
        load(root)
    assert "tile" in check(root).problems[0]


def test_a_test_split_without_defects_is_named(root: Path) -> None:
    for kind in ("missing", "scratch", "spot"):
        shutil.rmtree(root / "tile/test" / kind)
    with pytest.raises(DataError, match=r"tile/test: no folder of a defect, .* holds good; put"):
        load(root)


@pytest.mark.parametrize("folder", ["train/good", "test/good", "test/spot"])
def test_an_empty_split_is_named_with_what_it_holds(root: Path, folder: str) -> None:
    for path in list((root / "tile" / folder).iterdir()):
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(DataError, match=rf"tile/{folder}: no picture .* holds 000\.webp"):
        load(root)


def test_a_link_that_leads_nowhere_is_named_and_not_left_out(root: Path) -> None:
    (root / VICTIM).unlink()
    (root / VICTIM).symlink_to("nowhere.png")
    for look in (load, files):
        with pytest.raises(DataError, match=r"scratch/001\.png: the target of this link cannot be"):
            look(root)
    assert VICTIM in only(check(root).problems, "the target of this link")


@pytest.mark.parametrize("name", [VICTIM, MASK])
def test_a_folder_with_the_name_of_a_picture_is_named_and_not_left_out(
    root: Path, name: str
) -> None:
    (root / name).unlink()
    (root / name).mkdir()
    with pytest.raises(DataError, match=rf"{name}: cannot be read as a picture \(it is no file"):
        load(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(root: Path) -> None:
    folder = root / "tile/train/good"
    folder.chmod(0o000)
    with pytest.raises(DataError, match=r"tile/train/good.*Permission denied"):
        load(root)
    folder.chmod(0o755)


# A file that is no picture


def cut(length: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[:length])
        assert len(whole[:length]) < len(whole)

    return damage


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)


def claim_a_giant(path: Path) -> None:
    """Let the header ask for 10 Gpx."""
    import zlib

    whole = bytearray(path.read_bytes())
    whole[16:24] = (100_000).to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    path.write_bytes(whole)


def tiff(value: float) -> Callable[[Path], None]:
    pixels = np.full(SHAPE, value, np.float32)
    return lambda path: tifffile.imwrite(path, pixels, photometric="minisblack")


def stack(path: Path) -> None:
    pages = [Image.new("RGB", SHAPE[::-1], (i, i, i)) for i in range(3)]
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:])


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (cut(0), "of no known format"),
    "cut in the header": (cut(20), "cannot be read as a picture"),
    "cut in the pixels": (cut(500), "cannot be read as a picture (image file is truncated"),
    "cut at the end": (cut(-30), "cannot be read as a picture (image file is truncated"),
    "a flipped bit": (flip, "cannot be read as a picture"),
    "a text": (lambda path: path.write_text("<html>404"), "of no known format"),
    "a giant": (claim_a_giant, "exceeds limit"),
    "a stack": (stack, "it holds 3 pictures; keep one per file"),
    "a float out of range": (tiff(255.0), "values from 255 to 255 in Pillow's mode F"),
    "a NaN": (tiff(np.nan), "values from nan to nan"),
    "32 bits": (
        lambda path: tifffile.imwrite(path, gray(70_000, np.int32), photometric="minisblack"),
        "a picture has 0 to 65535; export it with 8 or 16 bits",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("name", [VICTIM, MASK])
def test_a_damaged_file_is_refused_by_name(root: Path, case: str, name: str) -> None:
    damage, message = BAD_FILES[case]
    if name == MASK and case.startswith("cut"):  # a mask compresses to fewer bytes than are cut
        noise = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
        Image.fromarray(noise).save(root / MASK)
    data = load(root)
    damage(root / name)
    with pytest.raises(DataError) as verified:
        DATASET.verify(root / name)
    assert str(verified.value).startswith(f"{root / name}: ")
    assert message in str(verified.value)
    assert "\n" not in str(verified.value)
    look = data.read if name == VICTIM else data.read_mask
    assert look is not None
    with pytest.raises(DataError) as read:
        look(item(data, VICTIM))
    assert str(read.value) == str(verified.value)
    if case != "a folder":  # which spoils its whole split
        assert only(check(root).problems, name) == str(verified.value)


def test_a_file_that_vanishes_is_named(root: Path) -> None:
    data = load(root)
    assert data.read_mask is not None
    victim = item(data, VICTIM)
    victim.path.unlink()
    for read in (data.read, data.read_mask):
        with pytest.raises(DataError, match=r"tile/test/scratch/001\.png: .*No such file"):
            read(victim)


def test_whole_files_verify(pristine: Path) -> None:
    for path in files(pristine):
        DATASET.verify(path)


def test_a_mask_of_another_size_is_refused(root: Path) -> None:
    Image.new("L", (10, 20), 255).save(root / MASK)
    data = load(root)
    assert data.read_mask is not None
    with pytest.raises(DataError, match="the mask is 20x10 pixels and its picture 32x48") as caught:
        data.read_mask(item(data, VICTIM))
    assert only(check(root).problems, MASK) == str(caught.value)


# The look at every file


def test_check_has_a_row_for_each_category_and_split(pristine: Path) -> None:
    found = check(pristine)
    assert found.problems == ()
    assert "synthetic" in only(found.warnings, "")
    assert [tuple(row.values()) for row in found.rows] == [
        (category, split, count, "32x48", "RGB", masks, 0)
        for category in NAMES
        for split, count, masks in (
            ("train normal", 4, 0),
            ("test normal", 3, 0),
            ("test anomalous", 6, 6),
        )
    ]
    assert list(found.rows[0]) == [
        "category", "split", "pictures", "size", "mode", "masks", "duplicates",
    ]  # fmt: skip


def test_check_names_both_files_of_a_picture_that_is_trained_and_tested_on(root: Path) -> None:
    # Stored anew, so the bytes differ: what counts is the picture. The categories differ too.
    image = Image.open(root / "bottle/train/good/002.png")
    image.save(root / "tile/test/good/copy.bmp")
    image.save(root / "tile/test/spot/copy.tiff", compression="tiff_lzw")
    problems = check(root).problems
    line = only(problems, "tested on what it was trained on")
    assert line.startswith("bottle/train/good/002.png and tile/test/good/copy.bmp are the same")
    assert "tile/test/spot/copy.tiff" in only(problems, "an anomaly is trained on as normal")
    only(problems, "one picture has both labels")


def test_check_warns_of_copies_within_a_split(root: Path) -> None:
    shutil.copy(root / VICTIM, root / "tile/test/spot/009.png")
    found = check(root)
    assert found.problems == ()
    assert only(found.warnings, "repeat another").startswith("1 of the pictures in test anomalous")
    row = next(r for r in found.rows if (r["category"], r["split"]) == ("tile", "test anomalous"))
    assert (row["pictures"], row["masks"], row["duplicates"]) == (7, 6, 1)


def test_check_counts_what_it_does_not_spell_out(root: Path) -> None:
    for path in (root / "tile/test").rglob("0*.png"):
        path.write_bytes(b"")
    shutil.copytree(root / "tile/ground_truth/spot", root / "tile/ground_truth/hole")
    problems = check(root).problems
    assert len([line for line in problems if "cannot be read" in line]) == 3 + 5
    assert "1 more problems in tile test anomalous, which has 6 pictures" in problems


def test_check_reports_a_mask_that_marks_nothing(root: Path) -> None:
    Image.new("L", SHAPE[::-1], 0).save(root / MASK)
    assert MASK in only(check(root).problems, "the mask marks no pixel")


def test_check_reports_a_mask_that_was_saved_as_jpeg(root: Path) -> None:
    path = (root / MASK).with_suffix(".jpg")
    Image.open(root / MASK).save(path)
    (root / MASK).unlink()
    assert str(path) in only(check(root).problems, "JPEG blurs a mask")


def test_check_warns_of_masks_without_a_picture(root: Path) -> None:
    shutil.copy(root / MASK, root / "tile/ground_truth/scratch/077_mask.png")
    shutil.copytree(root / "tile/ground_truth/spot", root / "tile/ground_truth/hole")
    found = check(root)
    assert found.problems == ()
    assert "scratch/077_mask.png: no picture in" in only(found.warnings, "077_mask.png")
    assert len([line for line in found.warnings if "tile/ground_truth/hole/" in line]) == 2


def test_check_reports_training_pictures_that_are_not_in_good(root: Path) -> None:
    shutil.copytree(root / "tile/test/spot", root / "tile/train/spot")
    shutil.copy(root / VICTIM, root / "tile/test/loose.png")
    problems = check(root).problems
    assert "only train/good is read" in only(problems, "tile/train/spot")
    assert "tile/test: loose.png in no folder, so without a label" in only(problems, "loose.png")


def test_check_goes_on_when_a_split_is_missing(root: Path) -> None:
    shutil.rmtree(root / "tile/test/good")
    found = check(root)
    only(found.problems, "tile/test/good: no such folder")
    assert len(found.rows) == 9
    row = next(r for r in found.rows if (r["category"], r["split"]) == ("tile", "test normal"))
    assert (row["pictures"], row["size"], row["mode"]) == (0, "-", "-")


def test_check_compares_measured_data_with_the_published_counts(root: Path) -> None:
    (root / "synthetic.json").unlink()
    warnings = check(root).warnings
    assert len(warnings) == 2
    assert only(warnings, "category tile") == (
        "category tile has 4 train normal, 3 test normal, 6 test anomalous; the published data "
        "have 230 train normal, 33 test normal, 84 test anomalous"
    )


# The command line, and anomalib


def test_the_command_line_makes_and_checks_a_data_set(hdsweep: Run, tmp_path: Path) -> None:
    small = ("--set", "size=[32, 40]", "--set", "train=2", "--set", "good=1", "--set", "defect=1")
    made = hdsweep("data", "make", "mvtec", "pictures", *small)
    assert made.returncode == 0, made.stderr
    assert f"wrote {15 * (2 + 1 + 3 + 3) + 1} files to pictures" in made.stdout
    found = hdsweep("data", "check", "mvtec", "pictures", "--format", "json")
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["ok"]
    assert {row["category"] for row in told["rows"]} == set(CATEGORIES)
    (tmp_path / "pictures/wood/test/good/000.png").write_bytes(b"")
    found = hdsweep("data", "check", "mvtec", "pictures", "--set", "categories=[wood]")
    assert found.returncode == 2
    assert "problem: pictures/wood/test/good/000.png: cannot be read" in found.stdout


@pytest.mark.slow
def test_anomalib_finds_the_same_items_labels_and_masks(pristine: Path) -> None:
    from anomalib.data.datasets.image.mvtecad import make_mvtec_ad_dataset
    from anomalib.data.utils import read_image, read_mask

    data = load(pristine)
    assert data.read_mask is not None
    for category in NAMES:
        for split, items in (("train", data.train), ("test", data.test)):
            samples = make_mvtec_ad_dataset(pristine / category, split=split)
            theirs = {
                (s.image_path, bool(s.label_index), s.mask_path or None)
                for s in samples.itertuples()
            }
            ours = [i for i in items if i.group == category]
            assert theirs == {(str(i.path), i.is_anomaly, i.mask and str(i.mask)) for i in ours}
            for one in ours:
                image = read_image(str(one.path), as_tensor=True).numpy()
                assert data.read(one) == pytest.approx(image, abs=1e-6)
                if one.mask is not None:
                    mask = read_mask(str(one.mask), as_tensor=True).numpy()
                    assert np.array_equal(data.read_mask(one), mask.squeeze() > 0)

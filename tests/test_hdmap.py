"""Health data maps as they lie on disk: what is read, what is refused, and in which words."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pydantic import ValidationError

from hdsweep.method import Check, Data, DataError, load_dataset
from trainables.data.hdmap import Params
from trainables.data.synthetic import hdmap as synthetic

DATASET = load_dataset("hdmap")
COUNTS = {"train/good": 6, "test/good": 4, "test/fault": 5}
VICTIM = "domain_B/test/good/0002.tiff"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hdmap")
    params = synthetic.Params(preset="quickstart", train=6, good=4, fault=5)
    synthetic.write(params, root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "hdmap"))


def load(root: Path, **params: object) -> Data:
    return DATASET.load(Params.model_validate({"root": root, **params}))


def check(root: Path, **params: object) -> Check:
    return DATASET.check(Params.model_validate({"root": root, **params}))


def real(root: Path) -> Path:
    """The same folder without the file that calls it synthetic."""
    (root / "synthetic.json").unlink()
    return root


def only(lines: tuple[str, ...], part: str) -> str:
    """The one line that contains ``part``."""
    found = [line for line in lines if part in line]
    assert len(found) == 1, (part, lines)
    return found[0]


# Reading


def test_a_written_data_set_is_read_back_whole(pristine: Path) -> None:
    data = load(pristine)
    assert data.groups == ("A", "B", "C", "D")
    assert len(data.train) == 4 * 6
    assert len(data.test) == 4 * (4 + 5)
    assert not any(item.is_anomaly for item in data.train)
    for item in (*data.train, *data.test):
        assert item.name == item.path.relative_to(pristine).as_posix()
        assert item.name.startswith(f"domain_{item.group}/")
        assert item.is_anomaly == ("/fault/" in item.name)
        stored = tifffile.imread(item.path)
        read = data.read(item)
        assert read.shape == (1, 31, 95)
        assert read.dtype == np.float32
        assert np.array_equal(read[0], stored)


def test_items_come_in_the_order_of_groups(pristine: Path) -> None:
    data = load(pristine)
    assert [item.group for item in data.train] == sorted(item.group for item in data.train)
    assert [item.group for item in data.test] == sorted(item.group for item in data.test)
    assert len({item.name for item in (*data.train, *data.test)}) == 4 * 15


def test_test_values_above_one_are_not_clipped(root: Path) -> None:
    bright = np.full((31, 95), 0.25, np.float32)
    bright[3, 4], bright[5, 6] = 7.5, -0.125
    for split in ("train/good", "test/fault"):
        tifffile.imwrite(root / "domain_A" / split / "0001.tiff", bright)
    data = load(root, domains=["A"])
    same = [i for i in (*data.train, *data.test) if i.path.stem == "0001"]
    train, fault = (i for i in same if i.path.parent.name == "fault" or not i.name.count("test"))
    assert np.array_equal(data.read(train), data.read(fault))
    assert data.read(fault).max() == 7.5
    assert data.read(fault).min() == -0.125


def test_tif_is_read_as_tiff_is_and_other_files_are_left_alone(root: Path) -> None:
    folder = root / "domain_A/train/good"
    (folder / "0000.tiff").rename(folder / "0000.TIF")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._0001.tiff").write_bytes(b"a file manager's")
    names = [item.path.name for item in load(root).train if item.group == "A"]
    assert names == ["0000.TIF", *(f"{i:04d}.tiff" for i in range(1, 6))]


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
def test_a_compressed_map_is_read(root: Path, compression: str) -> None:
    pixels = np.linspace(0, 1, 31 * 95, dtype=np.float32).reshape(31, 95)
    tifffile.imwrite(root / VICTIM, pixels, compression=compression)
    data = load(root)
    item = next(item for item in data.test if item.name == VICTIM)
    assert np.array_equal(data.read(item)[0], pixels)


def test_a_double_precision_map_is_read_as_float32(root: Path) -> None:
    tifffile.imwrite(root / VICTIM, np.linspace(0, 1, 31 * 95).reshape(31, 95))
    DATASET.verify(root / VICTIM)
    assert "float64" in only(check(root).warnings, "float64")


def test_the_data_can_be_sent_to_worker_processes(pristine: Path) -> None:
    data = load(pristine)
    copy: Data = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.read(copy.test[0]), data.read(data.test[0]))


def test_files_are_the_sorted_maps_of_the_chosen_domains(pristine: Path) -> None:
    params = Params.model_validate({"root": pristine, "domains": ["D", "B"]})
    files = list(DATASET.files(params))
    assert files == sorted(files)
    assert {p.relative_to(pristine).parts[0] for p in files} == {"domain_B", "domain_D"}
    assert len(files) == 2 * 15


def test_importing_the_data_set_imports_neither_torch_nor_tifffile() -> None:
    code = (
        "import sys; from hdsweep.method import load_dataset; load_dataset('hdmap');"
        "print(sorted({'torch', 'tifffile', 'ray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(  # the tests themselves have imported tifffile
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Parameters


def test_the_order_of_domains_is_fixed_and_no_part_of_identity() -> None:
    one = Params.model_validate({"root": "x", "domains": ["C", "A"]})
    other = Params.model_validate({"root": "y", "domains": ["A", "C"], "make": {"seed": 3}})
    assert one.domains == ("A", "C")
    assert one.identity() == other.identity() == {"domains": ["A", "C"]}


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (["A", "E"], "'A', 'B', 'C' or 'D'"),
        (["A", "B", "A"], "domain A is listed twice"),
        ([], "at least 1 item"),
    ],
)
def test_domains_that_make_no_sense_are_refused(domains: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Params.model_validate({"root": "x", "domains": domains})


def test_home_is_expanded_in_root(monkeypatch: pytest.MonkeyPatch, pristine: Path) -> None:
    monkeypatch.setenv("HOME", str(pristine.parent))
    assert len(load(Path("~") / pristine.name).train) == 4 * 6


# A layout that is not there


def test_a_missing_root_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as caught:
        load(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert f"hdsweep data make hdmap {tmp_path / 'nowhere'}" in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        check(tmp_path / "nowhere")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="this is a file"):
        load(tmp_path / "data")


def test_a_missing_domain_is_named_with_what_was_found(root: Path) -> None:
    shutil.move(root / "domain_C", root / "domain_c_old")
    with pytest.raises(DataError, match=r"domain_C: no such folder, .* holds domain_A") as caught:
        load(root)
    assert "domain_c_old" in str(caught.value)
    assert load(root, domains=["A", "D"]).groups == ("A", "D")


def test_a_missing_split_is_named(root: Path) -> None:
    shutil.rmtree(root / "domain_C/test/fault")
    with pytest.raises(DataError, match="domain_C/test/fault: no such folder"):
        DATASET.files(Params(root=root))


def test_a_split_without_maps_is_named_with_what_it_holds(root: Path) -> None:
    folder = root / "domain_A/train/good"
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(".png"))
    with pytest.raises(DataError, match=r"no \.tiff or \.tif file, .* 0004\.png and 1 more"):
        load(root)


@pytest.mark.parametrize("target", ["nowhere.tiff", "0002.tiff"])
def test_a_link_that_leads_nowhere_is_named_and_not_left_out(root: Path, target: str) -> None:
    (root / VICTIM).unlink()
    (root / VICTIM).symlink_to(target)
    for look in (DATASET.files, DATASET.load):
        with pytest.raises(DataError, match=r"good/0002\.tiff: the target of this link cannot be"):
            look(Params(root=root))
    assert VICTIM in only(check(root).problems, "the target of this link")


def test_a_folder_with_the_name_of_a_map_is_named_and_not_left_out(root: Path) -> None:
    (root / VICTIM).unlink()
    (root / VICTIM).mkdir()
    with pytest.raises(
        DataError, match=r"good/0002\.tiff: cannot be read as a TIFF \(it is no file"
    ):
        DATASET.files(Params(root=root))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(root: Path) -> None:
    folder = root / "domain_A/train/good"
    for mode in (0o000, 0o444, 0o311):
        folder.chmod(mode)
        with pytest.raises(DataError, match=r"domain_A/train/good.*Permission denied"):
            DATASET.files(Params(root=root))
    folder.chmod(0o755)


# A file that is no map


def truncate(length: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[:length])
        assert len(whole[:length]) < len(whole)

    return damage


def replace(pixels: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, pixels, photometric="minisblack")


def claim_a_giant(path: Path) -> None:
    """Let the header ask for 8 EB of pixels."""
    whole = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for tag in ("ImageWidth", "ImageLength"):
            offset = tiff.pages.first.tags[tag].valueoffset
            whole[offset : offset + 4] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(whole)


def with_one(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    pixels = np.linspace(0, 1, 31 * 95, dtype=np.float32).reshape(31, 95)
    pixels[30, 94] = value
    return pixels


BAD_FILES = {
    "empty": (truncate(0), "cannot be read as a TIFF"),
    "cut in the header": (truncate(5), "cannot be read as a TIFF"),
    "cut after the header": (truncate(8), "it holds no image"),
    "cut in the tags": (truncate(90), "cannot be read as a TIFF"),
    "cut before the pixels": (truncate(192), "cannot be read as a TIFF"),
    "cut in the pixels": (truncate(6000), "cannot be read as a TIFF"),
    "one byte short": (truncate(11971), "cannot be read as a TIFF"),
    "no TIFF": (lambda path: path.write_text("31,95\n"), "cannot be read as a TIFF"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read as a TIFF"),
    "a giant": (claim_a_giant, "not (31, 95)"),
    "transposed": (replace(np.ones((95, 31), np.float32)), "shape (95, 31), not (31, 95)"),
    "resized": (replace(np.ones((256, 256), np.float32)), "methods resize what they read"),
    "a stack": (replace(np.ones((2, 31, 95), np.float32)), "one map of one channel"),
    "in colour": (
        lambda path: tifffile.imwrite(path, np.ones((31, 95, 3), np.uint8), photometric="rgb"),
        "shape (31, 95, 3)",
    ),
    "whole numbers": (replace(np.ones((31, 95), np.uint8)), "uint8 values, not float32"),
    "complex": (replace(np.ones((31, 95), np.complex64)), "complex64 values, not float32"),
    "NaN": (replace(with_one(np.nan)), "1 of 2945 values are NaN or infinite"),
    "infinite": (replace(with_one(-np.inf)), "1 of 2945 values are NaN or infinite"),
    "too large": (replace(with_one(0).astype(np.float64) * 1e300), "NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_map_is_refused_by_name(root: Path, case: str) -> None:
    damage, message = BAD_FILES[case]
    data = load(root)
    item = next(item for item in data.test if item.name == VICTIM)
    damage(root / VICTIM)
    with pytest.raises(DataError) as verified:
        DATASET.verify(root / VICTIM)
    assert str(verified.value).startswith(f"{root / VICTIM}: ")
    assert message in str(verified.value)
    assert "\n" not in str(verified.value)
    with pytest.raises(DataError) as read:
        data.read(item)
    assert str(read.value) == str(verified.value)
    if case != "a folder":  # which spoils its whole split
        found = check(root)
        assert only(found.problems, VICTIM) == str(verified.value)


def test_a_file_that_vanishes_is_named(root: Path) -> None:
    data = load(root)
    data.test[0].path.unlink()
    with pytest.raises(DataError, match=r"domain_A/test/good/0000\.tiff"):
        data.read(data.test[0])


def test_a_whole_file_verifies(pristine: Path) -> None:
    for path in DATASET.files(Params(root=pristine)):
        DATASET.verify(path)


# The look at every file


def test_check_has_a_row_for_each_domain_and_split(pristine: Path) -> None:
    found = check(pristine)
    assert found.problems == ()
    assert [(r["domain"], r["split"], r["maps"]) for r in found.rows] == [
        (domain, split, count) for domain in "ABCD" for split, count in COUNTS.items()
    ]
    for row in found.rows:
        assert row.keys() == found.rows[0].keys()
        folder = pristine / f"domain_{row['domain']}" / str(row["split"])
        pixels = np.stack([tifffile.imread(path) for path in folder.iterdir()]).astype(np.float64)
        assert (row["shape"], row["dtype"]) == ("31x95", "float32")
        assert row["min"] == pytest.approx(pixels.min(), rel=1e-3)  # four digits are shown
        assert row["max"] == pytest.approx(pixels.max(), rel=1e-3)
        assert row["mean"] == pytest.approx(pixels.mean(), rel=1e-3)
        assert (row["nan_or_inf"], row["duplicates"]) == (0, 0)


def test_check_says_that_synthetic_maps_are_synthetic(root: Path) -> None:
    assert "synthetic" in only(check(root).warnings, "synthetic.json")
    assert not [w for w in check(real(root)).warnings if "synthetic" in w]


def test_check_names_both_files_of_a_map_that_is_trained_and_tested_on(root: Path) -> None:
    # Stored anew, so the bytes differ: what counts is the map. The domains differ too.
    pixels = tifffile.imread(root / "domain_A/train/good/0003.tiff")
    tifffile.imwrite(root / VICTIM, pixels, compression="zlib")
    line = only(check(root).problems, "the same map")
    assert "domain_A/train/good/0003.tiff" in line
    assert VICTIM in line


def test_check_names_a_map_that_is_both_good_and_faulty(root: Path) -> None:
    shutil.copy(root / VICTIM, root / "domain_B/test/fault/0009.tiff")
    line = only(check(root).problems, "both labels")
    assert VICTIM in line
    assert "domain_B/test/fault/0009.tiff" in line


def test_check_counts_what_it_does_not_spell_out(root: Path) -> None:
    shutil.rmtree(root / "domain_A/test/good")
    shutil.copytree(root / "domain_A/train/good", root / "domain_A/test/good")
    problems = check(root).problems
    assert len(problems) == 5 + 1
    assert problems[-1].startswith("1 more maps are both in train/good and in test/good")
    for path in (root / "domain_D/train/good").iterdir():
        path.write_bytes(b"")
    assert "1 more of the 6 maps" in only(check(root, domains=["D"]).problems, "more")


def test_check_warns_of_copies_within_a_split(root: Path) -> None:
    shutil.copy(root / VICTIM, root / "domain_B/test/good/0008.tiff")
    shutil.copy(root / VICTIM, root / "domain_D/test/good/0008.tiff")
    found = check(root)
    assert found.problems == ()
    line = only(found.warnings, "repeat another")
    assert line.startswith("2 of the maps in test/good")
    assert VICTIM in line
    row = next(r for r in found.rows if (r["domain"], r["split"]) == ("B", "test/good"))
    assert row["duplicates"] == 1


def test_check_reports_a_missing_class_and_goes_on(root: Path) -> None:
    shutil.rmtree(root / "domain_C/test/fault")
    found = check(root)
    assert "domain_C/test/fault: no such folder" in only(found.problems, "domain_C")
    assert len(found.rows) == 12
    row = next(r for r in found.rows if (r["domain"], r["split"]) == ("C", "test/fault"))
    assert (row["maps"], row["shape"], row["max"]) == (0, "-", "-")


def test_check_reports_a_missing_domain_once(root: Path) -> None:
    shutil.rmtree(root / "domain_C")
    only(check(root).problems, "domain_C")


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_check_reports_a_map_without_signal(root: Path, value: float) -> None:
    tifffile.imwrite(root / VICTIM, np.full((31, 95), value, np.float32))
    assert VICTIM in only(check(root).problems, f"every value is {value:g}")


def test_check_counts_values_that_are_not_finite_and_leaves_them_out(root: Path) -> None:
    tifffile.imwrite(root / VICTIM, with_one(np.inf))
    row = next(r for r in check(root).rows if (r["domain"], r["split"]) == ("B", "test/good"))
    assert row["nan_or_inf"] == 1
    assert row["max"] <= 1.5  # type: ignore[operator]


def test_check_warns_of_maps_that_may_have_been_clipped(root: Path) -> None:
    for path in (real(root) / "domain_B/test").rglob("*.tiff"):
        tifffile.imwrite(path, np.minimum(tifffile.imread(path), 1.0))
    warnings = check(root).warnings
    assert "clipped" in only(warnings, "domain B: no test value exceeds 1")


def test_check_warns_of_counts_unlike_the_published(root: Path) -> None:
    line = only(check(root).warnings, "domain A has")
    assert "6 in train/good, 4 in test/good, 5 in test/fault" in line
    assert "1000" in line

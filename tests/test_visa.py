"""Pictures in the layout of VisA: its table decides, and says what is wrong with it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from hdsweep.data import fingerprint
from hdsweep.method import Check, Data, DataError, Item, load_dataset
from tests.conftest import Run
from trainables.data import visa
from trainables.data.visa import CATEGORIES, Make, Params

DATASET = load_dataset("visa")
SHAPE = (32, 48)
NAMES = ("candle", "pcb1", "widget")  # the last is a user's own
TABLE = "split_csv/1cls.csv"
VICTIM = "pcb1/Data/Images/Anomaly/003.JPG"
MASK = "pcb1/Data/Masks/Anomaly/003.png"
LINE = 2 + 13 + 7 + 3  # of the victim: a heading, a category, normal pictures, and those before it


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("visa")
    generator = DATASET.generator
    assert generator is not None
    generator.write(Make(categories=NAMES, size=SHAPE, train=4, good=3, defect=2), root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "visa"))


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


def edit(root: Path, old: str, new: str) -> None:
    """Replace what the table has once."""
    text = (root / TABLE).read_text()
    assert text.count(old) == 1, old
    (root / TABLE).write_text(text.replace(old, new))


# Reading


def test_a_written_data_set_is_read_back_as_its_table_says(pristine: Path) -> None:
    data = load(pristine)
    with (pristine / TABLE).open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(data.train) + len(data.test) == 3 * 13
    assert data.groups == NAMES
    for split, items in (("train", data.train), ("test", data.test)):
        for one in items:
            row = rows[one.name]
            assert (one.group, split) == (row["object"], row["split"])
            assert one.is_anomaly == (row["label"] == "anomaly")
            assert one.path == pristine / one.name
            assert one.mask == (pristine / row["mask"] if row["mask"] else None)
            stored = np.asarray(Image.open(one.path))
            assert np.array_equal(np.rint(data.read(one) * 255), stored.transpose(2, 0, 1))


def test_every_kind_of_defect_in_a_mask_is_anomalous(pristine: Path) -> None:
    data = load(pristine)
    assert data.read_mask is not None
    values = set()
    for one in data.test:
        if one.mask is not None:
            stored = np.asarray(Image.open(one.mask))
            values |= set(np.unique(stored).tolist())
            mask = data.read_mask(one)
            assert (mask.shape, mask.dtype) == (SHAPE, np.bool_)
            assert np.array_equal(mask, stored > 0)
    assert values == {0, 1, 2, 3}


def test_items_come_in_the_order_of_groups_even_if_rows_do_not(root: Path) -> None:
    head, *rows = (root / TABLE).read_text().splitlines()
    (root / TABLE).write_text("\n".join([head, *reversed(rows)]))
    data = load(root)
    for items in (data.train, data.test):
        assert [i.group for i in items] == sorted((i.group for i in items), key=NAMES.index)
    assert data.train[0].name == "candle/Data/Images/Normal/0003.JPG"


def test_files_are_the_table_and_what_it_names_of_the_chosen_categories(pristine: Path) -> None:
    found = files(pristine, categories=["pcb1"])
    assert found == sorted(found)
    assert len(found) == 1 + 13 + 6
    assert pristine / TABLE in found
    assert {p.relative_to(pristine).parts[0] for p in found} == {"pcb1", "split_csv"}
    for path in found:
        DATASET.verify(path)


def test_another_split_makes_another_data_set(root: Path) -> None:
    params = Params(root=root, categories=NAMES)
    before = fingerprint(DATASET, params)
    edit(root, "pcb1,train,normal,pcb1/Data/Images/Normal/0002", "pcb1,test,normal,pcb1/Data/Images/Normal/0002")  # fmt: skip  # noqa: E501
    assert fingerprint(DATASET, params) != before
    assert (len(load(root).train), len(load(root).test)) == (3 * 4 - 1, 3 * 9 + 1)


def test_a_table_from_a_spreadsheet_is_read(root: Path) -> None:
    with (root / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (root / TABLE).open("w", newline="", encoding="utf-8-sig") as file:
        names = ["note", "mask", "image", "label", "split", "object"]
        writer = csv.DictWriter(file, names, quoting=csv.QUOTE_ALL)  # and CRLF
        writer.writeheader()
        writer.writerows({**row, "note": 'a "note",\nof two lines'} for row in rows)
        file.write("\r\n")
    assert len(load(root).test) == 3 * 9
    DATASET.verify(root / TABLE)


def test_rows_of_other_categories_need_no_files(root: Path) -> None:
    shutil.rmtree(root / "candle")
    assert load(root, categories=["pcb1"]).groups == ("pcb1",)
    with pytest.raises(DataError, match=r"1cls\.csv:2: image of this row: .*candle/.*0000\.JPG"):
        load(root)


def test_a_row_without_a_mask_is_a_warning(root: Path) -> None:
    edit(root, f"{VICTIM},{MASK}", f"{VICTIM},")
    data = load(root)
    assert data.read_mask is not None
    assert item(data, VICTIM).mask is None
    found = check(root)
    assert found.problems == ()
    line = only(found.warnings, "no mask")
    assert line.startswith(f"category pcb1: 1 of 6 anomalous pictures have no mask ({VICTIM})")
    assert "column 'mask' of split_csv/1cls.csv" in line


# Parameters


def test_published_categories_come_first_in_alphabetical_order_and_others_as_given() -> None:
    params = Params(root=Path("x"), categories=("zeta", "pcb1", "alpha", "candle"))
    assert params.categories == ("candle", "pcb1", "zeta", "alpha")
    assert Params(root=Path("x")).categories == CATEGORIES == tuple(sorted(CATEGORIES))
    assert len(CATEGORIES) == 12


def test_the_published_counts_add_up_to_the_published_totals() -> None:
    totals = [sum(column) for column in zip(*visa.PUBLISHED.values(), strict=True)]
    assert totals == [8659, 962, 1200]
    assert totals[0] + totals[1] == 9621


def test_root_and_make_are_no_part_of_identity(tmp_path: Path) -> None:
    one = Params.model_validate({"root": "x", "categories": ["pcb1", "candle"]})
    other = Params.model_validate(
        {"root": "y", "categories": ["candle", "pcb1"], "make": {"seed": 3}}
    )
    assert one.identity() == other.identity() == {"categories": ["candle", "pcb1"]}
    with pytest.raises(ValidationError, match="'make' writes no category widget"):
        Params.model_validate({"root": "x", "categories": ["widget"], "make": {}})


# A table that is not there, or does not have the right form


def test_a_missing_root_or_table_is_named_with_what_to_do(root: Path, tmp_path: Path) -> None:
    for look in (load, check, files):
        with pytest.raises(DataError, match="no such folder") as caught:
            look(tmp_path / "nowhere")
        assert f"hdsweep data make visa {tmp_path / 'nowhere'}" in str(caught.value)
    (root / TABLE).rename(root / "split_csv/2cls_fewshot.csv")
    with pytest.raises(DataError, match=r"split_csv/1cls\.csv: .*No such file"):
        load(root)
    shutil.rmtree(root / "split_csv")
    with pytest.raises(DataError, match=r"split_csv: no such folder, .* holds candle, pcb1"):
        load(root)


def test_a_missing_category_is_named_with_the_nearest(root: Path) -> None:
    with pytest.raises(DataError, match=r"no row of category 'pcb2'; did you mean 'pcb1'\?"):
        load(root, categories=["pcb2"])
    with pytest.raises(DataError, match="no row of category 'fryum'; known: candle, pcb1, widget"):
        load(root, categories=["fryum"])
    only(check(root, categories=["fryum", "pcb1"]).problems, "fryum")


@pytest.mark.parametrize(
    ("split", "words"), [("train normal", "train,normal"), ("test anomalous", "test,anomaly")]
)
def test_an_empty_split_is_named(root: Path, split: str, words: str) -> None:
    lines = (root / TABLE).read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"pcb1,{words}")]
    (root / TABLE).write_text("\n".join(kept))
    with pytest.raises(DataError, match=rf"no row of category 'pcb1' is {split}"):
        load(root)


BAD_TABLES: dict[str, tuple[str, str, int, str]] = {
    "a missing column": ("image,mask\n", "picture,mask\n", 1, "no column 'image' in object, split"),
    "a column twice": ("image,mask\n", "image,mask,mask\n", 1, "column 'mask' is there twice"),
    "an unknown label": ("anomaly," + VICTIM, "bad," + VICTIM, LINE, "unknown label 'bad'"),
    "a misspelt label": (
        "anomaly," + VICTIM, "Anomaly," + VICTIM, LINE, "did you mean 'anomaly'?",
    ),
    "an unknown split": (
        "test,anomaly," + VICTIM, "val,anomaly," + VICTIM, LINE, "unknown split 'val'",
    ),
    "a trained anomaly": (
        "test,anomaly," + VICTIM, "train,anomaly," + VICTIM, LINE, "training pictures are normal",
    ),
    "a way out": (
        VICTIM, "pcb1/../../a.JPG", LINE, "image 'pcb1/../../a.JPG' leads out of the root",
    ),
    "an absolute path": (MASK, "/etc/passwd", LINE, "mask '/etc/passwd' leads out of the root"),
    "no path": (VICTIM, "", LINE, "no path in column 'image'"),
    "a short line": ("," + MASK, "", LINE, "4 fields, and the heading has 5; mend the row"),
    "a long line": (MASK, MASK + ",x", LINE, "6 fields, and the heading has 5"),
    "a picture twice": (
        VICTIM, VICTIM.replace("003", "002"), LINE, f"is also in line {LINE - 1}; remove one row",
    ),
    "an open quote": (VICTIM, '"' + VICTIM, LINE, "unexpected end of data; mend the row"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_cannot_be_is_refused_by_line(root: Path, case: str) -> None:
    old, new, line, message = BAD_TABLES[case]
    edit(root, old, new)
    with pytest.raises(DataError) as caught:
        load(root)
    assert f"{TABLE}:{line}: " in str(caught.value)
    assert message in str(caught.value)
    with pytest.raises(DataError) as verified:
        DATASET.verify(root / TABLE)
    assert str(verified.value) == str(caught.value)


@pytest.mark.parametrize(("name", "column"), [(VICTIM, "image"), (MASK, "mask")])
def test_a_row_that_names_a_file_that_is_not_there_is_refused_by_line(
    root: Path, name: str, column: str
) -> None:
    (root / name).unlink()
    for look in (load, files):
        with pytest.raises(DataError, match=rf"1cls\.csv:{LINE}: {column} of this row: .*{name}"):
            look(root)
    assert name in only(check(root).problems, f"1cls.csv:{LINE}")


def binary(path: Path) -> None:
    path.write_bytes(b"object,split,label,image,mask\n\xff\xfe,train,normal,x,\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (binary, ":2: cannot be read as UTF-8"),
        (lambda path: path.write_bytes(b""), ":1: no column 'object' in an empty table"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_named(
    root: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(root / TABLE)
    for look in (load, check, files):
        with pytest.raises(DataError) as caught:
            look(root)
        assert str(caught.value).startswith(str(root / TABLE))
        assert message in str(caught.value)


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


def test_check_reports_damage_and_masks_that_do_not_fit(root: Path) -> None:
    whole = (root / VICTIM).read_bytes()
    (root / VICTIM).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        DATASET.verify(root / VICTIM)
    Image.new("L", (9, 9), 1).save(root / "candle/Data/Masks/Anomaly/000.png")
    Image.new("L", SHAPE[::-1], 0).save(root / "widget/Data/Masks/Anomaly/000.png")
    problems = check(root).problems
    assert len(problems) == 3
    assert VICTIM in only(problems, "truncated")
    assert "candle" in only(problems, "the mask is 9x9 pixels and its picture 32x48")
    assert "widget" in only(problems, "the mask marks no pixel")


def test_check_names_a_picture_that_is_trained_and_tested_on(root: Path) -> None:
    shutil.copy(root / "pcb1/Data/Images/Normal/0001.JPG", root / VICTIM)
    line = only(check(root).problems, "an anomaly is trained on as normal")
    assert line.startswith(f"pcb1/Data/Images/Normal/0001.JPG and {VICTIM} are the same picture")


def test_check_warns_of_pictures_that_the_table_leaves_out(root: Path) -> None:
    shutil.copy(root / VICTIM, root / "pcb1/Data/Images/Normal/0099.JPG")
    line = only(check(root).warnings, "0099.JPG")
    assert line.startswith("category pcb1: 1 pictures are in no row of split_csv/1cls.csv")
    assert len(load(root).test) == 3 * 9


def test_check_compares_measured_data_with_the_published_counts(root: Path) -> None:
    (root / "synthetic.json").unlink()
    warnings = check(root).warnings
    assert len(warnings) == 2
    assert "the published data have 904 train normal, 100 test normal, 100 test anomalous" in only(
        warnings, "category pcb1"
    )


# The command line, and anomalib


def test_the_command_line_makes_and_checks_a_data_set(hdsweep: Run, tmp_path: Path) -> None:
    small = ("--set", "size=32", "--set", "train=2", "--set", "good=1", "--set", "defect=1")
    made = hdsweep("data", "make", "visa", "pictures", *small)
    assert made.returncode == 0, made.stderr
    assert f"wrote {12 * (2 + 1 + 3 + 3) + 2} files to pictures" in made.stdout
    found = hdsweep("data", "check", "visa", "pictures", "--format", "json")
    assert found.returncode == 0, found.stderr
    assert {row["category"] for row in json.loads(found.stdout)["rows"]} == set(CATEGORIES)
    edit(tmp_path / "pictures", "fryum/Data/Images/Anomaly/002.JPG,fryum", "x.JPG,fryum")
    found = hdsweep("data", "check", "visa", "pictures", "--set", "categories=[fryum]")
    assert found.returncode == 2
    assert "image of this row: pictures/x.JPG: cannot be read (No such file" in found.stdout


@pytest.mark.slow
def test_anomalib_finds_the_same_items_labels_and_masks(tmp_path: Path) -> None:
    # anomalib copies the pictures into another layout first, and knows the published names only.
    from anomalib.data import Visa
    from anomalib.data.datasets.image.visa import VisaDataset
    from anomalib.data.utils import read_mask

    names = ("candle", "pcb1")
    generator = DATASET.generator
    assert generator is not None
    generator.write(Make(categories=names, size=SHAPE, train=4, good=3, defect=2), tmp_path)
    Visa(root=tmp_path, category=names[0]).prepare_data()
    data = load(tmp_path, categories=names)
    assert data.read_mask is not None
    for category in names:
        for split, items in (("train", data.train), ("test", data.test)):
            theirs = VisaDataset(tmp_path / "visa_pytorch", category, split=split).samples
            found = {
                (Path(s.image_path).name, bool(s.label_index)): (s.image_path, s.mask_path)
                for s in theirs.itertuples()
            }
            ours = {(i.path.name, i.is_anomaly): i for i in items if i.group == category}
            assert found.keys() == ours.keys()
            for key, (image_path, mask_path) in found.items():
                assert Path(image_path).read_bytes() == ours[key].path.read_bytes()
                assert (mask_path is None) == (ours[key].mask is None)
                if mask_path is not None:
                    mask = read_mask(mask_path, as_tensor=True).numpy()
                    assert np.array_equal(data.read_mask(ours[key]), mask.squeeze() > 0)

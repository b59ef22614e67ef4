"""MHIST: what is read, what is refused, and in which words."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdsweep.data import fingerprint
from hdsweep.method import Check, Data, DataError, load_dataset
from tests.conftest import Run
from trainables.data.mhist import Params
from trainables.data.synthetic.mhist import COLUMNS
from trainables.data.synthetic.mhist import Params as Make

DATASET = load_dataset("mhist")
MAKE = Make(train_hp=5, train_ssa=2, test_hp=4, test_ssa=3)
TABLE = "annotations.csv"
FIRST = "MHIST_0000.png"  # HP in train
UNUSED = "MHIST_0005.png"  # SSA in train


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mhist")
    assert DATASET.generator is not None
    DATASET.generator.write(MAKE, root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "mhist"))


def load(root: Path) -> Data:
    return DATASET.load(Params(root=root))


def check(root: Path) -> Check:
    return DATASET.check(Params(root=root))


def only(lines: tuple[str, ...], part: str) -> str:
    """The one line that contains ``part``."""
    found = [line for line in lines if part in line]
    assert len(found) == 1, (part, lines)
    return found[0]


def table(root: Path) -> list[dict[str, str]]:
    with (root / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def edit(root: Path, change: Callable[[str], str], line: int = 2) -> Path:
    """Change one line of the table, of which the first is line 1."""
    path = root / TABLE
    lines = path.read_text().splitlines()
    lines[line - 1] = change(lines[line - 1])
    path.write_text("\n".join(lines) + "\n")
    return path


def test_training_is_on_hp_of_train_and_tested_is_all_of_test(pristine: Path) -> None:
    data, rows = load(pristine), table(pristine)
    assert data.groups == ("mhist",)
    by_name = {f"images/{row['Image Name']}": row for row in rows}
    assert len(by_name) == 14
    hp = [n for n, r in by_name.items() if r["Majority Vote Label"] == "HP"]
    train = [n for n, r in by_name.items() if r["Partition"] == "train"]
    assert [i.name for i in data.train] == [n for n in train if n in hp]
    assert {i.name for i in data.test} == by_name.keys() - set(train)
    for item in (*data.train, *data.test):
        assert item.is_anomaly == (item.name not in hp)
        assert item.facts == {"votes": int(by_name[item.name][COLUMNS[2]])}
        assert item.path == pristine / item.name
        assert item.group == "mhist"


def test_a_picture_is_read_as_stored(pristine: Path) -> None:
    data = load(pristine)
    for item in (*data.train, *data.test):
        read = data.read(item)
        assert (read.shape, read.dtype) == ((3, 224, 224), np.float32)
        stored = np.asarray(Image.open(item.path))
        assert np.array_equal(np.rint(read * 255), stored.transpose(2, 0, 1))


def test_files_are_the_table_and_what_is_used(pristine: Path) -> None:
    found = list(DATASET.files(Params(root=pristine)))
    assert found == sorted(found)
    names = {path.name for path in found}
    assert {TABLE, FIRST} < names
    assert UNUSED not in names
    assert len(found) == 1 + 5 + 4 + 3


def test_only_what_is_read_names_the_data(root: Path) -> None:
    before = fingerprint(DATASET, Params(root=root))
    (root / "images" / UNUSED).unlink()
    assert fingerprint(DATASET, Params(root=root)) == before
    Image.new("RGB", (224, 224)).save(root / "images" / FIRST)
    assert fingerprint(DATASET, Params(root=root)) != before


def test_another_order_of_columns_and_a_byte_order_mark_do_not_matter(root: Path) -> None:
    before = load(root)
    rows = table(root)
    with (root / TABLE).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, [*COLUMNS[::-1], "Note"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows([{**row, "Note": "seen, twice"} for row in rows])
        file.write("\n")
    assert load(root) == before


BAD_LINES: dict[str, tuple[Callable[[str], str], int, str]] = {
    "no column": (
        lambda s: s.replace("Partition", "Split"),
        1,
        "no column 'Partition' in Image Name, .*Split; known: Split; the columns are Image Name",
    ),
    "a column twice": (
        lambda s: s + ",Partition",
        1,
        "column 'Partition' is there twice; remove one",
    ),
    "an empty table": (lambda s: "", 1, "no column 'Image Name' in Image Name|no column 'Image"),
    "few fields": (
        lambda s: s.rpartition(",")[0],
        3,
        "3 fields, and the heading has 4; mend the row",
    ),
    "a label": (lambda s: s.replace("HP", "TA"), 2, "unknown Majority Vote Label 'TA'; known: HP"),
    "a partition": (
        lambda s: s.replace("train", "trian"),
        4,
        "unknown Partition 'trian'; did you mean 'train'",
    ),
    "eight votes": (lambda s: ",".join([*s.split(",")[:2], "8", "train"]), 2, "'8' votes for SSA"),
    "a giant": (lambda s: ",".join([*s.split(",")[:2], "9" * 5000, "train"]), 2, "votes for SSA"),
    "no votes": (lambda s: ",".join([*s.split(",")[:2], "", "train"]), 2, "'' votes for SSA"),
    "half a vote": (lambda s: ",".join([*s.split(",")[:2], "0.5", "train"]), 2, "'0.5' votes"),
    "a path": (lambda s: "../" + s, 2, "image '../MHIST_0000.png' is not the name of a file"),
    "no name": (lambda s: s.replace(FIRST, ""), 2, "image '' is not the name of a file"),
    "twice": (
        lambda s: s.replace("MHIST_0001", "MHIST_0000"),
        3,
        "image 'MHIST_0000.png' is also in line 2; remove one row",
    ),
    "a quote": (lambda s: '"' + s, 15, r"unexpected end of data; mend the row that begins here"),
    "a picture that is not there": (
        lambda s: s.replace(FIRST, "lost.png"),
        2,
        r"image of this row: .*lost\.png: cannot be read \(No such file",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_cannot_be_is_named_by_file_and_number(root: Path, name: str) -> None:
    change, line, message = BAD_LINES[name]
    path = edit(root, change, line)
    with pytest.raises(DataError, match=message) as raised:
        load(root)
    where = 2 if name == "an empty table" else line  # a blank line is passed over
    assert str(raised.value).startswith(f"{path}:{where}: ")
    assert "\n" not in str(raised.value)


def test_a_table_that_is_no_text_is_named(root: Path) -> None:
    (root / TABLE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"annotations\.csv:1: cannot be read as UTF-8"):
        load(root)
    (root / TABLE).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"annotations.csv:1: no column 'Image Name' in an empty table"
    ):
        DATASET.verify(root / TABLE)


@pytest.mark.parametrize("name", [TABLE, "images"])
def test_what_the_layout_lacks_is_named_with_what_is_there(root: Path, name: str) -> None:
    (root / name).rename(root / "elsewhere")
    with pytest.raises(
        DataError, match=r"not there, .* holds .*elsewhere.*hdsweep data make mhist"
    ):
        load(root)


@pytest.mark.parametrize("kind", ["HP,{},test", "SSA,{},test", "HP,{},train"])
def test_a_kind_that_is_needed_and_missing_is_named(root: Path, kind: str) -> None:
    label, _, partition = kind.split(",")
    rows = [
        row
        for row in table(root)
        if (row["Majority Vote Label"], row["Partition"]) != (label, partition)
    ]
    with (root / TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match=f"no row has label {label} and Partition {partition}"):
        load(root)


def test_a_damaged_picture_is_named(root: Path) -> None:
    path = root / "images" / FIRST
    path.write_bytes(path.read_bytes()[:500])
    for look in (lambda: DATASET.verify(path), lambda: load(root).read(load(root).train[0])):
        with pytest.raises(DataError, match=FIRST):
            look()
    assert str(path) in only(check(root).problems, FIRST)


def test_a_check_has_a_row_for_each_label_of_each_partition(pristine: Path) -> None:
    found = check(pristine)
    assert found.problems == ()
    assert [
        (row["partition"], row["label"], row["pictures"], row["used"]) for row in found.rows
    ] == [
        ("train", "HP", 5, "to train"),
        ("train", "SSA", 2, "not"),
        ("test", "HP", 4, "to test"),
        ("test", "SSA", 3, "to test"),
    ]
    assert {(row["size"], row["mode"]) for row in found.rows} == {("224x224", "RGB")}
    assert only(found.warnings, "not used") == "2 SSA pictures of the partition train are not used"
    assert "synthetic" in only(found.warnings, "synthetic.json")


def test_other_counts_than_the_published_are_told_of_real_data(root: Path) -> None:
    (root / "synthetic.json").unlink()
    line = only(check(root).warnings, "published data have")
    assert "5 HP in train, 2 SSA in train, 4 HP in test, 3 SSA in test pictures" in line
    assert "1545 HP in train, 630 SSA in train, 617 HP in test, 360 SSA in test" in line


def test_pictures_in_two_splits_are_problems_and_repeats_are_warnings(root: Path) -> None:
    images = root / "images"
    names = {(r["Partition"], r["Majority Vote Label"]): r["Image Name"] for r in table(root)}
    shutil.copy(images / FIRST, images / names["test", "SSA"])
    shutil.copy(images / FIRST, images / "MHIST_0001.png")
    found = check(root)
    assert "an SSA picture is trained on as normal" in only(found.problems, "the same picture")
    assert "1 of the pictures in train HP repeat" in only(found.warnings, "repeat")


def test_what_a_person_should_know_is_told(root: Path) -> None:
    shutil.copy(root / "images" / FIRST, root / "images/extra.png")
    Image.new("RGB", (32, 32)).save(root / "images" / FIRST)
    edit(root, lambda s: ",".join([*s.split(",")[:2], "6", "train"]), 3)
    (root / "images" / UNUSED).unlink()
    found = check(root)
    assert found.problems == ()
    assert "1 pictures are in no row of annotations.csv (extra.png)" in only(
        found.warnings, "in no row"
    )
    assert "1 pictures are not 224x224 (images/MHIST_0000.png)" in only(found.warnings, "are not 2")
    assert "1 labels are not that of most votes (MHIST_0001.png)" in only(found.warnings, "votes")
    assert UNUSED in only(found.warnings, "cannot be read")


def test_votes_agree_with_the_label_in_generated_data(pristine: Path) -> None:
    for row in table(pristine):
        assert (int(row[COLUMNS[2]]) >= 4) == (row["Majority Vote Label"] == "SSA")


def test_ssa_cannot_be_told_from_hp_without_severity(tmp_path: Path) -> None:
    assert DATASET.generator is not None
    area: dict[float, list[float]] = {}
    for severity in (0.0, 1.0):
        root = tmp_path / str(severity)
        root.mkdir()
        make = Make(train_hp=6, train_ssa=0, test_hp=1, test_ssa=6, severity=severity)
        DATASET.generator.write(make, root)
        data = load(root)
        # Nuclei are what absorbs red; SSA has more and larger ones.
        dark = [
            float((data.read(item)[0] < 0.55).mean())
            for item in (*data.train, *data.test)
            if item.is_anomaly or item in data.train
        ]
        area[severity] = [float(np.mean(dark[6:])) / float(np.mean(dark[:6])), *dark]
    assert area[1.0][0] > 1.5
    assert area[0.0][0] == pytest.approx(1, abs=0.25)
    assert area[0.0][1:7] == area[1.0][1:7]  # HP is the same whatever SSA is


def test_the_command_line_makes_and_checks_it(hdsweep: Run, tmp_path: Path) -> None:
    few = [f"{name}=2" for name in ("train_hp", "train_ssa", "test_hp", "test_ssa")]
    made = hdsweep("data", "make", "mhist", "m", *(w for f in few for w in ("--set", f)))
    assert made.returncode == 0, made.stderr
    found = hdsweep("data", "check", "mhist", "m", "--format", "json")
    assert found.returncode == 0, found.stdout
    assert len(json.loads(found.stdout)["rows"]) == 4

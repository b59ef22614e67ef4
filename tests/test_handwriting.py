"""Handwritten words as they lie on disk: what is read, what is refused, and in which words."""

from __future__ import annotations

import csv
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from hdsweep.method import Check, Data, DataError, Item, load_dataset
from trainables.data.handwriting import Params
from trainables.data.synthetic import handwriting as synthetic

DATASET = load_dataset("handwriting")
MAKE = synthetic.Params(writers=7, words=3, repetitions=10)
WRITERS = [3, 2, 2]
VICTIM = "w002/quick_4.png"
Rows = list[list[str]]
GOLDEN_TEST = ["w000", "w006"]
GOLDEN_VALIDATION = ["w001", "w005"]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("handwriting")
    synthetic.write(MAKE, root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "handwriting"))


def params(root: Path, **others: object) -> Params:
    return Params.model_validate({"root": root, "writers": WRITERS, **others})


def load(root: Path, **others: object) -> Data:
    return DATASET.load(params(root, **others))


def check(root: Path, **others: object) -> Check:
    return DATASET.check(params(root, **others))


def table(root: Path) -> Rows:
    """The rows of the table; the first is the heading."""
    with (root / "words.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def put(root: Path, rows: Rows) -> None:
    with (root / "words.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def line_of(rows: Rows, name: str) -> int:
    return 1 + next(n for n, row in enumerate(rows) if row[0] == name)


def with_split(root: Path, split: Callable[[int], str]) -> Rows:
    """The table with a column ``split``, by the number of the writer."""
    heading, *rows = table(root)
    rows = [[*heading, "split"], *([*row, split(int(row[1][1:]))] for row in rows)]
    put(root, rows)
    return rows


def writers(items: tuple[Item, ...]) -> set[str]:
    return {str(item.facts["writer"]) for item in items}


def everything(data: Data) -> tuple[Item, ...]:
    return (*data.train, *data.validation, *data.test)


def only(lines: tuple[str, ...], part: str) -> str:
    """The one line that contains ``part``."""
    found = [line for line in lines if part in line]
    assert len(found) == 1, (part, lines)
    return found[0]


# Reading


def test_a_written_data_set_is_read_back_whole(pristine: Path) -> None:
    data = load(pristine)
    assert data.groups == ("writing",)
    sizes = [len(items) for items in (data.train, data.validation, data.test)]
    assert sizes == [count * 3 * 10 for count in WRITERS]
    for item in everything(data):
        assert item.name == item.path.relative_to(pristine).as_posix()
        writer, word, repetition = (item.facts[k] for k in ("writer", "word", "repetition"))
        assert item.name == f"{writer}/{word}_{repetition}.png"
        assert (item.group, item.is_anomaly, item.mask) == ("writing", False, None)
    item = data.test[0]
    stored = np.asarray(Image.open(item.path)).astype(np.float32) / 255
    read = data.read(item)
    assert read.shape == (3, 32, 96)
    assert read.dtype == np.float32
    assert all(np.array_equal(channel, stored) for channel in read)


def test_no_writer_is_in_two_splits(pristine: Path) -> None:
    data = load(pristine)
    splits = [writers(items) for items in (data.train, data.validation, data.test)]
    assert [len(split) for split in splits] == WRITERS
    assert len(set.union(*splits)) == sum(WRITERS)


def test_neighbours_are_neighbours_in_the_text(root: Path) -> None:
    heading, *rows = table(root)
    # As a text that is not in alphabetical order, whose repetitions come mixed and last first.
    rows.sort(key=lambda row: -int(row[3]))
    put(root, [heading, *rows])
    data = load(root)
    for items in (data.train, data.validation, data.test):
        order = [(str(item.facts["writer"]), int(item.facts["repetition"])) for item in items]
        assert order == sorted(order)
        for _, words in groupby(items, key=lambda i: (i.facts["writer"], i.facts["repetition"])):
            assert [item.facts["word"] for item in words] == ["the", "quick", "brown"]


def test_another_split_seed_draws_other_writers(pristine: Path) -> None:
    drawn = [writers(load(pristine, split_seed=seed).test) for seed in range(8)]
    assert drawn[0] == writers(load(pristine).test)
    assert len({frozenset(one) for one in drawn}) > 4  # of 21 pairs
    assert set.union(*drawn) > drawn[0]


def test_the_draw_of_writers_has_not_changed(pristine: Path) -> None:
    # Pinned: another draw under the same parameters would be other data under the same name.
    data = load(pristine)
    assert sorted(writers(data.test)) == GOLDEN_TEST
    assert sorted(writers(data.validation)) == GOLDEN_VALIDATION


def test_the_order_of_writers_in_the_table_does_not_matter_to_the_draw(root: Path) -> None:
    before = load(root)
    heading, *rows = table(root)
    put(root, [heading, *rows[::-1]])
    assert writers(load(root).test) == writers(before.test)


def test_writers_beyond_the_asked_number_are_left_out(pristine: Path) -> None:
    data = load(pristine, writers=[2, 2, 2])
    assert len(writers(everything(data))) == 6
    found = check(pristine, writers=[2, 2, 2])
    assert found.problems == ()
    assert "1 of 7 writers are in no split" in only(found.warnings, "in no split")
    assert [row["split"] for row in found.rows] == ["train", "validation", "test", "left out"]


def test_a_column_fixes_the_split(root: Path) -> None:
    with_split(root, lambda n: ("test", "validation", "train")[n % 3])
    data = DATASET.load(Params(root=root))
    assert writers(data.test) == {"w000", "w003", "w006"}
    assert writers(data.validation) == {"w001", "w004"}
    assert writers(data.train) == {"w002", "w005"}


def test_the_columns_may_come_in_any_order_with_others_and_in_windows_form(root: Path) -> None:
    before = load(root)
    rows = table(root)
    lines = [",".join([row[3], "x y", row[2], row[0], row[1]]) for row in rows]
    (root / "words.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    after = load(root)
    assert after.train == before.train
    assert after.test == before.test


def test_a_table_of_another_name_is_read(root: Path) -> None:
    (root / "words.csv").rename(root / "all words.csv")
    assert len(load(root, csv="all words.csv").train) == 90
    with pytest.raises(DataError, match=r"words\.csv: no such file, .* holds all words\.csv"):
        load(root)


def test_the_data_can_be_sent_to_worker_processes(pristine: Path) -> None:
    data = load(pristine)
    copy: Data = pickle.loads(pickle.dumps(data))
    assert copy.test[0].facts == data.test[0].facts
    assert np.array_equal(copy.read(copy.test[0]), data.read(data.test[0]))


def test_files_are_the_table_and_every_picture_sorted(root: Path) -> None:
    shutil.copy(root / VICTIM, root / "w002/unnamed_0.png")
    files = list(DATASET.files(params(root)))
    assert files == sorted(set(files))
    assert files[-1] == root / "words.csv"
    assert len(files) == 1 + 7 * 3 * 10
    assert {item.path for item in everything(load(root))} < set(files)


def test_importing_the_data_set_imports_neither_torch_nor_pillow() -> None:
    code = (
        "import sys; from hdsweep.method import load_dataset; load_dataset('handwriting');"
        "print(sorted({'torch', 'PIL', 'ray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(  # the tests themselves have imported Pillow
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Parameters


def test_root_and_make_are_no_part_of_identity() -> None:
    one = Params.model_validate({"root": "x"})
    other = Params.model_validate({"root": "y", "make": {"seed": 3}})
    known = {"csv": "words.csv", "writers": [180, 60, 60], "split_seed": 0}
    assert one.identity() == other.identity() == known


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"writers": [3, 2, 1]}, "greater than or equal to 2"),
        ({"writers": [3, 2]}, "writers"),
        ({"split_seed": -1}, "split_seed"),
        ({"csv": "../words.csv"}, "one file below the root"),
        ({"csv": ".csv"}, "one file below the root"),
        ({"csv": "words.txt"}, r"does not end in \.csv"),
        ({"make": {"writers": 5}}, "'make' writes 5 writers, and 'writers' asks for 300"),
        ({"words": 3}, "words"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Params.model_validate({"root": "x", **wrong})


# A layout that is not there


def test_a_missing_root_is_named_with_what_to_do(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for look in (load, check):
        with pytest.raises(DataError, match="no such folder") as caught:
            look(nowhere)
        assert f"hdsweep data make handwriting {nowhere}" in str(caught.value)


def test_a_row_without_its_file_is_named_by_line_and_counted(root: Path) -> None:
    rows = table(root)
    (root / VICTIM).unlink()
    for look in (DATASET.load, DATASET.files):
        with pytest.raises(DataError) as caught:
            look(params(root))
        where = f"{root}/words.csv:{line_of(rows, VICTIM)}: {root / VICTIM}: no such file"
        assert str(caught.value).startswith(where)
        assert "more rows" not in str(caught.value)
    assert only(check(root).problems, VICTIM) == str(caught.value)
    (root / "w005/the_0.png").unlink()
    with pytest.raises(DataError, match=r"quick_4\.png.* \(1 more rows have no file\)"):
        load(root)


def test_a_missing_folder_of_a_writer_is_one_error(root: Path) -> None:
    (root / "w003").rename(root.parent / "w003")
    with pytest.raises(DataError) as caught:
        load(root)
    line = line_of(table(root), "w003/the_0.png")
    assert str(caught.value).startswith(f"{root}/words.csv:{line}: image_path 'w003/the_0.png'")
    assert f"{root / 'w003'}: no such folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "25 more rows" in only(check(root).problems, "more rows")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.symlink_to("nowhere"), "the target of this link cannot be read"),
        (lambda path: path.mkdir(), "it is no file"),
    ],
)
def test_what_is_no_file_is_named_and_not_left_out(
    root: Path, damage: Callable[[Path], None], message: str
) -> None:
    (root / VICTIM).unlink()
    damage(root / VICTIM)
    with pytest.raises(DataError, match=message):
        load(root)
    assert VICTIM in only(check(root).problems, message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(root: Path) -> None:
    (root / "w003").chmod(0o000)
    with pytest.raises(DataError, match=r"/w003: cannot be read \(Permission denied\)"):
        load(root)
    (root / "w003").chmod(0o755)


# A table that says what cannot be

Change = Callable[[Rows], object]
LINE = 25  # a word of the first writer


def cell(column: int, text: str) -> Change:
    def change(rows: Rows) -> None:
        rows[LINE - 1][column] = text

    return change


BAD_ROWS: dict[str, tuple[Change, str]] = {
    "another writer's label": (cell(1, "w004"), "label 'w004', and 'w000/"),
    "no label": (cell(1, ""), "label '', and 'w000/"),
    "no number": (cell(3, "first"), "repetition 'first' is no whole number"),
    "a negative number": (cell(3, "-1"), "repetition '-1' is no whole number"),
    "a fraction": (cell(3, "1.0"), "repetition '1.0' is no whole number"),
    "a giant": (cell(3, "9" * 5000), "is no whole number"),
    "an absolute path": (cell(0, "/w000/the_1.png"), "leads out of the root"),
    "a drive": (cell(0, "C:\\w000\\the_1.png"), "leads out of the root"),
    "a path upwards": (cell(0, "../the_1.png"), "leads out of the root"),
    "a path that hides": (cell(0, "w000/.."), "leads out of the root"),
    "no path": (cell(0, ""), "is not a file in a folder"),
    "no folder": (cell(0, "the_1.png"), "is not a file in a folder"),
    "too deep": (cell(0, "w000/a/the_1.png"), "is not a file in a folder"),
    "a back slash": (cell(0, "w000\\the_1.png"), "is not a file in a folder"),
    "one within": (cell(0, "w000/a\\the_1.png"), "is not a file in a folder"),
    "no picture": (cell(0, "w000/the_1.txt"), "is no picture"),
    "not printable": (cell(0, "w000/the\x071.png"), "is not printable"),
    "twice": (cell(0, "w000/the_0.png"), "image_path 'w000/the_0.png' is also in line 2"),
    "a field too few": (lambda rows: rows[LINE - 1].pop(), "3 fields, and the heading has 4"),
    "a field too many": (lambda rows: rows[LINE - 1].append(""), "5 fields"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_row_that_makes_no_sense_is_named_by_its_line(root: Path, case: str) -> None:
    change, message = BAD_ROWS[case]
    rows = table(root)
    change(rows)
    put(root, rows)
    for look in (load, check, lambda root: DATASET.verify(root / "words.csv")):
        with pytest.raises(DataError) as caught:
            look(root)
        assert str(caught.value).startswith(f"{root}/words.csv:{LINE}: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("heading", "message"),
    [
        ("image_path,writer,detected_word,repetition", r":1: no column 'label'"),
        ("image_path,label,detected_words,repetition", "did you mean 'detected_words'"),
        ("image_path;label;detected_word;repetition", r"no column 'image_path'"),
        ("image_path,label,label,detected_word,repetition", "'label' is there twice"),
        ("image_path,label,detected_word,repetition,split,split", "'split' is there twice"),
    ],
)
def test_a_heading_that_lacks_a_column_is_refused(root: Path, heading: str, message: str) -> None:
    lines = (root / "words.csv").read_text().splitlines(keepends=True)
    (root / "words.csv").write_text("".join([heading + "\n", *lines[1:]]))
    with pytest.raises(DataError, match=message):
        load(root)


@pytest.mark.parametrize("length", range(1, 30))
def test_a_table_that_was_cut_is_noticed(root: Path, length: int) -> None:
    # Each place in the last line: a 17 that became a 1 is as wrong as a field that is gone.
    path = root / "words.csv"
    whole = path.read_bytes()
    assert whole.endswith(b"\nw006/brown_9.png,w006,brown,9\n")
    path.write_bytes(whole[:-length])
    for look in (load, check, lambda root: DATASET.verify(root / "words.csv")):
        with pytest.raises(DataError, match=r"words\.csv:211: the last line does not end"):
            look(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column 'image_path' in an empty table"),
        (b"image_path,label,detected_word,repetition\n", "no row"),
        ("image_path,label\nw000/thé_0.png\n".encode("latin-1"), "csv:2: cannot be read as UTF-8"),
        (b'image_path,label,detected_word,repetition\n"w000/the_0.png\n', "csv:2: "),
    ],
)
def test_a_file_that_is_no_table_is_refused(root: Path, content: bytes, message: str) -> None:
    (root / "words.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert str(caught.value).startswith(f"{root}/words.csv:")


def test_one_writer_only_is_refused(root: Path) -> None:
    put(root, [row for n, row in enumerate(table(root)) if n == 0 or row[1] == "w004"])
    with pytest.raises(DataError, match=r"words\.csv: one writer only, 'w004'"):
        load(root)


def test_too_few_writers_are_counted(pristine: Path) -> None:
    for look in (DATASET.load, DATASET.files):
        with pytest.raises(DataError, match=r"7 writers, and 'writers' asks for 4 \+ 2 \+ 2 = 8"):
            look(params(pristine, writers=[4, 2, 2]))
    found = check(pristine, writers=[4, 2, 2])
    assert "7 writers" in only(found.problems, "asks for")
    assert [(row["split"], row["writers"]) for row in found.rows] == [("not split", 7)]


# A split that the table fixes


def thirds(n: int) -> str:
    return ("train", "validation", "test")[n % 3]


def test_a_writer_in_two_splits_is_a_leak(root: Path) -> None:
    rows = with_split(root, thirds)
    line = line_of(rows, VICTIM)
    rows[line - 1][-1] = "train"
    put(root, rows)
    first = line_of(rows, "w002/the_0.png")
    for look in (DATASET.load, DATASET.files, DATASET.check):
        with pytest.raises(DataError) as caught:
            look(Params(root=root))
        assert str(caught.value).startswith(f"{root}/words.csv:{line}: writer 'w002' is in split")
        assert f"'train', and in 'test' by line {first}" in str(caught.value)


@pytest.mark.parametrize("other", [{"writers": [3, 2, 2]}, {"split_seed": 1}])
def test_a_fixed_split_is_not_drawn_too(root: Path, other: dict[str, object]) -> None:
    with_split(root, thirds)
    with pytest.raises(DataError, match=f"the column 'split' says .* '{next(iter(other))}'"):
        DATASET.load(Params.model_validate({"root": root, **other}))


def test_an_unknown_split_is_named_with_the_nearest(root: Path) -> None:
    with_split(root, lambda n: "trian" if n == 6 else thirds(n))
    with pytest.raises(DataError, match=r"csv:182: unknown split 'trian'; did you mean 'train'"):
        DATASET.load(Params(root=root))


def test_a_fixed_split_with_too_few_writers_is_refused(root: Path) -> None:
    with_split(root, lambda n: "validation" if n == 5 else ("train", "test")[n % 2])
    with pytest.raises(DataError, match="1 writers in split 'validation'; put 2 at least"):
        DATASET.load(Params(root=root))


# The look at every picture


def test_check_has_a_row_for_each_split(pristine: Path) -> None:
    found = check(pristine)
    assert found.problems == ()
    assert [row["split"] for row in found.rows] == ["train", "validation", "test"]
    for row, count in zip(found.rows, WRITERS, strict=True):
        assert row.keys() == found.rows[0].keys()
        assert (row["writers"], row["images"], row["words"]) == (count, count * 30, 3)
        assert row["sessions"] == count * 2  # nine repetitions, and one more
        assert (row["size"], row["mode"], row["duplicates"]) == ("32x96", "L", 0)


def test_check_says_that_synthetic_words_are_synthetic(root: Path) -> None:
    assert only(check(root).warnings, "synthetic.json")
    (root / "synthetic.json").unlink()
    assert check(root).warnings == ()


@pytest.mark.parametrize("keep", [0, 20, 200])
def test_a_damaged_picture_is_named(root: Path, keep: int) -> None:
    data = load(root)
    item = next(item for item in everything(data) if item.name == VICTIM)
    (root / VICTIM).write_bytes((root / VICTIM).read_bytes()[:keep])
    with pytest.raises(DataError) as verified:
        DATASET.verify(root / VICTIM)
    assert str(verified.value).startswith(f"{root / VICTIM}: cannot be read as a picture")
    with pytest.raises(DataError) as read:
        data.read(item)
    assert str(read.value) == str(verified.value)
    assert only(check(root).problems, VICTIM) == str(verified.value)


def test_whole_files_verify(pristine: Path) -> None:
    for path in DATASET.files(params(pristine)):
        DATASET.verify(path)


def test_check_names_one_picture_of_two_writers(root: Path) -> None:
    with_split(root, thirds)
    # Stored anew, so the bytes differ: what counts is the picture.
    for name in ("w001/brown_3.png", "w004/brown_3.png"):
        Image.open(root / VICTIM).save(root / name, compress_level=1)
    problems = DATASET.check(Params(root=root)).problems
    across = only(problems, "it is in validation and in test")
    assert across.startswith(f"w001/brown_3.png and {VICTIM} are the same word")
    within = only(problems, "one of them did not write it")
    assert within.startswith("w001/brown_3.png and w004/brown_3.png are the same word")


def test_check_warns_of_a_picture_that_one_writer_has_twice(root: Path) -> None:
    shutil.copy(root / VICTIM, root / "w002/quick_5.png")
    found = check(root)
    assert found.problems == ()
    line = only(found.warnings, "repeat another")
    assert "w002/quick_5.png is the same as w002/quick_4.png" in line
    assert sum(int(row["duplicates"]) for row in found.rows) == 1


def test_check_warns_of_files_without_a_row_and_of_blank_pictures(root: Path) -> None:
    shutil.copy(root / VICTIM, root / "w002/other_5.png")
    (root / "w777").mkdir()
    for name in ("w001/the_0.png", "w002/the_0.png"):
        Image.new("L", (96, 32), 255).save(root / name)
    found = check(root)
    assert found.problems == ()
    assert "w002/other_5.png" in only(found.warnings, "other_5")
    assert "folders w777" in only(found.warnings, "w777")
    assert "2 pictures show nothing" in only(found.warnings, "show nothing")


def test_check_shows_the_range_of_sizes(root: Path) -> None:
    victim = next(item for item in load(root).train if item.name.endswith("the_0.png"))
    Image.new("RGB", (40, 50), (1, 2, 3)).save(victim.path)
    row = check(root).rows[0]
    assert (row["size"], row["mode"]) == ("32x40 to 50x96", "L, RGB")


def test_check_counts_what_it_does_not_spell_out(root: Path) -> None:
    for path in (root / "w002").iterdir():
        path.write_bytes(b"")
    problems = check(root).problems
    assert len(problems) == 5 + 1
    assert problems[-1].startswith("25 more of the 210 pictures")

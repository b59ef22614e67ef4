"""Tables of data sets: what those that use them do not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from hdsweep.method import DataError
from trainables.data.tables import read_rows, require_once


def table(folder: Path, content: str) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content.encode())
    return path


def test_rows_have_the_lines_in_which_they_begin(tmp_path: Path) -> None:
    path = table(tmp_path, '\n\r\nb,note, a \r\n1,"x\ny\r\nz",2\n\n 3 ,," 4 "\r5,,6')
    assert list(read_rows(path, ("a", "b"))) == [
        (4, ["2", "1"]),
        (8, ["4", "3"]),
        (9, ["6", "5"]),
    ]


def test_an_optional_column_comes_last_where_the_table_has_it(tmp_path: Path) -> None:
    path = table(tmp_path, "extra,a,b\n1,2,3\n")
    assert list(read_rows(path, ("b", "a"), "extra")) == [(2, ["3", "2", "1"])]
    assert list(read_rows(path, ("b", "a"), "other")) == [(2, ["3", "2"])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_last_line_without_an_end_is_refused_only_when_asked(tmp_path: Path, end: str) -> None:
    path = table(tmp_path, f"a{end}1{end}17")
    assert list(read_rows(path, ("a",))) == [(2, ["1"]), (3, ["17"])]
    with pytest.raises(DataError, match=r"table\.csv:3: the last line does not end"):
        list(read_rows(path, ("a",), ended=True))
    path.write_bytes(path.read_bytes() + end.encode())
    assert len(list(read_rows(path, ("a",), ended=True))) == 2


def test_what_is_not_utf_8_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffa\r\né\r\n".encode() + b"\xe9\r\n")
    with pytest.raises(DataError, match=r"table\.csv:3: cannot be read as UTF-8"):
        list(read_rows(path, ("a",)))


def test_an_unreadable_table_is_named_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv: cannot be read \(No such file"):
        list(read_rows(tmp_path / "table.csv", ("a",)))


def test_a_name_in_two_rows_names_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    require_once(path, "a", [(2, "x"), (3, "y")])
    with pytest.raises(DataError, match=r"table\.csv:5: a 'x' is also in line 2; remove one row"):
        require_once(path, "a", [(2, "x"), (3, "y"), (5, "x"), (7, "y")])

"""The files behind a data set: made once, named by content, and every damage named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from platformdirs import user_cache_path
from pydantic import ValidationError
from typer.testing import CliRunner

from hdsweep.cli_data import data_app
from hdsweep.data import MADE, fingerprint, make_if_absent
from hdsweep.errors import DataError, HdsweepError
from hdsweep.method import load_dataset
from hdsweep.strict import Strict
from tests.methods import labels

LABELS = load_dataset("tests.methods.labels")
HDMAP = load_dataset("hdmap")


def params(root: Path | str, items: int | None = 2) -> labels.Params:
    return labels.Params.model_validate(
        {"root": root, "make": None if items is None else {"items": items}}
    )


def made(root: Path, items: int = 2) -> Path:
    assert make_if_absent(LABELS, params(root, items), str)
    return root


def test_a_folder_made_with_other_parameters_is_refused_by_the_one_that_differs(
    tmp_path: Path,
) -> None:
    root = made(tmp_path / "labels")
    assert not make_if_absent(LABELS, params(root), str)
    assert not make_if_absent(LABELS, params(root, None), str)
    with pytest.raises(DataError) as error:
        make_if_absent(LABELS, params(root, 3), str)
    assert str(error.value) == (
        f"{root}: was made with items = 2, and 'make' asks for 3; remove the folder to make it "
        "anew, or name another root"
    )


def test_a_folder_that_another_version_made_is_compared_as_it_was_noted(tmp_path: Path) -> None:
    root = made(tmp_path / "labels")
    (root / MADE).write_text(json.dumps({"items": 2, "colour": "red"}))
    with pytest.raises(DataError, match=r'made with colour = "red", .* asks for null'):
        make_if_absent(LABELS, params(root), str)


@pytest.mark.parametrize("note", [None, "[]", "junk", "[" * 100_000, "\udcff"])
def test_a_folder_without_a_note_is_the_users_own(tmp_path: Path, note: str | None) -> None:
    root = made(tmp_path / "labels")
    (root / MADE).unlink()
    if note is not None:
        (root / MADE).write_bytes(os.fsencode(note))
    assert not make_if_absent(LABELS, params(root, 7), str)


def test_the_note_is_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = made(tmp_path / "labels")
    before = fingerprint(LABELS, params(root))
    (root / MADE).unlink()
    assert fingerprint(LABELS, params(root)) == before


@pytest.mark.parametrize("memory", ["[]", "junk", "[" * 100_000, "null", '{"x/000.txt": [1]}'])
def test_a_damaged_memory_of_digests_is_ignored(tmp_path: Path, memory: str) -> None:
    root = made(tmp_path / "labels")
    before = fingerprint(LABELS, params(root))
    for path in (user_cache_path("hdsweep") / "fingerprints").iterdir():
        path.write_text(memory)
    assert fingerprint(LABELS, params(root)) == before


def test_a_memory_with_another_digest_than_sha256_is_ignored(tmp_path: Path) -> None:
    root = made(tmp_path / "labels")
    before = fingerprint(LABELS, params(root))
    for path in (user_cache_path("hdsweep") / "fingerprints").iterdir():
        known = json.loads(path.read_text())
        path.write_text(json.dumps({name: [*value[:-1], 5] for name, value in known.items()}))
    assert fingerprint(LABELS, params(root)) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path.name),
        lambda path: path.mkdir(),
    ],
    ids=["dangling link", "looping link", "folder"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, damage: object) -> None:
    root = made(tmp_path / "labels")
    (root / "x/001.txt").unlink()
    damage(root / "x/001.txt")  # type: ignore[operator]
    with pytest.raises(DataError, match=r"labels/x/001\.txt: cannot be read: .*; mend or remove"):
        fingerprint(LABELS, params(root))


def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    root = made(tmp_path / "labels")
    Path(os.fsdecode(bytes(root) + b"/x/\xff.txt")).write_text("x 9 0\n")
    with pytest.raises(DataError, match=r"x/.udcff\.txt: the file name is not UTF-8") as error:
        fingerprint(LABELS, params(root))
    str(error.value).encode()


def test_a_root_that_no_file_system_takes_is_a_message(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 300)
    with pytest.raises(DataError, match="File name too long"):
        make_if_absent(LABELS, params(root), str)
    for call in (HDMAP.files, HDMAP.load, HDMAP.check):
        with pytest.raises(DataError, match="File name too long"):
            call(HDMAP.params.model_validate({"root": root}))
    with pytest.raises(ValidationError, match="there is no such user"):
        HDMAP.params.model_validate({"root": "~nobody-here/x"})


def test_a_root_with_a_long_name_can_still_be_made(tmp_path: Path) -> None:
    root = made(tmp_path / ("x" * 250))
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_a_root_below_a_file_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written: .*; name another folder"):
        make_if_absent(LABELS, params(tmp_path / "file" / "labels"), str)


def invoke(*arguments: object) -> tuple[str, Exception | None]:
    done = CliRunner().invoke(data_app, list(map(str, arguments)))
    error = done.exception
    return done.output, error if isinstance(error, Exception) else None


def test_paths_are_printed_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "w[/x] :smile:"
    output, error = invoke("make", "tests.methods.labels", root, "--set", "items=2")
    assert error is None
    assert output == f"wrote 4 files to {root}\n"
    output, error = invoke("check", "tests.methods.labels", root)
    assert error is None
    assert output.endswith("ok\n")


def test_a_name_that_is_not_utf8_is_a_problem_that_can_be_printed(tmp_path: Path) -> None:
    root = tmp_path / "maps"
    sizes = ("--set", "train=1", "--set", "good=1", "--set", "fault=1")
    assert invoke("make", "hdmap", root, *sizes)[1] is None
    folder = root / "domain_A/train/good"
    Path(os.fsdecode(bytes(folder) + b"/\xff.tiff")).write_bytes(b"")
    output, _ = invoke("check", "hdmap", root)
    assert "udcff.tiff': the name is not printable UTF-8" in output
    (root / "domain_B").rename(Path(os.fsdecode(bytes(root) + b"/\xfe")))
    assert "holds domain_A, domain_C" in invoke("check", "hdmap", root, "--format", "json")[0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train=042x", "--set train: "),
        ("train=true", "--set train: true is not a number"),
        ("train=!!int ''", "--set train: "),
        ("severity=4", "--set severity: write a mapping"),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_message(
    tmp_path: Path, setting: str, words: str
) -> None:
    _, error = invoke("make", "hdmap", tmp_path / "maps", "--set", setting)
    assert isinstance(error, HdsweepError)
    assert words in str(error)


def test_a_generator_writes_what_it_was_asked(tmp_path: Path) -> None:
    root = made(tmp_path / "labels", 3)
    assert json.loads((root / MADE).read_text()) == {"items": 3}
    assert issubclass(labels.Make, Strict)

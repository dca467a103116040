"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fid.files import relative, replacing

from config.errors import UserError
from utils.io.files import atomic, content_hash, write_text

ROOT = Path(__file__).parents[3]


def test_a_block_that_succeeds_puts_its_file_in_place(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent, "a rename needs the same file system"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_name_as_long_as_the_system_allows_is_written(tmp_path):
    path = tmp_path / f"{'n' * 251}.txt"
    write_text(path, "whole")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_two_that_write_one_file_do_not_meet_before_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"  # as processes of the same number on two machines would
    with atomic(path) as first, atomic(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert path.read_text() == "first", "the inner block ends first, so that this one is later"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = (
        "import os, pathlib, sys; from utils.io.files import atomic\n"
        "with atomic(pathlib.Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UserError) as error, atomic(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(error.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_text() == "old"


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(path.exists()))
    write_text(path, "new")
    assert seen[0] is False


def test_text_is_written_as_utf_8(tmp_path):
    write_text(tmp_path / "a.txt", "Fréchet")
    assert (tmp_path / "a.txt").read_bytes() == "Fréchet".encode()


def files(folder: Path, *contents: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for index, content in enumerate(contents):
        (folder / str(index)).write_bytes(content)
    return [folder / str(index) for index in range(len(contents))]


def test_a_content_hash_tells_contents_orders_and_borders_apart(tmp_path):
    a, b = files(tmp_path / "x", b"a", b"bc")
    shifted = files(tmp_path / "y", b"ab", b"c")
    hashes = [content_hash(paths) for paths in ([a, b], [b, a], [a], shifted, [])]
    assert len(set(hashes)) == 5


def test_a_content_hash_does_not_know_names(tmp_path):
    first, second = files(tmp_path / "x", b"a"), files(tmp_path / "y", b"a")
    assert content_hash(first) == content_hash(second)


def test_a_path_seen_from_a_folder_is_short_where_no_link_is_on_the_way(tmp_path):
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    assert relative(tmp_path / "data", tmp_path / "runs/a") == "../../data"
    (tmp_path / "far").mkdir()
    (tmp_path / "data/linked").symlink_to(tmp_path / "far")
    assert relative(tmp_path / "data/linked", tmp_path / "runs/a") == "../../data/linked"


def test_a_path_seen_from_a_folder_behind_a_link_leads_to_the_same_place(tmp_path, monkeypatch):
    (tmp_path / "scratch/deep/runs").mkdir(parents=True)
    (tmp_path / "job/test").mkdir(parents=True)
    (tmp_path / "scratch/deep/job/test").mkdir(parents=True)  # where .. without links would lead
    (tmp_path / "runs").symlink_to("scratch/deep/runs")
    monkeypatch.chdir(tmp_path)
    for folder in (Path("runs"), Path("runs/results")):
        folder.mkdir(exist_ok=True)
        for place in (Path("job/test"), tmp_path / "job/test", Path("runs/../../../job/test")):
            found = folder / relative(place, folder)
            assert found.resolve() == (tmp_path / "job/test").resolve(), (folder, place)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_drive_that_cannot_sync_is_written_to_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    write_text(tmp_path / "a.txt", "new")
    with replacing(tmp_path / "b.json") as file:
        file.write(b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.json"]


def test_a_disk_that_fails_while_a_file_is_synced_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(UserError, match="a.txt: cannot be written"):
        write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def failing(number: int) -> Callable[[int], None]:
    """A call of the system that fails with such a number."""

    def call(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    return call

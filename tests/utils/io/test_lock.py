"""Two runs never write into one folder; a dead one keeps nobody out."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from config.errors import UserError
from utils.io.files import alone_in

ROOT = Path(__file__).parents[3]
HOLDER = """
import pathlib, sys, time
from utils.io.files import alone_in
with alone_in(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is at work in the folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_at_once_and_told_why(holder, tmp_path):
    with pytest.raises(UserError, match="another process is at work"), alone_in(tmp_path):
        pytest.fail("two processes in one folder")
    assert holder.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_dies_leaves_the_folder_open(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait()
    with alone_in(tmp_path):
        pass


def test_the_folder_is_made_and_opened_again_after_use(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path / "new" / "run"):
            assert (tmp_path / "new" / "run").is_dir()


def test_a_folder_opens_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path):
        raise ZeroDivisionError
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.EBADF, errno.ESTALE, errno.EIO, errno.ENOSYS, errno.EOPNOTSUPP]
)
def test_a_file_system_that_cannot_lock_is_used_with_a_note(tmp_path, monkeypatch, capsys, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_in(tmp_path):
        text = f"note: {tmp_path}: no locks here; run one process at a time"
        assert capsys.readouterr().err.splitlines() == [text]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_an_error_that_may_mean_a_held_lock_means_that_where_a_new_file_can_be_locked(
    tmp_path, monkeypatch, capsys, number
):
    can_lock = True

    def flock(descriptor: int, operation: int) -> None:
        is_held = os.readlink(f"/proc/self/fd/{descriptor}").endswith("/.lock")
        if operation != fcntl.LOCK_UN and (is_held or not can_lock):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="another process is at work"), alone_in(tmp_path):
        pytest.fail("two processes in one folder")
    can_lock = False
    with alone_in(tmp_path):
        text = f"note: {tmp_path}: no locks here; run one process at a time"
        assert capsys.readouterr().err.splitlines() == [text]
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_locks_that_fail_only_when_they_are_released_are_no_error(tmp_path, monkeypatch):
    def unlock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", unlock)
    with alone_in(tmp_path):
        pass


def test_a_lock_file_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock: cannot be written"), alone_in(tmp_path):
        pass

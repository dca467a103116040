"""Two runs never write into one folder; a dead one keeps nobody out."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from config.errors import UserError
from utils.lock import alone_in

ROOT = Path(__file__).parents[2]
HOLDER = """
import pathlib, sys, time
from utils.lock import alone_in
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


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def acquire(self: FileLock, blocking: bool) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with alone_in(tmp_path):
        assert "no locks here" in capsys.readouterr().err

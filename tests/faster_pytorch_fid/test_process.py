"""A process belongs to others only where torchrun's whole set of variables says so."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TextIO

import pytest
from fid import process
from fid.files import ScoreError
from fid.process import COUNTS, ELASTIC, MEETING, Ranks, own_ranks

WHOLE = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.fixture
def among(monkeypatch):
    """The ranks of a process with these variables."""

    def found(**variables: str) -> Ranks:
        for name in (*COUNTS, *MEETING):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setitem(os.environ, name, value)
        monkeypatch.setattr("fid.files._noted", set())
        return own_ranks()

    return found


def test_without_any_variable_a_process_is_alone(among, capsys):
    assert among() == Ranks(rank=0, world_size=1, local_rank=0)
    assert capsys.readouterr().err == ""


def test_the_whole_set_names_the_ranks(among, capsys):
    assert among(**WHOLE) == Ranks(rank=1, world_size=3, local_rank=0)
    assert among(**WHOLE, LOCAL_WORLD_SIZE="2").local_world_size == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("missing", WHOLE)
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_part_of_the_set_is_ignored_with_one_note(among, capsys, missing, is_empty):
    part = {name: value for name, value in WHOLE.items() if name != missing}
    if is_empty and missing in MEETING:
        part[missing] = ""
    assert among(**part) == own_ranks() == Ranks()
    said = capsys.readouterr().err
    assert said.startswith("note: ")
    assert said.endswith(f" is ignored: torchrun would also set {missing}\n")
    assert said.count("note") == 1


@pytest.mark.parametrize(
    "left",
    [{"MASTER_ADDR": "a"}, {"WORLD_SIZE": "1"}, {"LOCAL_RANK": "3"}, {"LOCAL_WORLD_SIZE": "8"}],
)
def test_what_would_change_nothing_is_ignored_without_a_word(among, capsys, left):
    assert among(**left) == Ranks()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("RANK", ""), ("RANK", "-1"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "two")),
        *(("LOCAL_RANK", "x"), ("LOCAL_WORLD_SIZE", "0")),
    ],
)
@pytest.mark.parametrize("others", [{}, WHOLE])
def test_a_value_that_no_launcher_sets_is_named(among, name, value, others):
    with pytest.raises(ScoreError, match=f"has {name}='{value}'; allowed are whole numbers from"):
        among(**{**others, name: value})


def test_a_rank_beyond_the_size_is_named(among):
    with pytest.raises(ScoreError, match="RANK=3 and WORLD_SIZE=3; ranks count from 0"):
        among(**{**WHOLE, "RANK": "3"})


def meets(said: int) -> None:
    """Wait for the others in a copy of this process that writes its notes into a pipe."""
    sys.stderr = os.fdopen(said, "w", buffering=1)
    try:
        process.meet("gloo", timedelta(hours=2))
    except ScoreError as error:
        print(error, file=sys.stderr)


@pytest.fixture
def alone(monkeypatch, in_terminal) -> Callable[[float], tuple[ForkProcess, TextIO]]:
    """A process with the variables of a job of two whose other process never comes."""

    def started(seconds: float) -> tuple[ForkProcess, TextIO]:
        with socket.create_server(("127.0.0.1", 0)) as found_free:
            port = str(found_free.getsockname()[1])
        left = {**WHOLE, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**left, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv(ELASTIC, raising=False)
        monkeypatch.setattr("fid.files._noted", set())
        monkeypatch.setattr(process, "MEETING_TIME", timedelta(seconds=seconds))
        reading, writing = os.pipe()
        waiting = get_context("fork").Process(target=meets, args=[writing])
        waiting.start()
        os.close(writing)
        return waiting, os.fdopen(reading)

    return started


def test_a_process_whose_others_never_come_says_so_and_ends(alone):
    waiting, notes = alone(1)
    with notes:
        said = notes.read().splitlines()
    waiting.join(timeout=60)
    assert waiting.exitcode == 0
    assert said[0].startswith("note: process 1 of 2 waits at 127.0.0.1:")
    assert said[0].endswith(" for the others; if there are none, unset WORLD_SIZE")
    assert said[-1].startswith("the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_process_that_waits_for_the_others(alone, number):
    waiting, notes = alone(60)
    with notes:
        assert notes.readline().startswith("note: process 1 of 2 waits")
        time.sleep(0.5)
        os.kill(waiting.pid, number)
        waiting.join(timeout=30)
    assert waiting.exitcode == -number


SECOND_FAILS = """
import sys; sys.path.insert(0, sys.argv[1])
import fid
from fid.files import ScoreError
from fid.process import Ranks
ranks = Ranks.start()
def work():
    if ranks.rank == 1: raise eval(sys.argv[2])
try: ranks.together(work)
except ScoreError as error: print(error)
finally: ranks.stop()
"""


@pytest.mark.parametrize(
    ("error", "says", "second_says"),
    [
        ("PermissionError(13, 'Permission denied', 'w.pth')", "w.pth: Permission denied\n", None),
        ("KeyError('a bug')", "another process of this run died; start all of them again\n", ""),
    ],
)
def test_an_error_of_one_process_ends_the_others_in_one_line(
    in_copies, tmp_path, error, says, second_says
):
    (tmp_path / "job.py").write_text(SECOND_FAILS)
    first, second = in_copies(tmp_path / "job.py", Path(process.__file__).parents[1], error)
    assert (first.out, first.err) == (says, "")
    assert second.out == (says if second_says is None else second_says)
    assert second.err.endswith("KeyError: 'a bug'\n") == ("bug" in error)

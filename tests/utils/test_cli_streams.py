"""Scripts whose streams are closed, full or unread, and signals that ask them to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from fid.process import STOPS, Pool, handled, leave

ROOT = Path(__file__).parents[2]
SAYS = "open('done', 'w').write('all'); print('noted', file=sys.stderr); print('said')"


def shell(
    body: str, redirected: str, folder: Path, **variables: str
) -> subprocess.CompletedProcess:
    """Run the body of a main function as a script, its streams as a shell redirects them."""
    text = f"import os, sys; from utils.cli import run\ndef main():\n    {body}\nrun(main)"
    (folder / "script.py").write_text(text, encoding="utf-8")
    return subprocess.run(
        f"({sys.executable} script.py {redirected})",
        shell=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_script_whose_streams_are_closed_or_whose_notes_find_no_room_does_its_work(
    tmp_path, redirected
):
    ended = shell(SAYS, redirected, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "done").read_text() == "all"
    assert b"Traceback" not in ended.stderr


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    body = "file = open('a', 'w'); assert file.fileno() > 2; file.close(); open('done', 'w')"
    assert shell(body, "<&- >&- 2>&-", tmp_path).returncode == 0
    assert (tmp_path / "done").exists()


def test_output_that_finds_no_room_is_one_line_after_the_work(tmp_path):
    ended = shell(SAYS, ">/dev/full", tmp_path)
    assert (ended.returncode, (tmp_path / "done").read_text()) == (2, "all")
    assert ended.stderr.decode() == "noted\nerror: output: No space left on device\n"


@pytest.mark.parametrize(("number", "shown"), [("ENOSPC", 0), ("EINVAL", 1)])
def test_a_full_disk_in_a_thread_of_a_library_is_left_to_the_main_thread(tmp_path, number, shown):
    body = "os.fsencode(''); import errno, threading; from tensorboard.summary.writer import "
    body += "event_file_writer as w; f = type('F', (), {'write': lambda *_: (_ for _ in ()).throw("
    body += f"OSError(errno.{number}, os.strerror(errno.{number}), 'events'))" + ", 'flush': int})"
    body += "; a = w._AsyncWriter(f()); a.write(b'x'); a._worker.join(); a.flush()"
    ended = shell(body, "", tmp_path).stderr.decode()
    assert (ended.count("Exception in thread"), "error: events: No space" in ended) == (
        shown,
        not shown,
    )


def test_a_reader_that_leaves_ends_a_script_quietly_as_sigpipe_would(tmp_path):
    body = "[print('line', n, flush=True) for n in range(100_000)]"
    ended = shell(body, "; echo $? > code) | (head -1", tmp_path)
    assert (ended.stdout.decode(), ended.stderr.decode()) == ("line 0\n", "")
    assert (tmp_path / "code").read_text() == "141\n"


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_names_that_the_locale_cannot_show_are_escaped(tmp_path, variables):
    body = "print('\\u732b'); print('\\u732b', file=sys.stderr)"
    ended = shell(body, "", tmp_path, PYTHONCOERCECLOCALE="0", **variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ended.stderr == b"\\u732b\n"


def test_a_pipe_that_does_not_wait_is_written_all_the_same(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    (tmp_path / "script.py").write_text(
        "from utils.cli import run\nrun(lambda: print('x' * 1_000_000))", encoding="utf-8"
    )
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as read:
        time.sleep(1)  # it is full by now
        said = read.read()
    assert (process.wait(), process.communicate()[1], len(said)) == (0, b"", 1_000_001)


@pytest.mark.usefixtures("in_terminal")
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_every_signal_that_asks_to_end_is_one_line_and_130(tmp_path, number):
    body = f"os.kill(os.getpid(), {int(number)}); [None for _ in range(10**9)]"
    ended = shell(body, "", tmp_path)
    line = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert (ended.returncode, ended.stderr.decode()) == (130, f"{line}\n")


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(lambda *_: pytest.fail("was handled")):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("in_terminal")
def test_a_signal_that_repeats_does_not_disturb_the_clearing_up(tmp_path):
    body = (
        "try: os.kill(os.getpid(), 1)\n"
        "    finally: [os.kill(os.getpid(), n) for n in (1, 10, 24)]; open('cleared', 'w')"
    )
    assert shell(body, "", tmp_path).returncode == 130
    assert (tmp_path / "cleared").exists()


@pytest.mark.usefixtures("in_terminal")
@pytest.mark.parametrize(("number", "line"), [(2, "interrupted\n"), (15, "ended by SIGTERM\n")])
def test_a_signal_in_the_middle_of_an_import_ends_at_once(tmp_path, number, line):
    # C++ of a library aborts with a trace of its own where an exception comes through it
    swallowing = f"import os\ntry: os.kill(os.getpid(), {number})\nexcept BaseException: pass"
    (tmp_path / "library.py").write_text(swallowing)
    ended = shell("import library; open('done', 'w')", "", tmp_path)
    assert (ended.returncode, ended.stderr.decode()) == (130, line)
    assert not (tmp_path / "done").exists()


def test_what_torchrun_passes_on_a_second_time_does_not_keep_a_run_from_saving(tmp_path):
    # its processes get Ctrl-C, or what scancel sends to all of a job, from the system already
    body = (
        "from utils.training.run import stop_signals\n    with stop_signals() as received:\n"
        "        [os.kill(os.getpid(), n) for n in (15, 15, 2, 2)]; open('saved', 'w')\n"
        "        received.clear()"
    )
    ended = shell(body, "", tmp_path, TORCHELASTIC_RUN_ID="none")
    assert (ended.returncode, ended.stderr.decode()) == (0, "")
    assert (tmp_path / "saved").exists()


@pytest.mark.usefixtures("in_terminal")
def test_signals_that_repeat_do_not_disturb_how_the_scorer_and_the_page_clear_up():
    cleared = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            for number in (signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1):
                signal.raise_signal(number)
                cleared.append(number)

    with handled(leave), pytest.raises(KeyboardInterrupt):
        work()
    assert len(cleared) == 3


@pytest.mark.usefixtures("in_terminal")
@pytest.mark.parametrize(("owner", "step"), [(Pool, "_adjust_thread_count"), (Future, "result")])
def test_a_signal_within_a_step_of_a_pool_comes_after_it(monkeypatch, owner, step):
    # in the middle it left a lock taken that the threads wait for
    taken, take = [], getattr(owner, step)

    def interrupted(found: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        taken.append(take(found))

    monkeypatch.setattr(owner, step, interrupted)
    with Pool(1) as pool, handled(leave), pytest.raises(KeyboardInterrupt):
        pool.result(pool.submit(int))
    assert len(taken) == 1

"""A script in a child of this process that waits at one place for what happens to it."""

from __future__ import annotations

import faulthandler
import importlib
import itertools
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fid.process import STOPS

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds for a child to reach its place or its end
COUNTER = itertools.count()

Prepare = Callable[[], object]  # what a child does before it runs its command


class Child:
    """A copy of this process that runs a command and waits at the n-th call of a function.

    So do calls that other threads make after it.
    """

    def __init__(self, command: str, place: str, call: int, prepare: Prepare = int) -> None:
        """place: module:object.attribute."""
        number = next(COUNTER)
        self.reached, self.go = Path(f"reached-{number}"), Path(f"go-{number}")
        self.said, writing = os.pipe()
        self.number = os.fork()
        if self.number:
            os.close(writing)
            return
        for stream in (1, 2):
            os.dup2(writing, stream)
        sys.stdout = sys.stderr = os.fdopen(writing, "w", buffering=1)
        for number in STOPS:  # which may be ignored here, as under nohup
            is_ctrl_c = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)  # says where each thread hangs
        signal.alarm(PATIENCE)
        try:
            self._wait_at(place, call)
            prepare()
            code = _run(command)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)

    def _wait_at(self, place: str, call: int) -> None:
        owner, name = _found(place)
        function, calls = getattr(owner, name), itertools.count(1)

        def waiting(*arguments: object, **options: object) -> object:
            if next(calls) >= call:
                self.reached.touch()
                while not self.go.exists():
                    time.sleep(0.002)
            return function(*arguments, **options)

        setattr(owner, name, waiting)

    def reaches_its_place(self) -> Child:
        """Wait until the child waits."""
        deadline = time.monotonic() + PATIENCE
        while not self.reached.exists():
            assert time.monotonic() < deadline, "the child never came to its place"
            assert os.waitpid(self.number, os.WNOHANG) == (0, 0), self.output()
            time.sleep(0.002)
        return self

    def dies(self, number: int = signal.SIGKILL) -> Child:
        """Send it a signal where it waits."""
        os.kill(self.number, number)
        return self

    def loses_its_reader(self) -> Child:
        """Let nobody read what it says from now on."""
        os.close(self.said)
        self.said = os.open(os.devnull, os.O_RDONLY)
        return self

    def goes_on(self) -> Child:
        """Let it go on."""
        self.go.touch()
        return self

    def ends(self) -> tuple[int, str]:
        """Its exit code (negative: the signal that killed it) and all that it said."""
        said = self.goes_on().output()
        code = os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])
        self.go.unlink()
        self.reached.unlink(missing_ok=True)
        return code, said

    def output(self) -> str:
        """All that the child says until its end."""
        with os.fdopen(self.said, errors="replace") as file:
            return file.read()


def _found(place: str) -> tuple[object, str]:
    """The owner of a function and its name there."""
    module, _, path = place.partition(":")
    *names, name = path.split(".")
    owner = importlib.import_module(module)
    for part in names:
        owner = getattr(owner, part)
    return owner, name


def _run(command: str) -> int:
    """Run a command line as a shell would; its exit code."""
    sys.argv = shlex.split(command)
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as left:
        return left.code or 0
    return 0


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A small file system of its own at a folder; False where that is not allowed."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    may = not os.geteuid() and shutil.which("mount")
    is_mounted = bool(may) and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that cannot be written to, even by root; skips where that cannot be done."""
    with mounted(folder, "ro,size=64k") as is_mounted:
        if not is_mounted and not os.geteuid():
            pytest.skip("may not mount a file system")
        if not is_mounted:
            folder.chmod(0o500)
        try:
            yield
        finally:
            if not is_mounted:
                folder.chmod(0o700)


def fill_up(folder: Path) -> Path:
    """Leave no room on a file system; the file that takes it."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(1 << 12))
            except OSError:
                return filler

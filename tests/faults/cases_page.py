"""The page, asked for addresses and checkpoints that are none; it opens with the extra `app`."""

from __future__ import annotations

import socket

from cases_checkpoints import VQGAN, WEIGHTS
from fault_case import CANARY, PAGE, REPAIRED, Case, Maker, cut, moved, put, removed, sparse
from fault_files import MIB

LISTENING = socket.create_server(("127.0.0.1", 0))  # for as long as the tests run
TAKEN = LISTENING.getsockname()[1]


def _page(name: str, command: str, says: str, make: Maker = lambda folder: None) -> Case:
    return Case(f"a page {name}", command, says, make)


CASES = [
    _page("at a port in words", "app.py tiny.yml --port http", "'http' is not a whole number"),
    _page("at port 0", "app.py tiny.yml --port 0", "'0' is not a whole number from 1 to 65,535"),
    _page("at a negative port", "app.py tiny.yml --port -1", "'-1' is not a whole number"),
    _page("at port 65536", "app.py tiny.yml --port 65536", "'65536' is not a whole number from"),
    _page("at a taken port", f"app.py tiny.yml --port {TAKEN}", f"127.0.0.1:{TAKEN}: "),
    _page("at an address of another machine", "app.py tiny.yml --host 192.0.2.1", "192.0.2.1:"),
    _page("at an address that is none", "app.py tiny.yml --host a..b", "a..b:"),
    _page("with an unknown flag", "app.py tiny.yml --share", "unrecognized arguments: --share"),
    _page("of a checkpoint that is not there", "app.py gone", "gone: no checkpoint; allowed are"),
    _page("of a folder of something else", "app.py data", "data: no checkpoint; allowed are"),
    _page("of a pipe", "app.py /dev/stdin", "/dev/stdin: no checkpoint"),
    _page("of a picture", "app.py data/train/image_0.png", "image_0.png: cannot be read as text"),
    _page("of a config of 1 GiB", "app.py bad.yml", "larger than", sparse("bad.yml", 1024 * MIB)),
    _page("of a config with a program", "app.py bad.yml", "bad.yml:1: not valid YAML",
          put("bad.yml", f"run: !!python/object/apply:os.mkdir ['{CANARY}']\n")),
    _page("of a config with an unknown key", "app.py bad.yml", "unknown key sed",
          put("bad.yml", "sed: 1\n")),
    _page("whose second config is broken", "app.py tiny.yml bad.yml", "bad.yml:2: not valid YAML",
          put("bad.yml", "run: [\n")),
    _page("of a run whose config is broken", "app.py run", "run/transformer/config.yml",
          put("run/transformer/config.yml", "- 1\n")),
    Case("a page of a config whose name is no UTF-8", f"{PAGE} r\udce9.yml", "",
         moved("tiny.yml", "r\udce9.yml"), REPAIRED, replaced="tiny.yml"),
    *(
        Case(f"a page of {what} weights, which opens and says so", f"{PAGE} tiny.yml", says, make,
             REPAIRED)
        for what, make, says in (
            ("missing", removed(WEIGHTS), f"note: {WEIGHTS}: no such weights file"),
            ("truncated", cut(WEIGHTS, 0.5), f"note: {WEIGHTS}: damaged"),
            ("a tokenizer's truncated", cut(VQGAN, 0.5), f"note: {VQGAN}: damaged"),
        )
    ),
]  # fmt: skip

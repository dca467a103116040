"""Searches, reports, releases and imports that cannot be: storages, certificates, leftovers."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

from cases_checkpoints import VQGAN, WEIGHTS
from fault_case import (
    IMPORT,
    RELEASE,
    REPAIRED,
    REPORT,
    SEARCH,
    TRANSFORMER,
    Case,
    Maker,
    both,
    copied,
    cut,
    put,
    removed,
)
from fault_files import encoded, hostile_pickle, other_profile, pixels, saved

NOTHING: Maker = lambda folder: None  # noqa: E731
SCORES = {"scores": {"fid": 1.0}, "notes": []}
RUNS = ("cosine", "linear", "square")
ONLY = f"{SEARCH.removesuffix('--lr-search')}--lr-search-only"

SEARCHES: dict[str, tuple[str, str, Maker]] = {  # what is wrong: command, what is said, change
    "of no trials": (f"{SEARCH} 0", "argument --lr-search", NOTHING),
    "of negative trials": (f"{SEARCH} -1", "argument --lr-search", NOTHING),
    "of trials in words": (f"{SEARCH} ten", "argument --lr-search", NOTHING),
    "of a billion trials": (f"{SEARCH} 1000000000", "search.trials", NOTHING),
    "with weights of its own": (f"{ONLY} --transformer a", "--lr-search trains fresh", NOTHING),
    "of no epochs": (f"{SEARCH} --set search.epochs=0", "search.epochs=0", NOTHING),
    "of a subset, as earlier versions had": (
        f"{SEARCH} --set search.subset=0.5", "search.subset was removed; shorten", NOTHING),
    "over an unknown setting": (
        f"{SEARCH} --set 'search.space={{training.rate: {{low: 1, high: 2}}}}'",
        "training.rate", NOTHING),
    "over a range upside down": (
        f"{SEARCH} --set 'search.space={{training.weight_decay: {{low: 2, high: 1}}}}'",
        "search.space", NOTHING),
    "in an unknown database": (f"{SEARCH} --storage oracle://a", "allowed are", NOTHING),
    "in a database without a host": (f"{SEARCH} --storage mysql://:x:y", "--storage", NOTHING),
    "in a database whose URL hides a password behind a semicolon": (
        f"{SEARCH} --storage 'postgresql://h/d;password=SECRET'",
        "postgresql://...: cannot tell the password from the rest", NOTHING),
    "in a database whose user name holds the password": (
        f"{SEARCH} --storage postgresql://me%3ASECRET@h/d", "cannot tell the password", NOTHING),
    "in a URI that lies in memory": (
        f"{SEARCH} --storage 'sqlite:///file::memory:?cache=shared&uri=true'", "names no file",
        NOTHING),
    "whose storage is mistyped": (
        f"{TRANSFORMER} --stroage postgresql://me:SECRET@h/d",
        "unrecognized arguments: --stroage postgresql://me:***@h/d", NOTHING),
    "whose storage is set as a key": (
        f"{TRANSFORMER} --set storage=postgresql://me:SECRET@h/d",
        "--set storage=postgresql://me:***@h/d: unknown key storage", NOTHING),
    "in a journal file": (f"{SEARCH} --storage a.log", "--storage: no database URL", NOTHING),
    "in a file with a question mark": (
        f"{SEARCH} --storage 'sqlite:///lr?1.db'", "? begins parameters, which may be", NOTHING),
    "in memory": (f"{SEARCH} --storage sqlite://", "names no file", NOTHING),
    "in a database below a file": (
        f"{SEARCH} --storage sqlite:///tiny.yml/a.db", "tiny.yml: cannot be made", NOTHING),
    "in a folder": (f"{SEARCH} --storage sqlite:///data", "unable to open database", NOTHING),
    "in another program's database": (
        f"{SEARCH} --storage sqlite:///a.db", "studies has no column",
        lambda folder: sqlite3.connect(folder / "a.db").execute("CREATE TABLE studies (x)")),
    "in a database of text": (
        f"{SEARCH} --storage sqlite:///a.db", "a.db: (sqlite3.DatabaseError) file is not",
        put("a.db", "text " * 99)),
    "whose own database is broken": (SEARCH, "study.db: (sqlite3.DatabaseError) file is",
                                     put("run/search/study.db", "text " * 99)),
    "with a file in place of its folder": (SEARCH, "run/search: cannot be made",
                                           put("run/search", "text")),
    "without training data": (f"{SEARCH} --data gone", "gone/train: no such folder", NOTHING),
    "without a tokenizer": (SEARCH, f"{VQGAN}: no such weights file", removed(VQGAN)),
    "with a truncated tokenizer": (SEARCH, f"{VQGAN}: damaged", cut(VQGAN, 0.5)),
}  # fmt: skip


def _report(change: Maker) -> Maker:
    """What the demo leaves for a report, and one thing changed."""

    def make(folder: Path) -> None:
        manifest = {"images": [{}] * 3, "images_per_second": 1.0, "environment": {}}
        for name in RUNS:
            run = folder / "run" / name
            names = [f"test_results/image_00{i}.png" for i in range(3)]
            names += [f"{part}/final_test_{i}.png" for part in ("imga", "mask_scheduling")
                      for i in range(3)]  # fmt: skip
            both(*(put(str(run / name), encoded(pixels())) for name in names))(folder)
            (run / "test_results/manifest.json").write_text(json.dumps(manifest))
            (run / "score.json").write_text(json.dumps(SCORES))
        put("run/masked_input/score.json", json.dumps(SCORES))(folder)
        change(folder)

    return make


MANIFEST, SCORE = "run/cosine/test_results/manifest.json", "run/linear/score.json"
REPORTS: dict[str, tuple[Maker, str]] = {
    "without a manifest": (removed(MANIFEST), f"{MANIFEST}: missing; run inpainting.py"),
    "of a manifest that is no JSON": (put(MANIFEST, "{"), f"{MANIFEST}: "),
    "of a manifest of random bytes": (put(MANIFEST, bytes(range(256))), f"{MANIFEST}: "),
    "of a manifest 100,000 brackets deep": (put(MANIFEST, "[" * 100_000), f"{MANIFEST}: "),
    "of another program's manifest": (put(MANIFEST, "{}"), f"{MANIFEST}: "),
    "of a manifest that is a list": (put(MANIFEST, "[]"), f"{MANIFEST}: "),
    "without a score": (removed(SCORE), f"{SCORE}: missing; run"),
    "of a truncated score": (cut(SCORE, 0.5), f"{SCORE}: "),
    "of a score without scores": (put(SCORE, "{}"), f"{SCORE}: "),
    "of scores in words": (put(SCORE, '{"scores": {"fid": "low"}, "notes": []}'), f"{SCORE}: "),
    "of scores that have nothing in common": (
        put(SCORE, '{"scores": {"hole_mae": 1.0}, "notes": []}'), "no score in common"),
    "without its pictures": (removed("run/square/imga/final_test_1.png"), "final_test_1.png"),
    "of a broken picture": (put("run/cosine/test_results/image_001.png", b""), "image_001.png"),
    "of a data set that is not there": (
        lambda folder: shutil.rmtree(folder / "job/masked_image"), "job"),
    "of a search that is no JSON": (put("run/search/search.json", "{"), "search.json"),
    "of another program's search": (put("run/search/search.json", "[7]"), "search.json"),
}  # fmt: skip

TOKENIZER, NETWORK = RELEASE.format("tokenizer"), RELEASE.format("transformer")
RELEASES: dict[str, tuple[str, str, Maker]] = {
    "of an unknown part": (RELEASE.format("decoder"), "invalid choice: 'decoder'", NOTHING),
    "without a place": (TOKENIZER.partition(" --out")[0], "required: --out", NOTHING),
    "into a file": (f"{TOKENIZER} --out tiny.yml", "tiny.yml", NOTHING),
    "below a file": (f"{NETWORK} --out tiny.yml/a", "tiny.yml/a", NOTHING),
    "of a truncated tokenizer": (TOKENIZER, f"{VQGAN}: damaged", cut(VQGAN, 0.5)),
    "of a truncated transformer": (NETWORK, f"{WEIGHTS}: damaged", cut(WEIGHTS, 0.5)),
    "of the other network": (NETWORK, "contains a tokenizer, but no", copied(VQGAN, WEIGHTS)),
    "without validation images": (TOKENIZER, "data/val: no such folder",
                                  lambda folder: shutil.rmtree(folder / "data/val")),
    "with a broken validation image": (NETWORK, "image_1.png", cut("data/val/image_1.png", 0.5)),
}  # fmt: skip

OWN = f"{TRANSFORMER} --run own --tokenizer {VQGAN}"
LOG = "own/transformer/log.jsonl"
LEFT = {  # what lies in the run's folder: content
    "a log of random bytes": bytes(range(256)),
    "another program's log": '{"epoch": "one"}\n{"step": 3}\n[1]\n7\n',
    "a log 100,000 brackets deep": "[" * 100_000,
}

CASES = [
    *(Case(f"a search {what}", command, says, make)
      for what, (command, says, make) in SEARCHES.items()),
    Case("a storage and no search", f"{TRANSFORMER} --storage a.log", "give --lr-search too"),
    Case("a report of pictures with a colour profile", REPORT, "image_1.png has a colour profile",
         _report(put("job/masked_image/image_1.png",
                     encoded(pixels(81), icc_profile=other_profile()))), REPAIRED,
         replaced="job/masked_image/image_1.png"),
    *(Case(f"a report {what}", REPORT, says, _report(make)) for what, (make, says) in
      REPORTS.items()),
    *(Case(f"a release {what}", command, says, make)
      for what, (command, says, make) in RELEASES.items()),
    Case("an import of two files with a program", IMPORT.replace("bad.pt", "bad.pt bad.pt"),
         "contains more than tensors",
         put("bad.pt", hostile_pickle())),
    Case("an import with a broken config", f"{IMPORT} --config bad.yml", "bad.yml:2: not valid",
         both(put("bad.pt", saved({})), put("bad.yml", "run: [\n"))),
    *(Case(f"a training beside {what}", OWN, "", put(LOG, content), REPAIRED,
          replaced=LOG)
      for what, content in LEFT.items()),
]  # fmt: skip

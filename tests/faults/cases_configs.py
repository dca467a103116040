"""Configs that are no config, hide a program or a bomb, or ask for what cannot be."""

from __future__ import annotations

import os

from fault_case import CANARY, REPAIRED, Case, Maker, put, sparse
from fault_files import MIB

SCRIPTS = (
    "inpainting.py --config bad.yml --data job --output out",
    "training_transformer.py --config bad.yml",
    "training_vqgan.py --config bad.yml",
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
PROGRAM = f"run: !!python/object/apply:os.mkdir ['{CANARY}']\n"

TEXTS: dict[str, tuple[str | bytes, str]] = {  # what is wrong: text, what is said
    "random bytes": (bytes(range(256)), "bad.yml: cannot be read as text"),
    "text in Latin-1": ("run: Fähre\n".encode("latin-1"), "bad.yml: cannot be read as text"),
    "UTF-16": ("run: a\n".encode("utf-16"), "bad.yml: cannot be read as text"),
    "a tab as indentation": ("data:\n\troot: data\n", "bad.yml:2: not valid YAML"),
    "a colon without a space": (
        "decoding:\n  rule:maskgit\n  samples: 2\n",
        "bad.yml:2: not valid YAML: a space must follow the colon of rule:",
    ),
    "an open bracket": ("data: [\n", "not valid YAML"),
    "an open quote": ('run: "a\n', "not valid YAML"),
    "a key given twice": ("seed: 1\nrun: a\nseed: 2\n", "bad.yml:3: seed is given twice"),
    "a section given twice": ("data: {}\ndata: {}\n", "bad.yml:2: data is given twice"),
    "a key and its synonym": (
        "training:\n  lr: 0.1\n  learning_rate: 0.1\n",
        "training.lr and training.learning_rate are the same",
    ),
    "a billion laughs": (BOMB, "bad.yml:2: alias *a found; write the value out"),
    "an anchor that holds itself": ("run: &a [*a]\n", "alias *a found"),
    "a merge key": ("data: &d {root: a}\ntokenizer: {<<: *d}\n", "alias *d found"),
    "a program": (PROGRAM, "not valid YAML"),
    "a tag of its own": ("run: !run a\n", "not valid YAML"),
    "brackets 5,000 deep": ("run: " + "[" * 5000, "nested deeper than 10 levels"),
    "a list": ("- run\n- data\n", "bad.yml: contains a list; allowed are sections of keys"),
    "a single word": ("demo\n", "bad.yml: contains a str"),
    "two documents": ("run: a\n---\nrun: b\n", "not valid YAML"),
    "a number as key": ("1: 2\n", "bad.yml:1: key 1 must be a plain word"),
    "a truth value as key": ("yes: 2\n", "bad.yml:1: key yes must be a plain word"),
    "a list as key": ("? [a, b]\n: 1\n", "bad.yml"),
    "a zero byte in a path": ('run: "a\\0b"\n', "bad.yml:1: a zero byte found"),
    "a number of 5,000 digits": (f"seed: {'9' * 5000}\n", "bad.yml"),
    "an unknown key": (
        "training:\n  batchsize: 3\n",
        "bad.yml:2: unknown key training.batchsize (did you mean 'batch_size'?)",
    ),
    "a key of another section": ("total_iter: 8\n", "(did you mean 'decoding.total_iter'?)"),
    "an unknown section": ("trainin:\n  epochs: 3\n", "unknown key trainin"),
    "a word for a section": ("data: cats\n", "bad.yml:1: data"),
    "a section for a number": ("seed: {a: 1}\n", "bad.yml:1: seed"),
    "a list for a path": ("run: [a]\n", "run is ['a']: expected a path"),
    "a date for a path": ("run: 2024-01-31\n", "expected a path"),
    "a truth value for a path": ("run: no\n", "run is False: expected a path"),
    "text for a number": ("training:\n  epochs: many\n", "training.epochs is 'many'"),
    "a fraction for a count": ("training:\n  epochs: 1.5\n", "training.epochs is 1.5"),
    "a truth value for a count": ("training:\n  epochs: yes\n", "training.epochs is True"),
    "a text of 30 kB for a number": (f"seed: {'x' * 30_000}\n", "xxx...: "),
    "not a number": ("decoding:\n  choice_temperature: .nan\n", "choice_temperature is nan"),
    "an infinite number": ("decoding:\n  choice_temperature: .inf\n", "choice_temperature is inf"),
    "a learning rate above 1": ("training:\n  lr: 3\n", "training.learning_rate is 3"),
    "a learning rate of not a number": ("training:\n  lr: .nan\n", "learning_rate is nan"),
    "no epochs": ("training:\n  epochs: 0\n", "greater than or equal to 1"),
    "a negative seed": ("seed: -1\n", "seed is -1"),
    "a seed of 64 bits": (f"seed: {2**63}\n", "seed is"),
    "heads that do not divide": (
        "transformer:\n  num_heads: 7\n",
        "dim 768 is not divisible by num_heads 7; allowed num_heads: 1, 2, 3",
    ),
    "sizes that contradict": ("data:\n  image_size: 32\n", "transformer.num_tokens 256 does not"),
    "codebooks that contradict": ("tokenizer:\n  codebook_size: 9\n", "they must be equal"),
    "an unknown schedule": (
        "decoding:\n  mask_schedule: cosin\n",
        "decoding.mask_schedule is 'cosin'",
    ),
    "a network beyond all bounds": ("transformer:\n  dim: 16000000000\n", "transformer.dim is"),
    "a billion layers": ("transformer:\n  num_layers: 1000000000\n", "num_layers is 1000000000"),
    "a billion iterations": ("decoding:\n  total_iter: 1000000000\n", "decoding.total_iter is"),
    "an unknown device": ("device: tpu\n", "device is 'tpu'"),
    "a standard deviation of 0": ("data:\n  std: [0, 1, 1]\n", "data.std.0 is 0"),
    "two means of three": ("data:\n  mean: [0.5, 0.5]\n", "[0.5, 0.5]: expected 3 values"),
    "a list without brackets": ("training:\n  betas: 0.9, 0.9\n", "such as [0.9, 0.96]"),
    "None for null": ("decoding:\n  sweet_spot: None\n", "(write null for nothing)"),
    "neither a number nor a word": ("decoding:\n  batch_size: 0\n", "or input should be 'auto'"),
    "a search range upside down": ("search:\n  low: 0.1\n  high: 0.01\n", "must be below high"),
}


def _texts() -> list[Case]:
    """Each text, for one script after the other."""
    return [
        Case(f"a config with {what}", SCRIPTS[i % len(SCRIPTS)], says, put("bad.yml", text))
        for i, (what, (text, says)) in enumerate(TEXTS.items())
    ]


def _good(name: str, change: Maker) -> Case:
    """A config that looks odd and is right."""
    command = "inpainting.py --config odd.yml --data job --output out"
    return Case(name, command, "", change, REPAIRED, results=3)


def _rewritten(*pairs: tuple[bytes, bytes], start: bytes = b"") -> Maker:
    def make(folder: object) -> None:
        text = (folder / "tiny.yml").read_bytes()
        for old, new in pairs:
            text = text.replace(old, new)
        (folder / "odd.yml").write_bytes(start + text)

    return make


PLACES = [
    Case("a config that is not there", "inpainting.py --config gone.yml", "gone.yml: no such"),
    Case("a folder as config", "training_vqgan.py --config data", "data: cannot be read as text"),
    Case("a pipe as config", SCRIPTS[1], "bad.yml: cannot be read as text",
         lambda folder: os.mkfifo(folder / "bad.yml")),
    Case("an endless device as config", "inpainting.py --config /dev/zero", "/dev/zero: cannot"),
    Case("a config of 1 GiB", SCRIPTS[0], "larger than 65536 bytes", sparse("bad.yml", 1024 * MIB)),
    Case("a config with a path of 5,000 letters", SCRIPTS[1].replace("bad", "tiny")
         + f" --run {'r' * 5000}", "File name too long"),
]  # fmt: skip

OVERRIDES = {
    "without a value": ("seed", "--set seed: expected section.key=value"),
    "without a key": ("=1", "expected section.key=value"),
    "with an unknown key": ("training.epoch=1", "unknown key training.epoch (did you mean"),
    "of a whole section": ("training=3", "training"),
    "below a value": ("seed.low=2", "'seed' is no section"),
    "with an alias": ("seed=*a", "alias *a found"),
    "with a bomb": ("seed=[&a [x,x],&b [*a,*a],*b]", "alias *a found"),
    "with a program": (f"run=!!python/object/apply:os.mkdir [{CANARY}]", "not valid YAML"),
}

CASES = [
    *_texts(),
    *PLACES,
    *(
        Case(f"an override {what}", f"{SCRIPTS[0].replace('bad', 'tiny')} --set '{text}'", says)
        for what, (text, says) in OVERRIDES.items()
    ),
    _good("a config with Windows line ends", _rewritten((b"\n", b"\r\n"))),
    _good("a config with a byte order mark", _rewritten(start=b"\xef\xbb\xbf")),
    _good("a config with an empty section", _rewritten((b"scoring:\n  ", b"scoring:\n#  "))),
]

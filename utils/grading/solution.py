"""What a solution's file or folder contains: networks and a config, or repaired images."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fid.names import is_hidden, is_picture, natural_key, trailing_number

from config.errors import MachineError, UserError
from config.loading import LAB_FORM, Override, load_config, read_yaml
from config.schema import Config
from config.section import Section
from utils.data.pairs import IMAGES, MASKS, TRUTH
from utils.inpainting.outputs import RESULTS
from utils.weights.description import TRANSFORMER, WEIGHTS_FILES, described
from utils.weights.lab_file import may_have_weights, read_lab_file
from utils.weights.lab_naming import Settled
from utils.weights.lab_networks import FIRST_WORDS, NothingFoundError, NotOpenedError

SECTIONS = {  # of a config of ours: their keys
    name: field.annotation.model_fields.keys()
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
INPUTS = {IMAGES, MASKS, TRUTH, "train", "val"}  # folders of the lab's data
NAMES_SHOWN = 5  # folders in an error line
LAB_TRANSFORMER = "transformer_param"  # a section of the lab's form, casefolded
STATE = "state."  # beginning of the name of a training's state, next to its weights
EPOCH = re.compile(r"(?:epoch|ep|step|checkpoint)s?[\W_]*(\d{1,9})", re.IGNORECASE)
LOSS = re.compile(r"[_-]?\d+\.\d+")  # in the name of an epoch, as in 30_0.81.pt
HEX = re.compile(r"[0-9a-f]{1,8}")  # how some name epochs before a loss, as in 3c_1.0512.pt
Progress = tuple[int, int, int, int]


@dataclass(frozen=True)
class Solution:
    """A file, or a folder with its files and those of linked folders, except hidden ones."""

    path: Path
    files: list[Path]

    @classmethod
    def of(cls, path: Path) -> Solution:
        """Find the files of a solution."""
        return cls(path, files_of(path))

    @property
    def weights(self) -> list[Path]:
        """All files that may contain networks."""
        return list(filter(may_have_weights, self.files))

    def name_of(self, path: Path) -> str:
        """A file's path within the solution, or its name if it is the solution."""
        return path.name if path == self.path else path.relative_to(self.path).as_posix()

    def config(self, base: Config, overrides: Sequence[Override], notes: list[str]) -> Config:
        """The solution's own config with overrides, or `base` if it brings none.

        A transformer's config in the lab's form comes before one in ours; of several the first,
        with a note. Raises `UserError` for one in the lab's form that cannot be read.
        """
        contents = {p: _contents(p) for p in self.files if p.suffix.lower() in (".yml", ".yaml")}
        for is_one in (_is_labs, _is_ours):
            own = [path for path, values in contents.items() if is_one(values)]
            if own:
                notes += [f"{own[0]}: this config is taken, not {path}" for path in own[1:]]
                return load_config(own[0], overrides)
        return base

    def networks(
        self, settled: Settled, notes: list[str]
    ) -> tuple[dict[str, Path], dict[str, Path]]:
        """The file to take each network from: those in our form, and others for missing networks.

        Of several epochs the best one or else the last is taken. Adds notes, and raises errors, of
        `pick_files`, except that a solution of images needs no network.
        """
        found: dict[str | None, list[Path]] = defaultdict(list)
        for path in self.weights:
            found[described(path)].append(path)
        foreign = found.pop(None, [])
        ours = {kind: max(paths, key=_is_final) for kind, paths in found.items() if kind}
        if ours:
            foreign = [path for path in foreign if not path.name.startswith(STATE)]
        try:
            return ours, pick_files(foreign, settled, ours.keys(), notes)
        except NothingFoundError:
            if not any(is_picture(path.name) for path in self.files):
                raise
            return ours, {}

    def results(self, count: int) -> Path:
        """The folder of repaired images: test_results, else one of ``count`` images, else any.

        Folders that are named as those of the lab's data contain no results. Raises `UserError` if
        there is none, or several of a kind.
        """
        found = Counter(path.parent for path in self.files if is_picture(path.name))
        folders = [folder for folder in found if folder == self.path or folder.name not in INPUTS]
        if not folders:
            raise UserError(f"{self.path}: contains neither a transformer nor repaired images")
        named = [folder for folder in folders if folder.name == RESULTS]
        of_size = [folder for folder in folders if found[folder] == count]
        named_of_size = [folder for folder in named if folder in of_size]
        likely = next(some for some in (named_of_size, named, of_size, folders) if some)
        if len(likely) > 1:
            names = ", ".join(str(folder.relative_to(self.path)) for folder in likely[:NAMES_SHOWN])
            more = ", ..." if len(likely) > NAMES_SHOWN else ""
            advice = "keep one, or make each a solution of its own"
            raise UserError(f"{self.path}: results may lie in {names}{more}; {advice}")
        return likely[0]


def files_of(path: Path) -> list[Path]:
    """A file itself; all files below a folder and below links, except hidden ones, sorted."""
    if path.is_file():
        return [path]
    found, seen = [], set()
    for place, folders, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above, or to another
            folders.clear()
            continue
        seen.add(real)
        found += [file for name in names if (file := Path(place, name)).is_file()]
    return sorted(file for file in found if not is_hidden(file.relative_to(path).as_posix()))


def _contents(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; none if it cannot be read and is not the lab's."""
    try:
        values, _ = read_yaml(path, "config")
    except UserError:
        text = path.read_bytes().replace(b"\0", b"").lower()  # UTF-16 has zeros between letters
        if LAB_TRANSFORMER.encode() in text:
            raise
        return {}
    return values if isinstance(values, dict) else {}


def _is_labs(values: dict[str, Any]) -> bool:
    """Whether a config is the lab's of a transformer, unlike that of its VQGAN, in any case."""
    sections = [inner for key, inner in values.items() if str(key).casefold() == LAB_FORM]
    return any(
        isinstance(section, dict) and LAB_TRANSFORMER in (str(key).casefold() for key in section)
        for section in sections
    )


def _is_ours(values: dict[str, Any]) -> bool:
    """Whether a config has a section of ours, unlike environment.yml or a list of arguments."""
    found = ((values.get(name), keys) for name, keys in SECTIONS.items())
    return any(isinstance(inner, dict) and inner.keys() & keys for inner, keys in found)


def _is_final(path: Path) -> tuple[bool, Progress]:
    """Sorts the weights that a run ends with after its best and other epochs."""
    return path.name in WEIGHTS_FILES.values(), progress(path)


def pick_files(
    paths: Sequence[Path], settled: Settled, brought: Collection[str], notes: list[str]
) -> dict[str, Path]:
    """The file to take each network from: of several epochs the best one, or else the last.

    Names tell, as in best.pt, final.pt and epoch_20.pt; the last of equally good ones is taken,
    with a note. Networks in ``brought`` need no file. Files without a network, such as the state of
    an optimizer, are left out, those of other networks with a note. Raises `NothingFoundError` if
    no file has a network, and `NotOpenedError` if none has a transformer: else files that are not
    opened become notes. Errors of `read_lab_file`, unless a better file has a transformer: then
    they become notes.
    """
    missing = FIRST_WORDS.keys() - brought
    picked: dict[str, Path] = {}
    runs: dict[str, Progress] = {}  # name without the epoch -> progress of the epoch that is read
    nothing: NothingFoundError | None = None
    not_opened: NotOpenedError | None = None
    for path in sorted(paths, key=_order, reverse=True):
        reached = progress(path)
        better = {kind for kind, found in picked.items() if progress(found) > reached}
        if better == missing:
            break
        if runs.setdefault(EPOCH.sub("", str(path)), reached) != reached:
            continue
        try:
            kinds = read_lab_file(path, settled).parts
        except UserError as error:
            if isinstance(error, NotOpenedError):  # losses or arguments, but perhaps a whole model
                not_opened = not_opened or error
            elif isinstance(error, NothingFoundError):
                nothing = nothing or error
            elif isinstance(error, MachineError) or TRANSFORMER not in better:
                raise
            if type(error) is not NothingFoundError:  # that is a state without tensors of its own
                notes.append(f"left out: {error}")
            continue
        for kind in (kind for kind in kinds if kind in missing):
            taken = picked.setdefault(kind, path)
            if taken != path and kind not in better:
                notes.append(f"{taken}: its {kind} is taken; by its name {path} is equally good")
    if not_opened and TRANSFORMER not in {*picked, *brought}:
        raise not_opened
    if nothing and not picked and not brought:
        raise nothing
    return picked


def _order(path: Path) -> tuple[Progress, tuple]:
    """Sorts equally good files by name."""
    return progress(path), natural_key(str(path))


def progress(path: Path) -> Progress:
    """How far training was by a file's and its folder's name: sorts the best after the last.

    The last sorts after other epochs; of several best ones that by validation is the last.
    """
    name = path.stem.casefold().removesuffix(".pth")  # of .pth.tar
    epoch = LOSS.sub("", name)
    if epoch != name and HEX.fullmatch(epoch):  # this also sorts decimal numbers
        number = int(epoch, 16)
    elif epochs := EPOCH.findall(f"{path.parent.name}/{epoch}"):
        number = int(epochs[-1])
    else:
        number = trailing_number(f"{epoch}{path.suffix}")
    both = name, f"{path.parent.name}/{name}".casefold()  # its own name counts more
    is_last = sum(any(word in text for word in ("last", "latest", "final")) for text in both)
    is_best = sum("best" in text for text in both)
    by_val = sum("val" in text for text in both) if is_best else 0
    return is_best, by_val, is_last, -1 if number is None else number

"""Decode and score every cell of a sweep.

Hole fills, encoded tokens, first-step logits and the scorer's reference statistics are computed
once and shared. Finished cells are stored in the output folder under a digest of everything they
depend on, so an interrupted sweep continues, and a complete one only rewrites its report:

<output>/cells-0.jsonl   one line per cell of process 0: score, error of each image
<output>/traces/         token ids and masks after every step, first seed only
<output>/<study>/        table, plot, report (utils/sweep/tables.py)

Shapes: n images, N tokens, T steps.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config.errors import UserError
from config.schema import Config, DecodingConfig
from models.parallel import one_thread
from utils.data.datasets import InpaintingSet
from utils.device import Compute, is_main, rank, world_size
from utils.distributed import joined, total
from utils.inpainting.outputs import settings_digest, settings_of
from utils.io.files import alone_in, atomic, read_rows, write_text
from utils.io.messages import raise_if_machine
from utils.sweep.decode import CellDecoder, CellRow, JobInputs, read_job_inputs
from utils.sweep.plan import Cell, Study, walks

ROW = {"key", "score", "score_name", "hole_psnr", "images"}  # keys of a stored cell


class Sweep:
    """Computes the cells of studies and stores their results."""

    def __init__(self, config: Config, inputs: JobInputs, output: Path, seeds: int) -> None:
        self.config, self.inputs, self.output = config, inputs, output
        self.seeds = range(config.seed, config.seed + seeds)
        compute = Compute.of(config)
        self.device = compute.device
        for path in (config.tokenizer_weights, config.transformer_weights):
            if not path.is_file():
                raise UserError(f"{path}: no such weights file; train first, or name one")
        self.fixed = settings_of(config, compute.dtype) | {
            "inputs": inputs.digest,
            "features": config.scoring.features,
        }
        del self.fixed["decoding"], self.fixed["seed"]  # set by each cell
        self.own_path = output / f"cells-{rank()}.jsonl"
        self.rows: dict[str, CellRow] = {}
        self.read_all()
        self.decoder = CellDecoder(config, inputs, self.device)

    def read_all(self) -> None:
        """Read the finished cells of all processes."""
        for path in sorted(self.output.glob("cells-*.jsonl")):
            self.rows |= {row["key"]: row for row in _read_rows(path)}

    # Stored results

    def cells(self, study: Study) -> list[Cell]:
        return [Cell(s.decoding, seed) for s in study.settings for seed in self.seeds]

    def rows_of(self, decoding: DecodingConfig) -> list[CellRow]:
        return [self.rows[Cell(decoding, seed).key(self.fixed)] for seed in self.seeds]

    def trace_path(self, cell: Cell) -> Path:
        return self.output / "traces" / f"{settings_digest({**self.fixed, 'w': cell.walk_key})}.npz"

    def trace(self, cell: Cell) -> tuple[np.ndarray, np.ndarray] | None:
        """Token ids and masks after every step of a cell, (T, n, N) each; None if not stored."""
        path = self.trace_path(cell)
        try:
            with np.load(path) as file:
                token_ids, packed = file["token_ids"], file["hidden"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise_if_machine(error, path)
            return None  # damaged, so decoded again
        if len(token_ids) < cell.steps:
            return None
        hidden = np.unpackbits(packed, axis=-1, count=token_ids.shape[-1]).astype(bool)
        return token_ids[: cell.steps], hidden[: cell.steps]

    def missing(self, group: list[Cell]) -> tuple[list[Cell], bool]:
        """Cells of a walk without a result, and whether its trace is missing."""
        longest = max(group, key=lambda cell: cell.steps)
        wants_trace = longest.seed == self.seeds[0] and self.trace(longest) is None
        return [cell for cell in group if cell.key(self.fixed) not in self.rows], wants_trace

    # Computing

    @one_thread()
    def run(self, studies: list[Study]) -> int:
        """Compute missing cells, under torchrun this process's share; return how many."""
        groups = walks(dict.fromkeys(cell for study in studies for cell in self.cells(study)))
        todo = [(group, *self.missing(group)) for group in groups]
        todo = [task for task in todo if task[1] or task[2]]
        self._wait_for_all()  # all read before any writes
        own = "".join(json.dumps(row) + "\n" for row in _read_rows(self.own_path))
        write_text(self.own_path, own)  # without a line that a crash cut off
        mine = todo[rank() :: world_size()]
        steps = sum(max(cell.steps for cell in group) for group, *_ in mine)
        title = f"{sum(len(cells) for _, cells, _ in mine)} cells"
        with tqdm(total=steps * len(self.inputs.indices), desc=title, unit="step") as bar:
            for group, cells, wants_trace in mine:
                self._finish(group if wants_trace else cells, cells, wants_trace, bar)
        self._wait_for_all()
        self.read_all()
        return sum(len(cells) for _, cells, _ in todo)

    def _finish(self, group: list[Cell], cells: list[Cell], wants_trace: bool, bar: tqdm) -> None:
        steps = max(cell.steps for cell in group)
        token_ids, hidden = self.decoder.decode(group[0], steps, bar)
        if wants_trace:
            with atomic(self.trace_path(group[0])) as temporary, temporary.open("wb") as file:
                np.savez_compressed(
                    file,
                    token_ids=token_ids.cpu().numpy().astype(np.uint16),
                    hidden=np.packbits(hidden.cpu().numpy(), axis=-1),
                )
        for cell in cells:
            scored = self.decoder.score(cell, token_ids[cell.steps - 1])
            row = {"key": cell.key(self.fixed), **scored}
            self.rows[row["key"]] = row
            with self.own_path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _wait_for_all(self) -> None:
        total(torch.zeros(1, device=self.device)).item()  # NCCL alone would not block the host


@contextmanager
def open_sweep(
    config: Config, dataset: InpaintingSet, output: Path, *, seeds: int, images: int | None
) -> Iterator[Sweep]:
    """Open a sweep together with torchrun's other processes and lock its folder."""
    with alone_in(output) if is_main() else nullcontext(), joined(Compute.of(config).device):
        yield Sweep(config, read_job_inputs(dataset, images, config.data.image_size), output, seeds)


def _read_rows(path: Path) -> list[CellRow]:
    return [row for row in read_rows(path) if row.keys() >= ROW and isinstance(row["key"], str)]

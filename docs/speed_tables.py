"""Tables of time and memory, from bench/results/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from bench.common import PRESETS
from docs.results_files import Record, latest, latest_sizes, machine, records
from utils.io.tables import TableRow
from utils.io.tables import markdown_table as table

DRAWN = ", every step drawn"  # rows of repairs that the README leaves out


def speed() -> str:
    """Images per second and speedup over the other side: a row per task, a column per machine."""
    cells: dict[str, dict[str, str]] = {}
    for what, _, ours, ratio, _, on in all_speeds():
        if not what.endswith(DRAWN):
            cells.setdefault(what, {})[on] = f"{ours} (×{ratio})"
    machines = sorted({on for row in cells.values() for on in row})
    rows = [[what, *(row.get(on, "–") for on in machines)] for what, row in cells.items()]
    return table(["images a second (× the other side)", *machines], rows)


def speed_in_full() -> str:
    """All side-by-side measurements: the other side, ours, speedup and memory ratio."""
    heading = ["images a second", "other side", "here", "speedup", "memory", "machine"]
    return table(heading, all_speeds())


def all_speeds() -> list[TableRow]:
    return [*training_speed(), *inpainting_speed(), *scoring_speed()]


def training_speed() -> Iterable[TableRow]:
    for record in latest_sizes("train"):
        for size, result in record["result"].items():
            sides = (rounds(record["details"][size][side]) for side in ("plain", "ours"))
            speeds = [[one["images_per_second"] for one in side] for side in sides]
            memory = middle(result["memory_ratio"])
            yield speed_row(f"train, {size} size", speeds, memory, record)


def inpainting_speed() -> Iterable[TableRow]:
    for record in latest("inpaint"):
        for size, cells in record["details"]["tasks"].items():
            for side, how in {"ours": "", "ours_with_pictures": DRAWN}.items():
                pair = (rounds(cells["plain"]), rounds(cells[side]))
                kind = "gpu_peak_mib" if "gpu_peak_mib" in pair[0][0] else "peak_mib"
                speeds = [[1 / cell["seconds_an_image"] for cell in each] for each in pair]
                plain, ours = (median(cell[kind] for cell in each) for each in pair)
                memory = ours / plain
                yield speed_row(f"repair, {size} size{how}", speeds, memory, record)


def repair_cost() -> str:
    """Time per image and memory by batch size, iterations and number of images."""
    names = {"batch": "images per batch", "total_iter": "iterations", "images": "images in total"}
    rows = []
    for record in latest("inpaint"):
        for key, name in names.items():
            for amount, cell in record["details"]["growth"].get(key, {}).items():
                costs = f"{cell['seconds_an_image']:.3f}", f"{cell['peak_mib']:.0f}"
                rows.append([f"{amount} {name}", *costs, machine(record)])
    return table(["cats64", "seconds per image", "peak, MiB", "machine"], rows)


def busy() -> str:
    """Images per second next to busy processes, latest measurement of each work."""
    found = {work: cell for of in records("busy") for work, cell in of["result"].items()}
    sides = ("old", "new", "ratio")
    rows = [
        [f"{work}, next to {others} busy processes", *(spread_cell(cell[side]) for side in sides)]
        for work, cells in found.items()
        for others, cell in cells.items()
    ]
    return table(["images a second", "threads within operations", "images shared", "ratio"], rows)


def spread_cell(figure: dict[str, float]) -> str:
    """A median with its range."""
    return f"{figure['median']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"


def scoring_speed() -> Iterable[TableRow]:
    for record in latest("fid"):
        details = record["details"]
        tasks = {
            n.removeprefix("ours-").removesuffix("-2048"): t for n, t in details["tasks"].items()
        }
        for side, how in {"cold": "", "warm": ", reference cached"}.items():
            pair = [rounds(tasks["theirs"]), rounds(tasks[side])]
            speeds = [[details["images"] / cell["total_s"] for cell in each] for each in pair]
            theirs, ours = (median(cell["peak_mib"] for cell in each) for each in pair)
            yield speed_row(f"score {details['images']} images{how}", speeds, ours / theirs, record)


def speed_row(
    what: str, speeds: Sequence[Sequence[float]], memory: float, record: Record
) -> TableRow:
    """A table row. speeds: of the other side and ours, by round. memory: their ratio."""
    quotients = [ours / other for other, ours in zip(*speeds, strict=True)]
    ratio = f"{median(quotients):.1f}"
    if len(quotients) > 1:
        ratio += f", {min(quotients):.1f} to {max(quotients):.1f}"
    medians = (f"{float(f'{median(speed):.3g}'):,g}" for speed in speeds)  # three digits
    return [what, *medians, ratio, f"x {memory:.2f}", machine(record)]


def rounds(side: Any) -> list[dict[str, float]]:
    """The figures of each round of a side; earlier benchmarks had one round."""
    return side if isinstance(side, list) else [side]


def middle(figure: Any) -> float:
    """The median of a figure; earlier benchmarks had a single value."""
    return figure["median"] if isinstance(figure, dict) else figure


def mfu() -> str:
    """Share of the measured matrix-product peak, in training and in repairs."""
    rows = []
    for name, what in {"train": "training", "inpaint": "repairs"}.items():
        for record in latest_sizes(name):
            found = record["result"]
            shares = (f"{middle(found[s]['mfu']):.0%}" if s in found else "–" for s in PRESETS)
            rows.append([what, *shares, machine(record)])
    return table(["share of the peak", "lab size", "cats64 size", "machine"], rows)


def attention() -> str:
    """Time and memory of each attention implementation, per image and layer."""
    rows = []
    for record in latest("attention"):
        for size, cells in record["result"].items():
            kept = cells["kept_mib"]
            for kind, cell in cells.items():
                if kind == "kept_mib":
                    continue
                way, dtype = kind.split("_")
                times = (f"{cell[f'{name}_ms']:.2f}" for name in kept)
                what = f"{size} size, {way}, {dtype}"
                rows.append([what, *times, f"{cell['times_as_fast']:.1f}", machine(record)])
            left = (f"{mib:.1f} MiB" for mib in kept.values())
            rows.append([f"{size} size, saved for backward, bf16", *left, "", machine(record)])
    names = ["PyTorch's kernel", "written out", "`fused` here"]
    return table(["attention, ms", *names, "speedup over the kernel", "machine"], rows)


def tokenizer_speed() -> str:
    """Encoding and decoding alone, in batches of 32."""
    columns = [(way, kind) for way in ("encode", "decode") for kind in ("fp32", "bf16")]
    rows = []
    for record in latest("tokenizer"):
        for size, cells in record["result"].items():
            found = (cells[f"{way}_{kind}_32"]["images_per_second"] for way, kind in columns)
            rows.append([f"{size} size", *(f"{speed:.0f}" for speed in found), machine(record)])
    names = (f"{way}, {kind}" for way, kind in columns)
    return table(["tokenizer, images a second", *names, "machine"], rows)

"""Tables of time and memory, from bench/results/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import date
from statistics import median
from typing import Any

from bench.common import PRESETS
from docs.results_files import Record, day, latest, latest_sizes, machine, recent, records
from utils.io.tables import TableRow
from utils.io.tables import markdown_table as table

Figures = dict[str, float]
Side = Any  # figures of each round; of the only one in earlier benchmarks
Pair = tuple[Side, Side]  # the other side and ours
DAYS = 3
DRAWN = ", every step drawn"  # rows of repairs that the README leaves out


def speed() -> str:
    """Images per second and speedup over the other side: a row per task, a column per machine."""
    cells: dict[str, dict[str, str]] = {}
    for what, _, ours, ratio, _, on in all_speeds():
        if not what.endswith(DRAWN):
            cells.setdefault(what, {})[on] = f"{ours} (×{ratio})"
    machines = sorted({on for row in cells.values() for on in row})
    rows = [[what, *(row.get(on, "–") for on in machines)] for what, row in cells.items()]
    return table(["images/s (× the other side)", *machines], rows)


def speed_in_full() -> str:
    """All side-by-side measurements: the other side, ours, speedup and memory ratio."""
    heading = ["images/s", "other side", "here", "speedup", "memory", "machine"]
    return table(heading, all_speeds())


def all_speeds() -> list[TableRow]:
    return [
        *speed_rows("train", training, lambda side: side["images_per_second"]),
        *speed_rows("inpaint", repairs, lambda side: 1 / side["seconds_an_image"]),
        *speed_rows("fid", scores, scored),
    ]


def training(details: Record) -> Iterable[tuple[str, Pair]]:
    for size in (name for name in PRESETS if name in details):
        yield f"train, {size} size", (details[size]["plain"], details[size]["ours"])


def repairs(details: Record) -> Iterable[tuple[str, Pair]]:
    for size, sides in details["tasks"].items():
        for side, how in {"ours": "", "ours_with_pictures": DRAWN}.items():
            yield f"repair, {size} size{how}", (sides["plain"], sides[side])


def scored(figures: Figures) -> float:
    """Images per second."""
    return figures["images"] / figures["total_s"]


def scores(details: Record) -> Iterable[tuple[str, Pair]]:
    images, sides = details["images"], details["tasks"]
    for side, how in {"cold": "", "warm": ", reference cached"}.items():
        pair = sides["theirs"], sides[side]
        counted = ([{"images": images} | figures for figures in each] for each in pair)
        yield f"score {images} images{how}", tuple(counted)


def speed_rows(
    name: str,
    pairs: Callable[[Record], Iterable[tuple[str, Pair]]],
    images_per_second: Callable[[Figures], float],
) -> Iterator[TableRow]:
    """A row per task and machine, over all rounds of the last `DAYS` days with a measurement.

    pairs: the tasks in a record's details, each with the figures of the other side and ours.
    """
    found: dict[tuple[str, str], dict[date, Pair]] = {}
    for record in recent(name, DAYS):
        for what, pair in pairs(record["details"]):
            days = found.setdefault((machine(record), what), {})
            days[day(record)] = pair  # the last run of each day
    for (on, what), days in found.items():
        other, ours = ([f for pair in days.values() for f in rounds(pair[i])] for i in (0, 1))
        yield speed_row(what, (other, ours), images_per_second, on)


def rounds(side: Side) -> list[Figures]:
    """The figures of each round; earlier benchmarks had a single round."""
    return side if isinstance(side, list) else [side]


def speed_row(
    what: str, pair: Pair, images_per_second: Callable[[Figures], float], on: str
) -> TableRow:
    """A table row from the rounds of the other side and ours; ratios are ours to the other's."""
    speeds = [[images_per_second(figures) for figures in side] for side in pair]
    quotients = [ours / other for other, ours in zip(*speeds, strict=True)]
    ratio = f"{median(quotients):.1f}"
    if len(quotients) > 1:
        ratio += f", {min(quotients):.1f} to {max(quotients):.1f}"
    kind = "gpu_peak_mib" if "gpu_peak_mib" in pair[0][0] else "peak_mib"
    other, ours = (median(figures[kind] for figures in side) for side in pair)
    medians = (f"{float(f'{median(speed):.3g}'):,g}" for speed in speeds)  # three digits
    return [what, *medians, ratio, f"x {ours / other:.2f}", on]


def repair_cost() -> str:
    """Time per image and memory by batch size, iterations and number of images."""
    names = {"batch": "batch size", "total_iter": "iterations", "images": "images"}
    rows = []
    for record in latest("inpaint"):
        for key, name in names.items():
            for amount, cell in record["details"]["growth"].get(key, {}).items():
                costs = f"{cell['seconds_an_image']:.3f}", f"{cell['peak_mib']:.0f}"
                rows.append([f"{name} {amount}", *costs, machine(record)])
    return table(["cats64", "seconds per image", "peak, MiB", "machine"], rows)


def busy() -> str:
    """Images per second next to busy processes, latest measurement of each work."""
    found = {work: (cells, of) for of in records("busy") for work, cells in of["result"].items()}
    sides = ("old", "new", "ratio")
    rows = [
        [f"{work}, {neighbours(others)}", *(spread_cell(cell[s]) for s in sides), machine(of)]
        for work, (cells, of) in found.items()
        for others, cell in cells.items()
    ]
    heading = ["images/s", "threads within operations", "images shared", "ratio", "machine"]
    return table(heading, rows)


def neighbours(others: str) -> str:
    """What else ran, from the number of busy processes."""
    counted = {"0": "idle machine", "1": "next to 1 busy process"}
    return counted.get(others, f"next to {others} busy processes")


def spread_cell(figure: dict[str, float]) -> str:
    """A median with its range."""
    return f"{figure['median']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"


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
    return table(["tokenizer, images/s", *names, "machine"], rows)

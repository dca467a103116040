"""Tables of README, docs/ and the card, written from committed results: ``python -m docs.tables``.

What stands on a page between <!-- table NAME --> and <!-- end --> is made here from docs/results/
and bench/results/; run this after either has changed. A test compares.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.sweep.plan import STUDIES
from utils.sweep.stats import Summary, statements

ROOT = Path(__file__).resolve().parents[1]
RESULTS, BENCHES = ROOT / "docs" / "results", ROOT / "bench" / "results"
CARD = ROOT / "models" / "pretrained" / "cats64" / "README.md"
PAGES = (ROOT / "README.md", CARD, *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

GRIDS = {
    "grid-borders": "Hole fills and composites",
    "grid-orders": "Orders",
    "grid-settings": "Iterations and temperatures",
}

Row = Sequence[str]
Record = dict[str, Any]


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := rewritten(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


def rewritten(text: str) -> str:
    """A page with all its tables made anew; KeyError for a name that no table has."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def table(heading: Row, rows: Iterable[Row]) -> str:
    """Rows in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (heading, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heading), *lines[1:]])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


CLASSICAL = {"grey", "telea", "biharmonic"}  # which no weights change
WEIGHTS = ("tokenizer_sha256", "transformer_sha256")


def latest(name: str) -> list[Record]:
    """The last full measurement of a benchmark on each machine; none if it was never run."""
    path, found = BENCHES / f"{name}.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        record = json.loads(line)
        if not record["details"].get("quick"):
            found.pop(machine(record), None)  # the newest last
            found[machine(record)] = record
    return list(found.values())


def machine(record: Record) -> str:
    """What the numbers were measured on."""
    of = record["machine"]
    threads = "1 thread" if of["threads"] == 1 else f"{of['threads']} threads"
    return ", ".join(of["gpus"]) or f"{of['cpu']}, {threads}"


# Repairs


def demo() -> str:
    """What `make results` keeps: the scores of make demo."""
    rows, images = [], 0
    for name in ("masked_input", "cosine", "linear", "square"):
        certificate = json.loads((RESULTS / "demo" / f"{name}.json").read_text(encoding="utf-8"))
        scores, images = certificate["scores"], certificate["predicted"]["n"]
        keys = ("frechet_distance_efficientnet_lite0", "hole_mae", "hole_psnr")
        rows.append([name.replace("_", " "), *(f"{scores[key]:.2f}" for key in keys)])
    heading = [f"`make demo`, {images} crops of photographs", "distance"]
    return table([*heading, "mean error in the hole, 0 to 255", "PSNR in the hole, dB"], rows)


def repair() -> str:
    """Repairs beside classical filling, of the last measurement."""
    sides = {
        "grey": "grey hole",
        "telea": "Telea's filling (OpenCV)",
        "biharmonic": "biharmonic filling (scikit-image)",
        "report": "the report's decoding with the released weights",
        "ours": "**released weights**",
        "without_leak": "the same, known tokens untouched by holes",
        "true_tokens": "true tokens: a perfect transformer",
    }
    record = with_other_sides(latest("repair")[-1])
    columns = {
        "distance": ("frechet", 2),
        "distance, Lite2": ("frechet_referee", 2),
        "perceptual distance": ("perceptual", 4),
        "mean error in the hole, 0 to 255": ("hole_mae", 2),
    }
    rows = [
        [title, *(f"{cell[key]:.{digits}f}" for key, digits in columns.values())]
        for side, title in sides.items()
        if (cell := record["result"].get(side))
    ]
    return table([f"{record['details']['images']} cats that no training saw", *columns], rows)


def with_other_sides(record: Record) -> Record:
    """A measurement of repairs, completed by classical filling and sides of the same weights.

    The newest measurement of each counts.
    """
    path, result = BENCHES / "repair.jsonl", dict(record["result"])
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        older = json.loads(line)
        if older["details"]["images"] == record["details"]["images"]:
            same = all(older["details"].get(key) == record["details"].get(key) for key in WEIGHTS)
            sides = older["result"] if same else CLASSICAL & older["result"].keys()
            result = {side: older["result"][side] for side in sides} | result
    return {**record, "result": result}


# Speed


def speed() -> str:
    """All side-by-side measurements: the other side, ours, and how much faster."""
    heading = ["images a second", "other side", "here", "times as fast", "memory", "machine"]
    return table(heading, [*training_speed(), *inpainting_speed(), *scoring_speed()])


def training_speed() -> Iterable[Row]:
    for record in latest("train"):
        for size, result in record["result"].items():
            sides = (record["details"][size][side] for side in ("plain", "ours"))
            speeds = [side["images_per_second"] for side in sides]
            yield speed_row(f"train, {size} size", speeds, result["memory_ratio"], record)


def inpainting_speed() -> Iterable[Row]:
    for record in latest("inpaint"):
        for size, cells in record["details"]["tasks"].items():
            for side, how in {"ours": "", "ours_with_pictures": ", every step drawn"}.items():
                pair = (cells["plain"], cells[side])
                kind = "gpu_peak_mib" if "gpu_peak_mib" in pair[0] else "peak_mib"
                speeds = [1 / cell["seconds_an_image"] for cell in pair]
                memory = pair[1][kind] / pair[0][kind]
                yield speed_row(f"repair, {size} size{how}", speeds, memory, record)


def repair_cost() -> str:
    """How an image's time and the memory grow with the batch, the iterations and the images."""
    names = {"batch": "images a batch", "total_iter": "iterations", "images": "images in all"}
    rows = []
    for record in latest("inpaint"):
        for key, name in names.items():
            for amount, cell in record["details"]["growth"][key].items():
                costs = f"{cell['seconds_an_image']:.3f}", f"{cell['peak_mib']:.0f}"
                rows.append([f"{amount} {name}", *costs, machine(record)])
    return table(["cats64", "seconds an image", "peak, MiB", "machine"], rows)


def scoring_speed() -> Iterable[Row]:
    for record in latest("fid"):
        tasks, images = record["details"]["tasks"], record["details"]["images"]
        for side, how in {"cold": "", "warm": ", reference cached"}.items():
            pair = (tasks["theirs-2048"], tasks[f"ours-{side}-2048"])
            speeds = [images / cell["total_s"] for cell in pair]
            memory = pair[1]["peak_mib"] / pair[0]["peak_mib"]
            yield speed_row(f"score {images} images{how}", speeds, memory, record)


def speed_row(what: str, speeds: Sequence[float], memory: float, record: Record) -> Row:
    ratio = f"{speeds[1] / speeds[0]:.1f}"
    return [what, *(f"{speed:.3g}" for speed in speeds), ratio, f"x {memory:.2f}", machine(record)]


def mfu() -> str:
    """Share of the measured matrix-product peak, in training and in repairs."""
    rows = []
    for name, what in {"train": "training", "inpaint": "repairs"}.items():
        for record in latest(name):
            shares = (f"{cell['mfu']:.0%}" for cell in record["result"].values())
            rows.append([what, *shares, machine(record)])
    return table(["share of the peak", "lab size", "cats64 size", "machine"], rows)


def attention() -> str:
    """Time and memory of attention in each way, of an image and layer."""
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
            rows.append([f"{size} size, kept in bf16", *left, "", machine(record)])
    names = ["PyTorch's kernel", "written out", "`fused` here"]
    return table(["attention, ms", *names, "times as fast as the kernel", "machine"], rows)


def soak() -> str:
    """Growth and peak of each part of the last soak."""
    rows = {}
    for line in (BENCHES / "soak.jsonl").read_text(encoding="utf-8").splitlines():
        cell = json.loads(line)["result"]
        units = {"page": f"{cell['visits']:,} visits"}
        units |= dict.fromkeys(("inpainting", "scoring"), f"{cell['images']:,} images")
        amount = units.get(cell["part"], f"{cell['steps']:,} steps")
        growth, peak = f"{cell['growth']:+.1%}", f"{cell['own_peak_mib']} MiB"
        rows[cell["part"]] = [cell["part"], amount, growth, peak]
    return table(["part", "of", "growth of its own memory", "peak of it"], rows.values())


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


def tokenizer_quality() -> str:
    """What the released tokenizer keeps of images, and of known tokens beside holes."""
    record = latest("tokenizer_quality")[-1]
    found, details = record["result"], record["details"]
    kept = found["kept_tokens"]
    rows = [
        ["PSNR", f"{found['psnr']:.2f} dB"],
        ["SSIM", f"{found['ssim']:.4f}"],
        ["EfficientNet-Lite0 Fréchet distance", f"{found['frechet_efficientnet']:.2f}"],
        ["the same with EfficientNet-Lite2", f"{found['frechet_referee']:.2f}"],
        ["codes in use, perplexity", f"{found['codes_used']:.0%}, {found['perplexity']:.0f}"],
        ["known tokens that keep their index", f"{kept['all']:.1%}"],
        ["the same beside the hole", f"{kept['1']:.1%}"],
        ["the same two or more tokens away", f"{kept['2+']:.1%}"],
    ]
    return table([f"{details['images']} + {details['holed_images']} cats", "value"], rows)


def tours() -> str:
    """Seconds that `python -m docs.tours` took for each part of the README's tours."""
    record = json.loads((RESULTS / "tours.json").read_text(encoding="utf-8"))
    took = (f"{name} {sum(steps.values()):.0f} s" for name, steps in record["seconds"].items())
    run = f"All but the set-up and the page, run in a fresh clone on {machine(record)}"
    return f"{run}: {', '.join(took)}."


def recipes() -> str:
    """Validation losses of recipes of stage 2 and how far they are behind the first one."""
    record = latest("recipes")[-1]
    first = next(iter(record["result"].values()))["val_loss"]
    rows = [
        [name, f"{cell['val_loss']:.3f}", f"{cell['val_loss'] - first:+.3f}"]
        for name, cell in record["result"].items()
    ]
    return table(["recipe", "validation loss, nats", "beside the first"], rows)


# Studies


def study_folders() -> list[Path]:
    """Committed studies, the report's three first."""
    order = list(STUDIES)
    found = [path.parent for path in (RESULTS / "sweep").glob("*/results.csv")]
    return sorted(found, key=lambda path: ([*order, path.name].index(path.name), path.name))


def title_of(folder: Path) -> str:
    titles = GRIDS | {name: study["title"] for name, study in STUDIES.items()}
    return titles.get(folder.name, folder.name)


def groups_of(folder: Path) -> dict[str, list[Summary]]:
    """Row of a study's table -> its settings in the order of the columns."""
    scores: dict[str, dict[str, list[float]]] = {}
    for line in read_csv(folder / "results.csv"):
        row = scores.setdefault(line["row"] or "score", {})
        row.setdefault(line["column"], []).append(float(line["score"]))
    return {
        name: [Summary(column, tuple(values)) for column, values in columns.items()]
        for name, columns in scores.items()
    }


def conditions(folder: Path) -> str:
    """Which score, of how many images and seeds."""
    lines = read_csv(folder / "results.csv")
    name, images = lines[0]["score_name"], lines[0]["images"]
    seeds = len({line["seed"] for line in lines})
    return f"{name} of {images} images, mean ± standard deviation over {seeds} seeds of decoding"


def study_table(folder: Path, more: Iterable[Row] = ()) -> str:
    """One study in the report's form, the best of each row in bold."""
    groups = groups_of(folder)
    columns = list(dict.fromkeys(s.name for group in groups.values() for s in group))
    rows = []
    for name, group in groups.items():
        best = min(group, key=lambda s: s.mean)
        cells = {s.name: f"**{shown(s)}**" if s is best else shown(s) for s in group}
        rows.append([name, *(cells.get(column, "–") for column in columns)])
    return table([title_of(folder), *columns], [*rows, *more])


def shown(setting: Summary) -> str:
    spread = "" if setting.spread is None else f" ± {setting.spread:.2f}"
    return f"{setting.mean:.2f}{spread}"


def studies() -> str:
    """The tables of the report's studies alone."""
    folders = [folder for folder in study_folders() if folder.name in STUDIES]
    told = "; ".join(dict.fromkeys(map(conditions, folders)))
    return "\n\n".join([f"{told}; lower is better.", *map(study_table, folders)])


def studies_in_full() -> str:
    """Each study with what may be said about it, its plots, and what the report measured."""
    reported: dict[str, list[str]] = {}
    for line in read_csv(RESULTS / "report" / "fid.csv"):
        reported.setdefault(line["study"], ["*the report: FID, other weights*"]).append(line["fid"])
    blocks = []
    for folder in study_folders():
        more = [reported[folder.name]] if folder.name in reported else []
        said = [s for name, group in groups_of(folder).items() for s in statements(group, name)]
        files = sorted(folder.glob("*.png"))
        plots = [f"![{file.stem}](results/sweep/{folder.name}/{file.name})" for file in files]
        blocks += [f"## {title_of(folder)}", f"{conditions(folder)}.", study_table(folder, more)]
        blocks += ["\n".join(f"- {sentence}" for sentence in said), *plots]
    return "\n\n".join(blocks)


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "repair": repair,
    "speed": speed,
    "repair-cost": repair_cost,
    "mfu": mfu,
    "attention": attention,
    "soak": soak,
    "tokenizer-speed": tokenizer_speed,
    "tokenizer-quality": tokenizer_quality,
    "recipes": recipes,
    "tours": tours,
    "studies": studies,
    "studies-in-full": studies_in_full,
}


if __name__ == "__main__":
    main()

"""Write the tables of README, docs/ and the model card: ``python -m docs.tables``.

The text between <!-- table NAME --> and <!-- end --> is generated from docs/results/ and
bench/results/; run this after either has changed. A test compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from docs import quality_tables, speed_tables
from docs.results_files import ROOT

CARD = ROOT / "models" / "pretrained" / "cats64" / "README.md"
PAGES = (ROOT / "README.md", CARD, *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := rewritten(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


def rewritten(text: str) -> str:
    """A page with all tables regenerated; raises KeyError for an unknown name."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


TABLES: dict[str, Callable[[], str]] = {
    "demo": quality_tables.demo,
    "repair": quality_tables.repair,
    "repair-holes": quality_tables.repair_holes,
    "bf16": quality_tables.bf16,
    "speed": speed_tables.speed,
    "speed-in-full": speed_tables.speed_in_full,
    "repair-cost": speed_tables.repair_cost,
    "busy": speed_tables.busy,
    "mfu": speed_tables.mfu,
    "attention": speed_tables.attention,
    "tokenizer-speed": speed_tables.tokenizer_speed,
    "tokenizer-quality": quality_tables.tokenizer_quality,
    "recipes": quality_tables.recipes,
    "tours": quality_tables.tours,
    "studies-in-full": quality_tables.studies_in_full,
}


if __name__ == "__main__":
    main()

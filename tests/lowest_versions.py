"""The lowest versions that pyproject.toml allows, as pip's constraints; PyTorch as it comes.

``make test-lowest`` installs them. It runs before anything is installed, so it needs Python alone.
"""

import re
from pathlib import Path

BOUND = re.compile(r'"([\w-]+)>=([\d.]+)[",]')
AS_IT_COMES = ("torch", "torchvision")


def lowest_versions(text: str) -> dict[str, str]:
    """Package: lowest version, of the content of a pyproject.toml."""
    found = BOUND.findall(text.partition("\n[project]\n")[2].partition("\n[tool")[0])
    return {name: version for name, version in found if name not in AS_IT_COMES}


if __name__ == "__main__":
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    for name, version in lowest_versions(pyproject.read_text(encoding="utf-8")).items():
        print(f"{name}=={version}")

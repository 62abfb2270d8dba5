"""Print the oldest Flower that ``pyproject.toml`` allows, as pip wants it: what the image installs and ``make test-flower`` tests first."""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest(pyproject: Path = PYPROJECT) -> str:
    needs: list[str] = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    (version,) = (found[1] for need in needs if (found := re.match(r"flwr(?:\[\w+\])?>=([\d.]+)", need)))
    return f"flwr=={version}"


if __name__ == "__main__":
    print(oldest())

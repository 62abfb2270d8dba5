"""``make test-flower``: the federation's tests on other versions of Flower, each in an environment that lies over this one.

    python -m tests.on_flower FOLDER [VERSION...]

An environment below ``FOLDER`` has that Flower and what it needs otherwise; all else, torch among it, comes from the environment that this is run in.
Without versions: the oldest and the newest that ``pyproject.toml`` allows.
"""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["tests/federation", "tests/clients", "tests/integration/test_simulation.py"]


def allowed() -> list[str]:
    """Return the oldest and the newest Flower that ``pyproject.toml`` allows, as pip wants them."""
    needs: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "dependencies"
    ]
    oldest = subprocess.run(
        [sys.executable, ROOT / "docker/flower.py"], capture_output=True, text=True, check=True
    )
    return [
        oldest.stdout.strip(),
        next(need.replace("[simulation]", "") for need in needs if need.startswith("flwr")),
    ]


def environment(folder: Path, wanted: str) -> Path:
    """Make the environment for ``wanted``, a requirement, below ``folder``; return its Python."""
    home = folder / ("newest" if "<" in wanted else wanted.partition("==")[2])
    python = home / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    (own,) = home.glob("lib/python3*/site-packages")
    below = sysconfig.get_paths()["purelib"]
    (own / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    subprocess.run([*pip, wanted], check=True)
    return python


def main() -> int:
    folder, *versions = sys.argv[1:]
    failed = []
    for wanted in [f"flwr=={version}" for version in versions] or allowed():
        python = environment(Path(folder).absolute(), wanted)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        say = "import flwr; print(f'Flower {flwr.__version__} of {flwr.__file__}', flush=True)"
        settings = {**os.environ, "PYTHONPATH": path}
        subprocess.run([python, "-c", say], env=settings, check=True)
        if subprocess.run(
            [python, "-m", "pytest", *TESTS], cwd=ROOT, env=settings, check=False
        ).returncode:
            failed.append(wanted)
    print(f"failed: {', '.join(failed)}" if failed else "all passed", flush=True)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())

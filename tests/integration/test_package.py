"""What is shipped: the wheel, and the bundle that Flower sends."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(REPOSITORY),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_its_configs_and_the_apps(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"fedhubert", "server_app", "client_app"}
    for name in (
        "fedhubert/conf/config.yaml",
        "fedhubert/conf/experiment/demo.yaml",
        "fedhubert/data/manifest.py",
        "fedhubert/reporting/templates/report.html",
        "server_app/app.py",
    ):
        assert name in names


def test_the_installed_wheel_works_beside_another_projects_apps(
    wheel: Path, tmp_path: Path, tone_folder: Path
) -> None:
    """Elsewhere than in the checkout, with a `server_app` of somebody else's first on the path and in the working directory."""
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    project = tmp_path / "project"
    for name in ("server_app", "client_app"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(
            "raise RuntimeError('another project was imported')\n"
        )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{project}{os.pathsep}{site}",
        "FEDHUBERT_CACHE": str(tmp_path / "cache"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedhubert.cli", *arguments]
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)

    where = subprocess.run(
        [sys.executable, "-c", "import fedhubert; print(fedhubert.__file__)"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(site))
    assert (
        run("prepare", "folder", "--root", str(tone_folder), "--out", "tones.csv").returncode == 0
    )
    small = [
        "targets.num_clusters=4",
        "targets.max_iterations=1",
        "federated.num_rounds=1",
        "federated.num_clients=2",
        "client.local_steps=1",
    ]
    data = [
        "data.manifest=tones.csv",
        f"data.root={tone_folder}",
        "data.partition.kind=random",
        "out=run",
    ]
    done = run("train", *data, *small)
    assert done.returncode == 0, done.stderr
    assert (project / "run/checkpoints/round_001_checkpoint.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_in_a_fresh_environment_trains_and_exports(
    wheel: Path, tmp_path: Path, tone_folder: Path, version: str
) -> None:
    """With what pip gives today: some GB, for every Python that is here."""
    python = shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"python{version} is not here")
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    tools = tmp_path / "venv" / "bin"
    install = [str(tools / "python"), "-m", "pip", "install", "--quiet", str(wheel)]
    subprocess.run(install, check=True)
    environment = {**os.environ, "FEDHUBERT_CACHE": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)

    def fedhubert(*arguments: str) -> str:
        command = [str(tools / "fedhubert"), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert f"python: {version}" in fedhubert("doctor").lower()
    fedhubert("prepare", "folder", "--root", str(tone_folder), "--out", "tones.csv")
    data = ["data.manifest=tones.csv", f"data.root={tone_folder}", "data.partition.kind=speaker"]
    few = ["federated.num_clients=3", "federated.num_rounds=1", "client.local_steps=1"]
    small = ["targets.num_clusters=4", "data.min_seconds=0.5", "checkpoint.every=1"]
    assert "Rounds" in fedhubert("train", "experiment=demo", *data, *few, *small, "out=run")
    fedhubert("export", "--checkpoint", "run", "--format", "huggingface", "--out", "exported")
    assert (tmp_path / "exported/model.safetensors").is_file()
    assert "1 run:" in fedhubert("report", "run", "--out", "report.html")


def test_flowers_bundle_holds_code_and_configs_only(tmp_path: Path) -> None:
    flwr = Path(sys.executable).with_name("flwr")
    subprocess.run(
        [str(flwr), "build", "--app", str(REPOSITORY)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (bundle,) = tmp_path.glob("*.fab")
    names = zipfile.ZipFile(bundle).namelist()
    assert (
        "fedhubert/data/manifest.py" in names
        and "conf/config.yaml" in names
        and "server_app/app.py" in names
    )
    allowed = ("fedhubert/", "server_app/", "client_app/", "conf/", ".info/")
    assert all(name.startswith(allowed) or "/" not in name for name in names), names
    assert bundle.stat().st_size < 5 * 2**19  # the code alone is 2.0 MiB, and Flower takes 10 MB

"""Facts about the house itself: what the wheel carries, whose names these are, how fast the door opens."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "tools", "prompts", "knowledge", "evals")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def tracked(package: str) -> set[str]:
    """Files of a package that git knows, as the wheel names them."""
    out = subprocess.run(["git", "ls-files", "-z", package], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return {name for name in out.split("\0") if name and (ROOT / name).is_file()}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_carries_every_file_of_the_package(wheel: set[str], package: str) -> None:
    assert tracked(package) - wheel == set()


def test_the_wheel_carries_nothing_but_the_five_packages(wheel: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_the_name(package: str) -> None:
    assert set(packages_distributions().get(package, [])) <= {"meshwright"}


def test_the_pure_library_imports_without_langgraph_and_openai() -> None:
    code = (
        "import sys, tools.search, tools.oracle.prove, knowledge.catalog; "
        "print([m for m in ('openai', 'langgraph', 'mcp') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_nothing_in_the_project_names_a_machine_or_a_session() -> None:
    words = ["/" + "work/", "files.python" + "hosted", "pypi" + "-more"]
    found = [
        f"{path}: {word}"
        for path in subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
        .stdout.decode()
        .split("\0")
        if path and (ROOT / path).is_file() and (ROOT / path).stat().st_size < 2_000_000
        for word in words
        if word.encode() in (ROOT / path).read_bytes()
    ]
    assert found == []

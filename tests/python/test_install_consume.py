"""Other CMake projects can use libqbits, from an installed prefix and from inside the wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = os.environ.get("QBITS_BUILD")
WHEEL = os.environ.get("QBITS_WHEEL")

pytestmark = [
    pytest.mark.skipif(
        not BUILD or not WHEEL, reason="QBITS_BUILD, QBITS_WHEEL: not set; `make test` sets them"
    ),
    pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not on PATH"),
]


def run(*command, cwd=None):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def build_and_run_consumer(folder, package_dir):
    # Sources away from the repository, so that nothing but the installed package can be found.
    shutil.copytree(ROOT / "core/examples", folder / "source")
    build = folder / "build"
    run(
        "cmake",
        "-S",
        folder / "source",
        "-B",
        build,
        f"-Dqbits_DIR={package_dir}",
        "-DCMAKE_BUILD_TYPE=Release",
    )
    run("cmake", "--build", build)
    for name, error in (("multiply_cpu", "0.09"), ("multiply_int8_cpu", "0.00")):
        assert f"relative error of the product {error}" in run(build / name, cwd=folder)


def test_from_an_installed_prefix(tmp_path):
    prefix = tmp_path / "prefix"
    run("cmake", "--install", BUILD, "--prefix", prefix, "--component", "qbits")
    (package_dir,) = {path.parent for path in prefix.rglob("qbitsConfig.cmake")}
    build_and_run_consumer(tmp_path, package_dir)


def test_prefix_can_move(tmp_path):
    run("cmake", "--install", BUILD, "--prefix", tmp_path / "before", "--component", "qbits")
    (tmp_path / "before").rename(tmp_path / "after")
    files = [path for path in (tmp_path / "after").rglob("*.cmake") if str(tmp_path) in path.read_text()]
    assert files == []


def test_from_the_installed_wheel(tmp_path):
    package_dir = run(sys.executable, "-m", "qbits", "--cmake-dir", cwd=tmp_path).strip()
    assert (Path(package_dir) / "qbitsConfig.cmake").is_file()
    build_and_run_consumer(tmp_path, package_dir)


@pytest.mark.parametrize("version", ["0.1", "9.0"])
def test_version_check(tmp_path, version):
    package_dir = run(sys.executable, "-m", "qbits", "--cmake-dir", cwd=tmp_path).strip()
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(consumer LANGUAGES CXX)\n"
        f"find_package(qbits {version} CONFIG)\nmessage(STATUS found=${{qbits_FOUND}})\n"
    )
    output = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-Dqbits_DIR={package_dir}")
    assert f"found={1 if version == '0.1' else 0}" in output

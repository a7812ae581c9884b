"""The wheel `make` built: what it carries, what it links, where it can run."""

import os
import platform
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEEL = os.environ.get("QBITS_WHEEL")
pytestmark = pytest.mark.skipif(
    not WHEEL, reason="QBITS_WHEEL names no wheel; `make test` builds one and does"
)

# What every Linux machine with a C++ program on it has. No torch, no cudart, no cuBLAS, no driver.
SYSTEM_LIBRARIES = {
    "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0", "libdl.so.2",
    "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
}  # fmt: skip
# The newest symbols of Debian 12; Ubuntu 24.04 and everything later has them too.
NEWEST_SYMBOLS = {"GLIBC": (2, 36), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)}


def version_tuple(text):
    return tuple(int(part) for part in text.split(".") if part)


@pytest.fixture(scope="module")
def names():
    with zipfile.ZipFile(WHEEL) as wheel:
        return set(wheel.namelist())


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(unpacked):
    return next(unpacked.glob("qbits-*.dist-info/METADATA")).read_text()


def readelf(flag, library):
    return subprocess.run(["readelf", "-W", flag, library], check=True, capture_output=True, text=True).stdout


def libraries(folder):
    found = sorted(folder.rglob("*.so*"))
    assert [library.name for library in found] == ["_C.abi3.so", "libqbits.so"]
    return found


def test_one_wheel_for_every_python():
    assert re.fullmatch(r"qbits-[0-9.]+-cp310-abi3-[a-z0-9_]+\.whl", Path(WHEEL).name)


def test_version_is_the_header_s(metadata):
    header = (ROOT / "core/include/qbits/version.h").read_text()
    version = re.search(r'QBITS_VERSION "(.*)"', header).group(1)
    assert f"\nVersion: {version}\n" in metadata


def test_python_side(names):
    assert {
        "qbits/__init__.py",
        "qbits/__main__.py",
        "qbits/_C.abi3.so",
        "qbits/_C.pyi",
        "qbits/py.typed",
    } <= names
    assert any(name.endswith("LICENSE") for name in names)


def test_cpp_side(names):
    headers = {f"qbits/include/qbits/{path.name}" for path in (ROOT / "core/include/qbits").glob("*.h")}
    assert headers == {name for name in names if name.endswith(".h")}
    cmake = {f"qbits/lib/cmake/qbits/qbits{part}.cmake" for part in ("Config", "ConfigVersion", "Targets")}
    assert cmake | {"qbits/lib/libqbits.so"} <= names


def test_nothing_else(names):
    kinds = {Path(name).suffix for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert kinds <= {".py", ".pyi", ".typed", ".so", ".h", ".cmake", ""}
    assert not [
        name for name in names if re.search(r"(^|/)(tests?|bench|examples)/|__pycache__|nanobind", name)
    ]


def test_links_only_the_system_and_itself(unpacked):
    for library in libraries(unpacked):
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", library)))
        assert needed <= SYSTEM_LIBRARIES | {"libqbits.so"}, library.name


def test_finds_libqbits_beside_itself(unpacked):
    extension, core = libraries(unpacked)
    assert re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", readelf("-d", extension)) == ["$ORIGIN:$ORIGIN/lib"]
    assert not re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.+)\]", readelf("-d", core))


@pytest.mark.skipif(
    version_tuple(platform.libc_ver()[1]) > NEWEST_SYMBOLS["GLIBC"],
    reason="wheels for others are built on Debian 12; this system is newer",
)
def test_runs_on_other_distributions(unpacked):
    for library in libraries(unpacked):
        needs = readelf("-V", library).split(".gnu.version_r")[1]
        for family, version in re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)", needs):
            assert version_tuple(version) <= NEWEST_SYMBOLS[family], f"{library.name}: {family}_{version}"


def test_exports_only_its_interface(unpacked):
    exported = r" FUNC +GLOBAL +DEFAULT +\d+ (\S+)"  # \d+: a section, so defined here
    extension, core = (
        re.findall(exported, readelf("--dyn-syms", library)) for library in libraries(unpacked)
    )
    assert extension == ["PyInit__C"]
    assert core and all("5qbits" in name for name in core)


def test_asks_for_what_it_needs(metadata):
    required = set(re.findall(r"^Requires-Dist: ([A-Za-z0-9_-]+)[^;\n]*$", metadata, re.MULTILINE))
    assert {"torch", "nanobind-backend"} <= required
    assert not required & {"bitsandbytes", "transformers", "pytest", "nanobind"}

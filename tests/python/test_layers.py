"""The arrows between the layers, read from #include lines and imports: nothing may point upwards."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core"
PACKAGE = ROOT / "python/qbits"
SOURCES = ("*.h", "*.cc", "*.cu", "*.cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)
SIMD = {"immintrin.h", "x86intrin.h", "arm_neon.h", "xmmintrin.h"}
# Who, beside the op files, talks to the compiled module: what needs its tables and settings, not its ops.
C_USERS = {
    "__init__.py",
    "codec.py",
    "diagnosis.py",
    "formats.py",
    "functional/maps.py",
    "functional/plan.py",
    "optim/groups.py",
    "optim/muon.py",
    "optim/optimizer.py",
    "optim/paging.py",
    "optim/sharding.py",
    "optim/state_dict.py",
    "runtime.py",
}


def sources(folder):
    return sorted(path for pattern in SOURCES for path in folder.rglob(pattern))


def includes(path):
    return [(quote == "<", name) for quote, name in INCLUDE.findall(path.read_text())]


def relative(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def layer(path):
    """The first folder under core/src, "src" for a file right in it."""
    parts = path.relative_to(CORE / "src").parts
    return parts[0] if len(parts) > 1 else "src"


@pytest.mark.parametrize("path", relative(sources(CORE / "include")))
def test_public_headers_need_only_each_other_and_the_standard_library(path):
    for system, name in includes(ROOT / path):
        assert name.startswith("qbits/") or (system and "." not in name and "/" not in name), name


# What each part of core/src may include beside <qbits/...>, the standard library and itself.
ALLOWED = {"ops": (), "cpu": ("ops",), "cuda": ("ops",), "no_cuda": ("ops",), "src": ("ops", "cpu")}


@pytest.mark.parametrize("path", relative(sources(CORE / "src")))
def test_back_ends_see_ops_and_ops_see_no_back_end(path):
    own = layer(ROOT / path)
    for system, name in includes(ROOT / path):
        first = name.split("/")[0]
        if name in SIMD:
            assert own == "cpu", f"{path} uses SIMD: {name}"
        elif re.match(r"(cuda|cublas|mma|cooperative_groups|cub/)", name) and "/" not in name.removeprefix(
            "cub/"
        ):
            assert own == "cuda", f"{path} uses CUDA: {name}"
        elif not system and first in ALLOWED:
            assert first == own or first in ALLOWED[own], f"{path} includes {name}"


@pytest.mark.parametrize("path", relative(sources(CORE)))
def test_core_knows_neither_python_nor_torch(path):
    for _, name in includes(ROOT / path):
        assert not re.match(r"(Python\.h|torch/|ATen/|c10/|nanobind/|pybind11/)", name), (
            f"{path} includes {name}"
        )


@pytest.mark.parametrize("path", relative(sources(ROOT / "bindings")))
def test_bindings_see_only_public_headers(path):
    own = {file.name for file in sources(ROOT / "bindings")}
    for system, name in includes(ROOT / path):
        allowed = name in own or name.startswith(("qbits/", "nanobind/")) or (system and "/" not in name)
        assert allowed, f"{path} includes {name}"
        assert not name.startswith(("torch/", "ATen/", "cuda")), f"{path} includes {name}"


def imports(path):
    """Every module a file imports, at its top level and inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_at_load(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", relative(MODULES))
def test_only_ops_and_a_few_helpers_touch_the_compiled_module(path):
    inside = (ROOT / path).relative_to(PACKAGE)
    if any(name.startswith("qbits._C") for name in imports(ROOT / path)):
        assert inside.parts[0] == "ops" or str(inside) in C_USERS, path


@pytest.mark.parametrize("path", relative(sorted((PACKAGE / "ops").glob("*.py"))))
def test_ops_import_nothing_above_them(path):
    for name in imports(ROOT / path):
        if name.startswith("qbits."):
            assert name.split(".")[1] in {"_C", "formats", "ops"}, f"{path} imports {name}"


OPTIONAL = {"transformers", "peft", "accelerate", "safetensors", "bitsandbytes", "diffusers", "gguf", "scipy"}


@pytest.mark.parametrize("path", relative(MODULES))
def test_optional_libraries_are_imported_lazily(path):
    inside = (ROOT / path).relative_to(PACKAGE)
    if inside.parts[0] == "integrations":
        return
    found = {name.split(".")[0] for name in imports_at_load(ROOT / path)} & OPTIONAL
    assert not found, f"{path} imports {found} when it is loaded"


@pytest.mark.parametrize("path", relative(MODULES))
def test_integrations_and_the_cli_are_not_loaded_by_import_qbits(path):
    inside = (ROOT / path).relative_to(PACKAGE)
    if inside.parts[0] in {"integrations", "cli", "bitsandbytes", "__main__.py"}:
        return
    for name in imports_at_load(ROOT / path):
        assert not name.startswith(("qbits.integrations", "qbits.cli", "qbits.bitsandbytes")), (
            f"{path}: {name}"
        )


@pytest.mark.parametrize("op", sorted(path.stem for path in (PACKAGE / "ops").glob("[a-z]*.py")))
def test_an_op_has_one_stem_in_every_layer(op):
    headers = "".join(path.read_text() for path in (CORE / "include/qbits").glob("*.h"))
    bindings = "".join(path.read_text() for path in (ROOT / "bindings").glob("*.cc"))
    assert re.search(rf"\bvoid {op}\(", headers), "no public function"
    assert f'"{op}"' in bindings, "no binding"
    assert hasattr(__import__("qbits").ops, op), "not exported by qbits.ops"

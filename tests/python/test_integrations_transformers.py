"""from_pretrained, save and reload through the plug-in, on each transformers version at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
SCRIPT = Path(__file__).with_name("transformers_plugin_script.py")


def run(args, tmp_path, path=None):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")])))
    result = subprocess.run(
        [sys.executable, *args, str(tmp_path)], capture_output=True, text=True, env=env, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_installed_version(tmp_path):
    assert run([str(SCRIPT)], tmp_path).splitlines()[-1] == "ok"


def test_5_23(tmp_path):
    path = os.environ.get("QBITS_TRANSFORMERS_523")
    if not path:
        pytest.skip("QBITS_TRANSFORMERS_523 does not name a folder with transformers 5.23")
    out = run([str(SCRIPT)], tmp_path, path)
    assert "transformers 5.23" in out
    assert out.splitlines()[-1] == "ok"


@pytest.mark.parametrize("order", ["import qbits, transformers", "import transformers, qbits"])
def test_import_order_does_not_matter(order, tmp_path):
    code = (
        f"{order}\n"
        "import sys\n"
        "first = 'transformers.quantizers.auto' in sys.modules\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as known\n"
        "assert 'qbits' in known\n"
        "assert qbits.QbitsConfig is known['qbits']\n"
    )
    run(["-c", code], tmp_path)


def test_qbits_does_not_import_transformers(tmp_path):
    run(["-c", "import sys, qbits; assert 'transformers' not in sys.modules, 'imported'"], tmp_path)


def test_without_transformers():
    """All else can be imported, and what cannot says what it wants."""
    script = """
import sys
sys.modules["transformers"] = None
from qbits import *
import qbits
try:
    qbits.QbitsConfig
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    want = "[qbits] QbitsConfig: got no transformers, want it: pip install 'qbits[hf]'\n"
    assert result.stdout == want, result.stderr

import subprocess
import sys

import pytest

from gebm.errors import InputError
from gebm.registry import resolve

REGISTRY = {"alpha": 1, "beta": 2}


def test_registered_and_dotted():
    assert resolve("beta", REGISTRY, "--x") == 2
    assert resolve("collections:OrderedDict.fromkeys", REGISTRY, "--x")("a") == {"a": None}


@pytest.mark.parametrize(
    "name, says",
    [
        ("betta", r"^--x 'betta': choose alpha, beta or a path package.module:attribute; did you mean beta\?$"),
        ("zzz", r"package.module:attribute$"),
        ("", "choose alpha"),
        (":alpha", "choose alpha"),
        ("os:", "choose alpha"),
        ("./file.py:f", "choose alpha"),
        ("os:nothing", "cannot be imported .*nothing"),
        ("no_such_module:f", "cannot be imported .*no_such_module"),
    ],
)
def test_errors(name, says):
    with pytest.raises(InputError, match=says) as error:
        resolve(name, REGISTRY, "--x")
    assert "\n" not in str(error.value)


def test_imports_no_torch():
    code = "import sys, gebm.registry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

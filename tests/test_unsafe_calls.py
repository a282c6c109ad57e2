"""The package's own source: what can run code, or trusts sizes in a file, is called in its one home alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# a call, by the end of its name -> the files that may make it
HOMES = {
    "pickle.load": (), "pickle.loads": (), "pickle.Unpickler": (), "pickle._Unpickler": ("data/archives.py",),
    "marshal.loads": (), "marshal.load": (), "shelve.open": (), "dill.load": (), "joblib.load": (), "read_pickle": (),
    "yaml.load": ("flags.py",), "yaml.load_all": (), "yaml.full_load": (), "yaml.unsafe_load": (),
    "json.load": (), "json.loads": ("bounded.py",),
    "np.fromfile": (), "np.memmap": (), "np.genfromtxt": (), "format.read_array": ("data/arrays.py",),
    "zipfile.ZipFile": ("data/archives.py",), "tarfile.open": ("data/archives.py",),
    "gzip.open": ("data/archives.py", "data/uci.py"),
    "extractall": (), "extract": (), "unpack_archive": (), "Untar": (), "Unzip": (), "Decompress": (),
    "safe_open": ("weights.py",), "load_file": (), "safetensors.torch.load": (),
    "torch.jit.load": (), "torch.hub.load": (), "torch.package": (),
    "torch.load": ("metrics/resnet56.py", "metrics/inception.py", "reference.py"),
    "Image.open": ("data/transform.py",), "load_dataset": ("data/hub.py",), "lmdb.open": ("data/lsun.py",),
    "importlib.import_module": ("registry.py", "cli.py", "__init__.py"), "__import__": (),
    "eval": (), "exec": (), "compile": (),
    # what waits for ever where a pipe lies: bounded.py opens files, or checks those that a library opens
    "read_text": ("memory.py", "report/page.py"), "os.open": ("files.py", "text.py", "data/cache.py"),
    "os.system": (), "os.popen": (), "subprocess.run": (), "subprocess.Popen": ("commands/submit.py",),
    "subprocess.call": (),
    "subprocess.check_output": (), "subprocess.check_call": (), "runpy.run_path": (), "runpy.run_module": (),
}  # fmt: skip
BUILTINS = ("eval", "exec", "compile", "__import__")
READERS = ("bounded.py", "data/cache.py")  # may open a file to read it; the second one that it has just made


def unsafe_calls(source: str, file: str) -> list[str]:
    """Where a source makes a call that is not at home in that file, or one without what makes it safe."""
    tree, found = ast.parse(source), []
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            called = [ast.unparse(base) for base in node.bases]  # a class made from an unsafe one
        elif isinstance(node, ast.Call):
            called = [ast.unparse(node.func)]
        else:
            continue
        for name in called:
            head, _, rest = name.partition(".")
            full = ".".join(filter(None, (names.get(head, head), rest)))
            wrong = any(homeless(full, ending, file) for ending in HOMES)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            wrong |= full.endswith("torch.load") and keywords.get("weights_only") != "True"
            wrong |= full == "numpy.load" and keywords.get("allow_pickle") != "False"
            wrong |= full == "yaml.load" and keywords.get("Loader") != "_Loader"
            wrong |= isinstance(node, ast.Call) and opens_to_read(node, name) and file not in READERS
            if wrong:
                found.append(f"{file}:{node.lineno}: {name}")
    return found


def opens_to_read(call: ast.Call, name: str) -> bool:
    """Whether a call is `open` with no mode, or one that does not begin with w or a; `read_bytes` of a path."""
    if name.endswith(".read_bytes") and not call.args:
        return True
    if name != "open":
        return False
    modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return not (modes and isinstance(modes[0], ast.Constant) and str(modes[0].value)[0] in "wa")


def homeless(full: str, ending: str, file: str) -> bool:
    if ending in BUILTINS:
        return full == ending
    spelt = ending.replace("np.", "numpy.")
    if not (full == spelt or full.endswith(f".{spelt}")):
        return False
    return not full.startswith("gebm.") and file not in HOMES[ending]


def imported(tree: ast.AST) -> dict[str, str]:
    """What the names of a module's imports stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_package_makes_no_unsafe_call():
    files = sorted((ROOT / "gebm").rglob("*.py"))
    assert len(files) > 90
    relative = {file.relative_to(ROOT / "gebm").as_posix(): file.read_text(encoding="utf-8") for file in files}
    assert [call for file, source in relative.items() for call in unsafe_calls(source, file)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path)", "from torch import load as l\nl(path)",
        "import torch\ntorch.load(path, weights_only=False)", "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)", "from numpy import load\nload(path)",
        "import pickle as p\np.loads(content)", "import pickle\nclass U(pickle.Unpickler): pass",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)", "import yaml\nyaml.unsafe_load(text)",
        "import tarfile\ntarfile.open(path)", "archive.extractall(folder)",
        "import shutil\nshutil.unpack_archive(path)",
        "eval(text)", "exec(text)", "__import__(name)", "from importlib import import_module\nimport_module(name)",
        "from safetensors.torch import load_file\nload_file(path)", "from PIL import Image\nImage.open(path)",
        "import pooch\npooch.Untar()", "import json\njson.loads(text)", "import os\nos.system(text)",
        "open(path)", "open(path, mode)", "open(path, mode='rb')", "path.read_text()", "path.read_bytes()",
    ],
)  # fmt: skip
def test_the_search_finds(source):
    assert unsafe_calls(source, "other.py")


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "re.compile(x)", "import yaml\nyaml.safe_load(x)", "torch.compile(f)", "open(path, 'wb')"],
)
def test_the_search_leaves_alone(source):
    assert not unsafe_calls(source, "other.py")

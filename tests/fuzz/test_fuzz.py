"""A few hundred damaged inputs, from a fixed seed; and that the harness sees what it is there for."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SPIES = """
import ctypes, os, sys, time
sys.path.insert(0, sys.argv[1])
import harness
from gebm.errors import InputError
from targets import TARGETS, Target
harness.CPU_S, harness.WALL_S, harness.MEMORY, harness.FIRST_S = 0.3, 20.0, 200 << 20, 0.0

def call(content, folder):
    if content == b"refused": raise InputError("one line")
    if content == b"lines": raise InputError("two\\nlines")
    if content == b"traceback": raise KeyError("x")
    if content == b"crash": ctypes.string_at(0)
    if content == b"exit": os._exit(0)
    if content == b"memory": bytearray(300 << 20)
    if content == b"hang": time.sleep(60)
    start = time.process_time()
    while content == b"slow" and time.process_time() - start < 0.5: pass
    while content == b"busy": pass

inputs = b"read refused lines traceback crash exit read memory slow hang busy read".split()
TARGETS["spy"] = Target(lambda: [b"read"], call)
print(*(outcome.kind for outcome in harness.run_target("spy", inputs)))
"""


def test_nothing_gets_through():
    command = [sys.executable, HERE / "run.py", "--inputs", "330", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "330 inputs" in done.stdout


def test_the_harness_sees_failures():
    done = subprocess.run([sys.executable, "-c", SPIES, HERE], capture_output=True, text=True, timeout=300)
    wanted = "read refused no one line traceback crash crash read traceback slow hang hang read"
    assert done.stdout.strip() == wanted, done.stderr

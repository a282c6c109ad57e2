"""Starting several processes that find each other as under torchrun, without its own seconds to start."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **more}


def start(processes: int, words: list[str], folder: Path) -> list[subprocess.Popen]:
    """`python WORDS` in each process; what process r prints lies in `folder`/out.r and err.r."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        own |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with open(folder / f"out.{rank}", "w") as out, open(folder / f"err.{rank}", "w") as err:
            environ = environment(**own) if processes > 1 else environment()
            started.append(subprocess.Popen([sys.executable, *words], env=environ, stdout=out, stderr=err, cwd=folder))
    return started


def finish(started: list[subprocess.Popen], timeout_s: float = 500) -> list[int]:
    """The exit codes, once all have ended."""
    try:
        return [process.wait(timeout_s) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()

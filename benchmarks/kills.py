"""Kill training and data preparation at random moments, start them again, and compare the end with an undisturbed one.

python benchmarks/kills.py --kills 100           # of each kind, minutes; one process, on the CPU

A run is started again and again by the same command, as a cluster's queue would, and killed (SIGKILL) at a moment that
is uniform over the time a whole run takes, until it comes to its end. There its checkpoints must be those of the
undisturbed run in every byte, its log must have the same lines, and nothing half written may be left. Checkpoints are
written at every step, so that many kills fall within the writing of one. Processes are forked from this one, which
has imported everything, and make no report, which would take most of the time: a life is as long as its training. Ends
with an error where anything differs.
"""

import argparse
import json
import os
import random
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn.datasets  # noqa: F401 (what a life would import late)
import torch._dynamo  # noqa: F401
from PIL import Image

import gebm.commands.data  # noqa: F401
from gebm.cli import main as gebm_main
from gebm.commands import train
from gebm.data import cache, transform

TRAIN = shlex.split(
    "train --device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 3 --width .05 --b_size 8 --ema .9 "
    "--total_gen_iter 6 --n_iter_d 2 --n_iter_d_init 3 --refine_iter 8 --checkpoint_freq 1 --disp_freq 2 --lr 1e-3 "
    "--log_name x --resume auto"
)
PREPARE = shlex.split("data prepare --dataset folder:images --image_size 16 --data_path data")
IMAGES, CHUNK = 240, 8  # a build of many parts in a second
KILLED = -9


def life(folder: Path, argv: list[str], seconds: float | None = None) -> int:
    """A process that does `gebm ARGV` in a folder, killed after so many seconds; its exit code, -9 for the kill."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 99
        try:
            os.chdir(folder)
            for number, name in (1, "out"), (2, "err"):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            code = gebm_main(argv)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, -KILLED)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ended(folder: Path, argv: list[str], seconds: float | None = None) -> bool:
    """Whether that process came to its end; any other end than that or the kill is an error."""
    code = life(folder, argv, seconds)
    if code not in (0, KILLED):
        raise SystemExit(f"{folder}: gebm {argv[0]} ended with {code}: {(folder / 'err').read_text()[-2000:]}")
    return code == 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def training(folder: Path) -> dict[str, object]:
    """What must be the same of two runs that have ended."""
    run = folder / "runs" / "x"
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return {
        "checkpoints": files(run / "checkpoints"),
        "lines of stats.jsonl": [(row["stage"], row["g_step"], row["e_step"]) for row in rows],
        "grids": files(run / "grids"),
        "configuration": (run / "config.yaml").read_bytes(),
        "half written": [str(p) for p in folder.rglob(".*.*") if p.suffix in (".tmp", ".old")],
    }


def preparation(folder: Path) -> dict[str, object]:
    """The same of two prepared data sets."""
    return {"cache": {name.split("/", 1)[1]: content for name, content in files(folder / "data" / "cache").items()}}


def within_a_write(folder: Path) -> bool:
    return any(p.suffix in (".tmp", ".old", ".partial") for p in folder.rglob(".*.*"))


def kill(
    kind: str, argv: list[str], kills: int, folder: Path, moments: random.Random, outcome: Callable[[Path], dict]
) -> None:
    """Kill processes of one kind so many times, and print what came of it."""

    def fresh(name: str) -> Path:
        (folder / name).mkdir(parents=True)
        return folder / name

    whole = fresh("whole")
    began = time.monotonic()
    ended(whole, argv)
    duration, expected = time.monotonic() - began, outcome(whole)
    killed = writing = runs = most = 0
    while killed < kills:
        mine, here = fresh(f"{runs:03d}"), 0
        while killed < kills and not ended(mine, argv, moments.uniform(0, duration)):
            killed, here, writing = killed + 1, here + 1, writing + within_a_write(mine)
        ended(mine, argv)
        found = outcome(mine)
        if different := [what for what in expected if found[what] != expected[what]]:
            raise SystemExit(f"{kind}, {mine}, killed {here} times: other {', '.join(different)} than undisturbed")
        runs, most = runs + 1, max(most, here)
    print(
        f"{kind}: {killed} kills in lives of {duration:.1f} s, {writing} while something was half written; "
        f"{runs} runs, killed up to {most} times each, all ended bit-identical to the undisturbed one",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of training, and of data preparation")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    cache.CHUNK = transform.CHUNK = CHUNK
    train.write_report = lambda run, allow: run
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "images").mkdir()
        for i, image in enumerate(np.random.default_rng(0).integers(256, size=(IMAGES, 24, 24, 3), dtype=np.uint8)):
            Image.fromarray(image).save(folder / "images" / f"{i:04d}.png")
        argv = [word.replace("folder:images", f"folder:{folder / 'images'}") for word in PREPARE]
        moments = random.Random(options.seed)
        kill("training", TRAIN, options.kills, folder / "train", moments, training)
        kill("preparation", argv, options.kills, folder / "prepare", moments, preparation)


if __name__ == "__main__":
    main()

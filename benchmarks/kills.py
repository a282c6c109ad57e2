"""Kill commands at random moments, start them again, and compare the end with an undisturbed one.

python benchmarks/kills.py --kills 20           # of each kind, minutes; one process, on the CPU

A command is started again and again, as a cluster's queue would, and killed (SIGKILL) at a moment that is uniform over
the time that it takes, until it comes to its end. There what it made must be that of the undisturbed one in every byte
(checkpoints and weights, samples, figures, pages), and nothing half written may be left. Training writes a checkpoint
at every step, so that many kills fall within the writing of one. Processes are forked from this one, which has imported
everything, and training makes no page, which would take most of the time. Ends with an error where anything differs.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import sklearn.datasets  # noqa: F401 (what a life would import late)
import torch._dynamo  # noqa: F401
from PIL import Image

import gebm.commands.data
import gebm.commands.evaluate
import gebm.commands.export
import gebm.commands.report
import gebm.commands.sample
import gebm.commands.score  # noqa: F401
from gebm.cli import main as gebm_main
from gebm.commands import train
from gebm.data import cache, transform

SMALL = "--device -2 --g_model dcgan --d_model dcgan --Z_dim 3 --width .05 --b_size 8 --lr 1e-3 --disp_freq 2"
STEPS = "--total_gen_iter 6 --n_iter_d 2 --n_iter_d_init 3 --refine_iter 8 --checkpoint_freq 1"
FLOW = "--device -2 --dataset csv:t.csv --g_model nvp --width .05 --num_blocks 1 --b_size 16 --checkpoint_freq 2"
EPOCHS = "--disp_freq 5 --ml_epochs 2 --total_epochs 2 --refine_epochs 2 --partition_samples 100"
KALE = "--eval_fid --fid_features pixels --fid_samples 40 --freq_fid 1 --keep 1"
DRAW = "--device -2 --dataset digits --n_samples 30 --num_sampler_steps 20 --temperature 1 --latent_sampler mala"
COMMANDS = {
    "training": f"train --dataset digits {SMALL} {STEPS} --ema .9 --log_name x --resume auto",
    "training, distances": f"train --dataset digits {SMALL} {STEPS} {KALE} --log_name x --resume auto",
    "training, tables": f"train {FLOW} {EPOCHS} --log_name t --resume auto",
    "training, splits": f"train {FLOW} {EPOCHS} --n_splits 2 --log_name t --resume auto",
    "sampling": f"sample {DRAW} --g_path runs/x --log_name s",
    "evaluation": "evaluate runs/x --device -2 --json found.json",
    "report": "report runs/x",
    "export": "export runs/x out",
    "scores": "score t.csv --g_path runs/t --device -2",
    "preparation": "data prepare --dataset folder:images --image_size 16 --data_path data",
}
MADE_OF = ("sampling", "evaluation", "report", "export", "scores")  # commands that take a run
ONCE = ("sampling", "export")  # refuse to do again what has been done
VARYING = ("summary.json", "summary.txt", ".lock", ".serial", "out", "err")  # by times and processes
IMAGES, ROWS, CHUNK = 240, 120, 8  # a build of many parts in a second
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


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def outcome(folder: Path) -> dict[str, object]:
    """What must be the same in two folders where the same commands have ended."""
    found: dict[str, object] = {}
    for name, content in files(folder).items():
        path = Path(name)
        if path.name == "stats.jsonl":
            rows = [json.loads(line) for line in content.decode().splitlines()]
            found[name] = [(row["stage"], row["ml_step"], row["g_step"], row["e_step"]) for row in rows]
        elif "tensorboard" not in path.parts:
            timed = path.name == "report.html" and (folder / path.parent / "summary.json").exists()
            found[name] = None if timed or path.name in VARYING else content
    return found


def left_over(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob(".*.*") if p.suffix in (".tmp", ".old", ".partial")]


def ended(kind: str, folder: Path, argv: list[str], seconds: float | None = None) -> bool:
    """Whether that process came to its end; any other end than that or the kill is an error."""
    code = life(folder, argv, seconds)
    if code == 2 and kind in ONCE and "exists" in (folder / "err").read_text():
        return True  # killed after it had come to its end: what is there is compared all the same
    if code not in (0, KILLED):
        raise SystemExit(f"{folder}: gebm {argv[0]} ended with {code}: {(folder / 'err').read_text()[-2000:]}")
    return code == 0


def kill(kind: str, kills: int, folder: Path, material: Path, moments: random.Random) -> None:
    """Kill processes of one kind so many times, and print what came of it."""
    # Where images lie is in the name of their cache.
    argv = shlex.split(COMMANDS[kind].replace("folder:images", f"folder:{material / 'images'}"))

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(material, folder / name))

    whole = fresh("whole")
    began = time.monotonic()
    ended(kind, whole, argv)
    duration, expected = time.monotonic() - began, outcome(whole)
    killed = writing = runs = most = 0
    while killed < kills:
        mine, here = fresh(f"{runs:03d}"), 0
        while killed < kills and not ended(kind, mine, argv, moments.uniform(0, duration)):
            killed, here, writing = killed + 1, here + 1, writing + bool(left_over(mine))
        ended(kind, mine, argv)
        found = outcome(mine)
        different = [name for name in sorted({*expected, *found}) if found.get(name) != expected.get(name)]
        if different or left_over(mine):
            what = ", ".join([*different, *left_over(mine)])
            raise SystemExit(f"{kind}, {mine}, killed {here} times: other than undisturbed: {what}")
        shutil.rmtree(mine)
        runs, most = runs + 1, max(most, here)
    print(
        f"{kind}: {killed} kills in lives of {duration:.1f} s, {writing} while something was half written; "
        f"{runs} runs, killed up to {most} times each, all ended bit-identical to the undisturbed one",
        flush=True,
    )


def write_material(folder: Path) -> None:
    """A table and pictures to learn from."""
    random_numbers = np.random.default_rng(0)
    rows = random_numbers.standard_normal((ROWS, 2)).tolist()
    (folder / "t.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in rows))
    (folder / "images").mkdir()
    for i, image in enumerate(random_numbers.integers(256, size=(IMAGES, 24, 24, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / "images" / f"{i:04d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--kind", action="append", choices=COMMANDS, help="of these alone")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    cache.CHUNK = transform.CHUNK = CHUNK
    train.write_report = lambda run, allow: run
    with tempfile.TemporaryDirectory() as temporary:
        material, trained = Path(temporary, "material"), Path(temporary, "trained")
        material.mkdir()
        write_material(material)
        kinds = options.kind or list(COMMANDS)
        if set(kinds) & set(MADE_OF):
            shutil.copytree(material, trained)
            for kind in ("training", "training, tables"):
                ended(kind, trained, shlex.split(COMMANDS[kind]))
        moments = random.Random(options.seed)
        for number, kind in enumerate(kinds):
            kill(kind, options.kills, Path(temporary, str(number)), trained if kind in MADE_OF else material, moments)


if __name__ == "__main__":
    main()

"""Fuzz all readers: python tests/fuzz/run.py --inputs 10000 --seed 0 [--target NAME]

Prints what came of the inputs of each target, the slowest and the largest; failing inputs are kept in --keep. The exit
code is 1 if there are any.
"""

import argparse
import hashlib
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import CPU_S, MEMORY, inputs_of, run_target, shares

SOUND = ("read", "refused")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="of these alone (with the inputs they have among all)")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for inputs that failed")
    args = parser.parse_args()
    print(f"seed {args.seed}, limits: {CPU_S:g} s of CPU and {MEMORY >> 20} MiB an input", flush=True)
    print(f"{'target':28}{'inputs':>7}{'read':>7}{'refused':>9}{'failed':>8}{'slowest':>10}{'memory':>9}")
    start, total, failures = time.monotonic(), Counter(), Counter()
    slowest, largest = (0.0, ""), (0, "")
    for name, count in shares(args.inputs).items():
        if args.target and name not in args.target:
            continue
        inputs = inputs_of(name, count, args.seed)
        outcomes = run_target(name, inputs)
        kinds = Counter(outcome.kind for outcome in outcomes)
        total.update(kinds)
        for content, outcome in zip(inputs, outcomes):
            if outcome.kind not in SOUND:
                file = args.keep / f"{name.replace(' ', '-')}-{hashlib.sha256(content).hexdigest()[:8]}"
                args.keep.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                failures[name, outcome.kind, outcome.said] += 1
        seconds, memory = max(o.seconds for o in outcomes), max(o.memory for o in outcomes)
        slowest, largest = max(slowest, (seconds, name)), max(largest, (memory, name))
        failed = len(outcomes) - sum(kinds[kind] for kind in SOUND)
        counts = f"{len(outcomes):7}{kinds['read']:7}{kinds['refused']:9}{failed:8}"
        print(f"{name:28}{counts}{seconds:9.2f}s{memory / 2**20:6.0f}MiB", flush=True)
    for (name, kind, said), times in failures.most_common():
        print(f"FAILED {name}: {kind}, {times} times: {said}")
    print(
        f"{total.total():,} inputs in {time.monotonic() - start:.0f} s, "
        f"{total['read']:,} read, {total['refused']:,} refused"
    )
    print(f"{sum(failures.values())} failed; slowest {slowest[0]:.2f} s of CPU ({slowest[1]}), ", end="")
    print(f"greatest memory {largest[0] / 2**20:.0f} MiB ({largest[1]})")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

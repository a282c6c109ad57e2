"""Training steps on one and on more processes of this machine, in turn; and what more machines would come to.

python benchmarks/scaling.py --seconds 120 --json scaling.json        # measured here, on the CPU over gloo
python benchmarks/scaling.py --calculate                              # from bytes and operations; nothing is run

Each batch is of all processes together, so what is measured is by how much W processes shorten the same step. The
processes live side by side and step in turn: while one group steps the others wait.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from timing import compare, environment, interleave
from torch.optim import Adam

from gebm import parallel
from gebm.data import Batches
from gebm.model import GEBM, Architecture
from gebm.objectives import KALE
from gebm.precision import Operations
from gebm.training.trainer import Trainer

# Assumed, not measured: what of a GPU's float32 a step sustains, operations a second; what a ring all-reduce moves a
# second through one GPU, on a machine (NVLink) and between machines (a 200 Gbit/s card for each GPU); and how long
# one exchange takes whatever its size.
SUSTAINED = 20e12
BANDWIDTH_BYTES_PER_S = {"one machine": 200e9, "many machines": 20e9}
LATENCY_S = {"one machine": 20e-6, "many machines": 40e-6}
# Exchanges of a few numbers in a step, forward and back: energies of data and of samples and squared norms, or energies
# and the statistics of four batch norms; buffers; and the agreement on signals, over TCP.
SMALL_EXCHANGES = {"energy": 12, "base": 12}


def trainer_of(network: str, size: int, width: float, batch: int) -> Trainer:
    torch.manual_seed(0)
    model = GEBM.build(Architecture(network, network, (3, size, size), width=width))
    images = torch.randint(0, 256, (4 * batch, 3, size, size), dtype=torch.uint8)
    return Trainer(
        model,
        Batches(images, batch, generator=torch.Generator().manual_seed(0)),
        KALE(model.energy, model.log_partition),
        Adam([*model.energy.parameters(), model.log_partition], 1e-4),
        Adam(model.base.parameters(), 1e-4),
        generator=torch.Generator().manual_seed(0),
    )


def serve(arguments: argparse.Namespace) -> None:
    """A process of one group: takes the steps it is told to, and says when they are done."""
    parallel.join(cpu=True)
    trainer = trainer_of(arguments.network, arguments.size, arguments.width, arguments.batch)
    calls = {"energy": trainer.energy_step, "base": trainer.base_step, "agree": lambda: parallel.agreed(0)}
    for line in sys.stdin:
        name, count = line.split()
        for _ in range(int(count)):
            calls[name]()
        parallel.wait()
        print("done", flush=True)


class Group:
    """The processes of one size."""

    def __init__(self, processes: int, arguments: argparse.Namespace):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        words = [sys.executable, __file__, "--serve", f"--network={arguments.network}", f"--size={arguments.size}"]
        words += [f"--width={arguments.width}", f"--batch={arguments.batch}"]
        self.members = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            own |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environ = os.environ | {"OMP_NUM_THREADS": "1"} | (own if processes > 1 else {})
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.members.append(subprocess.Popen(words, env=environ, **pipes))

    def take(self, name: str, count: int) -> None:
        """Have all take so many steps, and wait for them."""
        for member in self.members:
            member.stdin.write(f"{name} {count}\n")
            member.stdin.flush()
        for member in self.members:
            if member.stdout.readline() != "done\n":
                raise SystemExit("a process has ended, see above")

    def close(self) -> None:
        for member in self.members:
            member.stdin.close()
            member.wait()


def measure(arguments: argparse.Namespace) -> dict:
    """Milliseconds a step and speed-up by number of processes."""
    groups = {str(n): Group(n, arguments) for n in arguments.processes}
    found: dict = {"setting": vars(arguments) | {"threads a process": 1}, "machine": environment()}
    try:
        for name, count in (("energy", 2), ("base", 4), ("agree", 200)):
            calls = {n: lambda group=group: group.take(name, count) for n, group in groups.items()}  # noqa: B023
            times = interleave(calls, arguments.seconds / 3)
            of_one = times[str(arguments.processes[0])]
            found[name] = {}
            for n, column in times.items():
                ratio = compare(of_one, column)
                found[name][n] = ratio._replace(ms=ratio.ms / count)._asdict()
                spread = f"{ratio.low:.2f} to {ratio.high:.2f}, {ratio.rounds} rounds"
                ms, least = ratio.ms / count, 1e3 * min(column) / count
                print(
                    f"{name:7} {n} processes  {ms:8.2f} ms (least {least:.2f})  speed-up {ratio.ratio:.2f} ({spread})"
                )
    finally:
        for group in groups.values():
            group.close()
    return found


def operations_and_bytes(network: str, size: int, width: float) -> dict[str, tuple[float, int]]:
    """Of each kind of step: operations an image, and bytes of the gradients that are exchanged."""
    batch = 4
    trainer = trainer_of(network, size, width, batch)
    found = {}
    for name, step, module in (
        ("energy", trainer.energy_step, trainer.model.energy),
        ("base", trainer.base_step, trainer.model.base),
    ):
        with Operations() as operations:
            step()
        found[name] = operations.total / batch, sum(4 * p.numel() for p in module.parameters())
    return found


def calculate(arguments: argparse.Namespace) -> dict:
    """Seconds of work and of exchange of a step on W GPUs, with none of the exchange hidden behind the work."""
    found: dict = {
        "assumed": {"operations_per_s": SUSTAINED, "bytes_per_s": BANDWIDTH_BYTES_PER_S, "latency_s": LATENCY_S}
    }
    for name, (operations, of_gradients) in operations_and_bytes(arguments.network, arguments.size, 1.0).items():
        print(f"\n{name} step: {operations / 1e9:.2f} G operations an image, {of_gradients / 1e6:.1f} MB of gradients")
        print("GPUs  batch  images a GPU  work ms  gradients ms  small exchanges ms  efficiency")
        for batch in arguments.batches:
            for gpus in (1, 2, 8, 16, 64):
                if batch % gpus:
                    continue
                where = "one machine" if gpus <= 8 else "many machines"
                work = operations * batch / gpus / SUSTAINED
                ring = 2 * (gpus - 1) / gpus * of_gradients / BANDWIDTH_BYTES_PER_S[where]
                small = SMALL_EXCHANGES[name] * LATENCY_S[where] if gpus > 1 else 0.0
                efficiency = work / (work + ring + small)
                found[f"{name} {batch} {gpus}"] = {"work_s": work, "gradients_s": ring, "small_s": small}
                times = f"{1e3 * work:7.2f}  {1e3 * ring:12.2f}  {1e3 * small:18.2f}"
                print(f"{gpus:4}  {batch:5}  {batch // gpus:12}  {times}  {efficiency:10.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="sngan")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=32, help="images in a batch, of all processes together")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024], help="of --calculate")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--calculate", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments)
    begun = time.perf_counter()
    found = calculate(arguments) if arguments.calculate else measure(arguments)
    if arguments.json:
        found["setting"] = {k: str(v) for k, v in vars(arguments).items()}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()

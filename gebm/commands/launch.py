"""A command on several processes of this machine, started by torch's own launcher."""

import os
from collections.abc import Collection, Sequence
from dataclasses import fields

import torch

from gebm.config import Config
from gebm.training.loop import exit_code

__all__ = ["SIGNALS", "as_arguments", "launch", "local_gpus"]

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"  # that the launcher hands on to its processes


def local_gpus() -> int:
    """The GPUs of this machine that may be used."""
    return torch.cuda.device_count()


def as_arguments(config: Config, given: Collection[str]) -> list[str]:
    """The flags that were given, on the command line or in YAML, as words of a command line."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name in given and f.name != "mode"}
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]


def launch(processes: int, command: str, arguments: Sequence[str]) -> int:
    """Run `gebm COMMAND ARGUMENTS` on several processes; returns the exit code of the first that failed, or 0.

    A signal is handed on to all of them; the code is then that of a run that was stopped by it.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for variable in ("PET_SIGNALS_TO_HANDLE", "TORCHELASTIC_SIGNALS_TO_HANDLE"):  # its flag, and before there was one
        os.environ[variable] = SIGNALS
    words = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}"]
    try:
        torchrun([*words, "-m", "gebm", command, *arguments])
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return exit_code(error.sigval)
    return 0

"""`gebm submit`: a training run as a SLURM job, saved and queued again where its time or its place is taken away."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gebm.commands.checks import check_flags, check_kind, check_scheduler
from gebm.commands.launch import as_arguments
from gebm.commands.runs import check_new_run
from gebm.commands.setup import log, start_log
from gebm.commands.tables import settled
from gebm.config import READERS, Config
from gebm.errors import InputError

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

__all__ = ["Training", "main"]

NOTICE_S = 120  # before its time is up a job is told to save


def main(config: Config, given: frozenset[str]) -> str:
    """Submit `gebm train` with the flags that were given; returns the job's number."""
    start_log()
    try:
        import submitit
    except ImportError:
        raise InputError("gebm submit: needs submitit, pip install 'gebm[slurm]'; gebm train runs here") from None
    of_training, given = settled(replace(config, mode="train"), given)
    check_kind(of_training, given)
    check_flags(of_training)
    check_scheduler(of_training, given)
    run = Path(config.resume) if config.resume not in ("", "auto") else check_new_run(of_training)
    named = replace(of_training, log_dir=str(run.parent), log_name=run.name, dataparallel=config.slurm_gpus > 1)
    flags = {name for name in given - {"resume", "slurm_id"} if "train" in READERS[name]}
    flags |= {"log_dir", "log_name", "dataparallel"}
    endless: dict[str, Any] = {"slurm_max_num_timeout": 1000}  # queued again until the training is done
    executor = submitit.AutoExecutor(folder=run.parent / "jobs" / run.name, **endless)
    executor.update_parameters(
        name=f"gebm-{run.name}",
        timeout_min=max(1, round(60 * config.slurm_hours)),
        gpus_per_node=config.slurm_gpus,
        cpus_per_task=config.slurm_cpus,
        slurm_signal_delay_s=NOTICE_S,
        **{
            f"slurm_{name}": value
            for name, value in (("partition", config.slurm_partition), ("account", config.slurm_account))
            if value
        },
    )
    if executor.cluster != "slurm":
        log.info("no SLURM here: the job runs on this machine, in the background")
    job = executor.submit(Training(as_arguments(named, flags), str(run)))
    log.info("submitted as job %s: run %s, its output in %s", job.job_id, run, job.paths.stdout)
    return str(job.job_id)


class Training:
    """`gebm train` as a process of its own within a job: begun anew or resumed, whichever the run's folder asks for.

    Arguments:
        flags: of the command.
        run: the folder that the run has or will have.
    """

    def __init__(self, flags: Sequence[str], run: str):
        self.flags, self.run = list(flags), run
        self.child: subprocess.Popen[bytes] | None = None
        self.code: int | None = None

    def __call__(self) -> str:
        """Train to the end; a process that was told to make room has the job queued again."""
        begun = (Path(self.run) / "config.yaml").is_file()
        command = [sys.executable, "-m", "gebm", "train", *self.flags, *([f"--resume={self.run}"] if begun else [])]
        self.child = subprocess.Popen(command)
        threading.Thread(target=self._wait, daemon=True).start()
        self._until_over()
        if self.code == os.EX_TEMPFAIL:
            os.kill(os.getpid(), signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")])
        if self.code:
            raise RuntimeError(f"gebm train ended with code {self.code}; go on with --resume {self.run}")
        return self.run

    def checkpoint(self) -> "DelayedSubmission":
        """Have the run saved, and say what to queue; submitit calls this from its signal handler."""
        from submitit.helpers import DelayedSubmission

        if self.child is not None and self.code is None:
            self.child.send_signal(signal.SIGUSR1)
            self._until_over()
        return DelayedSubmission(Training(self.flags, self.run))

    def _wait(self) -> None:
        assert self.child is not None
        self.code = self.child.wait()

    def _until_over(self) -> None:
        while self.code is None:  # no lock, which the frame that a signal came to might hold
            time.sleep(0.1)

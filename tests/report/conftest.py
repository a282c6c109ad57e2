import shutil
from pathlib import Path

import pytest
import torch

from gebm.cli import main

NETWORKS = ["--g_model", "dcgan", "--d_model", "dcgan", "--Z_dim", "4", "--width", ".1"]
STEPS = ["--total_gen_iter", "6", "--n_iter_d", "2", "--n_iter_d_init", "3", "--refine_iter", "6", "--b_size", "16"]
LOG = ["--disp_freq", "2", "--eval_kale", "--freq_kale", "3"]
CHAINS = ["--num_sampler_steps", "20", "--temperature", "2", "--n_samples", "40"]
DISTANCE = ["--eval_fid", "--fid_samples", "40", "--fid_features", "pixels"]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with a training run `trained` and a sampling run `sampled` from it; tests do not write into it."""
    folder = tmp_path_factory.mktemp("made")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        assert main(["train", "--device", "-2", *NETWORKS, *STEPS, *LOG, "--log_name", "trained"]) == 0
        pair = ["--g_path", str(folder / "runs" / "trained")]
        assert main(["sample", "--device", "-2", *pair, *CHAINS, *DISTANCE, "--log_name", "sampled"]) == 0
    torch.set_num_threads(threads)
    return folder / "runs"


@pytest.fixture
def runs(made, tmp_path, monkeypatch) -> Path:
    """A copy of `made` to write into; the working folder is a fresh one, and there is no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return Path(shutil.copytree(made, tmp_path / "runs"))

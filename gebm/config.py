"""The configuration: every flag with its meaning, default and limits, written once, here.

`python -m gebm.config > docs/flags.md` renders the table of all flags. Nothing below `gebm.cli` reads a `Config`.
"""

from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import yaml

from gebm.flags import DOTTED, allowed, check, check_mapping, flag, read_yaml
from gebm.text import show

__all__ = ["COMMANDS", "MODES", "READERS", "SUBJECTS", "Config", "flags_table", "sections"]

UCI = ("redwine", "whitewine", "parkinsons", "hepmass", "miniboone")
FLOWS = ("gaussian", "nvp", "made", "maf", "mogmaf")
COMMANDS = {
    "train": "train a base and an energy on a dataset",
    "sample": "sample from a trained pair by MCMC in its latent space",
    "evaluate": "evaluate trained runs or samples on a dataset, several side by side",
    "score": "write the log-density of each row of a table",
    "export": "write a folder to share, or ONNX files",
    "convert": "take over a checkpoint of the reference code of 2021, its g_path and d_path",
    "report": "write one HTML page about a run",
    "data": "prepare a dataset before its first use",
    "demo": "train, sample and evaluate on the bundled digits, in some five minutes",
    "submit": "train as a job of a SLURM cluster, with the flags of train and of the job",
}
# what some take before their flags, and what that is
SUBJECTS = {
    "evaluate": ("[RUN ...]", "RUN: a run, a checkpoint, an .npz or a folder of images; none: the newest run"),
    "score": ("FILE", "FILE: a table, as .csv or .npz"),
    "export": ("RUN [OUT]", "RUN: a run or a checkpoint; OUT: the new folder, empty: beside RUN"),
    "convert": ("[OUT]", "OUT: the new folder; empty: `converted` below `log_dir`"),
    "data": ("prepare", "prepare: read the dataset, once, into a cache"),
}
MODES = tuple(name for name in COMMANDS if name != "report")  # which has no flags: the run's own configuration says all
TRAIN = ("train", "submit")  # the demo has its own way in some things
TRAINING = (*TRAIN, "demo")
UNTRUSTED = ("sample", "evaluate", "score")  # commands that take somebody else's run
CHAINS = ("sample", "evaluate")
PAIRS = (*TRAINING, *UNTRUSTED, "convert")
OF_A_TABLE = (*TRAIN, *CHAINS, "data")  # commands that read one whole
RUNS = (*TRAINING, "sample")  # commands that make a run's folder

# Each class below is a group of flags; its docstring is the group's title, `commands` are those that read it (all).


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run and its files"""

    mode: str = flag("train", "what to do", choices=MODES)
    log_name: str = flag("", "name of the run's folder; empty: made from what is run", of=RUNS)
    log_dir: str = flag("", "folder that holds the runs; empty: `runs`", text="a folder")
    d_path: str = flag(
        "",
        "trained energy; empty: beside the base, or the newest (of `dataset` if that is given)",
        text="a run, a checkpoint, a file",
        of=PAIRS,
    )
    g_path: str = flag(
        "",
        "trained base; empty: beside the energy, or the newest (of `dataset` if that is given)",
        text="a run, a checkpoint, a file",
        of=PAIRS,
    )
    from_untrusted: str = flag(
        "",
        "somebody else's pair, in place of `g_path` and `d_path`: no code that it names is imported",
        text="a run, a checkpoint, a file",
        of=(*UNTRUSTED, "report"),
    )
    log_in_file: bool = flag(False, "write the log to a file of the run too", of=RUNS)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data"""

    commands: ClassVar[tuple[str, ...]] = (*PAIRS, "data")

    dataset: str = flag(
        "digits",
        "data to learn",
        choices=("digits", "cifar10", "imagenet32", "celeba", "lsun", *UCI),
        forms=("folder:PATH", "npz:PATH", "hub:NAME", "csv:PATH", "toy:NAME", DOTTED),
    )
    dataset_type: str = flag(
        "images",
        "uci: rows of a table, which npz: and your own code may be; others say it by name",
        choices=("images", "uci"),
    )
    protocol: str = flag(
        "standard",
        "tables: how they are prepared; paper: as published, test rows whitened in",
        choices=("standard", "paper"),
    )
    scaling: str = flag(
        "standardise",
        "tables: what the networks see; likelihoods are of whitened rows",
        choices=("whiten", "standardise"),
    )
    columns: str = flag("", "tables: the columns to learn; empty: all", text="names with commas between", of=OF_A_TABLE)
    drop: str = flag(
        "",
        "tables: the columns to leave out, which in a CSV may hold anything",
        text="names with commas between",
        of=OF_A_TABLE,
    )
    header: str = flag(
        "auto",
        "CSV: whether the first line names the columns; auto: by what it looks like",
        choices=("auto", "yes", "no"),
        of=(*OF_A_TABLE, "score"),
    )
    fresh_noise: bool = flag(
        False, "tables of rounded values: draw the training rows' noise anew in each batch", of=TRAIN
    )
    n_splits: int = flag(
        1, "tables: train on this many splits, of `seed` and the seeds after it, and average", ge=1, of=TRAIN
    )
    data_path: str = flag("data", "folder of the datasets and their caches", text="a folder")
    imagenet_train_path: str = flag("", "train batches of imagenet32; empty: below `data_path`", text="a folder, a zip")
    imagenet_test_path: str = flag("", "val batches of imagenet32; empty: below `data_path`", text="a folder, a zip")
    image_size: int = flag(
        0, "height and width of the images; 0: the dataset's own; built-in networks: 8, 16, 28, 32, 64", ge=0, lt=2049
    )
    num_workers: int = flag(4, "accepted, no effect: batches are cut on the device, without worker processes", ge=0)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Model"""

    commands: ClassVar[tuple[str, ...]] = PAIRS

    g_model: str = flag(
        "sngan",
        "network of the base; flows are for tables",
        choices=("dcgan", "sngan", "resnet-sn", *FLOWS),
        forms=(DOTTED,),
    )
    d_model: str = flag(
        "sngan",
        "network of the energy; mlp and flows are for tables",
        choices=("dcgan", "sngan", "resnet-sn", "mlp", *FLOWS),
        forms=(DOTTED,),
    )
    generator: str = flag(
        "convolutional",
        "family of the base; a flow's name is that `g_model`",
        choices=("convolutional", *FLOWS),
        of=(*TRAINING, *UNTRUSTED),
    )
    discriminator: str = flag(
        "convolutional",
        "family of the energy; mlp or a flow's name is that `d_model`",
        choices=("convolutional", "mlp", *FLOWS),
        of=(*TRAINING, *UNTRUSTED),
    )
    Z_dim: int = flag(
        100,
        "dimension of the latent space; a flow's is that of the data",
        ge=1,
        of=(*TRAINING, *UNTRUSTED),
        alias="latent_dim",
    )
    latent_noise: str = flag("gaussian", "prior of the latent", choices=("gaussian", "uniform"))
    width: float = flag(1.0, "factor on the number of channels, or of hidden units, of both networks", gt=0)
    no_trunc: bool = flag(False, "leave the energy unclamped; else image energies are clamped to E >= -10")
    bn: bool = flag(False, "batch normalisation in the flows", of=(*TRAINING, *UNTRUSTED))
    num_blocks: int = flag(3, "blocks of the flows and of mlp; with mogmaf 1", ge=1, of=(*TRAINING, *UNTRUSTED))
    dropout: float = flag(0.0, "share of hidden units left out in training, flows and mlp", ge=0, lt=1, of=TRAINING)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training"""

    commands: ClassVar[tuple[str, ...]] = TRAINING

    train_mode: str = flag(
        "both", "train the pair or only one of the two", choices=("both", "energy", "base"), of=TRAIN
    )
    criterion: str = flag(
        "kale",
        "loss of the energy",
        choices=("kale", "fenchel", "donsker", "ml", "cd", "wasserstein", "logistic", "hinge"),
    )
    penalty_type: str = flag("gradient_l2", "penalty on the energy", choices=("gradient_l2", "gradient", "l2", "none"))
    penalty_lambda: float = flag(0.1, "weight of the penalty", ge=0)
    initialize_log_partition: bool = flag(False, "start the log-partition c from a Monte-Carlo estimate")
    c_memory: int = flag(20, "batches that c is the log-partition of; kale with 1 is donsker, fenchel has none", ge=1)
    total_gen_iter: int = flag(150000, "base steps of the joint training", ge=0)
    ml_epochs: int = flag(0, "tables: passes of maximum likelihood on the base, a flow, before all else", ge=0)
    ml_lr: float = flag(0.0, "tables: learning rate of the base in those passes, falling to 0; 0: `lr_generator`", ge=0)
    total_epochs: int = flag(
        100, "tables: passes of the joint training; 0: none. Images count `total_gen_iter`", ge=0, alias="epochs"
    )
    refine_epochs: int = flag(0, "tables: passes of the energy at the end, base frozen, rate falling to 0", ge=0)
    cd_steps: int = flag(20, "criterion cd: steps of `latent_sampler` its chains make before each energy step", ge=1)
    patience: int = flag(0, "tables: passes without a better validation likelihood that end a stage; 0: none", ge=0)
    n_iter_d_init: int = flag(100, "energy steps at the start and at every 500th base step", ge=1)
    n_iter_d: int = flag(5, "energy steps before each other base step", ge=1)
    b_size: int = flag(128, "images in a training batch, of all processes together", ge=1, alias="batch_size")
    noise_factor: int = flag(1, "base samples for each image of an energy step's batch", ge=1)
    refine_iter: int = flag(
        -1, "energy steps at the end, base frozen, rate falling to 0; -1: a tenth of `total_gen_iter`", ge=-1
    )
    refine_kale: float = flag(0.0, "held-out KALE at which those steps stop early; 0: they do not", ge=0)
    ema: float = flag(0.0, "decay of the moving average of the base, reached by a ramp; 0: no average", ge=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer"""

    commands: ClassVar[tuple[str, ...]] = TRAINING

    optimizer: str = flag("Adam", "optimizer of both networks", choices=("Adam", "SGD"))
    lr: float = flag(
        1e-5, "learning rate of the energy; falls to zero over the refinement", ge=0, alias="learning_rate"
    )
    lr_generator: float = flag(2e-4, "learning rate of the base", ge=0)
    beta_1: float = flag(0.5, "decay of Adam's first moment", ge=0, lt=1)
    beta_2: float = flag(0.9, "decay of Adam's second moment", ge=0, lt=1)
    sgd_momentum: float = flag(0.0, "momentum of SGD", ge=0, lt=1)
    weight_decay: float = flag(0.0, "weight decay", ge=0)
    grad_clip: float = flag(0.0, "largest norm of a step's gradient; 0: no limit", ge=0)
    use_scheduler: bool = flag(False, "schedule both learning rates in the joint stage")
    scheduler: str = flag("MultiStepLR", "which schedule", choices=("MultiStepLR", "ExponentialLR", "mmd"))
    milestone: str = flag(
        "10,50,70",
        "epochs (passes over the training images) at which MultiStepLR acts, rising",
        forms=("whole numbers with commas between",),
    )
    scheduler_gamma: float = flag(0.8, "factor at each milestone of MultiStepLR, or epoch of ExponentialLR", gt=0, le=1)
    lr_decay: float = flag(0.8, "factor when the three-sample mmd test fails to find progress 3 times", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Saving, resuming and stopping"""

    commands: ClassVar[tuple[str, ...]] = TRAINING

    resume: str = flag(
        "", "go on with a run: `auto` (the newest that fits) or its folder", text="auto, a folder", of=TRAIN
    )
    save_nothing: bool = flag(False, "write no checkpoints", of=TRAIN)
    disp_freq: int = flag(100, "base steps (refining: energy steps) between lines of the training log", ge=1)
    checkpoint_freq: int = flag(1000, "base (refining: energy) steps between checkpoints", ge=1)
    keep: int = flag(2, "newest checkpoints of each stage that are kept, beside its best where that is measured", ge=1)
    on_divergence: str = flag(
        "stop", "a loss not finite or too large: stop, or go back to the last checkpoint", choices=("stop", "rollback")
    )
    loss_limit: float = flag(1e8, "absolute value of a loss that is too large; 0: none that is finite", ge=0)
    max_rollbacks: int = flag(3, "rollbacks of a run before it stops after all", ge=0)
    rollback_factor: float = flag(0.5, "factor on both learning rates at each rollback", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling"""

    commands: ClassVar[tuple[str, ...]] = (*TRAINING, *CHAINS)

    latent_sampler: str = flag(
        "langevin",
        "latent MCMC; docs/samplers.md says which is which",
        choices=(
            *("langevin", "lmc", "mala", "hmc", "mh", "imh", "sir", "smc", "zero_temperature_langevin", "dot"),
            *("spherelangevin", "trunclangevin"),
        ),
        alias="sampler",
    )
    lmc_gamma: float = flag(
        1e-2,
        "step size: z - (gamma/2) grad U + sqrt(gamma) xi; for lmc and hmc h = 2 sqrt(gamma)",
        gt=0,
        of=(*TRAIN, *CHAINS),
    )
    num_leapfrog: int = flag(10, "leapfrog steps of hmc", ge=1, of=(*TRAINING, *CHAINS))
    lmc_kappa: float = flag(100.0, "friction of lmc", ge=0)
    lmc_splitting: str = flag("ABOBA", "order of the parts of an lmc step", choices=("ABOBA", "BAOAB"))
    num_sampler_steps: int = flag(100, "steps of a chain; 0: samples of the base", ge=0, of=CHAINS, alias="steps")
    step_decay: float = flag(
        0.1, "factor on lmc_gamma every `step_decay_every` steps", gt=0, le=1, of=("demo", *CHAINS)
    )
    step_decay_every: int = flag(200, "steps between decays of lmc_gamma; 0: constant", ge=0, of=("demo", *CHAINS))
    adapt: bool = flag(False, "tune the step size of mala, hmc or mh in a warm-up, then keep it constant", of=CHAINS)
    adapt_steps: int = flag(200, "steps of that warm-up, before the `num_sampler_steps`", ge=2, of=CHAINS)
    precondition: bool = flag(False, "let the warm-up tune a scale for each coordinate too (mala, hmc)", of=CHAINS)
    temperature: float | str = flag(
        100.0,
        "INVERSE temperature: beta in exp(-beta E); auto: of greatest likelihood",
        choices=("auto",),
        ge=0,
        of=CHAINS,
        alias="beta",
    )
    beta_ramp: int = flag(0, "steps over which beta rises from 0 to its value in 20 stairs", ge=0, of=CHAINS)
    n_samples: int = flag(
        1000, "final samples to write; with `eval_fid` at least `fid_samples` are drawn", ge=1, of=("demo", "sample")
    )
    sample_b_size: int = flag(1000, "chains that run side by side", ge=1)
    thin: int = flag(
        0, "write the positions of all chains at every thin-th step to `draws/`; 0: none", ge=0, of=("sample",)
    )


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics"""

    commands: ClassVar[tuple[str, ...]] = (*TRAINING, *CHAINS)

    eval_kale: bool = flag(False, "while training, log KALE on train and test images", of=TRAINING)
    no_watch: bool = flag(
        False,
        "images: do not look at the base's FD(pixels-8x8) at each checkpoint, by which the best is kept",
        of=TRAIN,
    )
    freq_kale: int = flag(2000, "base steps between evaluations of KALE", ge=1, alias="fres_kale", of=TRAINING)
    eval_partition: bool = flag(
        False, "the log-partition by SMC and by AIS too, `sample_b_size` particles", of=("evaluate",)
    )
    eval_fid: bool = flag(False, "Frechet distance to real images: training, of the base; else of base and GEBM")
    fid_split: str = flag("test", "real images it is taken to; published FIDs are to train", choices=("test", "train"))
    freq_fid: int = flag(2000, "base steps between evaluations of the distance", ge=1, of=TRAINING)
    fid_samples: int = flag(50000, "samples the distance is computed on (`n_samples` if that is more)", ge=2)
    fid_b_size: int = flag(128, "images the feature extractor takes at once", ge=1)
    fid_features: str = flag(
        "auto",
        "features the distance is computed on; auto: the best at hand",
        choices=("auto", "pixels", "pixels-8x8", "random-conv", "digits-cnn", "cifar-resnet56", "inception"),
        forms=(DOTTED,),
    )
    partition_samples: int = flag(
        20_000,
        "tables: base samples that an unknown log-partition is estimated from",
        ge=100,
        of=(*TRAIN, "evaluate", "score"),
    )
    fid_weights: str = flag("", "weights of the feature extractor; empty: its own place", text="a file")
    inception_weights: str = flag("", "weights file of the inception features; empty: its own download", text="a file")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Output"""

    output: str = flag("", "file to write; empty: beside the table, with .scores.csv", text="a file", of=("score",))
    format: str = flag(
        "safetensors",
        "a folder that gebm and Python load, or ONNX files",
        choices=("safetensors", "onnx"),
        of=("export",),
    )
    json: str = flag("", "write the figures of all subjects to this file too", text="a file", of=("evaluate",))
    force: bool = flag(
        False, "overwrite the file of `output` or `json` though it is another kind of file", of=("score", "evaluate")
    )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Machine"""

    device: int = flag(0, "GPU number; -1: any GPU, -2: the CPU; the default falls back to the CPU", ge=-2)
    dtype: int = flag(32, "float32 or float64", choices=(32, 64))
    precision: int | str = flag(
        "auto", "of networks while they work; auto: bf16 where that was found right", choices=("auto", 32, "bf16", 64)
    )
    fast: str = flag(
        "auto",
        "off: every layer and derivative as it is written down; graphs: training steps as CUDA graphs (untested)",
        choices=("auto", "off", "graphs"),
    )
    seed: int = flag(0, "seed of every random number", ge=0, le=2**32 - 1)
    slurm_id: str = flag("", "job number under SLURM, recorded; empty: that of the job it runs in", of=RUNS)
    trainer_type: str = flag("default", "training and sampling procedure", choices=("default", "uci", "toy"))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Several GPUs, and SLURM"""

    commands: ClassVar[tuple[str, ...]] = TRAIN

    dataparallel: bool = flag(False, "one process on each GPU of this machine, each with its share of `b_size`")
    slurm_partition: str = flag("", "partition; empty: the cluster's own", of=("submit",))
    slurm_account: str = flag("", "account that is charged; empty: the user's own", of=("submit",))
    slurm_gpus: int = flag(1, "GPUs, all of one machine; 0: the CPU", ge=0, of=("submit",))
    slurm_cpus: int = flag(4, "CPU cores", ge=1, of=("submit",))
    slurm_hours: float = flag(
        24.0, "longest time; a run that needs more is saved and queued again", gt=0, of=("submit",)
    )


@dataclass(frozen=True, kw_only=True)
class Config(Cluster, Machine, Output, Metrics, Sampling, Saving, Optimizer, Training, Model, Data, Run):
    """All settings of a run, flat, checked and plain (`str`, `int`, `float`, `bool`).

    Its sections come in the reverse order of its bases.

    Raises:
        InputError: a value has the wrong type, is not among the choices or is out of bounds.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, check(f, getattr(self, f.name)))

    def to_yaml(self) -> str:
        """All settings as YAML, which `--config` reads back."""
        return yaml.safe_dump(asdict(self), sort_keys=False)

    def save(self, path: str | Path) -> None:
        """Writes `to_yaml` to a file."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Config":
        """The settings of a YAML file over the defaults; raises `InputError` with the file's name."""
        return cls(**check_mapping(cls, read_yaml(path), f"{path}: "))


# flag -> the commands that read it
READERS: dict[str, tuple[str, ...]] = {
    f.name: f.metadata["of"] or vars(section).get("commands", MODES)
    for section in Config.__bases__
    for f in fields(section)
}


def sections(command: str | None = None) -> dict[str, list[Field[Any]]]:
    """The fields of `Config` by the title of their section, in order: all, or those that a command reads."""
    found = {str(cls.__doc__): list(fields(cls)) for cls in reversed(Config.__bases__)}
    if command is not None:
        found = {title: [f for f in flags if command in READERS[f.name]] for title, flags in found.items()}
    return {title: flags for title, flags in found.items() if flags}


def flags_table() -> str:
    """The text of docs/flags.md: one table a section."""
    lines = [
        "# Flags",
        "",
        "Made by `python -m gebm.config > docs/flags.md`. The command line wins over the YAML file of `--config` (or",
        "`--configs`; given twice, the later file wins), which wins over the default. Names of values ignore case;",
        f"`{DOTTED}` is your own code. Switches take no value, or `true` / `false`. A flag that a command does not",
        "read (last column: `Of`) is refused; in YAML, which several commands may share, it has no effect.",
    ]
    for title, flags in sections().items():
        lines += ["", f"## {title}", "", "| Flag | Meaning | Default | Allowed | Of |"]
        lines += ["|---|---|---|---|---|"]
        for f in flags:
            names = " ".join(f"`--{name}`" for name in (f.name, f.metadata["alias"]) if name)
            of = "all" if READERS[f.name] == MODES else ", ".join(READERS[f.name])
            lines.append(f"| {names} | {f.metadata['help']} | `{show(f.default)}` | {allowed(f)} | {of} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(flags_table(), end="")

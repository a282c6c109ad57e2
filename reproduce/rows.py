"""The results of the paper, one row each, and the sizes they can be run at: data, no code that runs anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["DATA", "ROWS", "SCALES", "Row", "Scale", "Setting"]

Flags = Mapping[str, object]


@dataclass(frozen=True)
class Setting:
    """One way to sample from a row's trained pair: the flags of `gebm sample` over configs/sampling.yaml."""

    name: str
    flags: Flags


# The paper's: gamma 1e-4, a tenth of it every 200 of 1000 steps, beta 100 (configs/sampling.yaml).
LANGEVIN = Setting("langevin", {"latent_sampler": "langevin", "temperature": 100})
# The model itself. The schedule as above, then an exact kernel that tunes itself.
AT_BETA_1 = (
    Setting("langevin-beta-1", {"latent_sampler": "langevin", "temperature": 1}),
    Setting("mala-beta-1", {"latent_sampler": "mala", "adapt": True, "temperature": 1}),
)
# The published IHM saw beta 1 where Langevin saw 100: both are run. DOT does not depend on beta; h and the number of
# its steps are ours, since the published ones are not known.
SAMPLERS = (
    LANGEVIN,
    Setting("imh-beta-1", {"latent_sampler": "imh", "temperature": 1}),
    Setting("imh-beta-100", {"latent_sampler": "imh", "temperature": 100}),
    Setting("dot", {"latent_sampler": "dot", "lmc_gamma": 0.1, "num_sampler_steps": 100, "step_decay_every": 0}),
)
# The notebook's MALA accepted nearly all: it was Langevin, and its lambda 1e-5 is our gamma 2e-5.
CURVE: Flags = {"latent_sampler": "langevin", "lmc_gamma": 2e-5}
BETAS = (0.01, 0.1, 1, 10, 100, 1000)
CURVES = tuple(Setting(f"beta-{beta:g}", {**CURVE, "temperature": beta}) for beta in BETAS)
SHORT = tuple(
    Setting(f"beta-{beta:g}-short", {**CURVE, "temperature": beta, "num_sampler_steps": 10}) for beta in BETAS[2:]
)
# A hundred steps, as in the talk. At beta 0 there is no energy: what moves there is the prior's momentum alone.
MOVING: Flags = {"num_sampler_steps": 100, "step_decay_every": 0}
LIGHT: Flags = {"latent_sampler": "lmc", "lmc_kappa": 0.04}
MOTION = (
    Setting("langevin-100", {**MOVING, "latent_sampler": "langevin"}),
    Setting("langevin-100-long", {**MOVING, "latent_sampler": "langevin", "lmc_gamma": 1e-2}),
    Setting("lmc-100", {**MOVING, **LIGHT}),
    Setting("lmc-100-beta-0", {**MOVING, **LIGHT, "temperature": 0}),
)


@dataclass(frozen=True)
class Row:
    """One result: what it is, of which data and networks, and how it is sampled.

    kind: images, table or toy; picture: what is drawn of it besides the table, `curves` or `motion`; name: also the key
    of its published figures.
    """

    name: str
    title: str
    dataset: str
    kind: str = "images"
    network: str = "sngan"
    settings: tuple[Setting, ...] = ()
    picture: str = ""


def _images(group: str, dataset: str, title: str, settings: tuple[Setting, ...], picture: str = "", **more: str) -> Row:
    return Row(f"{group}-{dataset}", f"{title}, {dataset}", dataset, settings=settings, picture=picture, **more)


NETWORKS = {"sngan": "sngan", "resnet": "resnet-sn"}
ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        *(
            Row(f"fid-{data}-{short}", f"FID of base and GEBM, {data}, {network}", data, network=network,
                settings=(LANGEVIN, *AT_BETA_1))
            for data in ("cifar10", "imagenet32")
            for short, network in NETWORKS.items()
        ),
        *(
            _images("samplers", data, "samplers on one trained pair", SAMPLERS)
            for data in ("cifar10", "lsun", "celeba", "imagenet32")
        ),
        _images("temperature", "celeba", "distance over steps and beta", CURVES, "curves"),
        _images("temperature", "cifar10", "distance over steps and beta", CURVES + SHORT, "curves"),
        *(
            _images("motion", data, "over- and underdamped chains, do they change modes", MOTION, "motion")
            for data in ("cifar10", "imagenet32")
        ),
        *(
            Row(f"uci-{data}", f"test likelihoods of density models, {data}", data, kind="table")
            for data in ("redwine", "whitewine", "parkinsons", "hepmass", "miniboone")
        ),
        Row("toy", "toys: support and mass on a line and a flower, three densities", "", kind="toy"),
    )
}  # fmt: skip


DATA = {
    "cifar10": "CIFAR-10, downloaded (170 MB) if it is not there",
    "imagenet32": "Imagenet32_train and Imagenet32_val of https://image-net.org/download-images, after registration",
    "celeba": "celeba/img_align_celeba.zip and celeba/list_eval_partition.txt, from the page of CelebA",
    "lsun": "lsun/bedroom_train_lmdb and lsun/bedroom_val_lmdb of LSUN, and pip install 'gebm[lsun]'",
    "redwine": "winequality-red.csv, downloaded if it is not there",
    "whitewine": "winequality-white.csv, downloaded if it is not there",
    "parkinsons": "parkinsons_updrs.data, downloaded if it is not there",
    "hepmass": "1000_train.csv and 1000_test.csv, downloaded with an archive of 0.8 GB if they are not there",
    "miniboone": "MiniBooNE_PID.txt, downloaded with an archive of 0.8 GB if it is not there",
    "": "none: drawn from the seed",
}


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    config: of training; train, sample: flags over it and over configs/sampling.yaml; table: flags that are no more than
    this, whatever configs/uci has; steps: most sampling steps, to which longer chains are shortened with gamma raised,
    so that they go as far; betas: those that are run of a row of curves; splits: of a table; stand_ins: small made-up
    data in the published formats in place of the real; quick: the toys' short form.
    """

    config: str
    train: Flags = field(default_factory=dict)
    sample: Flags = field(default_factory=dict)
    table: Flags = field(default_factory=dict)
    steps: int = 1000
    betas: tuple[float, ...] = BETAS
    splits: int = 5
    stand_ins: bool = False
    quick: bool = False


SCALES = {
    "full": Scale(
        "training.yaml", sample={"fid_samples": 50_000, "fid_split": "train", "fid_features": "inception"}
    ),
    # Rows of images take less than an hour of one CPU core each, those of tables minutes.
    "small": Scale(
        "cifar10-small.yaml",
        train={"total_gen_iter": 2000, "refine_iter": 200},
        sample={"fid_samples": 1000, "n_samples": 100, "fid_split": "train", "fid_features": "auto"},
        table={"total_epochs": 150},
        steps=40,
        splits=1,
    ),
    "tiny": Scale(
        "training.yaml",
        train={"width": 0.1, "b_size": 16, "total_gen_iter": 20, "refine_iter": 20, "n_iter_d": 1, "n_iter_d_init": 4,
               "checkpoint_freq": 5, "lr": 1e-3, "lr_generator": 1e-3, "device": -2},
        sample={"fid_samples": 16, "n_samples": 4, "fid_features": "pixels-8x8", "adapt_steps": 4, "device": -2},
        table={"width": 0.2, "ml_epochs": 1, "total_epochs": 1, "refine_epochs": 0, "n_iter_d": 2, "n_iter_d_init": 2,
               "partition_samples": 500},
        steps=10,
        betas=(1, 1000),
        splits=1,
        stand_ins=True,
        quick=True,
    ),
}  # fmt: skip

"""The documented flags, what wins over what, and one line for each kind of bad input."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gebm.config import MODES, READERS, Config, flags_table
from gebm.errors import InputError
from gebm.flags import by_name
from gebm.parsing import help_text, parse

ROOT = Path(__file__).resolve().parent.parent

# The full documentation's flags with their defaults; where it prints a list of choices, the one we start from.
DOCUMENTED = {
    "log_name": "", "log_dir": "", "d_path": "", "g_path": "", "data_path": "data",
    "imagenet_train_path": "", "imagenet_test_path": "",
    "log_in_file": False, "save_nothing": False, "disp_freq": 100, "checkpoint_freq": 1000,
    "mode": "train", "train_mode": "both", "dataset": "digits",
    "device": 0, "seed": 0, "dtype": 32, "num_workers": 4, "dataparallel": False, "slurm_id": "",
    "trainer_type": "default", "dataset_type": "images",
    "g_model": "sngan", "d_model": "sngan", "generator": "convolutional", "discriminator": "convolutional",
    "latent_noise": "gaussian", "bn": False, "num_blocks": 3,
    "latent_sampler": "langevin", "lmc_gamma": 1e-2, "lmc_kappa": 100.0, "num_sampler_steps": 100, "temperature": 100,
    "fid_b_size": 128, "sample_b_size": 1000, "b_size": 128,
    "criterion": "kale", "penalty_type": "gradient_l2", "penalty_lambda": 0.1, "initialize_log_partition": False,
    "total_gen_iter": 150000, "total_epochs": 100, "n_iter_d_init": 100, "n_iter_d": 5, "noise_factor": 1,
    "optimizer": "Adam", "lr": 0.00001, "lr_generator": 0.0002, "sgd_momentum": 0.0, "beta_1": 0.5, "beta_2": 0.9,
    "weight_decay": 0.0,
    "use_scheduler": False, "scheduler": "MultiStepLR", "milestone": "10,50,70",
    "scheduler_gamma": 0.8, "lr_decay": 0.8,
    "eval_kale": False, "fres_kale": 2000, "freq_kale": 2000, "eval_fid": False, "fid_samples": 50000, "freq_fid": 2000,
}  # fmt: skip
USED_WITHOUT_LISTING = {
    "Z_dim": 100, "image_size": 0, "no_trunc": False, "grad_clip": 0.0, "ema": 0.0, "resume": "", "refine_iter": -1,
    "refine_kale": 0.0, "width": 1.0, "num_leapfrog": 10, "step_decay": 0.1, "step_decay_every": 200, "n_samples": 1000,
    "fid_split": "test", "fid_features": "auto", "fid_weights": "", "inception_weights": "", "lmc_splitting": "ABOBA",
    "adapt": False,
    "adapt_steps": 200, "precondition": False, "beta_ramp": 0, "thin": 0, "eval_partition": False, "json": "",
    "force": False,
    "protocol": "standard", "scaling": "standardise", "columns": "", "drop": "", "header": "auto",
    "fresh_noise": False, "n_splits": 1, "dropout": 0.0,
    "ml_epochs": 0, "ml_lr": 0.0, "refine_epochs": 0, "cd_steps": 20, "patience": 0, "partition_samples": 20_000,
    "output": "", "precision": "auto", "fast": "auto", "format": "safetensors",
    "from_untrusted": "", "keep": 2, "on_divergence": "stop", "loss_limit": 1e8, "max_rollbacks": 3,
    "rollback_factor": 0.5, "c_memory": 20, "no_watch": False,
    "slurm_partition": "", "slurm_account": "", "slurm_gpus": 1, "slurm_cpus": 4, "slurm_hours": 24.0,
}  # fmt: skip
DOCUMENTED_CHOICES = {
    "train_mode": ["both", "energy", "base"], "dataset": ["cifar10", "CelebA", "Imagenet32", "lsun"],
    "dataset_type": ["images", "uci"], "g_model": ["dcgan", "sngan", "resnet-sn"],
    "d_model": ["dcgan", "sngan", "resnet-sn"], "latent_sampler": ["langevin", "mala", "lmc", "hmc"],
    "penalty_type": ["gradient_l2", "gradient", "l2", "none"], "dtype": ["32", "64"], "temperature": ["auto", "100"],
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file and returns its path."""

    def write(text: str, name: str = "c.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(*argv: str, mode: str | None = None) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(InputError) as caught:
        parse(argv, mode)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 600
    return line


# ---- the interface


ALIASES = {"beta", "sampler", "steps", "epochs", "learning_rate", "latent_dim", "batch_size"}  # the field's own names


def test_every_documented_flag_has_its_default():
    flags = by_name(Config)
    expected = DOCUMENTED | USED_WITHOUT_LISTING
    assert {name: flags[name].default for name in expected} == expected
    assert set(flags) == {*expected, *ALIASES}, "a flag that no document names"


@pytest.mark.parametrize(("name", "choice"), [(n, c) for n, choices in DOCUMENTED_CHOICES.items() for c in choices])
def test_documented_choices_are_valid(name, choice):
    assert str(getattr(Config(**{name: choice}), name)).lower().startswith(choice.lower())


@pytest.mark.parametrize("name", sorted(DOCUMENTED | USED_WITHOUT_LISTING))
def test_a_default_given_explicitly_parses_and_counts_as_given(name):
    f = by_name(Config)[name]
    command = READERS[f.name][0]
    config, given = parse([f"--{name}={command if name == 'mode' else f.default}"], command)
    assert (config, given) == (Config(mode=command), {f.name, "mode"})


def test_documented_commands(monkeypatch):
    monkeypatch.chdir(ROOT)
    config, given = parse(["--config=configs/training.yaml", "--dataset=cifar10"])
    assert (config.mode, config.dataset, config.g_model, config.d_model) == ("train", "cifar10", "sngan", "sngan")
    assert (config.lr, config.beta_2, config.penalty_type, config.Z_dim) == (1e-4, 0.999, "gradient", 100)
    argv = ["--config=configs/sampling.yaml", "--dataset=cifar10", "--latent_sampler=langevin", "--lmc_gamma=0.0001"]
    config, given = parse(argv)
    assert (config.mode, config.num_sampler_steps, config.temperature, config.eval_fid) == ("sample", 1000, 100.0, True)
    assert (config.lmc_gamma, config.step_decay, config.step_decay_every) == (1e-4, 0.1, 200)
    assert not given & {"g_model", "d_model", "Z_dim"}, "sampling takes the networks from the checkpoint"


def test_documented_device_is_printed_with_a_dash():
    assert parse(["—device=-2"])[0].device == parse(["--device", "-2"])[0].device == -2


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--eval_fid"], True),
        (["--eval_fid=true"], True),
        (["--eval_fid", "yes"], True),
        (["--eval_fid=False"], False),
        (["--eval_fid", "--lr", "1"], True),
        ([], False),
    ],
)
def test_switches(argv, value):
    assert parse(argv)[0].eval_fid is value


@pytest.mark.parametrize(
    "word, meant", [("yes", "yes"), ("no", "no"), ("true", "yes"), ("auto", "auto"), ("'no'", "no")]
)
def test_yes_and_no_of_yaml_are_the_words(word, meant, write):
    config, _ = parse(["--config", write(f"header: {word}\n")], "score")
    assert config.header == meant
    assert Config.load(write(config.to_yaml(), "again.yaml")).header == meant


def test_texts_become_typed_values():
    config, _ = parse("--lr 1 --dtype 64 --grad_clip 10 --optimizer sgd --g_model my.nets:Nets.base --seed 7".split())
    assert (config.lr, config.dtype, config.grad_clip) == (1.0, 64, 10.0)
    assert (config.optimizer, config.g_model, config.seed) == ("SGD", "my.nets:Nets.base", 7)
    assert parse(["--dataset=folder:/my pictures"])[0].dataset == "folder:/my pictures"
    assert parse(["--dataset=csv:/my table.csv"])[0].dataset == "csv:/my table.csv"


# ---- what wins


@pytest.mark.parametrize("flag", ["--config", "--configs"])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_command_line_wins_over_yaml_wins_over_default(write, flag, joined, first):
    path = write("lr: 1e-3\nb_size: 7\nfres_kale: 5\ndtype: '64'\n")
    file = [f"{flag}={path}"] if joined else [flag, path]
    config, given = parse([*file, "--lr=2"] if first else ["--lr=2", *file])
    assert (config.lr, config.b_size, config.freq_kale, config.dtype, config.lr_generator) == (2.0, 7, 5, 64, 2e-4)
    assert given == {"lr", "b_size", "freq_kale", "dtype"}


def test_later_yaml_wins(write):
    first, second = write("lr: 1\nb_size: 7\n"), write("lr: 2\n", "d.yaml")
    config, _ = parse(["--config", first, "--config", second])
    assert (config.lr, config.b_size) == (2.0, 7)


def test_subcommand_wins_over_yaml(write):
    assert parse(["--config", write("mode: train")], "sample")[0].mode == "sample"
    assert parse(["--mode=sample"], "sample")[0].mode == "sample"
    assert "contradicts the command sample" in refusal("--mode", "train", mode="sample")


def test_null_is_the_default_and_not_given(write):
    assert parse(["--config", write("device:\nimage_size: null\n")]) == (Config(), frozenset())
    assert parse(["--config", write("# nothing\n")]) == (Config(), frozenset())


# ---- a run can be repeated from its file


def test_round_trip(tmp_path):
    config = Config(lr=1e-7, log_name="no", d_path="a: b #c", temperature="auto", ema=0.5, eval_fid=True, milestone="5")
    config.save(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == config
    assert Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    changed = dataclasses.replace(config, temperature=Config.temperature, lr=1.0)
    changed.save(tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml")], "train")[0] == changed


# ---- bad input


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--lr_generatr=1"], ["unknown flag --lr_generatr", "did you mean --lr_generator?"]),
        (["--lr_gen", "1"], ["unknown flag --lr_gen", "did you mean --lr_generator?"]),
        (["--qqqq"], ["unknown flag --qqqq"]),
        (["--"], ["unknown flag --"]),
        (["junk"], ["junk"]),
        (["-x"], ["-x"]),
        (["--lr"], ["--lr", "needs one value"]),
        (["--b_size=abc"], ["--b_size abc", "allowed: a whole number >= 1"]),
        (["--b_size=2.5"], ["--b_size 2.5", "allowed: a whole number >= 1"]),
        (["--b_size=1\n2"], ["--b_size '1\\n2'"]),
        (["--b_size=" + "9" * 5000], ["--b_size 999", "..."]),
        (["--b_size="], ["--b_size ''"]),
        (["--b_size=0"], ["--b_size 0", "allowed: a whole number >= 1"]),
        (["--lr=-1"], ["--lr -1", "allowed: a number >= 0"]),
        (["--lr=nan"], ["--lr nan"]),
        (["--lr=1e999"], ["--lr 1e999"]),
        (["--eval_fid=maybe"], ["--eval_fid maybe", "allowed: true, false"]),
        (["--ema=1.5"], ["--ema 1.5", "allowed: a number >= 0 and < 1"]),
        (["--ema=1"], ["--ema 1"]),
        (["--image_size=-1"], ["--image_size -1", "allowed: a whole number >= 0 and < 2049"]),
        (["--dtype=16"], ["--dtype 16", "allowed: 32, 64"]),
        (["--num_sampler_steps=-5"], ["--num_sampler_steps -5", "a whole number >= 0"]),
        (["--lmc_gamma=0"], ["--lmc_gamma 0", "a number > 0"]),
        (["--temperature=hot"], ["--temperature hot", "allowed: auto, a number >= 0"]),
        (["--temperature=-1"], ["--temperature -1"]),
        (["--device=-3"], ["--device -3", ">= -2"]),
        (["--seed=-1"], ["--seed -1"]),
        (["--milestone=10,x"], ["--milestone 10,x", "whole numbers with commas between"]),
        (["--penalty_type=gradiant"], ["--penalty_type gradiant", "gradient_l2, gradient, l2, none", "mean gradient?"]),
        (["--optimizer=Adan"], ["did you mean Adam?"]),
        (["--dataset=folder:"], ["--dataset folder:", "folder:PATH"]),
        (["--dataset=toy:"], ["--dataset toy:", "toy:NAME"]),
        (["--criterion=hing"], ["--criterion hing", "did you mean hinge?"]),
        (["--g_model=sngann"], ["--g_model sngann", "did you mean sngan?"]),
        (["--g_model=a.b:"], ["--g_model a.b:", "package.module:factory"]),
        (["--config=/no/such.yaml"], ["/no/such.yaml", "No such file"]),
        (["--config=/"], ["/", "directory"]),
    ],
)
def test_bad_arguments(argv, parts):
    line = refusal(*argv)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("lr_gen: 1", ["unknown key lr_gen", "did you mean lr_generator?"]),
        ("1: 2", ["unknown key 1"]),
        ("b_size: abc", ["b_size abc", "a whole number >= 1"]),
        ("b_size: 128.5", ["b_size 128.5"]),
        ("b_size: true", ["b_size true"]),
        ("b_size: [1, 2]", ["b_size (a list)"]),
        ("eval_fid: 1", ["eval_fid 1", "true, false"]),
        ("log_name: 5", ["log_name 5", "text (put text in quotes)"]),
        ("log_name: 2024-01-01", ["log_name 2024-01-01", "(put text in quotes)"]),
        ('log_name: "a\\0b"', ["log_name"]),
        ("latent_sampler: lnagevin", ["latent_sampler lnagevin", "did you mean langevin?"]),
        ("lr: .inf", ["lr inf"]),
        ("- a\n- b", ["(a list)", "flag: value"]),
        ("just text", ["just text", "flag: value"]),
        ("lr: 1\nb_size: 2\nlr: 3", ["line 3", "lr is given twice"]),
        ("freq_kale: 1\nfres_kale: 2", ["fres_kale is given twice", "freq_kale"]),
        ("lr: [1", ["not valid YAML"]),
        ("lr: 1\n\tb_size: 2", ["line 2", "not valid YAML"]),
        ("lr: 2024-99-99", ["not valid YAML"]),
        ("lr: \x00", ["not valid YAML"]),
        ("lr: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("{a: 1}: 2", ["not valid YAML"]),
        ("[" * 20000, ["not valid YAML"]),
        ("&a [*a]", ["(a list)"]),
        ("lr: 1" + "0" * 5000, ["not valid YAML"]),
    ],
)
def test_bad_yaml(write, text, parts):
    path = write(text)
    line = refusal("--config", path)
    assert path in line and all(part in line for part in parts), line


def test_yaml_that_is_not_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"lr: \xff\xfe")
    assert "not valid YAML" in refusal("--config", str(tmp_path / "c.yaml"))


def test_bad_values_from_python():
    with pytest.raises(InputError, match="^b_size 0 is not allowed; allowed: a whole number >= 1$"):
        Config(b_size=0)


# ---- help


@pytest.mark.parametrize("command", MODES)
def test_help_names_the_flags_of_the_command(capsys, command):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], command)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text == help_text(command) and text.startswith(f"usage: gebm {command} ")
    named = {*re.findall(r"--(\w+)", text)}
    flags = {name for name in READERS if command in READERS[name]} - {"mode"}
    aliases = {alias for alias, f in by_name(Config).items() if alias != f.name and f.name in flags}
    assert named >= aliases | flags
    unread = set(READERS) - flags - {"mode"}
    assert not unread & {*re.findall(r"^  --(\w+)", text, re.M)}


def test_help_of_main_names_every_flag():
    text = help_text()
    assert all(f"--{name} " in text for name in [*by_name(Config), "config", "configs"])
    assert "INVERSE" in text


def test_flags_of_other_commands(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lr: 0.5\nn_samples: 7\nfrom_untrusted: ''\n")
    with pytest.raises(InputError, match="^--lr: is of train, submit, demo; gebm sample has no use for it$"):
        parse(["--lr", "0.5"], "sample")
    config, given = parse(["--config", str(file)], "sample")
    assert config == Config(mode="sample", n_samples=7) and "lr" not in given
    config, given = parse(["--mode=sample", "--lr=0.5", "--n_samples=7"])  # main.py takes one list for all
    assert config == Config(mode="sample", n_samples=7) and "lr" not in given
    assert parse(["--config", str(file)], "train")[0].lr == 0.5


def test_flags_page_is_current():
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert page == flags_table(), "run: python -m gebm.config > docs/flags.md"


def test_help_and_errors_do_not_import_torch():
    code = "import sys, gebm.parsing as p; p.help_text(); print([m for m in ('torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command, alias, value, flag",
    [
        ("sample", "beta", "3", "temperature"),
        ("sample", "sampler", "mala", "latent_sampler"),
        ("sample", "steps", "7", "num_sampler_steps"),
        ("train", "epochs", "7", "total_epochs"),
        ("train", "learning_rate", "0.5", "lr"),
        ("train", "latent_dim", "7", "Z_dim"),
        ("train", "batch_size", "7", "b_size"),
    ],
)
def test_the_usual_names_of_flags_are_known(command, alias, value, flag):
    config, given = parse([f"--{alias}", value], command)
    assert str(getattr(config, flag)).startswith(value) and flag in given and alias not in given
    with pytest.raises(InputError, match=f"did you mean --{alias}"):
        parse([f"--{alias}s", value], command)

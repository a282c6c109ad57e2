"""The data that flags, or a run, name."""

from dataclasses import replace
from pathlib import Path

from gebm import parallel
from gebm.checkpoints import settings_beside
from gebm.commands.tables import of_table
from gebm.config import Config
from gebm.data import ImageData, TableData, load_images, load_table
from gebm.data.images import SOURCES
from gebm.data.table_files import names_of
from gebm.errors import InputError
from gebm.flags import check_mapping
from gebm.model import GEBM
from gebm.pretrained import CONFIG, read_config
from gebm.text import show

__all__ = ["BUNDLED", "check_named", "check_shape", "dataset", "dataset_for", "made_with", "with_data_of"]

BUNDLED = ("digits",)  # data that lie in a library: nothing is fetched, and no file of the user's is read
NO_CODE = {*SOURCES, "csv", "toy"}  # what may stand before the colon of a dataset that is not a dotted path


def dataset(config: Config) -> ImageData | TableData:
    """The images, or the rows, the flags name."""
    with parallel.in_waves():  # the first use makes a cache
        if of_table(config):
            columns, drop = names_of(config.columns), names_of(config.drop)
            return load_table(
                config.dataset, config.data_path, protocol=config.protocol, scaling=config.scaling, seed=config.seed,
                columns=columns, drop=drop, header=config.header,
            )  # fmt: skip
        for flag in ("columns", "drop", "header"):
            if (value := getattr(config, flag)) != getattr(Config, flag):
                raise InputError(f"--{flag} {value}: --dataset {config.dataset} is images, not a table; leave it out")
        paths = config.imagenet_train_path, config.imagenet_test_path
        return load_images(config.dataset, config.data_path, config.image_size or None, imagenet_paths=paths)


def dataset_for(model: GEBM, config: Config) -> ImageData | TableData:
    """The data the flags name, which must have the shape of the model's samples."""
    data = dataset(config)
    check_shape(config, data, model.built_as.shape)
    return data


def check_shape(config: Config, data: ImageData | TableData, shape: tuple[int, ...]) -> None:
    """Raise InputError unless the data the flags name have the shape of a model's samples."""
    if data.shape == shape:
        return
    if len(shape) == 1:
        advice = "see --columns, --drop and --header"
        raise InputError(f"--dataset {config.dataset}: rows of {data.shape}, the model's have {shape}; {advice}")
    resizable = data.shape[0] == shape[0] and shape[1] == shape[2]
    advice = f"give --image_size {shape[1]}" if resizable else "name images of that shape with --dataset"
    raise InputError(f"--dataset {config.dataset}: images {data.shape}, the model's are {shape}; {advice}")


def made_with(folder: Path) -> Config | None:
    """The flags that a run, a checkpoint or, of its data, an exported model was made with; None: it does not tell."""
    if (file := settings_beside(folder)).is_file():
        return Config.load(file)
    if (folder / CONFIG).is_file():
        data = read_config(folder).get("data", {})
        if not isinstance(data, dict):
            raise InputError(f"{folder / CONFIG}: its data are {show(data)}, flags and values are needed; export again")
        # Once the default of scaling, which was left out of the file.
        return Config(**check_mapping(Config, {"scaling": "whiten", **data}, f"{folder / CONFIG}: "))
    return None


def with_data_of(stored: Config, config: Config, given: frozenset[str]) -> Config:
    """The configuration with the data of `stored` where its flags are not given."""
    fields = "dataset", "image_size", "dataset_type", "protocol", "scaling", "columns", "drop", "header"
    return replace(config, **{field: getattr(stored, field) for field in fields if field not in given})


def check_named(stored: Config, config: Config, given: frozenset[str], path: Path) -> None:
    """Raise InputError if reading the data of `stored`, found at `path`, took what the user has to name: code, or with
    `--from_untrusted` any data but those in `BUNDLED`."""
    kind, _, rest = stored.dataset.partition(":")
    code = bool(rest) and kind not in NO_CODE
    if "dataset" not in given and (code or (config.from_untrusted and stored.dataset not in BUNDLED)):
        what, end = ("code ", "run") if code else ("", "read")
        name = show(stored.dataset)
        raise InputError(f"{path}: was made with the {what}--dataset {name}; name it too, to have it {end}")

"""`gebm convert`: a checkpoint of the reference code of 2021 as a folder that the other commands take."""

from pathlib import Path

from gebm.commands.runs import log_dir
from gebm.commands.setup import log, start_log
from gebm.config import Config
from gebm.errors import InputError
from gebm.files import check_writable
from gebm.model import Architecture
from gebm.pretrained import check_new
from gebm.reference import load_reference

__all__ = ["main"]


def main(config: Config, given: frozenset[str], words: list[str]) -> Path:
    """Write the networks of `--g_path` and `--d_path` into a new folder, which it returns."""
    start_log()
    if len(words) > 1 or not (config.g_path and config.d_path):
        raise InputError("gebm convert: write gebm convert [OUT] --g_path g_N.pth --d_path d_N.pth")
    out = Path(words[0]) if words else log_dir(config) / "converted"
    check_new(out)
    check_writable(out.parent, "OUT")
    size = config.image_size or 32
    architecture = Architecture(
        base=config.g_model,
        energy=config.d_model,
        shape=(3, size, size),
        prior=config.latent_noise,
        width=config.width,
        trunc=not config.no_trunc,
    )
    told = not {"g_model", "d_model"} & given and size == 32
    model, notes = load_reference(config.g_path, config.d_path, architecture, names=told)
    files = {"base": Path(config.g_path).name, "energy": Path(config.d_path).name}
    model.save_pretrained(out, {"training": {"by": "the authors' code of 2021", **files}})
    for note in notes:
        log.info("%s", note)
    log.info("converted %s; sample it with gebm sample --g_path %s", out, out)
    return out

"""Models as folders to share: `config.json`, `model.safetensors` and the model card `README.md`."""

import json
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gebm.bounded import read_json, reason
from gebm.card import model_card
from gebm.errors import InputError
from gebm.files import atomic_folder, atomic_write

if TYPE_CHECKING:
    from typing_extensions import Self

    from gebm.data import TableData
    from gebm.model import Architecture

__all__ = ["CONFIG", "WEIGHTS", "Pretrained", "check_new", "configuration", "read_config", "write_weights"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT, VERSION = "gebm", 1  # raise the version when an older gebm could no longer read, or would misread, a folder
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
NONE: Mapping[str, Any] = {}


class Pretrained:
    """What makes a model one that is saved into, and loaded from, a folder or a repository of the Hugging Face hub."""

    if TYPE_CHECKING:
        architecture: Architecture | None
        base: nn.Module
        energy: nn.Module
        log_partition: nn.Parameter
        units: TableData | None

        def whole_state(self) -> dict[str, Tensor]: ...

        @classmethod
        def load(cls, path: str | Path, *, allow: Collection[str] = (), dtype: torch.dtype = ...) -> Self: ...

    def save_pretrained(self, folder: str | Path, about: Mapping[str, Any] = NONE) -> Path:
        """Write the model into a new folder, all of it or nothing; returns the folder.

        Arguments:
            about: what the card is to say besides, kept in `config.json` too: `data`, `training`, `figures`, `sampler`,
                and of tables `table` and `log_partition` (docs/interchange.md).

        Raises:
            InputError: the folder exists.
            ValueError: the model has no architecture to store.
        """
        folder = Path(folder)
        check_new(folder)
        config = configuration(self, about)
        try:
            with atomic_folder(folder, new=True) as temporary:
                assert self.architecture is not None  # or there would be no configuration
                header = {"gebm": json.dumps(asdict(self.architecture))}
                write_weights(temporary / WEIGHTS, self.whole_state(), header)
                text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
                (temporary / CONFIG).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
                (temporary / CARD).write_text(model_card(config), encoding="utf-8", errors="backslashreplace")
        except FileExistsError:
            check_new(folder)
            raise
        return folder

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        allow: Collection[str] = (),
        dtype: torch.dtype | None = None,
    ) -> "Self":
        """Load a model, in evaluation mode, from an exported folder or from the hub.

        Arguments:
            name: a folder, or `user/name` on the hub (needs the extra `hub`); a folder of that name comes first.
            revision: branch, tag or commit on the hub.
            allow: dotted paths that may be imported, of networks that are the author's own.
            dtype: of the model; None: as it was saved.

        Raises:
            InputError: no such folder or repository, or one that is damaged, of a newer format, or of networks that
                are neither registered nor allowed.
        """
        folder = _folder(name, revision)
        config = read_config(folder)
        model = cls.load(folder, allow=allow, dtype=DTYPES[config["dtype"]] if dtype is None else dtype)
        if config["architecture"] != _plain(model.architecture):
            raise InputError(f"{folder}: {CONFIG} and {WEIGHTS} are of different models; export again")
        return model

    def push_to_hub(
        self, name: str, about: Mapping[str, Any] = NONE, *, private: bool = False, revision: str | None = None
    ) -> str:
        """Upload the model, as `save_pretrained` writes it, to `user/name` on the hub; returns the address.

        The repository is made if there is none. It takes the login of `hf auth login`, or the variable HF_TOKEN.

        Raises:
            InputError: no `huggingface_hub`, no such name, no login, no right to write, no network.
        """
        hub = _hub(name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / "model", about)
            try:
                api = hub.HfApi()
                api.create_repo(name, private=private, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=name, folder_path=folder, revision=revision, commit_message="Upload a gebm model"
                )
            except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
                raise InputError(f"{name}: cannot be uploaded ({reason(error)})") from None
        return str(commit.commit_url)


def configuration(model: "Pretrained", about: Mapping[str, Any] = NONE) -> dict[str, Any]:
    """What `config.json` holds of a model: enough to build it, in plain numbers and texts."""
    if model.architecture is None:
        raise ValueError("a model of bare networks has no architecture to export: use GEBM.build")
    units: Mapping[str, Any] = NONE
    if model.units is not None:
        from gebm.data.units import as_json  # here, as the data stand above

        units = {"table": as_json(model.units)}
    c = model.log_partition.detach()
    parts = {"base": model.base, "energy": model.energy}
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "gebm_version": version("gebm"),
        "architecture": _plain(model.architecture),
        "dtype": str(c.dtype).removeprefix("torch."),
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "c": float(c),
        **units,
        **about,
    }


def check_new(folder: Path) -> None:
    """Raise InputError if the folder, or anything of that name, exists."""
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder}: exists; name another folder to write to, or remove it")


def read_config(folder: Path) -> dict[str, Any]:
    """The checked `config.json` of an exported folder.

    Raises:
        InputError: it is missing, damaged, of another program or of a newer format.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"{file}: no such file: give a folder that gebm export or save_pretrained made")
    config = read_json(file)
    if config.get("format") != FORMAT:
        raise InputError(f"{file}: not the configuration of a gebm model (its format is not '{FORMAT}')")
    if config.get("format_version") != VERSION:
        raise InputError(
            f"{file}: format version {config.get('format_version')!r:.20}, this gebm reads {VERSION}; upgrade gebm"
        )
    if config.get("dtype") not in tuple(DTYPES) or not isinstance(config.get("architecture"), dict):
        raise InputError(f"{file}: damaged (dtype {', '.join(DTYPES)} and an architecture are needed); export again")
    return config


def write_weights(file: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors with the texts of a header."""
    # Clones: the format refuses tensors that share memory, as tied weights do.
    own = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    with atomic_write(file) as temporary:
        safetensors.torch.save_file(own, temporary, header)


def _plain(architecture: "Architecture | None") -> dict[str, Any]:
    """The fields as JSON gives them back."""
    return {**asdict(architecture), "shape": list(architecture.shape)} if architecture else {}


def _folder(name: str | Path, revision: str | None) -> Path:
    """The folder of that name, or the copy of the hub's that the hub's own cache keeps."""
    if Path(name).is_dir():
        return Path(name)
    if not HUB_NAME.fullmatch(str(name)):
        raise InputError(f"{name}: no such folder, and no name on the hub (user/name)")
    hub = _hub(str(name))
    try:
        return Path(hub.snapshot_download(str(name), revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise InputError(f"{name}: no such folder, and the hub did not give it ({reason(error)})") from None


def _hub(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"{name}: is no folder here, and the hub needs huggingface_hub: pip install 'gebm[hub]'"
        ) from None
    return huggingface_hub

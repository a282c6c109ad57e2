"""Whether the files of a folder are, to the byte, those that were written."""

import hashlib
import json
from pathlib import Path
from typing import Any

from gebm.bounded import MAX_JSON, open_regular, parse_json, read_bytes
from gebm.errors import InputError

__all__ = ["MANIFEST", "check_file", "damage", "read_manifest", "sha256_of", "write_manifest"]

MANIFEST = "manifest.json"


def write_manifest(folder: Path, **notes: Any) -> None:
    """Write `manifest.json`: the size in bytes and the sha256 of every file in the folder, and `notes` as they are."""
    files = {
        f.name: {"bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in sorted(folder.iterdir()) if f.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({**notes, "files": files}, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; empty where it has none.

    Raises:
        ValueError: it is not one.
    """
    try:
        found = parse_json(read_bytes(folder / MANIFEST, MAX_JSON))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise ValueError("it lists no files")
    return found


def damage(folder: Path) -> str:
    """The first file of a folder that is not what its manifest says, and why; empty if all are, or it has none."""
    try:
        files = read_manifest(folder).get("files", {})
    except (OSError, ValueError) as error:
        return f"{folder / MANIFEST} is damaged ({' '.join(str(error).split())})"
    if strange := next((name for name in files if Path(name).name != name), None):
        return f"{folder / MANIFEST} is damaged (it names {strange!r:.80}, which is no file of the folder)"
    return next(filter(None, (_damage(folder / name, entry) for name, entry in files.items())), "")


def check_file(file: Path) -> None:
    """Raise InputError if a manifest beside a file says that it is damaged."""
    try:
        entry = read_manifest(file.parent).get("files", {}).get(file.name)
    except (OSError, ValueError):
        return  # of a folder that is not ours, or of one whose damage is told where it is looked for
    if entry is not None and (found := _damage(file, entry)):
        raise InputError(f"{found}; take another, or delete {file.parent / MANIFEST} if you changed it yourself")


def _damage(file: Path, entry: Any) -> str:
    try:
        size, sha256 = entry["bytes"], entry["sha256"]
        if file.exists() and not file.is_file():
            return f"{file} is damaged (it is no file)"
        if (have := file.stat().st_size) != size:
            return f"{file} is damaged ({have:,} bytes of {size:,})"
        return "" if sha256_of(file) == sha256 else f"{file} is damaged (its sha256 is not the one written with it)"
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})"
    except InputError as error:
        return str(error)
    except (KeyError, TypeError, ValueError):
        return f"{file.parent / MANIFEST} is damaged (its entry of {file.name})"


def sha256_of(file: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

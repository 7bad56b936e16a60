"""Tell from its first bytes what a file is that is not what its name says."""

from __future__ import annotations

LFS: bytes = b"version https://git-lfs.github.com/spec/"
"""How a Git LFS pointer starts: a few lines in the place of a file that was not fetched."""

LFS_BYTES = 1024
"""A pointer is smaller; the specification of Git LFS says so."""

READ = 64
"""As many first bytes tell."""

_FETCH = "fetch the file itself: `git lfs pull` in the clone, or `hf download`"
_SAVE = "where you trust the file, load it and save it again with save_pretrained"
_CONVERT = "get the model as safetensors"

_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (LFS, "a Git LFS pointer, not the file", _FETCH),
    (b"<!doctype", "a web page, not the file", "download the file itself, for example with `hf download`"),
    (b"<html", "a web page, not the file", "download the file itself, for example with `hf download`"),
    (b"pk\x03\x04", "a zip archive, as torch.save writes it", _SAVE),
    (b"\x80\x02", "a pickle", _SAVE),
    (b"\x80\x04", "a pickle", _SAVE),
    (b"gguf", "a GGUF file", _CONVERT),
    (b"\x89hdf", "an HDF5 file", _CONVERT),
    (b"\x1f\x8b", "a file that is compressed by gzip", "unpack it"),
)

_TEXT = "a text, such as a config or an index", "pass the folder of the model"


def recognised(start: bytes, *, text: bool = False) -> tuple[str, str] | None:
    """Return what a file is, and what to do about it; None where its first bytes do not tell.

    Args:
        start: the first bytes, `READ` of them or more.
        text: say it of any text: a safetensors file starts with a number that is none.
    """
    lowered = start[:READ].lstrip().lower()
    found = next(((seen, fix) for magic, seen, fix in _KINDS if lowered.startswith(magic)), None)
    return _TEXT if found is None and text and _is_text(start[:8]) else found


def _is_text(start: bytes) -> bool:
    return start.isascii() and all(chr(byte).isprintable() or chr(byte).isspace() for byte in start)


__all__ = ["LFS", "LFS_BYTES", "READ", "recognised"]

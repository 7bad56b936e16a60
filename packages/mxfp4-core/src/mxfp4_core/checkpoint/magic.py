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


def recognised(start: bytes) -> tuple[str, str] | None:
    """Return what a file is, and what to do about it; None where its first bytes do not tell.

    Args:
        start: the first bytes, `READ` of them or more.
    """
    lowered = start[:READ].lstrip().lower()
    return next(((seen, fix) for magic, seen, fix in _KINDS if lowered.startswith(magic)), None)


__all__ = ["LFS", "LFS_BYTES", "READ", "recognised"]

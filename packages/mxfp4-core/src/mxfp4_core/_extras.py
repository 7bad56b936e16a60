"""What to install where a part of the package needs more than the package itself does."""

from __future__ import annotations

from mxfp4_core.errors import ConfigError

# Top-level modules of each extra in pyproject.toml, by the extra.
EXTRAS = {
    "cpu": ("numba", "llvmlite"),
    "cli": ("typer", "rich", "click"),
    "ray": ("ray",),
    "remote": ("fsspec", "s3fs"),
}


def say_what_to_install(what: str, error: ModuleNotFoundError) -> None:
    """Raise the error that names the extra which the missing module belongs to; return where it belongs to none.

    Args:
        what: what cannot be done without it.
        error: the import that failed.

    Raises:
        ConfigError: an extra is not installed.
    """
    top = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if top in modules:
            raise ConfigError(
                what,
                seen=f"no module named {top!r}",
                rule=f"it comes with the extra {extra!r} of mxfp4-core, which is not installed",
                fix=f'in a clone of the repository: pip install "./packages/mxfp4-core[{extra}]"',
            ) from error


__all__ = ["EXTRAS", "say_what_to_install"]

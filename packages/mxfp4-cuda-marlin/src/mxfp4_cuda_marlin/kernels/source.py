"""The text that is compiled: the sources of this folder, with the one instruction that depends on the tile."""

from __future__ import annotations

from importlib.resources import files


def _wgmma(nt: int) -> str:
    """Return the wrapper of ``wgmma.mma_async.m64n<nt>k16``: one register operand for each accumulator.

    ``x`` is the low word of the descriptor of the tokens; the high one says 128-byte swizzle and 1024 bytes from eight
    tokens to the next.
    """
    count = nt // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    weights = ", ".join(f"%{count + i}" for i in range(4))
    return (
        f"template <> DEV void wgmma<{nt}>(float (&d)[{count}], u32 a0, u32 a1, u32 a2, u32 a3, u32 x) {{\n"
        f'  asm volatile("{{\\n.reg .b64 tokens;\\nmov.b64 tokens, {{%{count + 4}, 0x40000040}};\\n'
        f"wgmma.mma_async.sync.aligned.m64n{nt}k16.f32.bf16.bf16 {{{registers}}}, {{{weights}}}, "
        f'tokens, 1, 1, 1, 0;\\n}}"\n'
        f'    : {outputs} : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(x));\n}}\n'
    )


def _read(name: str) -> str:
    """Return the source of this name, behind what all of them share."""
    folder = files(__package__)
    return "".join((folder / each).read_text(encoding="utf-8") for each in ("ptx.cuh", name))


def gemm(nt: int, narrow: int) -> str:
    """Return the source of the GEMM for tiles of ``nt`` tokens, or of no more than ``narrow``."""
    wrappers = "".join(_wgmma(width) for width in sorted({nt, narrow}))
    return _read("gemm.cu").replace("//WGMMA//\n", wrappers)


def decode() -> str:
    """Return the source of the kernel for few tokens."""
    return _read("decode.cu")


def routing() -> str:
    """Return the source of ``route`` (with the macro CLUSTER), ``gather`` and ``combine``."""
    return _read("routing.cu")


__all__ = ["decode", "gemm", "routing"]

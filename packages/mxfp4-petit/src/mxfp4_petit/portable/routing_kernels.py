"""Which tokens each expert computes, as blocks of a fixed size, and the weighted sum at the end. In Triton.

A pair is a token with one of its slots: pair p is slot ``p % top_k`` of token ``p // top_k``. Each expert reads all
ids, twice, so that the order is the same in every run, without atomics and without a sort.
"""

import triton
import triton.language as tl


@triton.jit
def _expert_of(ids, expert_map, pairs, inside, experts, total, MAPPED: tl.constexpr):
    """Return the expert here of each pair, -1 for an empty slot and for what is no expert."""
    expert = tl.load(ids + pairs, mask=inside, other=-1)
    if MAPPED:
        known = (expert >= 0) & (expert < total)
        expert = tl.load(expert_map + tl.where(known, expert, 0), mask=inside & known, other=-1)
    return tl.where((expert >= 0) & (expert < experts), expert, -1)


@triton.jit(do_not_specialize=["pairs", "experts", "total"])
def count_kernel(ids, expert_map, counts, pairs, experts, total, MAPPED: tl.constexpr, CHUNK: tl.constexpr):
    """Count the pairs of each expert; one program each."""
    mine = tl.program_id(0)
    found = tl.zeros((CHUNK,), dtype=tl.int32)
    for start in range(0, pairs, CHUNK):
        at = start + tl.arange(0, CHUNK)
        expert = _expert_of(ids, expert_map, at, at < pairs, experts, total, MAPPED)
        found += (expert == mine).to(tl.int32)
    tl.store(counts + mine, tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["pairs", "experts", "total", "blocks"])
def place_kernel(
    ids, expert_map, counts, block_expert, block_pairs, pairs, experts, total, blocks,
    MAPPED: tl.constexpr, CHUNK: tl.constexpr, EXPERTS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Write the blocks of each expert: its number for each block, and BM pairs, -1 where there are none left."""
    mine = tl.program_id(0)
    every = tl.arange(0, EXPERTS)
    needed = (tl.load(counts + every, mask=every < experts, other=0) + BM - 1) // BM
    first = tl.sum(tl.where(every < mine, needed, 0), axis=0)
    count = tl.load(counts + mine)
    end = first + (count + BM - 1) // BM
    before = 0
    for start in range(0, pairs, CHUNK):
        at = start + tl.arange(0, CHUNK)
        chosen = (_expert_of(ids, expert_map, at, at < pairs, experts, total, MAPPED) == mine).to(tl.int32)
        rank = before + tl.cumsum(chosen, axis=0) - chosen
        tl.store(block_pairs + first * BM + rank, at, mask=chosen == 1)
        before += tl.sum(chosen, axis=0)
    rest = first * BM + count + tl.arange(0, BM)
    tl.store(block_pairs + rest, -1, mask=rest < end * BM)
    for start in range(first, end, CHUNK):
        at = start + tl.arange(0, CHUNK)
        tl.store(block_expert + at, mine, mask=at < end)
    if mine == experts - 1:  # what no expert needs
        for start in range(end, blocks, CHUNK):
            at = start + tl.arange(0, CHUNK)
            tl.store(block_expert + at, -1, mask=at < blocks)


@triton.jit(do_not_specialize=["top_k", "experts", "total"])
def combine_kernel(
    results, ids, expert_map, weights, out, n, top_k, experts, total, MAPPED: tl.constexpr, SIZE: tl.constexpr
):
    """Add results [pairs, n] times the router's weights, slot after slot; empty slots are not read."""
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    acc = tl.zeros((SIZE,), dtype=tl.float32)
    for slot in range(0, top_k):
        pair = token * top_k + slot
        expert = _expert_of(ids, expert_map, pair, True, experts, total, MAPPED)
        used = expert >= 0
        weight = tl.load(weights + pair, mask=used, other=0.0)
        acc += weight * tl.load(results + pair * n + column, mask=used & (column < n), other=0.0).to(
            tl.float32
        )
    tl.store(out + token * n + column, acc.to(out.dtype.element_ty), mask=column < n)

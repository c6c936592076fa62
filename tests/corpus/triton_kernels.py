"""Triton kernels of many kinds, for the corpus: what a grid, a block and the words between blocks can look like.

They are small and short, one idea each; ``make_triton.py`` says with what they are compiled and run.
"""

# ruff: noqa: N803 - constants in capitals, as Triton's users write them

import triton
import triton.language as tl


@triton.jit
def matmul(a, b, c, m, n, k, stride_am, stride_bn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """One tile of c = a b^T, on a two-dimensional grid."""
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for at in range(0, k, BK):
        x = tl.load(a + rm[:, None] * stride_am + (at + rk)[None, :])
        y = tl.load(b + rn[None, :] * stride_bn + (at + rk)[:, None])
        total = tl.dot(x, y, total)
    tl.store(
        c + rm[:, None] * n + rn[None, :], total.to(c.dtype.element_ty), mask=(rm[:, None] < m) & (rn[None, :] < n)
    )


@triton.jit
def matmul_epilogue(
    a, b, bias, shift, c, m, n, k, stride_am, stride_bn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Tiles in groups on a one-dimensional grid; a bias, GELU and a shift on top, edges masked."""
    pid = tl.program_id(0)
    across, down = tl.cdiv(n, BN), tl.cdiv(m, BM)
    first = pid // (GROUP * across) * GROUP
    height = min(down - first, GROUP)
    rm = (first + pid % (GROUP * across) % height) * BM + tl.arange(0, BM)
    rn = (pid % (GROUP * across)) // height * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for at in range(0, k, BK):
        x = tl.load(
            a + rm[:, None] * stride_am + (at + rk)[None, :], mask=(rm[:, None] < m) & (at + rk < k)[None, :], other=0.0
        )
        y = tl.load(
            b + rn[None, :] * stride_bn + (at + rk)[:, None], mask=(rn[None, :] < n) & (at + rk < k)[:, None], other=0.0
        )
        total = tl.dot(x, y, total)
    inside = (rm[:, None] < m) & (rn[None, :] < n)
    total += tl.load(bias + rn, mask=rn < n, other=0.0).to(tl.float32)[None, :]
    total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    total += tl.load(shift + rn, mask=rn < n, other=0.0).to(tl.float32)[None, :]
    tl.store(c + rm[:, None] * n + rn[None, :], total.to(tl.float16), mask=inside)


@triton.jit
def matmul_persistent(
    a, b, c, m, n, k, stride_am, stride_bn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """A loop over tiles in steps of the grid: what it computes depends on ``num_programs``."""
    across = tl.cdiv(n, BN)
    rk = tl.arange(0, BK)
    for tile in range(tl.program_id(0), across * tl.cdiv(m, BM), tl.num_programs(0)):
        rm = tile // across * BM + tl.arange(0, BM)
        rn = tile % across * BN + tl.arange(0, BN)
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for at in range(0, k, BK):
            x = tl.load(a + rm[:, None] * stride_am + (at + rk)[None, :])
            y = tl.load(b + rn[None, :] * stride_bn + (at + rk)[:, None])
            total = tl.dot(x, y, total)
        tl.store(c + rm[:, None] * n + rn[None, :], total.to(tl.float16))


@triton.jit
def matmul_split_k(
    a, b, c, m, n, k, stride_am, stride_bn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Parts of the inner sum by the grid's third coordinate, added up by atomics."""
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), dtype=c.dtype.element_ty)
    for at in range(tl.program_id(2) * BK, k, BK * tl.num_programs(2)):
        rk = at + tl.arange(0, BK)
        x = tl.load(a + rm[:, None] * stride_am + rk[None, :])
        y = tl.load(b + rn[None, :] * stride_bn + rk[:, None])
        total += tl.dot(x, y, out_dtype=c.dtype.element_ty)
    tl.atomic_add(c + rm[:, None] * n + rn[None, :], total, sem="relaxed")


@triton.jit
def matmul_tma(a, b, c, m, n, k, stride_am, stride_bn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Tiles fetched and stored by tensor descriptors, which each block makes in the scratch memory of its number."""
    x_tiles = tl.make_tensor_descriptor(a, [m, k], [stride_am, 1], [BM, BK])
    y_tiles = tl.make_tensor_descriptor(b, [n, k], [stride_bn, 1], [BN, BK])
    z_tiles = tl.make_tensor_descriptor(c, [m, n], [n, 1], [BM, BN])
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for at in range(0, k, BK):
        total = tl.dot(x_tiles.load([row, at]), y_tiles.load([column, at]).T, total)
    z_tiles.store([row, column], total.to(tl.float16))


@triton.jit
def matmul_specialized(
    a, b, c, m, n, k, stride_am, stride_bn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Some warps fetch, others multiply: barriers for a part of the block, registers handed from warp to warp."""
    x_tiles = tl.make_tensor_descriptor(a, [m, k], [stride_am, 1], [BM, BK])
    y_tiles = tl.make_tensor_descriptor(b, [n, k], [stride_bn, 1], [BN, BK])
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for at in tl.range(0, k, BK, warp_specialize=True):
        total = tl.dot(x_tiles.load([row, at]), y_tiles.load([column, at]).T, total)
    rm, rn = row + tl.arange(0, BM), column + tl.arange(0, BN)
    tl.store(c + rm[:, None] * n + rn[None, :], total.to(tl.float16))


@triton.jit
def conv(
    x, w, y, height, width, out_height, out_width, channels, filters,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A 3x3 convolution as nine matrix products; pixels by rows (NHWC), no padding."""
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    column, row = pixel % out_width, pixel // out_width % out_height
    image = pixel // (out_width * out_height)
    rk = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for tap in range(9):
        at = ((image * height + row + tap // 3) * width + column + tap % 3) * channels
        for first in range(0, channels, BK):
            pixels = tl.load(x + at[:, None] + (first + rk)[None, :])
            taps = tl.load(w + (tap * channels + first + rk)[:, None] * filters + rn[None, :])
            total = tl.dot(pixels, taps, total)
    tl.store(y + pixel[:, None] * filters + rn[None, :], total.to(tl.float16))


@triton.jit
def attention(
    q, k, v, out, length, stride_head, stride_row, scale, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Causal attention in one pass over the keys, with a running maximum and sum."""
    start, head = tl.program_id(0) * BM, tl.program_id(1)
    rm, rd = start + tl.arange(0, BM), tl.arange(0, D)
    query = tl.load(q + head * stride_head + rm[:, None] * stride_row + rd[None, :])
    top = tl.full((BM,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((BM,), dtype=tl.float32)
    total = tl.zeros((BM, D), dtype=tl.float32)
    for at in range(0, start + BM, BN):
        rn = at + tl.arange(0, BN)
        key = tl.load(k + head * stride_head + rn[None, :] * stride_row + rd[:, None])
        scores = tl.where(rm[:, None] >= rn[None, :], tl.dot(query, key) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        share = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        weight = weight * fade + tl.sum(share, 1)
        value = tl.load(v + head * stride_head + rn[:, None] * stride_row + rd[None, :])
        total = tl.dot(share.to(tl.float16), value, total * fade[:, None])
        top = higher
    at = out + (head * length + rm[:, None]) * D + rd[None, :]
    tl.store(at, (total / weight[:, None]).to(tl.float16))


@triton.jit
def softmax(x, y, columns, stride, BLOCK: tl.constexpr):
    """A row for each block."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(x + row * stride + at, mask=at < columns, other=float("-inf")).to(tl.float32)
    values = tl.exp(values - tl.max(values, 0))
    tl.store(y + row * columns + at, (values / tl.sum(values, 0)).to(tl.float16), mask=at < columns)


@triton.jit
def layer_norm(x, w, b, y, mean_of, rstd_of, columns, stride, eps, BLOCK: tl.constexpr):
    """Two loops over a row, in pieces."""
    row = tl.program_id(0)
    sums, squares = tl.zeros((BLOCK,), dtype=tl.float32), tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        values = tl.load(x + row * stride + at, mask=at < columns, other=0.0)
        sums += values
        squares += values * values
    mean = tl.sum(sums, 0) / columns
    rstd = tl.rsqrt(tl.sum(squares, 0) / columns - mean * mean + eps)
    tl.store(mean_of + row, mean)
    tl.store(rstd_of + row, rstd)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < columns
        values = (tl.load(x + row * stride + at, mask=inside, other=0.0) - mean) * rstd
        values = values * tl.load(w + at, mask=inside) + tl.load(b + at, mask=inside)
        tl.store(y + row * columns + at, values, mask=inside)


@triton.jit
def row_sum(x, y, rows, columns, stride, BR: tl.constexpr, BC: tl.constexpr):
    """Sums and maxima of some rows for each block."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)[:, None]
    total = tl.zeros((BR, BC), dtype=tl.float32)
    top = tl.full((BR, BC), float("-inf"), dtype=tl.float32)
    for first in range(0, columns, BC):
        at = first + tl.arange(0, BC)[None, :]
        inside = (row < rows) & (at < columns)
        values = tl.load(x + row * stride + at, mask=inside, other=0.0)
        total += values
        top = tl.maximum(top, tl.where(inside, values, float("-inf")))
    tl.store(y + row, (tl.sum(total, 1) * tl.max(top, 1))[:, None], mask=row < rows)


@triton.jit
def full_reduce(x, count, top, size, BLOCK: tl.constexpr):
    """One number of the whole grid: a count and a maximum, by atomics whose order does not matter."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < size, other=float("-inf"))
    tl.atomic_add(count, tl.sum((values > 0).to(tl.int32), 0))
    tl.atomic_max(top, tl.max(values, 0))


@triton.jit
def last_block(x, part, arrived, y, size, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """The block that arrives last adds up what all have left; nobody waits."""
    pid = tl.program_id(0)
    at = pid * BLOCK + tl.arange(0, BLOCK)
    tl.store(part + pid, tl.sum(tl.load(x + at, mask=at < size, other=0.0), 0))
    tl.debug_barrier()
    if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        which = tl.arange(0, BLOCKS)
        tl.store(y, tl.sum(tl.load(part + which, mask=which < tl.num_programs(0), other=0.0, cache_modifier=".cg"), 0))


@triton.jit
def combine(decay_a, a, decay_b, b):
    """Two steps of h' = decay h + a as one."""
    return decay_a * decay_b, a * decay_b + b


@triton.jit
def scan(decay, x, y, z, columns, BLOCK: tl.constexpr):
    """A linear recurrence and a running sum along each row."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * columns + at, mask=inside, other=0.0)
    decays = tl.load(decay + row * columns + at, mask=inside, other=1.0)
    _, states = tl.associative_scan((decays, values), 0, combine)
    tl.store(y + row * columns + at, states, mask=inside)
    tl.store(z + row * columns + at, tl.cumsum(values, 0), mask=inside)


@triton.jit
def gather_rows(table, index, y, width, BLOCK: tl.constexpr):
    """Rows of a table by their numbers, and within each row a shuffle of its elements."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    which = tl.load(index + row)
    values = tl.load(table + which * width + at)
    tl.store(y + row * width + at, tl.gather(values, (at * 5 + row) % BLOCK, 0))


@triton.jit
def scatter(x, where, y, size, BLOCK: tl.constexpr):
    """Every element to a place of its own."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    tl.store(y + tl.load(where + at, mask=inside, other=0), tl.load(x + at, mask=inside), mask=inside)


@triton.jit
def transpose(x, y, rows, columns, B: tl.constexpr):
    """A tile, written the other way round: through shared memory."""
    row = tl.program_id(0) * B + tl.arange(0, B)
    column = tl.program_id(1) * B + tl.arange(0, B)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    values = tl.load(x + row[:, None] * columns + column[None, :], mask=inside)
    tl.store(y + column[:, None] * rows + row[None, :], tl.trans(values), mask=tl.trans(inside))


@triton.jit
def batch_norm(x, mean, rstd, w, b, y, size, plane, channels, BLOCK: tl.constexpr):
    """Element by element, no word between threads."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    channel = at // plane % channels
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    values = (values - tl.load(mean + channel, mask=inside, other=0.0)) * tl.load(
        rstd + channel, mask=inside, other=0.0
    )
    values = values * tl.load(w + channel, mask=inside, other=0.0) + tl.load(b + channel, mask=inside, other=0.0)
    tl.store(y + at, tl.maximum(values, 0.0).to(tl.float16), mask=inside)


@triton.jit
def grid_3d(x, y, size, BLOCK: tl.constexpr):
    """All three coordinates and all three sizes of the grid."""
    i, j, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    block = (k * tl.num_programs(1) + j) * tl.num_programs(0) + i
    at = block * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < size, other=0)
    values = values * 1000 + i * 100 + j * 10 + k
    tl.store(y + at, values + tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2), mask=at < size)


@triton.jit
def early_return(x, skip, y, size, BLOCK: tl.constexpr):
    """Blocks that leave at once, by their number or by what they read."""
    pid = tl.program_id(0)
    if pid * BLOCK >= size:
        return
    if tl.load(skip + pid) != 0:
        return
    at = pid * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < size, other=0.0)
    tl.store(y + at, values - tl.sum(values, 0), mask=at < size)


@triton.jit
def histogram(x, y, size, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Counts by shared memory within a block, by atomics among blocks."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    counts = tl.histogram(tl.load(x + at, mask=inside, other=0), BINS, mask=inside)
    tl.atomic_add(y + tl.arange(0, BINS), counts)


@triton.jit
def barrier(x, scratch, y, BLOCK: tl.constexpr):
    """Threads of a block speak to each other through global memory, over and over in the same place."""
    pid, at = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(x + pid * BLOCK + at)
    for step in range(4):
        tl.debug_barrier()
        tl.store(scratch + pid * BLOCK + at, values)
        tl.debug_barrier()
        values = values * 3 + tl.load(scratch + pid * BLOCK + (at + 37 + step) % BLOCK, cache_modifier=".cg")
    tl.store(y + pid * BLOCK + at, values)


@triton.jit
def work_counter(x, counter, y, BLOCK: tl.constexpr):
    """A block does the work whose number it draws."""
    ticket = tl.atomic_add(counter, 1)
    at = ticket * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at) * 2.0 + ticket)


@triton.jit
def spin_wait(x, flags, sums, y, BLOCK: tl.constexpr):
    """A running sum over the grid: each block waits for the one before it."""
    pid, at = tl.program_id(0), tl.arange(0, BLOCK)
    running = tl.cumsum(tl.load(x + pid * BLOCK + at), 0)
    before = 0
    if pid > 0:
        while tl.atomic_cas(flags + pid - 1, 1, 1) != 1:
            pass
        before = tl.load(sums + pid - 1, volatile=True)
    tl.store(sums + pid, before + tl.sum(tl.load(x + pid * BLOCK + at), 0))
    tl.debug_barrier()
    tl.atomic_xchg(flags + pid, 1)
    tl.store(y + pid * BLOCK + at, running + before)


@triton.jit
def noise(x, y, size, seed, p, BLOCK: tl.constexpr):
    """Dropout by counter-based random numbers: whole-number arithmetic that is long and wide."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.rand(seed, at) > p
    values = tl.load(x + at, mask=at < size, other=0.0)
    tl.store(y + at, tl.where(kept, values / (1.0 - p), 0.0), mask=at < size)


@triton.jit
def inline_asm(x, y, size, BLOCK: tl.constexpr):
    """PTX written by hand within a kernel, with registers of its own."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < size, other=0)
    values = tl.inline_asm_elementwise(
        "{ .reg .b32 t; brev.b32 t, $1; popc.b32 $0, $1; add.s32 $0, $0, t; }",
        "=r,r", [values], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip
    tl.store(y + at, values, mask=at < size)


@triton.jit
def dependent_launch(x, y, size, BLOCK: tl.constexpr):
    """A block that waits for the launch before its own, as programmatic dependent launch has it."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.extra.cuda.gdc_wait()
    values = tl.load(x + at, mask=at < size, other=0.0)
    tl.extra.cuda.gdc_launch_dependents()
    tl.store(y + at, values * values + 1.0, mask=at < size)

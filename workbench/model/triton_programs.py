"""What each program of ``fused_kernels`` does, in Triton; launches and sizes are decided there.

A program reads a row, a tile of one or a block of heads, reckons in fp32 and writes once. Rounding
is the twin's: what is a result of its own there is rounded here as well. Each sum has one order.
"""

# Arguments of device functions are what Triton makes of them: pointers, blocks and scalars.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

# Below any logit of a model, and finite also in base two: a lane that found nothing makes no NaN.
_LOWEST = tl.constexpr(-1e38)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rounded(value, like):
    """Round fp32 to the dtype of ``like``, as writing it to memory and reading it back would."""
    return value.to(like.dtype).to(tl.float32)


@triton.jit
def norm(x, weight, out, width, epsilon, BLOCK: tl.constexpr):
    """A program takes one row."""
    begin = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    read = tl.load(x + begin + columns, mask=inside, other=0.0)
    wide = read.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / width + epsilon)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + begin + columns, _rounded(wide * inverse, read) * scale, mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def norm_backward(
    gradient, x, weight, onto, parts, rows, share, width, epsilon,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A program takes ``share`` rows in turn and adds up the weight's gradient over them."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    first = program * share
    for row in tl.range(first, tl.minimum(first + share, rows), num_stages=STAGES):
        at = row * width + columns
        wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        before = tl.load(onto + at, mask=inside, other=0.0).to(tl.float32)
        # The two sums do not wait for each other.
        squares = tl.sum(wide * wide, 0) / width
        scaled = given * scale
        products = tl.sum(scaled * wide, 0) / width
        inverse = tl.rsqrt(squares + epsilon)
        along = products * inverse * inverse
        tl.store(onto + at, before + inverse * (scaled - wide * along), mask=inside)
        weight_sum += given * (wide * inverse)
    tl.store(parts + program * width + columns, weight_sum, mask=inside)


@triton.jit(do_not_specialize=["num_parts"])
def add_parts(parts, weight_sum, num_parts, width, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program adds up the parts of some columns, onto what the sum holds."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((PARTS, COLUMNS), dtype=tl.float32)
    for begin in range(0, num_parts, PARTS):
        part = begin + tl.arange(0, PARTS)
        total += tl.load(
            parts + part[:, None] * width + columns[None, :],
            mask=(part < num_parts)[:, None] & inside[None, :],
            other=0.0,
        )
    before = tl.load(weight_sum + columns, mask=inside, other=0.0)
    tl.store(weight_sum + columns, before + tl.sum(total, 0), mask=inside)


@triton.jit
def norm_heads(
    x, weight, out, x_stride, out_stride, num_heads, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """A program takes some heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, BLOCK)
    inside = (heads < num_heads)[:, None] & (columns < WIDTH)[None, :]
    at = heads[:, None] * WIDTH + columns[None, :]
    read = tl.load(x + token * x_stride + at, mask=inside, other=0.0)
    wide = read.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + epsilon)
    scale = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    normed = _rounded(wide * inverse[:, None], read) * scale[None, :]
    tl.store(out + token * out_stride + at, normed, mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def norm_heads_backward(
    gradient, x, weight, parts, rows, share, gradient_stride, x_stride, num_heads, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A program takes some heads of ``share`` rows in turn, and adds up the weight's gradient."""
    program = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, BLOCK)
    inside = (heads < num_heads)[:, None] & (columns < WIDTH)[None, :]
    at = heads[:, None] * WIDTH + columns[None, :]
    scale = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((HEADS, BLOCK), dtype=tl.float32)
    first = program * share
    for row in tl.range(first, tl.minimum(first + share, rows), num_stages=STAGES):
        wide = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
        to = gradient + row * gradient_stride + at
        given = tl.load(to, mask=inside, other=0.0).to(tl.float32)
        squares = tl.sum(wide * wide, 1) / WIDTH
        scaled = given * scale[None, :]
        products = tl.sum(scaled * wide, 1) / WIDTH
        inverse = tl.rsqrt(squares + epsilon)
        along = products * inverse * inverse
        tl.store(to, inverse[:, None] * (scaled - wide * along[:, None]), mask=inside)
        weight_sum += given * (wide * inverse[:, None])
    part = program * tl.num_programs(1) + tl.program_id(1)
    tl.store(parts + part * WIDTH + columns, tl.sum(weight_sum, 0), mask=columns < WIDTH)


@triton.jit
def add_bias(x, bias, stride, width, tiles, BLOCK: tl.constexpr):
    """A program takes a tile of one row."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    columns = (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = x + row * stride + columns
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, value + added, mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def sum_columns(
    gradient, parts, rows, share, stride, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program adds up some columns of ``share`` rows, several rows under way at a time."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    first = program * share
    last = tl.minimum(first + share, rows)
    for begin in range(first, last, ROWS):
        row = begin + tl.arange(0, ROWS)
        total += tl.load(
            gradient + row[:, None] * stride + columns[None, :],
            mask=(row < last)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
    tl.store(parts + program * width + columns, tl.sum(total, 0), mask=inside)


@triton.jit
def rotate(
    qkv, cosine, sine, stride, num_heads,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """A program takes some heads of one token, in place."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pairs = tl.arange(0, BLOCK)
    turns = token * (2 * HALF) + pairs
    cosines = tl.load(cosine + turns, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
    sines = tl.load(sine + turns, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
    at = qkv + token * stride + heads[:, None] * (2 * HALF) + pairs[None, :]
    inside = (heads < num_heads)[:, None] & (pairs < HALF)[None, :]
    read = tl.load(at, mask=inside, other=0.0)
    first = read.to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    # Each product is rounded, as separate operations would.
    turned_first = _rounded(first * cosines, read) - _rounded(second * sines, read)
    turned_second = _rounded(second * cosines, read) + _rounded(first * sines, read)
    tl.store(at, turned_first, mask=inside)
    tl.store(at + HALF, turned_second, mask=inside)


@triton.jit
def _turn_back(
    turned, token_stride, head_stride, token, block, num_heads, out, cosine, sine,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """Turn a block of heads of one token back, or only copy them, to ``out``."""
    heads = block * HEADS + tl.arange(0, HEADS)
    pairs = tl.arange(0, BLOCK)
    inside = (heads < num_heads)[:, None] & (pairs < HALF)[None, :]
    at = turned + token * token_stride + heads.to(tl.int64)[:, None] * head_stride + pairs[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    to = out + heads[:, None] * (2 * HALF) + pairs[None, :]
    if TURN:
        turns = token * (2 * HALF) + pairs
        cosines = tl.load(cosine + turns, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
        sines = tl.load(sine + turns, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
        tl.store(to, first * cosines + second * sines, mask=inside)
        tl.store(to + HALF, second * cosines - first * sines, mask=inside)
    else:
        tl.store(to, first, mask=inside)
        tl.store(to + HALF, second, mask=inside)


@triton.jit
def pack_rotated_back(
    dq, dk, dv, cosine, sine, out,
    q_token, q_head, k_token, k_head, v_token, v_head, stride, num_queries, num_keys,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The blocks of heads of one token: those of queries, then of keys, then of values."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    query_blocks = tl.cdiv(num_queries, HEADS)
    key_blocks = tl.cdiv(num_keys, HEADS)
    row = out + token * stride
    keys = row + num_queries * (2 * HALF)
    values = keys + num_keys * (2 * HALF)
    if block < query_blocks:
        _turn_back(
            dq, q_token, q_head, token, block, num_queries, row, cosine, sine,
            HALF, BLOCK, HEADS, True,
        )  # fmt: skip
    elif block < query_blocks + key_blocks:
        _turn_back(
            dk, k_token, k_head, token, block - query_blocks, num_keys, keys, cosine, sine,
            HALF, BLOCK, HEADS, True,
        )  # fmt: skip
    else:
        _turn_back(
            dv, v_token, v_head, token, block - query_blocks - key_blocks, num_keys, values,
            cosine, sine, HALF, BLOCK, HEADS, False,
        )  # fmt: skip


@triton.jit
def _sigmoid(value):
    return 1.0 / (1.0 + tl.exp(-value))


@triton.jit
def _product(gate, up, like):
    """silu(gate) * up, with silu rounded as if it were a result of its own."""
    return _rounded(gate * _sigmoid(gate), like) * up


@triton.jit
def gated_product(gate_up, out, width, tiles, BLOCK: tl.constexpr):
    """A program takes a tile of one row of gates and the one of their ups."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    columns = (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = gate_up + row * (2 * width) + columns
    gate = tl.load(at, mask=inside, other=0.0)
    up = tl.load(at + width, mask=inside, other=0.0)
    product = _product(gate.to(tl.float32), up.to(tl.float32), gate)
    tl.store(out + row * width + columns, product, mask=inside)


@triton.jit
def gated_product_backward(gate_up, product, width, tiles, BLOCK: tl.constexpr):
    """The same; gradients take the place of gates and ups, the product that of its gradient."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    columns = (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = gate_up + row * (2 * width) + columns
    read = tl.load(at, mask=inside, other=0.0)
    gate = read.to(tl.float32)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    to = product + row * width + columns
    gradient = tl.load(to, mask=inside, other=0.0).to(tl.float32)
    sigmoid = _sigmoid(gate)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(at, gradient * up * slope, mask=inside)
    tl.store(at + width, gradient * (gate * sigmoid), mask=inside)
    tl.store(to, _product(gate, up, read), mask=inside)


@triton.jit
def cross_entropy(
    logits, labels, losses, correct, width, scale,
    WITH_GRADIENT: tl.constexpr, WITH_CORRECT: tl.constexpr,
    DEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes one row: each lane keeps its own maximum and sum, joined at the end."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    start = logits + row * width
    wanted = tl.load(start + label).to(tl.float32)
    lanes = tl.arange(0, BLOCK)
    places = tl.arange(0, DEEP)[:, None] * BLOCK + lanes[None, :]
    largest = tl.full((BLOCK,), _LOWEST, dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, width, DEEP * BLOCK):
        columns = begin + places
        value = tl.load(start + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(value, 0))
        terms = tl.sum(tl.exp2((value - larger[None, :]) * _LOG2_E), 0)
        total = total * tl.exp2((largest - larger) * _LOG2_E) + terms
        largest = larger
    maximum = tl.max(largest, 0)
    total_terms = tl.sum(total * tl.exp2((largest - maximum) * _LOG2_E), 0)
    tl.store(losses + row, tl.log(total_terms) + maximum - wanted)
    if WITH_CORRECT:
        # The label is the first of the largest: none before it is as large.
        is_largest = wanted == maximum
        num_earlier = tl.zeros((BLOCK,), dtype=tl.int32)
        for begin in range(0, tl.where(is_largest, label, 0), BLOCK):
            columns = begin + lanes
            value = tl.load(start + columns, mask=columns < label, other=float("-inf"))
            num_earlier += (value.to(tl.float32) == maximum).to(tl.int32)
        is_first = is_largest & (tl.sum(num_earlier, 0) == 0)
        tl.store(correct + row, is_first.to(tl.uint8))
    if WITH_GRADIENT:
        shift = -tl.log2(total_terms)
        wide_lanes = tl.arange(0, 2 * BLOCK)
        for begin in range(0, width, 2 * BLOCK):
            columns = begin + wide_lanes
            inside = columns < width
            value = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
            slope = tl.exp2((value - maximum) * _LOG2_E + shift) * scale
            if (label >= begin) & (label < begin + 2 * BLOCK):
                slope = tl.where(columns == label, slope - scale, slope)
            # Nobody reads it soon: the rows that wait for their second pass stay in L2 instead.
            tl.store(start + columns, slope, mask=inside, cache_modifier=".cs")


@triton.jit
def add_rows(gradient, order, begins, ids, onto, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program adds up some columns of the rows of one id, several rows under way at a time."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    begin = tl.load(begins + tl.program_id(0))
    end = tl.load(begins + tl.program_id(0) + 1)
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(begin, end, ROWS):
        place = first + tl.arange(0, ROWS)
        row = tl.load(order + place, mask=place < end, other=0).to(tl.int64)
        sums += tl.load(
            gradient + row[:, None] * width + columns[None, :],
            mask=(place < end)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
    row = tl.load(ids + tl.program_id(0)).to(tl.int64)
    to = onto + row * width + columns
    before = tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, before + tl.sum(sums, 0), mask=inside)

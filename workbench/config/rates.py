"""How fast a machine is taken to be: stated, measured here, from a table of cards, or assumed.

``Rates.basis`` always says which. Knows numbers, no machine. Invariant: every share and constant
that turns what is published of a card into what training reaches stands in this file.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What is published of a card.

    Attributes:
        peak_tflops: dense, in bfloat16.
        memory_gbps: GB/s of its memory.
        link_gbps: GB/s of one direction.
        memory_gib: the most memory that it is sold with.
    """

    peak_tflops: float
    memory_gbps: float
    link_gbps: float
    memory_gib: int


CARDS = {
    "H200": Card(989, 4800, 55, 140),
    "H100 PCIe": Card(756, 2000, 50, 80),
    "H100": Card(989, 3350, 50, 80),
    "A100": Card(312, 1555, 24, 80),
    "L40S": Card(362, 864, 24, 48),
    "RTX A6000": Card(155, 768, 24, 48),
    "RTX 5090": Card(209, 1792, 50, 32),
    "RTX 5080": Card(113, 960, 50, 16),
    "RTX 5070 Ti": Card(88, 896, 50, 16),
    "RTX 5070": Card(62, 672, 50, 12),
    "RTX 5060 Ti": Card(47, 448, 24, 16),
    "RTX 5060": Card(38, 448, 24, 8),
    "RTX 4090": Card(165, 1008, 24, 24),
    "RTX 4080": Card(97, 717, 24, 16),
    "RTX 4070 Ti": Card(80, 504, 24, 16),
    "RTX 4070": Card(58, 504, 24, 12),
    "RTX 4060 Ti": Card(44, 288, 12, 16),
    "RTX 4060": Card(30, 272, 12, 8),
    "RTX 3090": Card(71, 936, 24, 24),
    "RTX 3080": Card(60, 760, 24, 12),
    "RTX 3070": Card(41, 448, 24, 8),
    "RTX 3060 Ti": Card(32, 448, 24, 8),
    "RTX 3060": Card(25, 360, 24, 12),
}
"""By a part of the name that nvidia-smi gives; the first that fits counts.

None is a laptop's: chips there are smaller than their names.
"""


@dataclass(frozen=True, kw_only=True)
class MeasuredRates:
    """What one GPU reached when it was measured.

    Attributes:
        products: FLOP/s of large products in bfloat16.
        memory: bytes per second of an elementwise kernel.
        up: bytes per second from pinned host memory.
        down: bytes per second to pinned host memory.
        both: bytes per second of each direction while both run.
    """

    products: float
    memory: float
    up: float
    down: float
    both: float


# Shares of what is published that an H200 reaches: products of a 7 B's shapes, attention over
# packed documents, elementwise kernels, and each direction of the link while the other runs too.
# The same shares are taken for other cards, whose peaks stand in a like ratio.
PRODUCT_SHARE, ATTENTION_SHARE, MEMORY_SHARE, BOTH_SHARE = 0.72, 0.36, 0.85, 0.93

# FLOP per byte of device memory where only a rate is stated.
_FLOP_PER_BYTE = 160
_CPU_TFLOPS, _CPU_MEMORY = 0.1, 10e9
_ASSUMED_TFLOPS, _ASSUMED_LINK_GBPS = 110.0, 24.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a machine is taken to be.

    Attributes:
        products: FLOP/s that large products reach.
        attention: FLOP/s that attention reaches.
        memory: bytes per second that elementwise kernels reach.
        up: bytes per second from host to device.
        down: bytes per second from device to host.
        both: bytes per second of each direction while both run.
        basis: where these come from, in words.
        is_gpu: a GPU trains: it has launches, and narrow products reach a smaller share.
        is_assumed: nothing is known of this machine; seconds that rest on it are a guess.
    """

    products: float
    attention: float
    memory: float
    up: float
    down: float
    both: float
    basis: str
    is_gpu: bool = True
    is_assumed: bool = False


def rates_of(
    *,
    gpu_name: str | None,
    tflops: float | None = None,
    link_gbps: float | None = None,
    is_gpu: bool = True,
    measured: MeasuredRates | None = None,
) -> Rates:
    """Find the rates of a machine.

    Args:
        gpu_name: as nvidia-smi gives it; None where there is none.
        tflops: that products reach, stated by the user; comes before all else.
        link_gbps: GB/s of one direction, stated by the user.
        is_gpu: a GPU trains.
        measured: what this GPU reached when it was measured, or this CPU in a run of a model as
            wide; comes before the table.
    """
    if not is_gpu:
        return _cpu_rates(tflops, measured)
    found = card_of(gpu_name)
    is_assumed = tflops is None and measured is None and found is None
    if tflops is not None:
        products, memory = tflops * 1e12, tflops * 1e12 / _FLOP_PER_BYTE
        words = f"{tflops:g} TFLOP/s as stated"
    elif measured is not None:
        products, memory = measured.products, measured.memory
        words = f"measured here: {products / 1e12:,.0f} TFLOP/s"
    elif found is not None:
        name, card = found
        products = card.peak_tflops * 1e12 * PRODUCT_SHARE
        memory = card.memory_gbps * 1e9 * MEMORY_SHARE
        words = f"{name}: {PRODUCT_SHARE:.0%} of {card.peak_tflops:g} TFLOP/s"
    else:
        products, memory = _ASSUMED_TFLOPS * 1e12, _ASSUMED_TFLOPS * 1e12 / _FLOP_PER_BYTE
        unknown = f"{gpu_name} is not in the table" if gpu_name else "no GPU here"
        words = f"assumed {_ASSUMED_TFLOPS:g} TFLOP/s, about an RTX 4090 ({unknown}; --tflops)"
    if measured is not None and link_gbps is None:
        up, down, both = measured.up, measured.down, measured.both
        link = f"{up / 1e9:.0f} up, {down / 1e9:.0f} down, {both / 1e9:.0f} both GB/s"
    else:
        gbps = link_gbps or (found[1].link_gbps if found else _ASSUMED_LINK_GBPS)
        up = down = gbps * 1e9
        both = up * BOTH_SHARE
        link = f"{gbps:g} GB/s" + (" as stated" if link_gbps is not None else "")
    return Rates(
        products=products,
        attention=products * ATTENTION_SHARE / PRODUCT_SHARE,
        memory=memory,
        up=up,
        down=down,
        both=both,
        basis=f"{words}, link {link}",
        is_assumed=is_assumed,
    )


def _cpu_rates(tflops: float | None, measured: MeasuredRates | None) -> Rates:
    rate, memory = (tflops or _CPU_TFLOPS) * 1e12, _CPU_MEMORY
    basis = f"{rate / 1e12:g} TFLOP/s as stated"
    if tflops is None and measured is not None:
        rate, memory = measured.products, measured.memory
        basis = f"{rate / 1e12:.2g} TFLOP/s, as in the last run here of a model about as wide"
    elif tflops is None:
        basis = f"{rate / 1e12:g} TFLOP/s, a guess until a run of a model as wide has ended here"
    return Rates(
        products=rate,
        attention=rate,
        memory=memory,
        up=memory,
        down=memory,
        both=memory,
        basis=f"CPU: {basis}",
        is_gpu=False,
        is_assumed=tflops is None and measured is None,
    )


def card_typed(text: str) -> str | None:
    """Find the name of a card as people type it: ``4060ti``, ``rtx-4090``, ``3090``, ``a6000``.

    None where it is none of the table, or more than one: ``30`` could be any.
    """
    if (found := card_of(text)) is not None:
        return found[0]
    plain = _letters(text)
    return next((name for name in CARDS if plain in (_letters(name), _number(name))), None)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _number(name: str) -> str:
    return _letters(name).removeprefix("rtx")


def card_of(gpu_name: str | None) -> tuple[str, Card] | None:
    """Find a card, and its name in the table, by the name that nvidia-smi gives."""
    wanted = (gpu_name or "").lower()
    if "laptop" in wanted:
        return None
    for name, card in CARDS.items():
        if all(word in wanted for word in name.lower().split()):
            return name, card
    return None

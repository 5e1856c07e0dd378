"""The number of parameters of a `UNet2DModel` that is to be trained, from its config: `plan` imports no torch."""

from taugrid.config import Unet


def count_parameters(unet: Unet, channels: int, labels: int) -> int | None:
    """The parameters of the network for images of `channels`, with rows for `labels`; None for levels with skips."""
    down: list[str] = [*unet.down_block_types]
    up: list[str] = [*unet.up_block_types]
    if any("Skip" in kind for kind in down + up):
        return None
    widths = unet.block_out_channels
    narrowest, widest, time = widths[0], widths[-1], 4 * widths[0]

    def residual(before: int, width: int) -> int:
        shortcut = _dense(before, width) if before != width else 0
        return 2 * before + _conv(before, width) + _dense(time, width) + 2 * width + _conv(width, width) + shortcut

    def level(kind: str, befores: list[int], width: int, is_last: bool) -> int:
        resample = 0 if is_last else residual(width, width) if kind.startswith("Resnet") else _conv(width, width)
        attention = len(befores) * _attention(width) if "Attn" in kind else 0
        return sum(residual(before, width) for before in befores) + attention + resample

    total = _conv(channels, narrowest) + _dense(narrowest, time) + _dense(time, time) + labels * time
    total += 2 * residual(widest, widest) + (_attention(widest) if unet.add_attention else 0)
    skips = [narrowest]  # the widths of what the way down leaves for the way up, of which a level takes one a block
    for number, (kind, width) in enumerate(zip(down, widths, strict=True), 1):
        is_last = number == len(widths)
        total += level(kind, [skips[-1], *[width] * (unet.layers_per_block - 1)], width, is_last)
        skips += [width] * (unet.layers_per_block + (not is_last))
    before = widest
    for number, (kind, width) in enumerate(zip(up, reversed(widths), strict=True), 1):
        befores = []
        for _ in range(unet.layers_per_block + 1):
            befores.append(before + skips.pop())
            before = width
        total += level(kind, befores, width, number == len(widths))
    return total + 2 * narrowest + _conv(narrowest, channels)


def _conv(before: int, width: int) -> int:
    return 9 * before * width + width


def _dense(before: int, width: int) -> int:
    return before * width + width


def _attention(width: int) -> int:
    """A normalisation, and the queries, keys, values and outputs."""
    return 2 * width + 4 * _dense(width, width)

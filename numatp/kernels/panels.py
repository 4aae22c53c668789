"""Products of prompts' rows on tile registers (isa/amx.py): weights become BF16 once per Step, for all of them.

32 tiles of a matrix x 1024 columns are a megabyte of panels, which stays in the second-level cache while all rows pass by, 32 at a
time. The sums of 32 rows x 32 weight rows leave the tile registers once per 1024 columns.
"""

from numatp.kernels.compile import called, device
from numatp.kernels.isa.amx import block_of, configure
from numatp.kernels.layout import PANEL_UNIT_BYTES, PANEL_UNITS
from numatp.kernels.simd import offset

ROWS = 16  # of a tile register
PANEL_BYTES = PANEL_UNITS * PANEL_UNIT_BYTES


def block_multiplier(groups, panels):
    """multiply(x, x_group, panel, units, out, stride, add) of `groups` groups of rows and `panels` panels, 1 or 2 of each:
    out = [out +] their product.
    """
    start, start_from, add_unit, finish = block_of(groups, panels)

    @device
    def multiply(x, x_group, panel, units, out, stride, add):
        if add:
            start_from(out, stride, ROWS * stride)
        else:
            start()
        for unit in range(units):
            place = unit * PANEL_UNIT_BYTES
            add_unit(offset(x, place), x_group, offset(panel, place), PANEL_BYTES)
        finish(out, stride, ROWS * stride)

    return multiply


multiply_1x1, multiply_1x2 = block_multiplier(1, 1), block_multiplier(1, 2)
multiply_2x1, multiply_2x2 = block_multiplier(2, 1), block_multiplier(2, 2)


@device
def multiply_block(two_groups, panels, x, x_group, panel, units, out, stride, add):
    if two_groups:
        if panels > 1:
            multiply_2x2(x, x_group, panel, units, out, stride, add)
        else:
            multiply_2x1(x, x_group, panel, units, out, stride, add)
    elif panels > 1:
        multiply_1x2(x, x_group, panel, units, out, stride, add)
    else:
        multiply_1x1(x, x_group, panel, units, out, stride, add)


def panel_multiplier(quant):
    """multiply_tiles of kernels/matmul.py for up to PANELS tiles; x: "bf16" groups of 16 rows (kernels/activation.py); scratch:
    PANELS_BYTES of this thread. Tiles stay configured.
    """

    @called
    def multiply_panels(weights, tile_bytes, first, last, units, rows, x, x_group, out, out_stride, add, scratch):
        for part in range(max((units + PANEL_UNITS - 1) // PANEL_UNITS, 1)):
            unit = part * PANEL_UNITS
            stop = min(unit + PANEL_UNITS, units)
            for tile in range(first, last):
                quant.expand(offset(weights, tile * tile_bytes), unit, stop, offset(scratch, (tile - first) * PANEL_BYTES))
            for row in range(0, rows, 2 * ROWS):
                left = min(rows - row, 2 * ROWS)
                if row == 0 or left < 2 * ROWS:
                    configure(left)
                for tile in range(first, last, 2):
                    multiply_block(
                        left > ROWS, last - tile, offset(x, row // ROWS * x_group + unit * PANEL_UNIT_BYTES), x_group,
                        offset(scratch, (tile - first) * PANEL_BYTES), stop - unit,
                        offset(out, row * out_stride + tile * 64), out_stride, add or part > 0,
                    )  # fmt: skip

    return multiply_panels

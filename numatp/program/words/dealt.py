"""Products of one row whose tiles are dealt to the threads by bytes (kernels/dealt.py), where whole tiles would divide badly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from numatp.kernels.compile import specialize
from numatp.kernels.layout import HANDED_BYTES
from numatp.program import division
from numatp.program.division import Tiles, Turns
from numatp.program.recorder import Activation, Recorder
from numatp.program.values import ANYHOW, Access, Pointer
from numatp.weights.matrix import Matrix, joined

ONE_MATRIX = np.array([0, 0, 0, 1])  # as kernels/experts.py has what is active: the first matrix, for one row


@dataclass(frozen=True, kw_only=True)
class Product:
    """One row times matrices that follow each other in memory, or times the active ones of those that are stacked."""

    weights: Sequence[Matrix]
    tiles: Tiles
    activation: Activation
    out: Access
    counted: Pointer | int  # where it stands how many are active
    active: Pointer | int  # which, as in kernels/experts.py
    record: Callable[[bool], None]  # adds the op in which threads have whole tiles; the argument: `together` of Builder.add
    reads: Sequence[Access] = ()  # for counted and active
    add: bool = False  # to what is in `out`


class Dealt(Recorder):
    def _multiply(self, *products: Product) -> None:
        """Records products that threads divide together: dealt, or in whole tiles."""
        turns = division.turns(tuple(product.tiles for product in products), self.site.threads) if self.private else None
        if turns is not None:
            self._deal(products, turns)
            return
        for i, product in enumerate(products):
            product.record(i > 0)

    def _deal(self, products: Sequence[Product], turns: Turns) -> None:
        handed = self._buffer("sums handed on", HANDED_BYTES, rows=self.site.threads)
        mine, cut = Access(handed, ("handed on", handed)), turns.goes_on.any()
        place = handed.at(0) if cut else 0
        # Of a single product each thread has the tiles that it would have of whole ones.
        outs = [
            replace(product.out, division=("dealt", handed)) if len(products) > 1 or product.out.division is ANYHOW else product.out
            for product in products
        ]
        if cut:
            for product, (first, _, _) in zip(products, turns.works, strict=True):
                self._work(product, first, [], mine, place)
            self._builder.hand_on(self.site.team, mine)
        for i, (product, (_, then, _)) in enumerate(zip(products, turns.works, strict=True)):
            self._work(product, then, [], outs[i], place, product.tiles, together=i > 0)
        if cut:
            self._builder.take_over(self.site.team, self._constant(turns.goes_on), mine)
            for product, (_, _, last), out in zip(products, turns.works, outs, strict=True):
                self._work(product, last, [mine], out, place)

    def _work(
        self, product: Product, work: np.ndarray, reads: list[Access], out: Access, handed: Pointer | int,
        tiles: Tiles | None = None, together: bool = False,
    ) -> None:  # fmt: skip
        """tiles, together: as Builder.add has them, which counts a product's tiles once."""
        weight, activation = joined(product.weights), product.activation
        reads = [activation.access, *product.reads, *reads, *([out] if product.add else [])]
        self._builder.add(
            specialize("dealt", "quant", weight.format.module).multiply, reads, [out], product.weights,
            division.work_bytes(product.tiles, work), tiles, together,
            weights=weight.address, tiles=weight.tiles // weight.stacked, tile_bytes=weight.tile_bytes, units=weight.units,
            counted=product.counted, active=product.active, work=self._constant(work), x=activation.pointer,
            x_group=activation.group_bytes, x_thread_stride=activation.thread_stride, out=product.out.pointer,
            out_stride=product.out.buffer.stride, add=product.add, handed=handed,
        )  # fmt: skip

"""Draws profiles with matplotlib, which numatp does without otherwise."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numatp.errors import UserError
from numatp.machine.uninterrupted import uninterrupted

Profiles = list[tuple[str, dict[str, Any]]]
FORMATS = (".png", ".svg", ".pdf")
WAITS = {"barriers": "barrier_us", "waiting for other ranks": "exchange_wait_us", "start and end": "start_and_end_us"}


def check(path: str) -> Callable[[Profiles], None]:
    """What draws into `path` later."""
    prepare(path)
    return lambda profiles: draw(profiles, path)


def prepare(path: str) -> None:
    """Makes ready to draw into `path`. UserError now, not after minutes of measuring, if that cannot be done."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(f"--plot {path}: the name must end in {', '.join(FORMATS)}")
    try:
        with uninterrupted():
            existed = os.path.lexists(path)
            with open(path, "ab"):
                pass
            if not existed:
                os.unlink(path)
    except OSError as error:
        raise UserError(f"--plot {path}: cannot write there: {error.strerror}") from None
    try:
        import matplotlib
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'numatp[plot]'") from None
    matplotlib.use("Agg")


def draw(profiles: Profiles, path: str) -> None:
    """One bar chart per profile: us of each kind of op, with its share of the roofline."""
    from matplotlib import pyplot

    heights = [len(profile["kinds"]) + len(WAITS) for _, profile in profiles]
    figure, axes = pyplot.subplots(
        len(profiles), 1, figsize=(10, 1 + 0.3 * sum(heights) + len(profiles)), squeeze=False, height_ratios=heights
    )
    for axis, (title, profile) in zip(axes[:, 0], profiles, strict=True):
        kinds = profile["kinds"]
        names = [f"{kind['op']} {kind['weights']}".strip() for kind in kinds] + list(WAITS)
        values = [kind["us"] for kind in kinds] + [profile[key] for key in WAITS.values()]
        notes = ["" if kind["roofline_percent"] is None else f"{kind['roofline_percent']:.0f} % of roofline" for kind in kinds]
        bars = axis.barh(names, values, color=["tab:blue"] * len(kinds) + ["tab:gray"] * len(WAITS))
        axis.bar_label(bars, notes + [""] * len(WAITS), padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.set_title(f"{title}: {profile['step_us']:.0f} us a Step")
        axis.set_xlabel("us of a Step, mean over threads")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

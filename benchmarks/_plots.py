"""Draw the plots. The same figures give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")  # works without a display; pyplot, imported next, would look for one

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

_COLORS = {"ours": "#0072b2", "ours, aiohttp": "#56b4e9"}
_OTHER = "#d55e00"
_STYLE = {
    "svg.hashsalt": "cortecs_async",  # else ids are random
    "svg.fonttype": "path",  # looks the same wherever it is shown
    "figure.facecolor": "white",  # readable on a dark page too
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
}


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def lag(figures: dict[str, Any]) -> Figure:
    """Draw the detection lag and the polls for each start curve."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    curves, sides = figures["curves"], figures["sides"]
    titles = ("lag, s: mean (bar) and worst (line)", "polls")
    for panel, index, title in zip(panels, (0, 2), titles, strict=True):
        for number, (side, points) in enumerate(sides.items()):
            places = [place + 0.38 * (number - 0.5) for place in range(len(curves))]
            heights = [point[index] for point in points]
            panel.bar(places, heights, width=0.38, label=side, color=_COLORS.get(side, _OTHER))
            if index == 0:
                worst = [point[1] for point in points]
                panel.vlines(places, heights, worst, color="#333333", linewidth=1)
        panel.set_xticks(range(len(curves)), [curve.replace(", ", "\n") for curve in curves])
        panel.grid(visible=False, axis="x")
        panel.set_xlabel("duration of the start")
        panel.set_title(title, fontsize=9)
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_formatter(_plain)
    panels[0].legend(loc="upper left", frameon=False, ncols=2)
    panels[0].set_ylim(top=6.2)
    return figure


def leases(figures: dict[str, Any]) -> Figure:
    """Draw the elapsed time and the CPU time over the number of leases."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    titles = {"elapsed": "elapsed time, s", "cpu": "CPU time of the client, s"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for side, by_name in figures.items():
            counts, values = zip(*by_name[name], strict=True)
            panel.plot(counts, values, marker="o", markersize=4, label=side, color=_COLORS.get(side, _OTHER))
        panel.set_xscale("log")
        panel.set_yscale("log")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(_plain)
        panel.set_xlabel("leases in parallel")
        panel.set_title(title, fontsize=9)
    # The range is less than a power of ten, so the default ticks are too few.
    panels[0].set_yticks([2, 3, 4, 6, 8, 12], minor=False)
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    panels[0].legend(frameon=False)
    return figure


_PLOTS: dict[str, Callable[[dict[str, Any]], Figure]] = {"lag.svg": lag, "leases.svg": leases}


def draw(name: str, figures: dict[str, Any], folder: Path) -> None:
    """Draw a plot and save it in a folder."""
    with plt.rc_context(_STYLE):
        figure = _PLOTS[name](figures)
        figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)

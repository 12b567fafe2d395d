"""Figures of attentions and MLPs: what a map can know of them, and what replacing them costs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

PART_COLOURS = {"block": "#000000", "attention": "#d55e00", "MLP": "#0072b2"}
PART_MARKERS = {"block": "D", "attention": "^", "MLP": "o"}


def unknown_by_part(frame: pd.DataFrame) -> np.ndarray:
    """The share of what blocks, attentions and MLPs add that a map of the token alone leaves, block by block.

    Parameters
    ----------
    frame
        One row per block, part and kind of token: ``block``, ``part`` (block, attention or MLP), ``tokens``, and
        ``unknown`` in [0, 1].

    Returns
    -------
    ndarray
        The axes, one per kind of token.
    """
    kinds = list(frame["tokens"].unique())
    size = (5.2 * len(kinds), 3.2)
    _, axes = plt.subplots(1, len(kinds), figsize=size, sharey=True, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        style = {"hue": "part", "style": "part", "palette": PART_COLOURS, "markers": PART_MARKERS, "dashes": False}
        part = frame[frame["tokens"] == kind]
        sns.lineplot(part, x="block", y="unknown", legend=ax is axes[0, -1], markersize=7, ax=ax, **style)
        ax.set(title=f"{kind} tokens", xlabel="block", ylabel="share left unexplained")
        ax.set_xticks(sorted(frame["block"].unique()))
    axes[0, 0].set_ylim(0, 1.05 * frame["unknown"].max())
    axes[0, -1].legend(title="", loc="center left", bbox_to_anchor=(1, 0.5))
    return axes[0]


def lost_against_saved(frame: pd.DataFrame) -> np.ndarray:
    """Points lost against the share of parameters, and of FLOPs, that are saved; one line for each way of choosing.

    Parameters
    ----------
    frame
        One row per plan: ``way``, ``parameters saved`` and ``FLOPs saved`` in percent, ``lost`` with ``lost_low`` and
        ``lost_high`` in points.

    Returns
    -------
    ndarray
        The axes, of parameters and of FLOPs.
    """
    ways = list(frame["way"].unique())
    _, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    colours = sns.color_palette("colorblind", len(ways))
    for ax, saved in zip(axes, ("parameters saved", "FLOPs saved"), strict=True):
        for way, colour, marker in zip(ways, colours, "oDs^vPX*", strict=False):
            part = frame[frame["way"] == way].sort_values(saved)
            ends = np.abs(part[["lost_low", "lost_high"]].to_numpy().T - part["lost"].to_numpy())
            ax.errorbar(part[saved], part["lost"], yerr=ends, label=way, color=colour, fmt=f"{marker}-", elinewidth=0.8)
        ax.axhline(0, color="grey", linewidth=1, zorder=0)
        ax.set(xlabel=f"{saved} (%)", ylabel="accuracy lost (points, 95 % interval)")
    axes[1].set_ylabel("")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return axes

"""The plot of a comparison: recall against what it took."""

import io

METRIC = "recall@10"
_LOG_FROM = 30  # ratio of the most to the least that a method took, from which the axis is logarithmic


def plot(found):
    """Recall along each run, against seconds and against encoder calls.

    Args:
        found: dict, what `summary` returned.

    Returns:
        bytes of a PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, constrained_layout=True)
    titles = {"seconds": "seconds of training", "encoder_calls": "targets encoded in training"}
    for axis, (unit, title) in zip(axes, titles.items(), strict=True):
        ends = []
        for number, row in enumerate(found["methods"]):
            label = row["method"] if axis is axes[0] else None
            for run in found["runs"]:
                if run["method"] != row["method"] or "error" in run:
                    continue
                places = [point[unit] for point in run["history"]]
                ends.append(places[-1])
                axis.plot(
                    places,
                    [point["metrics"][METRIC] for point in run["history"]],
                    color=f"C{number}",
                    marker="o",
                    markersize=3,
                    linewidth=1.3,
                    alpha=0.8,
                    label=label,
                )
                label = None  # so that the legend has a method once
        if ends and max(ends) > _LOG_FROM * min(ends) > 0:
            axis.set_xscale("log")
        else:
            axis.set_xlim(left=0)
        axis.set_xlabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(METRIC)
    if axes[0].lines:
        # Above the axes: lines may be anywhere in them.
        figure.legend(loc="outside upper left", ncols=4, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=160)
    pyplot.close(figure)
    return image.getvalue()

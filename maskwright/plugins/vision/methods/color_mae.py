"""ColorMAE: data-independent masking strategies in masked autoencoders (Hinojosa, Liu, Ghanem, ECCV 2024).

MAE with another mask generator and nothing else: white noise is filtered before its largest values stay visible. Green
noise (band-pass, clusters of medium size) did best in the paper.

Where this departs from the released code: the code reads ready-made noise maps whose filter widths are not published, so
that ours are a choice (1 and 2 patches); each sample draws its own map, while there one crop and one pair of flips serve
the whole batch; values are ranked, not divided by their maximum, which turns the order around where a map is negative
throughout. The colour can change during training: `masking.schedule`.
"""

from __future__ import annotations

from maskwright.plugins.vision.methods.mae import Mae


class ColorMae(Mae):
    """MAE under filtered noise: green, red, blue or purple (`masking.colour`). Defaults are ViT-B/16.

    Args:
        encoder: options of `Mae`.
    """

    summary = "MAE whose masks come from filtered noise."
    default_masking = {"name": "colour-noise", "ratio": 0.75, "colour": "green"}

"""Names of bands: Sentinel-2's, Sentinel-1's, and how files spell them."""

from __future__ import annotations

import re
from collections.abc import Sequence

S2_L1C = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""The 13 bands of top-of-atmosphere products, in the order of the files."""
S2_L2A = tuple(name for name in S2_L1C if name != "B10")
"""The 12 bands of surface reflectance products: no cirrus band."""
S1 = ("VV", "VH")
KNOWN = (*S2_L1C, *S1, "HH", "HV")

RGB = ("B4", "B3", "B2")


def canonical(text: str) -> str | None:
    """The band that a description or the end of a file name means (`B02`, `b8a`, `..._VV`), or None.

    >>> canonical("S2A_MSIL2A_20170613T101031_87_48_B02"), canonical("band 8A"), canonical("elevation")
    ('B2', 'B8A', None)
    """
    match = re.search(r"(?:^|[^A-Za-z0-9])(?:B(?:AND)?[ _]?)(0?[1-9]|1[0-2]|0?8A)$", text.strip(), re.IGNORECASE)
    if match:
        return "B" + match[1].upper().lstrip("0")
    match = re.search(r"(?:^|[^A-Za-z])(VV|VH|HH|HV)$", text.strip(), re.IGNORECASE)
    return match[1].upper() if match else None


def names_for(descriptions: Sequence[str | None], count: int) -> tuple[str, ...]:
    """Band names of a file, all different.

    From its descriptions if they tell the bands apart, known bands in their usual spelling; else from the number of
    bands where that is telling (13, 12, 2); else `band 1` and so on.
    """
    names = tuple((canonical(text) or text) for text in descriptions if text)
    if len(set(names)) == count:
        return names
    unnamed = {13: S2_L1C, 12: S2_L2A, 2: S1}
    return unnamed.get(count) or tuple(f"band {i}" for i in range(1, count + 1))

"""What all images of a set have in common: number of channels and depth, found from some of their headers."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.statistics import spread
from maskwright.plugins.vision.images import Picture, open_picture
from maskwright.plugins.vision.sources import Source

HEADERS = 64
"""Headers that are looked at, spread evenly over all images."""
UNITS = {"8 bits": "0 to 255", "16 bits": "0 to 65535"}


@dataclass(frozen=True)
class Layout:
    """Channels and depth of a set.

    Args:
        channels: of a sample.
        keep_alpha: alpha is one of them, not laid on a background.
        depth: "8 bits", "16 bits" or "as stored".
        anything: whether grey is turned to colour and colour to grey; else every file must have this number.
    """

    channels: int
    keep_alpha: bool
    depth: str
    anything: bool

    @property
    def names(self) -> tuple[str, ...] | int:
        if self.anything:
            return ("grey",) if self.channels == 1 else ("red", "green", "blue")
        return self.channels

    @property
    def unit(self) -> str:
        return UNITS.get(self.depth, "as stored")

    def check(self, picture: Picture) -> None:
        """Refuse an image that does not fit to the others.

        Raises:
            DataError: it has another depth, or channels that cannot be turned into these.
        """
        if picture.depth != self.depth:
            raise DataError(
                picture.where,
                f"holds {picture.depth}",
                f"{self.depth}, as the other images",
                "Convert it, or remove it",
            )
        stored = picture.channels + (picture.alpha and self.keep_alpha)
        if stored != self.channels and not (self.anything and stored in (1, 3)):
            raise DataError(
                picture.where, f"has {stored} channels", f"{self.channels}, as the other images", "See data.channels"
            )


def find_layout(source: Source, channels: str, max_pixels: int) -> Layout:
    """Look at up to `HEADERS` images; broken ones are left to whoever reads them.

    Raises:
        ConfigError: images of depths or channels that do not go together; names one of each.
    """
    depths: dict[str, str] = {}
    counts: dict[int, str] = {}
    keep_alpha = channels == "all"
    for index in spread(len(source), HEADERS) if len(source) else []:
        try:
            with source.open(index) as file:
                picture = open_picture(file, source.name(index), max_pixels, whole=False)
        except DataError:
            continue
        depths.setdefault(picture.depth, picture.where)
        counts.setdefault(picture.channels + (picture.alpha and keep_alpha), picture.where)
    if len(depths) > 1:
        raise ConfigError(
            f"Images of one set must hold numbers of one kind, but {_listed(depths)}. Convert them, or open them apart."
        )
    depth = next(iter(depths), "8 bits")
    ordinary = set(counts) <= {1, 3}
    if channels in ("grey", "rgb"):
        return Layout(1 if channels == "grey" else 3, False, depth, True)
    if channels == "auto" and ordinary:
        return Layout(1 if set(counts) == {1} else 3, False, depth, True)
    if len(counts) > 1:
        raise ConfigError(
            f"Images of one set must have one number of channels, but "
            f"{_listed({f'{count} channels': where for count, where in counts.items()})}. "
            f"Choose data.channels=rgb or grey for ordinary images, or open them apart."
        )
    return Layout(next(iter(counts), 3), keep_alpha, depth, False)


def _listed(found: dict[str, str]) -> str:
    return ", ".join(f"{where} holds {what}" for what, where in found.items())

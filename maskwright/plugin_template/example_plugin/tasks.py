from dataclasses import replace

import numpy as np

from maskwright.core.errors import ConfigError, nearest
from maskwright.core.evaluation.task import IGNORE, Classification


class OneClass(Classification):
    """Whether a picture is of one class or of any other.

    Args:
        positive: name of that class.
        labels: where the classes of all pictures are; by default the names of their folders.
    """

    def __init__(self, positive: str, labels: str = "folder"):
        super().__init__(labels)
        self.positive = positive

    def targets(self, loader):
        found = super().targets(loader)
        if self.positive not in found.classes:
            raise ConfigError(f'There is no class "{self.positive}".{nearest(self.positive, found.classes)}')
        values = np.where(found.values == IGNORE, IGNORE, found.values == found.classes.index(self.positive))
        return replace(found, classes=("other", self.positive), values=values)

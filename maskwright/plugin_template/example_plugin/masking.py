from maskwright.core.masking import Masking, fold, uniform


class Checkerboard(Masking):
    """The white fields of a chess board are hidden first, or the black ones, as each sample's key decides.

    Args:
        ratio: share of tokens to hide.
    """

    def __init__(self, ratio: float = 0.5):
        super().__init__(ratio)

    def score(self, grid, keys, guide=None):
        field = grid.coordinates(keys.device).sum(-1) + uniform(keys, 1).round()
        return field % 2 + 0.5 * uniform(fold(keys, 1), grid.count)

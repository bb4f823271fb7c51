"""Connected sets of True in a mask."""


def component_sizes(mask):
    """Sizes of the 4-connected sets of True in (H, W), by flooding."""
    left, sizes = {tuple(place) for place in mask.nonzero().tolist()}, []
    while left:
        stack, size = [left.pop()], 0
        while stack:
            row, column = stack.pop()
            size += 1
            for place in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if place in left:
                    left.remove(place)
                    stack.append(place)
        sizes.append(size)
    return sizes

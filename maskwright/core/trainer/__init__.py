"""Training: methods, the Lightning module around them, run directories, resume."""

from maskwright.core.trainer.method import Method, Panel, Progress, Step

__all__ = ["Method", "Panel", "Progress", "Step"]

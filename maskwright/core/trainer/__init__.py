"""Training: methods, the Lightning module around them, run directories, resume."""

from maskwright.core.trainer.method import Method, Panel, Step

__all__ = ["Method", "Panel", "Step"]

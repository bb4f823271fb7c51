"""PatchMethod: encoding and pictures of methods that hide patches, on one to three axes."""

import pytest
import torch

from maskwright.core.masking import RandomMasking, sample_keys
from maskwright.core.objective import masked_reconstruction
from maskwright.core.patch_method import PatchMethod
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Step
from maskwright.testing import check_method, made_up_batch


class MeanFill(PatchMethod):
    """Predicts the same learned patch everywhere, from the mean of the visible tokens."""

    def __init__(self, size=(8, 8), patch=(2, 4), channels=3):
        dims = {1: "C T", 2: "C H W", 3: "C D H W"}[len(size)]
        super().__init__(dims, size, patch, channels, 16, 1, 2, masking=RandomMasking(0.5))
        self.head = torch.nn.Linear(16, self.patch_values)

    def predict(self, tokens, mask):
        seen = self.encoder(tokens, mask).mean(1, keepdim=True)
        return self.head(seen).expand(-1, tokens.grid.count, -1)

    def forward(self, batch, keys):
        tokens = self.encoder.tokenize(batch)
        mask = self.masking(tokens.grid, keys)
        return Step(masked_reconstruction(self.predict(tokens, mask), tokens.values, mask))


def _batch(method, size):
    metas = made_up_batch(method.inputs, 4, 8).metas
    return Batch({"image": torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))}, metas)


@pytest.mark.parametrize(("size", "patch"), [((12,), (3,)), ((8, 8), (2, 4)), ((4, 4, 8), (2, 2, 4))])
def test_the_contract(size, patch):
    check_method(lambda: MeanFill(size, patch), _batch(MeanFill(size, patch), size))


def test_visible_pixels_are_kept_and_hidden_ones_predicted_in_physical_units():
    method = MeanFill()
    batch = _batch(method, (8, 8))
    method.encoder.normalizers["image"].offset.copy_(torch.tensor([10.0, 20.0, 30.0]))
    method.encoder.normalizers["image"].scale.copy_(torch.tensor([2.0, 3.0, 4.0]))
    panel = method.preview(batch, sample_keys(torch.Generator().manual_seed(0), 4))["image"]
    hidden = panel.hidden[:, None].expand_as(panel.original)
    assert hidden.float().mean() == 0.5
    torch.testing.assert_close(panel.reconstruction[~hidden], panel.original[~hidden], rtol=0, atol=1e-5)
    torch.nn.init.zeros_(method.head.weight), torch.nn.init.zeros_(method.head.bias)
    panel = method.preview(batch, sample_keys(torch.Generator().manual_seed(0), 4))["image"]
    filled = panel.reconstruction.movedim(1, 0)[:, panel.hidden]
    torch.testing.assert_close(filled, torch.tensor([10.0, 20.0, 30.0])[:, None].expand_as(filled))

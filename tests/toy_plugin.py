"""A complete single-file plugin for the tests: .npy images, and MAE on them."""

from pathlib import Path

import numpy as np
import torch

from maskwright.core.component import Component
from maskwright.core.encoder import MaskTokenDecoder, VisionTransformer, patchify, unpatchify
from maskwright.core.encoder.patches import patch_mask_to_pixels
from maskwright.core.errors import DataError
from maskwright.core.hookspecs import hookimpl
from maskwright.core.loader import Loader, Statistics
from maskwright.core.masking import Masking, RandomMasking
from maskwright.core.objective import masked_reconstruction
from maskwright.core.sample import Meta, Sample, TensorSpec
from maskwright.core.trainer.method import Method, Panel, Step


class NpyLoader(Loader):
    """A folder of .npy images (C, H, W).

    Args:
        crop: side of a random crop in pixels; 0 keeps the image whole.
    """

    suffixes = (".npy",)

    def __init__(self, path, crop: int = 0):
        self.files = sorted(Path(path).glob("*.npy"))
        self.crop = crop
        self.bad_files = []
        channels = np.load(self.files[0], allow_pickle=False).shape[0] if self.files else 1
        self.spec = {"image": TensorSpec("C H W", channels)}

    @classmethod
    def accepts(cls, path):
        return Path(path).is_dir() and any(Path(path).glob("*.npy"))

    def __len__(self):
        return len(self.files)

    def group(self, index):
        return self.files[index].stem

    def read(self, index, generator=None):
        file = self.files[index]
        try:
            image = torch.from_numpy(np.load(file, allow_pickle=False)).float()
        except (ValueError, OSError, EOFError) as error:
            raise DataError(file, f"cannot be read ({error})", "an .npy image") from error
        if self.crop and generator is not None:
            row, column = (int(torch.randint(n - self.crop + 1, (1,), generator=generator)) for n in image.shape[1:])
            image = image[:, row : row + self.crop, column : column + self.crop]
        elif self.crop:
            image = image[:, : self.crop, : self.crop]
        return Sample({"image": image}, Meta(str(file), group=self.group(index), index=index))

    def statistics(self):
        images = [self.read(i)["image"].flatten(1) for i in range(len(self)) if self.files[i].stat().st_size > 200]
        values = torch.cat([image for image in images if image.isfinite().all()], dim=1)
        low, high = values.amin(1), values.amax(1)
        stats = (values.mean(1), values.std(1), low, high)
        return {"image": Statistics(*(s.tolist() for s in stats), count=values.shape[1])}

    def picture(self, name, tensor):
        grey = ((tensor[0] - tensor[0].min()) / (tensor[0].max() - tensor[0].min() + 1e-6) * 255).byte().numpy()
        return np.stack([grey] * 3, axis=-1)


class ToyMae(Method):
    """MAE on small images.

    Args:
        in_chans: channels of the images.
        embed_dim: width of the encoder.
        depth: blocks of the encoder.
        masking: which patches are hidden.
        poison_step: forward pass whose loss is NaN, to test the guard; -1 for none.
    """

    presets = {"tiny": {"method": {"embed_dim": 16}, "trainer": {"lr": 1e-3}}}

    def __init__(
        self,
        in_chans: int = 1,
        embed_dim: int = 32,
        depth: int = 2,
        masking: Masking | None = None,
        poison_step: int = -1,
    ):
        super().__init__()
        self.encoder = VisionTransformer(
            img_size=16, patch_size=4, in_chans=in_chans, embed_dim=embed_dim, depth=depth, num_heads=2
        )
        self.decoder = MaskTokenDecoder(embed_dim, in_chans * 16, 16, 1, 2, num_prefix_tokens=1)
        self.masking = masking or RandomMasking(0.75)
        self.poison_step = poison_step
        self.calls = 0

    @classmethod
    def options_for(cls, given):
        return {"in_chans": given["image"].channel_count}

    def encode(self, batch, keys):
        tokens = self.encoder.tokenize(batch)
        return self.encoder(tokens, self.masking(tokens.grid, keys))

    def forward(self, batch, keys):
        tokens = self.encoder.tokenize(batch)
        mask = self.masking(tokens.grid, keys)
        prediction = self.decoder(self.encoder(tokens, mask), mask, tokens.grid)
        loss = masked_reconstruction(prediction, tokens.values, mask)
        if self.calls == self.poison_step:
            loss = loss * float("nan")
        self.calls += 1
        return Step(loss, {"reconstruction": loss.detach()})

    @torch.no_grad()
    def preview(self, batch, keys):
        x = self.encoder.normalize(batch)["image"]
        tokens = self.encoder.tokens_of(x)
        mask = self.masking(tokens.grid, keys)
        prediction = self.decoder(self.encoder(tokens, mask), mask, tokens.grid)
        patches = torch.where(mask.hidden[..., None], prediction, patchify(x, (4, 4)))
        image = unpatchify(patches, tokens.grid, (4, 4), x.shape[1])
        hidden = patch_mask_to_pixels(mask.hidden, tokens.grid, (4, 4))
        return {"image": Panel(batch["image"], hidden, self.encoder.normalizers["image"].invert(image))}


@hookimpl
def register_loaders():
    return [Component("npy", "maskwright_plugin_toy_plugin:NpyLoader", "Folders of .npy images.")]


@hookimpl
def register_methods():
    return [Component("toy-mae", "maskwright_plugin_toy_plugin:ToyMae", "MAE on small images.", "MAE, 2022")]

"""A masked autoencoder in plain torch: the parts of maskwright without its trainer, on real handwritten digits.

    python examples/plain_torch_mae.py

1,797 digits of 8 x 8 pixels ship with scikit-learn. Half of the 2 x 2 patches are hidden; the encoder sees the other
eight, the decoder paints what is missing. At first it paints the mean image, then digits. Takes about ten seconds.
"""

import torch
from sklearn.datasets import load_digits

from maskwright.core.encoder import MaskTokenDecoder, VisionTransformer
from maskwright.core.masking import RandomMasking, sample_keys
from maskwright.core.objective import masked_reconstruction


def main(epochs: int = 24, batch_size: int = 50, seed: int = 0) -> list[float]:
    """Train, print, and return the mean error of hidden pixels of each epoch on digits held out."""
    torch.set_num_threads(1)  # the fastest for tensors as small as these
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.from_numpy(load_digits().images).float().unsqueeze(1)  # (1797, 1, 8, 8) in 0..16
    images = (images - images[:1500].mean()) / images[:1500].std()
    train, held_out = images[:1500], images[1500:]

    encoder = VisionTransformer(img_size=8, patch_size=2, in_chans=1, embed_dim=48, depth=2, num_heads=4)
    decoder = MaskTokenDecoder(48, out_dim=4, decoder_dim=48, depth=1, num_heads=4, num_prefix_tokens=1)
    masking = RandomMasking(ratio=0.5)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=3e-3, weight_decay=0.05)

    def loss_of(batch: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        tokens = encoder.tokens_of(batch)
        mask = masking(tokens.grid, keys)
        prediction = decoder(encoder(tokens, mask), mask, tokens.grid)
        return masked_reconstruction(prediction, tokens.values, mask)

    fixed_keys = sample_keys(torch.Generator().manual_seed(1), len(held_out))
    print(f"predicting the mean image: {float(((held_out - train.mean(0)) ** 2).mean()):.3f}")
    errors = []
    for epoch in range(epochs):
        for chosen in torch.randperm(len(train), generator=generator).split(batch_size):
            loss = loss_of(train[chosen], sample_keys(generator, len(chosen)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            errors.append(loss_of(held_out, fixed_keys).item())
        print(f"epoch {epoch + 1:2d}: error of hidden pixels {errors[-1]:.3f}")
    return errors


if __name__ == "__main__":
    main()

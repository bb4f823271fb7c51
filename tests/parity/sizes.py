"""The size that comparisons with MAEs of other libraries share."""

from benchmarks.vitmae import Size

TINY = Size(
    img_size=48,
    patch_size=8,
    in_chans=4,
    embed_dim=48,
    depth=3,
    num_heads=4,
    decoder_dim=32,
    decoder_depth=2,
    decoder_heads=4,
)

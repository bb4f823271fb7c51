"""From volumes and label volumes to maps: every step with the loader, none of it special to the domain."""

import nibabel as nib
import numpy as np
import pytest

import maskwright as mw
from maskwright.medical.fake import fake_nifti

SETTINGS = [
    "method.patch_size=8", "method.embed_dim=24", "method.depth=1",
    "method.num_heads=2", "method.decoder_embed_dim=24", "method.decoder_depth=1", "method.decoder_num_heads=2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "data", [("loader=volumes", "size=16"), ("loader=slices", "size=16"), ("loader=slices", "size=16", "axis=coronal")]
)
def test_segmentation_gives_maps_on_the_grid_of_the_source(tmp_path, data):
    """In 3-D, and slice by slice."""
    (tmp_path / "labels").mkdir()
    for number in range(6):
        path = fake_nifti(tmp_path / "data" / f"sub-{number:02d}.nii.gz", (32, 32, 24), seed=number)
        image = nib.load(path)
        air = (image.get_fdata() < -500).astype(np.uint8) * 7
        nib.save(nib.Nifti1Image(air, image.affine), tmp_path / "labels" / path.name)
    run = mw.pretrain("mae", tmp_path / "data", run=tmp_path / "run", settings=[f"data.{one}" for one in data] + SETTINGS, max_steps=2, precision="32",
                      batch_size=2)  # fmt: skip
    model = mw.finetune(
        run, task="segmentation", labels=str(tmp_path / "labels"), out=tmp_path / "model", steps=150, lr=3e-3
    )
    predicted = mw.predict(model, tmp_path / "data", tmp_path / "maps")
    assert not predicted.bad
    right, constant = [], []
    for path in predicted.outputs:
        written, source = nib.load(path), nib.load(tmp_path / "data" / path.name)
        assert written.shape == source.shape
        np.testing.assert_allclose(written.affine, source.affine)
        codes = np.asarray(written.dataobj)
        assert set(np.unique(codes)) <= {0, 7}
        assert codes.dtype == np.uint8
        air = source.get_fdata() < -500
        right.append(((codes == 7) == air).mean())
        constant.append(max(air.mean(), 1 - air.mean()))
    assert np.mean(right) > np.mean(constant) + 0.03  # maps that lay elsewhere, or mirrored, would be no better
    assert len(predicted.outputs) == 6

"""Feature teachers: what is refused, and what an encoder of another kind can teach."""

import pytest
import torch

from maskwright.core.encoder import FeatureTeacher, VisionTransformer
from maskwright.core.encoder.convnet import SparseConvNet
from maskwright.core.errors import ConfigError
from maskwright.core.sample import Batch, Meta

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


def test_another_input_is_refused_by_name():
    student = VisionTransformer(**SMALL)
    teacher = VisionTransformer(**SMALL, input_name="sar")
    with pytest.raises(ConfigError, match=r'reads sar, the student "image"'):
        FeatureTeacher(teacher, student)


def test_a_convolutional_encoder_teaches_its_last_map():
    student = VisionTransformer(**SMALL)
    convnet = SparseConvNet("plain", widths=(8, 8), depths=(1, 1), scales=1)
    assert convnet.stride == 4
    teacher = FeatureTeacher(convnet, student)
    batch = Batch({"image": torch.randn(2, 3, 32, 32)}, [Meta("a"), Meta("b")])
    tokens = student.tokenize(batch)
    torch.testing.assert_close(teacher(batch, tokens), convnet.eval().embed(batch).tokens)
    assert teacher.depth == 0
    with pytest.raises(ConfigError, match="blocks"):
        teacher.layers(batch, tokens, None, [0])
    other = VisionTransformer(**{**SMALL, "patch_size": 8})
    with pytest.raises(ConfigError, match="8 x 8 tokens, the student into 4 x 4"):
        FeatureTeacher(convnet, other)(batch, other.tokenize(batch))

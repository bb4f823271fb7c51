"""Conformer blocks against those of torchaudio and of transformers' Wav2Vec2-BERT, with the same weights."""

import pytest
import torch

from maskwright.speech.conformer import ConformerBlock

DIM, HEADS, HIDDEN = 32, 4, 64


def put(pairs):
    """Copy each of their modules or tensors into ours."""
    with torch.no_grad():
        for ours, theirs in pairs:
            if isinstance(ours, torch.nn.Module):
                ours.load_state_dict(theirs.state_dict())
            else:
                ours.copy_(theirs.reshape(ours.shape))


def from_torchaudio(theirs, kernel):
    ours = ConformerBlock(DIM, HEADS, HIDDEN / DIM, kernel, "none")
    conv = theirs.conv_module.sequential
    for layer in (conv[0], conv[2], conv[5]):  # ours have no biases, as in w2v-BERT
        torch.nn.init.zeros_(layer.bias)
    pairs = [
        (ours.norm_attn, theirs.self_attn_layer_norm),
        (ours.attn.qkv.weight, theirs.self_attn.in_proj_weight),
        (ours.attn.qkv.bias, theirs.self_attn.in_proj_bias),
        (ours.attn.proj, theirs.self_attn.out_proj),
        (ours.conv.norm, theirs.conv_module.layer_norm),
        (ours.conv.pointwise1.weight, conv[0].weight),
        (ours.conv.depthwise.weight, conv[2].weight),
        (ours.conv.middle_norm, conv[3]),
        (ours.conv.pointwise2.weight, conv[5].weight),
        (ours.norm, theirs.final_layer_norm),
    ]
    for mine, other in ((ours.mlp1, theirs.ffn1.sequential), (ours.mlp2, theirs.ffn2.sequential)):
        pairs += [(mine.norm, other[0]), (mine.fc1, other[1]), (mine.fc2, other[4])]
    put(pairs)
    return ours


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel", [5, 31])
def test_blocks_of_torchaudio(kernel, training):
    models = pytest.importorskip("torchaudio.models", reason="torchaudio is not installed")
    torch.manual_seed(0)
    theirs = models.Conformer(DIM, HEADS, HIDDEN, 3, kernel).train(training)
    x, real = torch.randn(4, 50, DIM), torch.ones(4, 50, dtype=torch.bool)
    for layer in theirs.conformer_layers:
        ours = from_torchaudio(layer, kernel).train(training)
        expected = layer(x.transpose(0, 1), None).transpose(0, 1)
        torch.testing.assert_close(ours(x, real), expected, atol=1e-5, rtol=1e-5)
        x = expected.detach()


def from_transformers(theirs, positions):
    ours = ConformerBlock(DIM, HEADS, HIDDEN / DIM, 31, positions, "layer", causal=True)
    attn, conv = theirs.self_attn, theirs.conv_module
    pairs = [
        (ours.norm_attn, theirs.self_attn_layer_norm),
        (ours.attn.qkv.weight, torch.cat([part.weight for part in (attn.linear_q, attn.linear_k, attn.linear_v)])),
        (ours.attn.qkv.bias, torch.cat([part.bias for part in (attn.linear_q, attn.linear_k, attn.linear_v)])),
        (ours.attn.proj, attn.linear_out),
        (ours.conv.norm, conv.layer_norm),
        (ours.conv.pointwise1.weight, conv.pointwise_conv1.weight),
        (ours.conv.depthwise.weight, conv.depthwise_conv.weight),
        (ours.conv.middle_norm, conv.depthwise_layer_norm),
        (ours.conv.pointwise2.weight, conv.pointwise_conv2.weight),
        (ours.norm, theirs.final_layer_norm),
    ]
    for mine, norm, other in (
        (ours.mlp1, theirs.ffn1_layer_norm, theirs.ffn1),
        (ours.mlp2, theirs.ffn2_layer_norm, theirs.ffn2),
    ):
        pairs += [(mine.norm, norm), (mine.fc1, other.intermediate_dense), (mine.fc2, other.output_dense)]
    if positions == "shaw":
        pairs.append((ours.attn.distance_embed, attn.distance_embedding))
    elif positions == "sinusoid":
        torch.nn.init.normal_(attn.pos_bias_u)
        torch.nn.init.normal_(attn.pos_bias_v)
        pairs += [
            (ours.attn.distance_proj, attn.linear_pos),
            (ours.attn.content_bias, attn.pos_bias_u),
            (ours.attn.distance_bias, attn.pos_bias_v),
        ]
    put(pairs)
    return ours


@pytest.mark.parametrize(("positions", "theirs_is"), [("shaw", "relative_key"), ("sinusoid", "relative")])
def test_blocks_of_wav2vec2_bert(positions, theirs_is):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.wav2vec2_bert import modeling_wav2vec2_bert as outside

    torch.manual_seed(0)
    config = outside.Wav2Vec2BertConfig(
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        position_embeddings_type=theirs_is,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        conformer_conv_dropout=0.0,
        attn_implementation="eager",
    )
    encoder = outside.Wav2Vec2BertEncoder(config).eval()
    x, lengths = torch.randn(3, 90, DIM), torch.tensor([90, 61, 70])
    real = torch.arange(90) < lengths[:, None]
    table = encoder.embed_positions(x) if theirs_is == "relative" else None
    bias = torch.where(real, 0.0, torch.finfo(torch.float32).min)[:, None, None]
    for layer in encoder.layers:
        ours = from_transformers(layer, positions).eval()
        expected = layer(x, attention_mask=bias, relative_position_embeddings=table, conv_attention_mask=real)
        torch.testing.assert_close(ours(x, real)[real], expected[real], atol=1e-5, rtol=1e-5)
        x = expected.detach()

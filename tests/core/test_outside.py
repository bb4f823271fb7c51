"""Encoders from outside: timm models, the user's own modules, and what a file may and may not make us run."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import maskwright as mw
from maskwright.core.encoder import VisionTransformer
from maskwright.core.encoder.outside import OutsideEncoder, fresh, open_encoder
from maskwright.core.encoder.outside_models import ModelText, trusted
from maskwright.core.errors import ConfigError, DataError, PluginError
from maskwright.core.loader import Statistics
from maskwright.core.recipe import make_recipe
from maskwright.core.sample import Batch, Meta
from maskwright.core.trainer.run import Run
from maskwright.testing import check_encoder, made_up_batch
from tests.conftest import write_images

timm = pytest.importorskip("timm")

VIT = "timm:vit_tiny_patch16_224,depth=2,pretrained=false"

MODULE = """
import torch
from torch import nn

CALLS = []


class Net(nn.Module):
    def __init__(self, width=4, form="map"):
        super().__init__()
        CALLS.append(width)
        self.form = form
        self.conv = nn.Conv2d(1, width, 4, stride=4)

    def forward(self, x):
        maps = self.conv(x)
        if self.form == "map":
            return maps
        tokens = maps.flatten(2).transpose(1, 2)
        return {"tokens": tokens, "vector": tokens.mean(1), "pair": (tokens, tokens)}[self.form]


def loaded():
    net = Net()
    net.load_state_dict({name: torch.arange(t.numel()).view(t.shape) / 9 for name, t in net.state_dict().items()})
    return net


def failing():
    raise OSError("no such weights")


def number():
    return 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's in the working folder, unknown to the interpreter; its name."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_nets.py").write_text(MODULE)
    monkeypatch.chdir(folder)
    yield "own_nets"
    sys.modules.pop("own_nets", None)


@pytest.fixture
def loader(images):
    return mw.open_data(images, "npy")


def _loader(folder, channels, size, values=None):
    write_images(folder, 3, size, channels)
    if values is not None:
        for number, file in enumerate(sorted(folder.glob("*.npy"))):
            np.save(file, values(number).astype(np.float32))
    return mw.open_data(folder, "npy")


def _batch(channels, *size, count=2):
    x = torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))
    return Batch({"image": x}, [Meta("made up", index=i) for i in range(count)])


# timm ---------------------------------------------------------------------------------------------------------------


def test_features_of_a_vit_are_timms_own(tmp_path):
    loader = _loader(tmp_path / "data", 5, 224)
    encoder = open_encoder(VIT, loader)
    assert not encoder.training
    plain = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2, in_chans=5, num_classes=0).eval()
    plain.load_state_dict(encoder.module.state_dict())
    batch = mw.collate([loader.read(0), loader.read(1)])
    embedding = encoder.embed(batch)
    with torch.no_grad():
        x = encoder.normalizers["image"](batch["image"])
        features = plain.forward_features(x)
        assert torch.equal(embedding.tokens, features[:, 1:])  # without the class token
        assert torch.equal(embedding.pooled, plain(x))
        assert torch.equal(encoder(encoder.tokenize(batch)), features[:, 1:])
    assert embedding.grid.shape == (14, 14)
    statistics = loader.statistics()["image"]
    assert encoder.normalizers["image"].offset.tolist() == pytest.approx(statistics.mean, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", False), ("swin_tiny_patch4_window7_224,depths=1x1x1x1", True)], ids=["nchw", "nhwc"]
)
def test_feature_maps_become_tokens_in_raster_order(name, last):
    encoder = OutsideEncoder(f"timm:{name}", in_chans=2).eval()
    batch = _batch(2, 64, 96)
    embedding = encoder.embed(batch)
    with torch.no_grad():
        features = encoder.module.forward_features(batch["image"])
    assert embedding.grid.shape == (2, 3)
    for row in range(2):
        for column in range(3):
            expected = features[:, row, column] if last else features[:, :, row, column]
            assert torch.equal(embedding.tokens[:, row * 3 + column], expected)
    assert embedding.pooled.shape == (2, encoder.embed_dim)


def test_pooled_is_the_mean_where_timms_own_is_of_another_width():
    encoder = OutsideEncoder("timm:mobilenetv3_small_050").eval()
    embedding = encoder.embed(_batch(3, 64, 64))
    assert encoder.module.forward_head(torch.randn(1, 288, 2, 2), pre_logits=True).shape == (1, 1024)
    assert torch.equal(embedding.pooled, embedding.tokens.mean(1))


def test_inputs_are_resized_to_what_a_model_takes():
    dynamic = OutsideEncoder("timm:vit_tiny_patch16_224,depth=1").eval()
    assert dynamic.tokenize(_batch(3, 64, 96)).shape == (2, 3, 64, 96)
    assert dynamic.tokenize(_batch(3, 60, 96)).shape == (2, 3, 64, 96)
    assert dynamic.embed(_batch(3, 60, 96)).grid.shape == (4, 6)
    fixed = OutsideEncoder("timm:mixer_s32_224,img_size=64").eval()
    assert fixed.tokenize(_batch(3, 50, 96)).shape == (2, 3, 64, 64)
    assert fixed.embed(_batch(3, 50, 96)).grid.shape == (2, 2)
    free = OutsideEncoder("timm:resnet18").eval()
    assert free.tokenize(_batch(3, 50, 70)).shape == (2, 3, 50, 70)
    asked = OutsideEncoder("timm:resnet18", resize=(32, 64)).eval()
    assert asked.embed(_batch(3, 50, 70)).grid.shape == (1, 2)
    x = _batch(3, 16, 16)["image"]
    expected = nn.functional.interpolate(x, size=(32, 64), mode="bilinear", align_corners=False)
    assert torch.allclose(asked.tokenize(Batch({"image": x}, [])), expected, atol=1e-5)


def test_it_keeps_the_contract_of_an_encoder():
    spec = "timm:vit_tiny_patch16_224,depth=1,embed_dim=24,num_heads=2"
    encoder = OutsideEncoder(spec, in_chans=2)
    check_encoder(lambda: OutsideEncoder(spec, in_chans=2), made_up_batch(encoder.inputs, 3, 32))


def test_it_cannot_mask():
    encoder = OutsideEncoder("timm:resnet18")
    with pytest.raises(ConfigError, match="cannot hide tokens"):
        encoder(encoder.tokenize(_batch(3, 32, 32)), mask=object())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:vit_tiny_patch16_223,pretrained=false", 'Did you mean "vit_tiny_patch16_224"'),
        ("timm:resnet18,pretrained=false,windows=3", "windows"),
        ("timm:resnet18,pretrained=maybe", "neither true nor false"),
        ("timm:resnet18,pretrained", "no setting"),
        ("timm:hf-hub:someone/model,pretrained=false", "timm's own list"),
        ("timm:", "names no model"),
        ("timm:resnet18,pretrained=false,checkpoint_path=a.pt", "checkpoint_path cannot be set"),
        ("timm:resnet18,pretrained=false,in_chans=7", "give 1 channels"),
        ("timm:resnet18,pretrained=false,input=sar", 'give no "sar"'),
        ("timm:resnet18,pretrained=false,normalization=fast", "fast"),
        ("timm:resnet18,pretrained=false,normalization=model", "scaling of 3 channels, not of 1"),
    ],
)
def test_texts_that_name_no_model(loader, text, message):
    with pytest.raises(ConfigError, match=message):
        open_encoder(text, loader)


def test_pretrained_weights_without_a_network(loader, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere")
    with pytest.raises(ConfigError, match=r"weights=FILE\.safetensors.*pretrained=false"):
        open_encoder("timm:resnet10t", loader)


def test_without_the_library_the_command_is_named(loader, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PluginError, match=r'pip install "maskwright\[timm\]"'):
        open_encoder(VIT, loader)


def test_no_text_makes_the_constructor_download():
    with pytest.raises(ConfigError, match="pretrained cannot be set"):
        OutsideEncoder("timm:resnet10t,pretrained=true")


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_from_a_file_are_all_accounted_for(tmp_path, ending):
    torch.manual_seed(5)
    source = timm.create_model("resnet10t", pretrained=False)
    file = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"state_dict": source.state_dict()}, file)
    else:
        save_file(source.state_dict(), str(file))
    encoder = open_encoder(f"timm:resnet10t,weights={file}")
    ours = encoder.module.state_dict()
    assert all(torch.equal(ours[name], source.state_dict()[name]) for name in ours)
    assert encoder.notes == [f"weights.{ending}: left over, the classifier: fc.bias, fc.weight."]
    # the published scaling goes with published weights, for data in 0 ... 255
    mean = torch.tensor(source.pretrained_cfg["mean"]) * 255
    assert torch.allclose(encoder.normalizers["image"].offset, mean)


def test_weights_for_three_channels_are_adapted_to_more(tmp_path):
    source = timm.create_model("resnet10t", pretrained=False)
    save_file(source.state_dict(), str(tmp_path / "w.safetensors"))
    loader = _loader(tmp_path / "data", 4, 16)
    encoder = open_encoder(f"timm:resnet10t,weights={tmp_path / 'w.safetensors'}", loader)
    assert encoder.module.conv1[0].weight.shape[1] == 4
    assert "adapted to this input by timm: conv1.0.weight" in encoder.notes[1]
    assert torch.equal(encoder.module.layer1[0].conv1.weight, source.layer1[0].conv1.weight)


def test_weights_that_do_not_belong_are_refused(tmp_path):
    source = timm.create_model("resnet10t", pretrained=False).state_dict()
    file = tmp_path / "w.safetensors"
    save_file({**source, "extra.weight": torch.zeros(2)}, str(file))
    with pytest.raises(DataError, match=r"holds extra\.weight that the model has not"):
        open_encoder(f"timm:resnet10t,weights={file}")
    save_file({name: tensor for name, tensor in source.items() if name != "layer1.0.conv1.weight"}, str(file))
    with pytest.raises(DataError, match=r"lacks layer1\.0\.conv1\.weight"):
        open_encoder(f"timm:resnet10t,weights={file}")
    save_file({**source, "layer1.0.conv1.weight": torch.zeros(2, 2, 3, 3)}, str(file))
    with pytest.raises(DataError, match="does not fit"):
        open_encoder(f"timm:resnet10t,weights={file}")
    with pytest.raises(DataError, match="no such file"):
        open_encoder(f"timm:resnet10t,weights={tmp_path / 'absent.pt'}")
    file.write_bytes(b"nothing of use")
    with pytest.raises(DataError, match="could not be read as weights"):
        open_encoder(f"timm:resnet10t,weights={file}")


class _Bomb:
    def __reduce__(self):
        return print, ("unpickled",)


def test_weights_are_never_unpickled(tmp_path, capsys):
    torch.save({"state_dict": {"a": _Bomb()}}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="it holds more than tensors"):
        open_encoder(f"timm:resnet10t,weights={tmp_path / 'w.pt'}")
    assert "unpickled" not in capsys.readouterr().out


def test_which_scaling_is_taken(tmp_path):
    file = tmp_path / "w.safetensors"
    source = timm.create_model("resnet10t", pretrained=False)
    save_file(source.state_dict(), str(file))
    text = f"timm:resnet10t,weights={file}"
    generator = np.random.default_rng(0)
    eight_bit = _loader(tmp_path / "a", 3, 16, lambda n: generator.integers(0, 256, (3, 16, 16)))
    reflectance = _loader(tmp_path / "b", 3, 16, lambda n: generator.random((3, 16, 16)) * 200)
    published = torch.tensor(source.pretrained_cfg["mean"]) * 255

    def offset(what, loader):
        return open_encoder(what, loader).normalizers["image"].offset

    of_data = [torch.tensor(loader.statistics()["image"].mean) for loader in (eight_bit, reflectance)]
    assert torch.allclose(offset(text, eight_bit), published)
    assert torch.allclose(offset(text, reflectance), of_data[1])  # no whole numbers
    assert torch.allclose(offset("timm:resnet10t,pretrained=false", eight_bit), of_data[0])
    assert torch.allclose(offset(f"{text},normalization=data", eight_bit), of_data[0])
    assert torch.allclose(offset(f"{text},normalization=model", reflectance), published)
    assert open_encoder(f"{text},normalization=none", eight_bit).normalizers["image"].kind == "none"
    with pytest.raises(ConfigError, match="needs data"):
        open_encoder(f"{text},normalization=data")


# torch modules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "grid"), [("map", (4, 4)), ("tokens", (4, 4)), ("vector", (1,))])
def test_a_module_of_the_users_own(loader, own_module, form, grid):
    encoder = open_encoder(f"torch:{own_module}:Net,width=6,form={form}", loader)
    assert own_module in sys.modules
    assert str(sys.path).count("code") == 0  # the working folder is searched for the import alone
    embedding = encoder.embed(mw.collate([loader.read(0), loader.read(1)]))
    assert embedding.grid.shape == grid
    assert embedding.tokens.shape == (2, int(np.prod(grid)), 6)
    x = encoder.normalizers["image"](mw.collate([loader.read(0), loader.read(1)])["image"])
    maps = encoder.module.conv(x).flatten(2).transpose(1, 2)
    assert torch.allclose(embedding.pooled, maps.mean(1), atol=1e-6)
    assert torch.allclose(embedding.tokens, maps if form != "vector" else maps.mean(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("no.such.module:Net", PluginError, r"no\.such\.module cannot be imported"),
        ("own_nets:Nothing", PluginError, 'own_nets has no "Nothing"'),
        ("own_nets:failing", PluginError, r"own_nets:failing\(\) failed: OSError: no such weights"),
        ("own_nets:Net,depth=3", PluginError, "unexpected keyword argument 'depth'"),
        ("own_nets:number", ConfigError, r"made a int; a torch\.nn\.Module"),
        ("own_nets:Net,form=pair", ConfigError, "gives tuple"),
        ("own_nets", ConfigError, r"must read torch:package\.module:Callable"),
        ("torch.nn:Identity", ConfigError, "no parameters"),
        (
            "torch.nn:Linear,in_features=3,out_features=4",
            ConfigError,
            r"does not take an input of shape \(1, 1, 16, 16\)",
        ),
    ],
)
def test_modules_that_cannot_be_used(loader, own_module, target, error, message):
    with pytest.raises(error, match=message):
        open_encoder(f"torch:{target}", loader)


# saving and loading -------------------------------------------------------------------------------------------------


def _save(encoder, folder, loader):
    folder.mkdir()
    recipe = make_recipe("toy-mae", str(folder.parent))
    Run(folder).write_encoder(encoder, loader.spec, recipe)
    return folder


def test_a_timm_encoder_is_saved_and_loaded_without_a_download(loader, tmp_path, monkeypatch):
    encoder = open_encoder(f"{VIT},resize=32", loader)
    folder = _save(encoder, tmp_path / "saved", loader)
    options = json.loads((folder / "encoder.json").read_text())["options"]
    assert options["spec"] == "timm:vit_tiny_patch16_224,depth=2"
    assert options["in_chans"] == 1
    create = timm.create_model

    def watched(*args, **named):
        assert not named.get("pretrained")
        return create(*args, **named)

    monkeypatch.setattr(timm, "create_model", watched)
    again = open_encoder(folder)
    sample = loader.read(0)
    assert torch.equal(again.embed(sample).tokens, encoder.embed(sample).tokens)
    assert not again.training


def test_code_that_only_a_file_names_is_not_imported(loader, own_module, tmp_path):
    text = f"torch:{own_module}:Net,width=6"
    encoder = open_encoder(text, loader)
    folder = _save(encoder, tmp_path / "saved", loader)
    sample = loader.read(0)
    del sys.modules[own_module]
    with pytest.raises(ConfigError, match=r"not run because a file names it.*trust=True"):
        open_encoder(folder)
    with pytest.raises(ConfigError, match="not run because a file names it"):
        OutsideEncoder(text, 1)
    with pytest.raises(ConfigError, match="not run because a file names it"):  # another width than the user named
        open_encoder(f"torch:{own_module}:Net,width=7,folder={folder}")
    assert own_module not in sys.modules
    for again in (open_encoder(folder, trust=True), open_encoder(f"{text},folder={folder}")):
        assert torch.equal(again.embed(sample).tokens, encoder.embed(sample).tokens)
    with pytest.raises(ConfigError, match="not run because a file names it"):  # trust ends with the call
        open_encoder(folder)


def test_a_file_cannot_smuggle_in_trust(loader, own_module, tmp_path):
    folder = _save(open_encoder(f"torch:{own_module}:Net", loader), tmp_path / "saved", loader)
    description = json.loads((folder / "encoder.json").read_text())
    description["options"]["trust"] = True
    (folder / "encoder.json").write_text(json.dumps(description))
    del sys.modules[own_module]
    with pytest.raises(ConfigError, match="trust"):
        open_encoder(folder)
    assert own_module not in sys.modules


def test_a_named_folder_must_hold_that_encoder(loader, own_module, tmp_path):
    folder = _save(open_encoder(VIT, loader), tmp_path / "saved", loader)
    with pytest.raises(ConfigError, match=r"holds .timm:vit_tiny"):
        open_encoder(f"torch:{own_module}:Net,folder={folder}")


def test_encoders_runs_and_folders_are_opened_alike(images, tmp_path):
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=1, batch_size=4, precision="32")
    sample = mw.open_data(images, "npy").read(0)
    own = run.load_encoder()
    for what in (run, run.path, str(run.path), own.train()):
        encoder = open_encoder(what)
        assert not encoder.training
        assert torch.equal(encoder.embed(sample).pooled, own.embed(sample).pooled)
    assert open_encoder(own) is own
    with pytest.raises(DataError, match="timm:NAME or torch:"):
        open_encoder(tmp_path / "absent")


# fresh --------------------------------------------------------------------------------------------------------------


def test_fresh_has_other_weights_and_the_same_scaling(loader):
    vit = VisionTransformer(img_size=16, patch_size=4, in_chans=1, embed_dim=16, depth=1, num_heads=2)
    vit.fit_normalizers({"image": Statistics([3.0], [2.0], [0.0], [9.0], 100)})
    for encoder in (vit, open_encoder(VIT, loader)):
        state = torch.random.get_rng_state()
        a, b, c = fresh(encoder, 1), fresh(encoder, 1), fresh(encoder, 2)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert type(a) is type(encoder)
        assert a.options == encoder.options
        assert not a.training
        name = max(dict(encoder.named_parameters()), key=lambda n: encoder.get_parameter(n).numel())
        weights = [e.get_parameter(name) for e in (a, b, c, encoder)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert not torch.equal(weights[0], weights[3])
        for buffer in ("offset", "scale"):
            ours, theirs = (getattr(e.normalizers["image"], buffer) for e in (a, encoder))
            assert torch.equal(ours, theirs)


def test_fresh_refuses_a_module_that_loads_its_weights(loader, own_module):
    random = open_encoder(f"torch:{own_module}:Net", loader)
    assert not torch.equal(fresh(random, 0).module.conv.weight, fresh(random, 1).module.conv.weight)
    with pytest.raises(ConfigError, match="same weights for two seeds"):
        fresh(open_encoder(f"torch:{own_module}:loaded", loader), 0)


def test_texts_are_written_back_as_they_came():
    for text in ("timm:a", "timm:a.b_c,img_size=96x128,drop=0.1", "torch:p.m:C,width=3,flag=true"):
        assert str(ModelText.parse(text)) == text
    values = ModelText.parse("timm:a,size=96x128,drop=1e-3,flag=true,name=max").values()
    assert values == {"size": (96, 128), "drop": 0.001, "flag": True, "name": "max"}


def test_trust_is_for_the_exact_text(own_module):
    with trusted(f"torch:{own_module}:Net"), pytest.raises(ConfigError, match="not run because"):
        OutsideEncoder(f"torch:{own_module}:Net,width=9", 1)


def test_the_script_of_the_docs_runs(tmp_path, monkeypatch):
    from maskwright.remote_sensing.fake import fake_s1s2

    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    fake_s1s2(tmp_path / "tiles", 2, 120)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(script, "export.md", "exec"), names)
    assert names["embedding"].pooled.shape == (1, 512)
    assert names["baseline"].options == names["encoder"].options

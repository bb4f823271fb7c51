"""What speech adds. Imports neither torch nor torchaudio nor soundfile."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from maskwright.core.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    import typer

_component = functools.partial(Component, extra="maskwright[speech]", requires=("soundfile", "torchaudio"))
_PACKAGE = "maskwright.speech"


@hookimpl
def register_loaders() -> list[Component]:
    return [_component("speech", f"{_PACKAGE}.loaders:SpeechLoader", "Sound files (WAV, FLAC, OGG, MP3), as frames.")]


@hookimpl
def register_encoders() -> list[Component]:
    return [
        Component(
            "frame-transformer",
            f"{_PACKAGE}.encoders:FrameTransformer",
            "Post-norm transformer over frames of any number.",
            "TERA, 2021",
        ),
        Component(
            "conformer",
            f"{_PACKAGE}.conformer_encoder:ConformerEncoder",
            "Conformer over steps of 20 or 40 ms.",
            "Conformer, 2020; w2v-BERT, 2021",
        ),
    ]


@hookimpl
def register_methods() -> list[Component]:
    return [
        Component(
            "tera",
            f"{_PACKAGE}.methods.tera:Tera",
            "Frames altered in time, frequency and magnitude are made clean again.",
            "TERA, Liu et al., TASLP 2021",
        ),
        Component(
            "w2v-bert",
            f"{_PACKAGE}.methods.w2v_bert:W2vBert",
            "Codes of hidden steps, learned, told apart and predicted at once.",
            "w2v-BERT, Chung et al., ASRU 2021",
        ),
    ]


@hookimpl
def diagnose() -> dict[str, str]:
    import soundfile
    import torchaudio

    formats = soundfile.available_formats()
    read = [name for name in ("WAV", "FLAC", "OGG", "MP3") if name in formats or (name == "MP3" and "MPEG" in formats)]
    return {
        "torchaudio": torchaudio.__version__,
        "soundfile": f"{soundfile.__version__} (libsndfile {soundfile.__libsndfile_version__})",
        "sound formats": ", ".join(read),
    }


@hookimpl
def register_commands(app: typer.Typer) -> None:
    from maskwright.speech.commands import add_commands

    add_commands(app)

"""maskwright: pre-train encoders by masking on the data you already have, and learn honestly whether it helped.

    import maskwright as mw

    run = mw.pretrain("croma", data="tiles/", preset="tiny", epochs=5)
    encoder = mw.load(run)
    z = encoder.embed(sample).pooled

Names are imported on first use, so that `import maskwright` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Batch": "maskwright.core.sample",
    "Encoder": "maskwright.core.encoder",
    "Grid": "maskwright.core.masking",
    "Loader": "maskwright.core.loader",
    "Mask": "maskwright.core.masking",
    "Masking": "maskwright.core.masking",
    "Meta": "maskwright.core.sample",
    "Method": "maskwright.core.trainer.method",
    "Recipe": "maskwright.core.recipe",
    "Run": "maskwright.core.trainer.run",
    "Sample": "maskwright.core.sample",
    "compare": "maskwright.core.evaluation.compare",
    "collate": "maskwright.core.sample",
    "component": "maskwright.core.api",
    "embed": "maskwright.core.embed",
    "finetune": "maskwright.core.finetune",
    "load_task_model": "maskwright.core.task_folder",
    "predict": "maskwright.core.predict",
    "evaluate": "maskwright.core.evaluation.evaluate",
    "dry_run": "maskwright.core.trainer.forecast",
    "make_recipe": "maskwright.core.recipe",
    "load": "maskwright.core.api",
    "open_data": "maskwright.core.api",
    "plugins": "maskwright.core.api",
    "report": "maskwright.core.api",
    "export": "maskwright.core.export",
    "open_encoder": "maskwright.core.encoder.outside",
    "pretrain": "maskwright.core.trainer.pretrain",
    "resume": "maskwright.core.trainer.pretrain",
    "sample_keys": "maskwright.core.masking",
}

if TYPE_CHECKING:
    from maskwright.core.api import component, load, open_data, plugins, report
    from maskwright.core.embed import embed
    from maskwright.core.encoder import Encoder
    from maskwright.core.encoder.outside import open_encoder
    from maskwright.core.evaluation.compare import compare
    from maskwright.core.evaluation.evaluate import evaluate
    from maskwright.core.export import export
    from maskwright.core.finetune import finetune
    from maskwright.core.loader import Loader
    from maskwright.core.masking import Grid, Mask, Masking, sample_keys
    from maskwright.core.predict import predict
    from maskwright.core.recipe import Recipe, make_recipe
    from maskwright.core.sample import Batch, Meta, Sample, collate
    from maskwright.core.task_folder import load_task_model
    from maskwright.core.trainer.forecast import dry_run
    from maskwright.core.trainer.method import Method
    from maskwright.core.trainer.pretrain import pretrain, resume
    from maskwright.core.trainer.run import Run


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'maskwright' has no attribute '{name}'")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_WHERE, "__version__"])

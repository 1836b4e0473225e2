"""Next-Frequency Image Generation: images, generated band by band.

What most people need has its name here, as in `nfig.NFIGPipeline.from_pretrained('fashion-mnist')`.
It is imported when it is asked for first, so that `import nfig` itself stays light.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what an editor and a type checker see; `_homes` is the same for Python
    from nfig.core.presets import get_preset as get_preset
    from nfig.data.sources import load_data as load_data
    from nfig.fast.faster import faster as faster
    from nfig.tokenizer.frvae import FRVAE as FRVAE
    from nfig.train.tokenizer import train_tokenizer as train_tokenizer
    from nfig.train.transformer import train_nfig as train_nfig
    from nfig.transformer.convert import pipeline_from_var as pipeline_from_var
    from nfig.transformer.pipeline import NFIGPipeline as NFIGPipeline

_homes = {
    'FRVAE': 'nfig.tokenizer.frvae',
    'NFIGPipeline': 'nfig.transformer.pipeline',
    'faster': 'nfig.fast.faster',
    'get_preset': 'nfig.core.presets',
    'load_data': 'nfig.data.sources',
    'pipeline_from_var': 'nfig.transformer.convert',
    'train_nfig': 'nfig.train.transformer',  # not `train`, which is the package it comes from
    'train_tokenizer': 'nfig.train.tokenizer',
}
__all__ = [*_homes, '__version__']


def __getattr__(
    name: str,  # of something in `_homes`
):  # the class or function
    "Import what is asked for first; AttributeError for any other name"
    if name not in _homes:
        raise AttributeError(f"module 'nfig' has no {name!r}; it has {', '.join(_homes)}")
    found = globals()[name] = getattr(import_module(_homes[name]), name)
    return found


def __dir__() -> list:  # names, for tab completion
    "What is here already and what can be asked for"
    return sorted({*globals(), *_homes})

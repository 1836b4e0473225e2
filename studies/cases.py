"""The table of cases: what differs between the runs of a study, and what they have in common."""

from dataclasses import dataclass, field

from nfig.core.config import did_you_mean
from nfig.core.presets import Experiment, get_preset, one_scale

# What each stage of the quantiser aims at: bands, with four ways to place their edges, or the
# whole latent, as VAR does. `raster` has one grid, whose tokens are predicted in reading order.
targets = {
    'paper': dict(target='band', division='paper'),
    'area': dict(target='band', division='area'),
    'nyquist': dict(target='band', division='nyquist'),
    'energy': dict(target='band', division='energy'),
    'VAR': dict(target='full'),
    'raster': one_scale | dict(scales=(8,)),
}

# What can be done differently beside: 'VAR.no-phi' is VAR's target without phi.
changes = {
    'area-down': dict(down='area'),  # a stage's grid by averages, not by least squares
    'no-phi': dict(phi=0),  # no convolution after enlarging
    'no-gains': dict(gains=False),  # no gain a stage
}


@dataclass(frozen=True)
class Study:
    "What all runs of a study have in common"

    data: str  # as for nfig_train_tokenizer; its held-out part is measured
    preset: str  # what everything is taken from that a case does not change
    cases: str  # between commas
    steps: tuple  # of tokenizer and transformer; no transformer if 0
    batch: int  # images a step
    n: int = 1000  # held-out images, and samples
    images: int = None  # training images, evenly spaced; all if None
    flip: bool = None  # mirrored images in training; the preset's if None
    tokenizer: dict = field(default_factory=dict)  # changes to the preset's tokenizer, for all


studies = {
    'tokenizers': Study('cifar10', 'small', 'paper,area,nyquist,energy,VAR', (300, 0), 16),
    'orders': Study(
        'fashion-mnist',
        'tiny',
        'paper,area,nyquist,energy,VAR,raster',
        (300, 300),
        32,
        images=10_000,
        flip=False,
        tokenizer=dict(scales=(1, 2, 3, 4, 6, 8), codebook_size=256, gains=True, beta=0.02),
    ),
}


def case(
    name: str,  # a target, or a target, a dot and a change
    study: Study,  # what it has in common with the others
    seed: int = 0,  # of initialisation, data order and samples
) -> Experiment:  # what is trained
    "A row of the table as an experiment; ValueError names the targets or changes that exist"
    target, *more = name.split('.')
    if target not in targets:
        raise ValueError(did_you_mean(target, targets, 'target'))
    for change in more:
        if change not in changes:
            raise ValueError(did_you_mean(change, changes, 'change'))
    tokenizer = dict(study.tokenizer)
    for row in (targets[target], *(changes[c] for c in more)):
        tokenizer |= row
    run = dict(batch_size=study.batch, epochs=0, seed=seed)
    if study.flip is not None:
        run['flip'] = study.flip
    return get_preset(
        study.preset,
        tokenizer=tokenizer,
        transformer=dict(order='raster') if target == 'raster' else {},
        train_tokenizer=run | dict(steps=study.steps[0]),
        train=run | dict(steps=max(study.steps[1], 1)),
        sample=dict(cfg_scale=0.0),
    )

"""The same numbers as VAR's own code gives, on its weights: see fixtures/README.md for what was
run.

The transformer, the quantiser and the stage loop of this package have VAR's as special cases,
so everything has to agree: indices exactly, floats within what the order of additions can
change."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from nfig.core.config import SampleConfig
from nfig.core.presets import presets
from nfig.transformer.convert import (
    quantizer_from_var,
    tokenizer_config,
    transformer_config,
    transformer_from_var,
    transformer_to_var,
    var_scales,
    vqvae_from_var,
    vqvae_to_var,
)
from nfig.transformer.pipeline import NFIGPipeline, generate
from nfig.transformer.attention import stage_of
from nfig.transformer.model import NFIGTransformer

scales = (1, 2, 3, 4, 6, 8)
fixtures = Path(__file__).parent / 'fixtures'


@lru_cache
def golden(name):
    "All tensors of one fixture"
    return load_file(fixtures / f'var_golden_{name}.safetensors')


def part(name, prefix):
    "The tensors under `prefix`, without it"
    return {k.removeprefix(prefix): v for k, v in golden(name).items() if k.startswith(prefix)}


def grids(name, key):
    "One tensor for each scale"
    return [golden(name)[f'{key}.{i}'] for i in range(len(scales))]


def same_tokens(ours, theirs):
    for i, (a, b) in enumerate(zip(ours, theirs)):
        assert torch.equal(a, b.long()), f'stage {i}'
    assert len(ours) == len(theirs)


def close(ours, theirs, eps):
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= eps, (
        f'{(ours - theirs).abs().max():.2e}'
    )


@pytest.fixture(scope='module')
def transformer():
    return transformer_from_var(part('transformer', 'var.'))


@pytest.fixture(scope='module')
def quantizer():
    return quantizer_from_var(part('transformer', 'vae.'), scales)


@pytest.fixture(scope='module')
def vqvae():
    return vqvae_from_var(part('vqvae', 'vae.'), scales)


@torch.no_grad()
def test_logits_and_loss(transformer):
    g = golden('transformer')
    logits = transformer(g['in.label'], g['out.teacher_input'])
    close(logits, g['out.logits'], 1e-5)
    close(
        F.cross_entropy(
            logits.flatten(0, 1), torch.cat(grids('transformer', 'out.idx'), 1).flatten().long()
        ),
        g['out.loss'],
        1e-5,
    )


@torch.no_grad()
def test_cached_stages(transformer):
    g = golden('transformer')
    cond = transformer.embed_class(g['in.label'])
    cache = transformer.new_cache(2)
    inputs = [None, *g['out.teacher_input'].split([s * s for s in scales[1:]], 1)]
    close(
        torch.cat([transformer.stage(i, cond, x, cache) for i, x in enumerate(inputs)], 1),
        g['out.logits'],
        1e-4,
    )


@pytest.mark.parametrize('batch', (1, 2))
@pytest.mark.parametrize('cfg', ('0', '1.5'))
def test_greedy_tokens(transformer, quantizer, cfg, batch):
    tokens = generate(
        transformer,
        quantizer,
        golden('transformer')['in.label'][:batch],
        SampleConfig(cfg_scale=float(cfg), top_k=1),
    )
    same_tokens(tokens, [t[:batch] for t in grids('transformer', f'out.gtok_cfg{cfg}')])


def test_quantizer(quantizer):
    g = golden('transformer')
    stages = list(quantizer.encode(g['out.f']))
    same_tokens([st.tokens for st in stages], grids('transformer', 'out.idx'))
    close(quantizer.teacher_inputs([st.tokens for st in stages]), g['out.teacher_input'], 1e-5)


@torch.no_grad()
def test_vqvae(vqvae):
    g = golden('vqvae')
    tokens = vqvae.encode(g['in.img'])
    close(vqvae.latent(g['in.img']), g['out.f'], 1e-4)
    same_tokens(tokens, grids('vqvae', 'out.idx'))
    for a, b in zip(vqvae.quantizer.partials(tokens), grids('vqvae', 'out.f_hat')):
        close(a, b, 1e-5)
    close(vqvae.decode(tokens), g['out.rec'], 1e-4)


@pytest.mark.parametrize('cfg', ('0', '1.5'))
def test_greedy_images(transformer, vqvae, cfg):
    pipe = NFIGPipeline(vqvae, transformer)
    x = pipe(golden('transformer')['in.label'], cfg_scale=float(cfg), top_k=1)
    close((x + 1) / 2, golden('vqvae')[f'out.greedy_cfg{cfg}_image'], 1e-4)


def test_wrong_file():
    with pytest.raises(ValueError, match="not a VAR transformer's checkpoint"):
        transformer_from_var(part('vqvae', 'vae.'))
    with pytest.raises(ValueError, match="not a VAR autoencoder's checkpoint"):
        vqvae_from_var(part('transformer', 'var.'), scales)
    with pytest.raises(ValueError, match='another architecture'):
        transformer_from_var(
            {k: v for k, v in part('transformer', 'var.').items() if k != 'blocks.1.ffn.fc2.bias'}
        )


def published(name):
    "Names and shapes in one of VAR's published files"
    rows = [
        r.split('\t') for r in (fixtures / f'var_{name}_state_dict.tsv').read_text().splitlines()
    ]
    return {n: tuple(map(int, s.split('x'))) if s else () for n, s, *_ in rows}


def test_published_transformer():
    """Every tensor of VAR's d16 file has its place, there and back.

    The meta device has shapes without memory
    """
    want = published('d16')
    sd = {n: torch.empty(s, device='meta') for n, s in want.items()} | {
        'lvl_1L': stage_of(var_scales)[None]
    }
    with torch.device('meta'):
        back = transformer_to_var(NFIGTransformer(transformer_config(sd)))
    assert {n: tuple(t.shape) for n, t in back.items()} == want


def test_published_vqvae():
    """The small VQ-VAE of the fixture has the tensors of the published one, and both give the
    configuration of the preset"""
    want = published('vqvae')
    assert (
        set(want)
        == set(part('vqvae', 'vae.'))
        == set(vqvae_to_var(vqvae_from_var(part('vqvae', 'vae.'), scales)))
    )
    assert (
        tokenizer_config({n: torch.empty(s, device='meta') for n, s in want.items()})
        == presets['var_d16'].tokenizer
    )

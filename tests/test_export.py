"""ONNX files against PyTorch: the same greedy tokens, pictures within 1e-3, for all shapes."""

import json
import os
import sys
from dataclasses import replace

import pytest
import torch

from nfig.core.config import TokenizerConfig, TransformerConfig
from nfig.core.presets import get_preset
from nfig.core.io import assets
from nfig.tokenizer.frvae import FRVAE, build_tokenizer
from nfig.transformer.convert import convert
from nfig.transformer.export import OnnxPipeline, export_onnx, onnx_files
from nfig.transformer.names import label_ids
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline, bundled, generate_stages


def greedy(pipe, labels):
    ids = label_ids(labels, pipe.classes)
    sample = pipe.settings(top_k=1)
    quantizer = pipe.tokenizer.quantizer
    return [*generate_stages(pipe.transformer, quantizer, ids, sample, range(len(labels)))]


def same_tokenizer(exported, tok):
    k = tok.config
    x = (
        torch.rand(2, 3, k.image_size, k.image_size, generator=torch.Generator().manual_seed(1)) * 2
        - 1
    )
    tokens = tok.encode(x)
    for a, b in zip(exported.encode(x), tokens, strict=True):
        assert torch.equal(a, b)
    f_hat = tok.quantizer.decode(tokens)
    assert (exported.decode_latent(f_hat) - tok.decode(tokens)).abs().max() < 1e-3


def same_generator(exported, pipe, labels):
    wanted = greedy(pipe, labels)
    got = exported.stages(labels, range(len(labels)), top_k=1)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a.tokens, b.tokens), f'stage {a.i + 1}'
    pictures = exported.decode_latent(got[-1].f_hat), pipe.decode_latent(wanted[-1].f_hat)
    assert (pictures[0] - pictures[1]).abs().max() < 1e-3


@pytest.mark.parametrize('name', bundled())
def test_bundled_pipelines(name, tmp_path):
    pipe = NFIGPipeline.from_pretrained(name)
    export_onnx(pipe, tmp_path / 'out')
    exported = OnnxPipeline(tmp_path / 'out', threads=1)
    same_tokenizer(exported, pipe.tokenizer)
    same_generator(exported, pipe, list(range(min(4, len(pipe.classes)))))


alone = [p.parent.parent.name for p in sorted(assets.glob('*/tokenizer/config.json'))]


@pytest.mark.parametrize('name', [n for n in alone if n not in bundled()])
def test_bundled_tokenizers(name, tmp_path):
    tok = FRVAE.from_pretrained(assets / name / 'tokenizer')
    export_onnx(tok, tmp_path / 'out')
    same_tokenizer(OnnxPipeline(tmp_path / 'out', threads=1), tok)


var_like = TokenizerConfig(
    64,
    (1, 2, 3, 4, 6, 8, 16),
    256,
    16,
    target='full',
    down='area',
    width=16,
    multipliers=(1, 1, 2),
    groups=4,
    latent_norm=False,
)
shapes = {
    'VAR': (var_like, dict(shared_ada=True)),
    'gains, cosine, strided stem': (
        replace(
            var_like,
            target='band',
            division='paper',
            down='lstsq',
            metric='cosine',
            gains=True,
            stem=2,
            multipliers=(1, 2),
            latent_norm=True,
        ),
        {},
    ),
    'no phi, first scale of 2': (replace(var_like, scales=(2, 4, 16), phi=0), {}),
    'looks one grid back': (var_like, dict(sees=1)),
    'looks at its own grid': (var_like, dict(sees=0)),
    'token by token': (replace(var_like, image_size=16, scales=(4,), phi=0), dict(order='raster')),
}


@pytest.mark.parametrize('name', shapes)
def test_other_shapes(name, tmp_path):
    "Random weights, at 32 bits. Heads at full strength, so that a greedy choice is no toss-up"
    torch.manual_seed(0)
    config, more = shapes[name]
    tok = build_tokenizer(config).eval()
    with torch.no_grad():
        tok.quantizer.codebook.weight.normal_()
        if config.gains:
            tok.quantizer.gain.uniform_(0.5, 2.0)
    kind = TransformerConfig(
        config.scales, config.codebook_size, config.latent_dim, 5, depth=2, **more
    )
    transformer = NFIGTransformer(kind)
    with torch.no_grad():
        for p in transformer.parameters():
            p.normal_(std=0.05)
        transformer.head.weight.normal_()
    pipe = NFIGPipeline(tok, transformer)
    export_onnx(pipe, tmp_path / 'out', half=False)
    exported = OnnxPipeline(tmp_path / 'out', threads=1)
    same_tokenizer(exported, tok)
    same_generator(exported, pipe, [0, 4])


def test_halves_are_half(tmp_path):
    tok = build_tokenizer(get_preset('tiny').tokenizer).eval()
    whole, half = (onnx_files(tok, h) for h in (False, True))
    for name in ('encoder.onnx', 'decoder.onnx'):
        assert len(half[name]) < 0.62 * len(whole[name])
    manifest = json.loads(half['manifest.json'])
    assert manifest['files']['decoder.onnx']['bytes'] == len(half['decoder.onnx'])


def test_command(tmp_path, capsys):
    convert('fashion-mnist', out=str(tmp_path / 'out'), onnx=True)
    assert {'manifest.json', 'transformer.onnx', 'quantizer.safetensors'} <= set(
        os.listdir(tmp_path / 'out')
    )
    assert 'written to' in capsys.readouterr().out


def test_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match='pip install.* onnx'):
        onnx_files(build_tokenizer(get_preset('tiny').tokenizer).eval())

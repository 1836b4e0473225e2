"""What is run on fake CUDA tensors: `python cases.py NAME...` prints a line of JSON for each case,
with its name, what went wrong, and where the host would wait."""

import fake  # first: it makes PyTorch believe in a GPU

import json
import sys
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import replace
from itertools import takewhile
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import ExternKernel, Pointwise
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch.fx.experimental.proxy_tensor import make_fx

from nfig.core.presets import get_preset
from nfig.bands.frequency import (
    band_masks,
    compose,
    decompose,
    energy_edges,
    fit_power_law,
    low_pass,
    power_spectrum,
    radial_profile,
)
from nfig.transformer.pipeline import NFIGPipeline, generate_stages
from nfig.data.sets import ImageData
from nfig.evaluate.metrics import (
    Moments,
    frequency_keep,
    power_profile,
    precision_recall,
    psd_distance,
    ssim,
)
from nfig.fast.faster import FastPipeline
from nfig.fast.winograd import FastUpsample, replaced
from nfig.tokenizer.autoencoder import Upsample
from nfig.tokenizer.frvae import build_tokenizer
from nfig.core.tensors import psnr
from nfig.train.transformer import TransformerTask, no_weight_decay
from nfig.train.tokenizer import TokenizerTask, spectrum_image
from nfig.train.loop import adamw
from nfig.transformer.model import NFIGTransformer

cuda = torch.device('cuda')
cases = {}


def case(fn):
    cases[fn.__name__] = fn
    return fn


def small_cnn(**changes) -> dict:
    "256 pixels and the paper's grids, but narrow networks"
    return dict(
        tokenizer=dict(width=32, blocks=1), transformer=dict(depth=2, width=64, heads=1), **changes
    )


def tokenizer_task(e, **cfg) -> TokenizerTask:
    "A task whose tensors are all on the fake GPU"
    side = e.tokenizer.image_size
    settings = dict(
        gan=0.5,
        gan_start=0.0,
        batch_size=4,
        steps=100,
        accumulate=2,
        amp=True,
        perceptual=0.0,
        crop='center',
    )
    cfg = replace(e.train_tokenizer, **{**settings, **cfg})
    data = ImageData(torch.zeros(8, 3, side, side, dtype=torch.uint8), [0] * 8, ['a'], side)
    task = TokenizerTask(build_tokenizer(e.tokenizer, False), data, cfg, torch.device('cpu'))
    for m in (task.model, task.ema.model, task.critic.model, task.critic.lecam):
        fake.on_cuda(m)
    if cfg.discriminator == 'dino':
        fake.on_cuda(task.critic.model._vit[0])
    if task.perceptual:
        fake.on_cuda(task.perceptual)
    with fake.mode:
        if task.prefixes:
            task.prefixes.errors = torch.empty(len(e.tokenizer.scales), device=cuda)
        task.opt, task.critic.opt = adamw(task.model, task.cfg), adamw(task.critic.model, task.cfg)
    task.device = cuda
    task.model.train()
    return task


def tokenizer_step(e, **cfg):
    "One step with everything switched on; what looks for dead codes is a case of its own"
    task = tokenizer_task(e, **cfg)
    return lambda: task.step(1)


@case
def tokenizer_small():
    return tokenizer_step(get_preset('small'), perceptual=1.0, features='effnet')


@case
def tokenizer_energy():
    return tokenizer_step(
        get_preset('small', tokenizer=dict(division='energy')), discriminator='patchgan'
    )


@case
def tokenizer_dropout():
    return tokenizer_step(get_preset('garments'))


@case
def tokenizer_256():
    return tokenizer_step(get_preset('var_d16', **small_cnn()), dino='random')


@case
def tokenizer_dino():
    return tokenizer_step(get_preset('small'), dino='random', discriminator='dino')


@case
def refresh():
    task = tokenizer_task(get_preset('small', tokenizer=dict(division='energy')))
    return lambda: task.refresh(task.batch(0), 0)


@case
def preview():
    e = get_preset('small')
    task = tokenizer_task(e)

    def pictures():
        x = torch.randn(4, 3, 32, 32, device=cuda)
        spectrum_image(x)
        return task.ema.model.partial_decodes(task.ema.model.encode(x))

    return pictures


def transformer_step(e, **cfg):
    pipe = NFIGPipeline(
        build_tokenizer(e.tokenizer, False), NFIGTransformer(e.transformer), sample=e.sample
    )
    tokens = torch.zeros(2, 8, e.tokenizer.tokens, dtype=torch.int16)
    task = TransformerTask(
        pipe,
        tokens,
        torch.zeros(8, dtype=torch.int64),
        replace(e.train, batch_size=4, steps=10, epochs=0, **cfg),
    )
    for m in (pipe.tokenizer, task.model, task.ema.model):
        fake.on_cuda(m)
    with fake.mode:
        task.opt = no_weight_decay(adamw(task.model, task.cfg), task.model)
    task.device = cuda
    task.model.train()
    return lambda: task.step(1)


@case
def transformer_small():
    return transformer_step(get_preset('small'), accumulate=2)


@case
def transformer_256():
    return transformer_step(get_preset('var_d16', **small_cnn()), recompute=True)


@case
def transformer_raster():
    return transformer_step(get_preset('raster_tiny'))


def generation(e, **sample):
    t, tok = (
        fake.on_cuda(NFIGTransformer(e.transformer).eval()),
        fake.on_cuda(build_tokenizer(e.tokenizer, False).eval()),
    )
    pipe = NFIGPipeline(tok, t, sample=e.sample)

    def images():
        labels = torch.zeros(4, dtype=torch.int64, device=cuda)
        stages = generate_stages(
            t, tok.quantizer, labels, replace(e.sample, **sample), [0, 1, 2, 3]
        )
        return pipe.decode_latent([*stages][-1].f_hat)

    return images


generations = dict(
    plain={},
    constant=dict(schedule='constant'),
    coarse=dict(schedule='coarse'),
    top_p=dict(top_k=100, top_p=0.96),
    greedy=dict(top_k=1),
    unguided=dict(cfg_scale=0.0),
    last=dict(unguided_last=2),
    exit=dict(stages=4),
)
for kind, sample in generations.items():
    cases[f'generate_{kind}'] = lambda sample=sample: generation(get_preset('tiny'), **sample)
cases['generate_256'] = lambda: generation(get_preset('var_d16', **small_cnn()))


@case
def decoder_beside():
    """Two batches' tokens, and a fast decoder on a second stream, which is a stand-in: its kernels
    one for an enlargement, and searched for"""
    e = get_preset('tiny')
    tok = build_tokenizer(e.tokenizer, False).eval()
    replaced(tok.decoder, {Upsample: FastUpsample})
    t = NFIGTransformer(e.transformer).eval()
    t, tok = fake.on_cuda(t), fake.on_cuda(tok)
    queue = SimpleNamespace(device=cuda, wait_stream=lambda other: None)
    pipe = FastPipeline.__new__(FastPipeline)
    vars(pipe).update(tokenizer=tok, second=queue, choices=dict(search=True))

    def sums():
        for _ in range(2):
            labels = torch.zeros(4, dtype=torch.int64, device=cuda)
            *_, last = generate_stages(t, tok.quantizer, labels, e.sample)
            yield last.f_hat

    def images():
        with (
            mock.patch('torch.cuda.current_stream', lambda device: queue),
            mock.patch('torch.cuda.stream', lambda queue: nullcontext()),
            mock.patch.object(torch.Tensor, 'record_stream', lambda t, queue: None),
        ):
            assert torch.cat(pipe.pictures(sums())).device.type == 'cuda'

    return images


h100 = DeviceProperties('cuda', 0, 132, 90, 9, 65536, 2048, 1024, 32)


def written(net: nn.Module, x: torch.Tensor) -> list:
    "(strides, does it read x?) of what is as large as `x` and written before the convolution"
    graph = make_fx(net, decomposition_table=select_decomp_table())(x)
    plan = GraphLowering(graph, is_inference=True)
    (given,) = (n.name for n in graph.graph.nodes if n.op == 'placeholder')
    with (
        V.set_graph_handler(plan),
        V.set_extern_kernel_nodes([]),
        V.set_fake_mode(fake.mode),
        mock.patch.object(DeviceProperties, 'create', lambda device: h100),
    ):
        plan.run(x)
        before = takewhile(lambda o: not isinstance(o, ExternKernel), plan.operations)
        made = [o for o in before if isinstance(o.data, Pointwise)]
        return [
            (tuple(o.get_stride()), given in {r.name for r in o.get_reads()})
            for o in made
            if torch.Size(o.get_size()).numel() >= x.numel()
        ]


@case
def norms_compiled():
    """A norm as the compiler plans it for a GPU: it reads its input where it is, and writes what
    the convolution reads, in the convolution's order. Nothing of that size is written besides, so
    there is no norm of our own"""
    layers = nn.GroupNorm(32, 64), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1)
    net = fake.on_cuda(nn.Sequential(*layers).to(torch.bfloat16)).requires_grad_(False)

    def plans():
        x = torch.empty(2, 64, 32, 32, device=cuda, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        assert written(net, x) == [(x.stride(), True)]
        # and it would be seen: the input of a second norm has to be there before it is read
        assert len(written(nn.Sequential(net[0], *net), x)) == 2

    return plans


@case
def measures():
    "Metrics and spectra of pictures on the GPU"

    def numbers():
        x, y = torch.randn(4, 3, 32, 32, device=cuda), torch.randn(4, 3, 32, 32, device=cuda)
        psnr(x, y)
        ssim(x, y)
        power_profile(x)
        psd_distance(x, y)
        frequency_keep(x, y)
        low_pass(x, 4)
        compose(decompose(x, band_masks((1, 2, 4), 32).to(cuda)))
        fit_power_law(*radial_profile(power_spectrum(x).mean((0, 1))))
        energy_edges(x, (1, 2, 4, 32))
        Moments(3).add(torch.randn(4, 3, device=cuda))
        precision_recall(torch.randn(20, 8, device=cuda), torch.randn(20, 8, device=cuda))

    return numbers


@case
def token_cache():
    "What encodes a data set: a batch of images to tokens, under autocast"
    tok = fake.on_cuda(build_tokenizer(get_preset('small').tokenizer).eval())
    x = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    from nfig.core.tensors import autocast
    from nfig.core.tensors import to_float

    def tokens():
        with torch.no_grad(), autocast(cuda, True):
            return tok.encode(to_float(x.to(cuda, non_blocking=True)))

    return tokens


@case
def sees_a_mismatch():
    return lambda: torch.ones(3) + torch.ones(3, device=cuda)


@case
def sees_waits():
    "One of each kind"

    def waits():
        x = torch.ones(3, device=cuda)
        x.sum().item()
        x.long().bincount(minlength=4)
        x.nonzero()
        x[x > 0]
        torch.ones(3).to(cuda)
        x.cpu()

    return waits


def run(name: str) -> dict:
    "Run a case; its waits, and what went wrong"
    work = cases[name]()
    with fake.mode, fake.Waits() as waits:
        try:
            work()
            wrong = None
        except Exception as e:
            stack = traceback.extract_tb(e.__traceback__)
            ours = [f'{f.filename}: {f.line}' for f in stack if '/nfig/' in f.filename]
            wrong = f'{type(e).__name__}: {str(e)[:300]} at {ours[-1:]}'
            if '-v' in sys.argv:
                traceback.print_exc()
    return dict(name=name, wrong=wrong, waits=dict(waits.seen))


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    for name in [a for a in sys.argv[1:] if a != '-v'] or cases:
        print(json.dumps(run(name)), flush=True)

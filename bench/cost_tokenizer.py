"""Memory and GPU hours of a full training run, from operations that are counted and bytes that
are measured."""

import torch
import weakref
from fastcore.script import call_parse
from functools import partial
from pathlib import Path
from torch import nn
from nfig.core.presets import Experiment, get_preset
from nfig.core.record import about, write_result
from bench.generate import count_flops
from bench.tokenizer_step import random_task


class Saved:
    """Tally of the memory that autograd keeps: bytes now, and the most there were. A context;
    pieces that share memory count once"""

    def __init__(self, *modules: nn.Module):  # whose weights are not counted
        self.known = {
            t.untyped_storage().data_ptr() for m in modules for t in (*m.parameters(), *m.buffers())
        }
        self.now = 0
        self.most = 0
        self.users = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda box: box[0])

    def __enter__(self):
        self.hooks.__enter__()
        return self

    def __exit__(self, *why):
        self.hooks.__exit__(*why)

    def pack(self, t):  # called by autograd with a tensor to keep
        "Wrap a tensor, and count its memory if that is new"
        box = _Box([t])
        memory = t.untyped_storage()
        at, size = memory.data_ptr(), memory.nbytes()
        if at in self.known or not size:
            return box
        if at not in self.users:
            self.now += size
            self.most = max(self.most, self.now)
        self.users[at] = self.users.get(at, 0) + 1
        weakref.finalize(box, self.release, at, size)
        return box

    def release(self, at, size):  # address and bytes of the memory
        "One user less"
        self.users[at] -= 1
        if not self.users[at]:
            del self.users[at]
            self.now -= size


class _Box(list):
    __slots__ = ('__weakref__',)  # a list that can be watched


def bytes_of(*modules) -> int:  # of weights and buffers, 32 bits
    "Memory of networks"
    return sum(t.nbytes for m in modules if m is not None for t in (*m.parameters(), *m.buffers()))


def step_cost(
    e: Experiment,  # whose tokenizer is trained
    batch: int = 2,  # images in the step that is counted
) -> (
    dict
):  # plain data: parameters, GFLOP and saved GiB an image, with and without the critic; fixed GiB
    """What a training step of the tokenizer takes for each image, counted on the processor with
    random weights"""
    out = {}
    for gan in (False, True):
        task = random_task(e, batch, gan=gan)
        nets = task.model, task.ema.model, task.critic, task.perceptual
        task.step(1)  # the first one makes AdamW's moments
        with Saved(*(n for n in nets if n is not None)) as s:
            flops = count_flops(partial(task.step, 1))
        name = 'with_critic' if gan else 'without'
        out[name] = dict(
            gflop=round(flops / batch / 1e9, 2), saved_gib=round(s.most / batch / 2**30, 3)
        )
    trained = [p for p in task.model.parameters() if p.requires_grad]
    judge = [p for m in (task.critic,) if m is not None for p in m.parameters() if p.requires_grad]
    fixed = bytes_of(*nets) + 3 * sum(
        p.nbytes for p in (*trained, *judge)
    )  # gradients, two moments
    return dict(
        preset=e.name,
        image_size=e.tokenizer.image_size,
        parameters=sum(p.numel() for p in trained),
        critic_parameters=sum(p.numel() for p in judge),
        fixed_gib=round(fixed / 2**30, 2),
        **out,
    )


def fits(
    c: dict,  # from `step_cost`
    share: int,  # images of a batch on each GPU
    memory: float = 80.0,  # of a GPU, GB
    spare: float = 0.25,  # share of it left for workspaces, kernels and fragmentation
) -> tuple:  # (parts of the share, GB needed)
    "The fewest equal parts of a GPU's share that fit; ValueError if not even one image does"
    for parts in [p for p in range(1, share + 1) if share % p == 0]:
        need = (c['fixed_gib'] + share // parts * c['with_critic']['saved_gib']) * 2**30 / 1e9
        if need <= memory * (1 - spare):
            return parts, round(need, 1)
    raise ValueError(
        f"a single image needs {need:.0f} GB with its share of the work, but "
        f"{memory * (1 - spare):.0f} of {memory:.0f} GB are to be used: take a smaller model or a "
        "larger GPU"
    )


def run_cost(
    e: Experiment,  # its epochs, batch, start of the critic
    c: dict,  # from `step_cost`
    gpus: int = 8,  # at work
    images: int = 1_281_167,  # of the data set; ImageNet's training set if not given
    peak: float = 798.0,  # TFLOP/s in bfloat16, as measured on an H100, side 8192
    share: float = 0.4,  # of that speed which training reaches: the assumption
) -> dict:  # plain data
    "Steps, GPU hours, days, and memory of a whole run"
    t = e.train_tokenizer
    steps = t.total_steps(images)
    late = int(t.gan_start * steps) if t.gan else steps
    flop = (
        1e9
        * t.batch_size
        * (late * c['without']['gflop'] + (steps - late) * c['with_critic']['gflop'])
    )
    hours = flop / (peak * 1e12 * share) / 3600
    parts, need = fits(c, t.batch_size // gpus)
    return dict(
        gpus=gpus,
        steps=steps,
        eflop=round(flop / 1e18, 1),
        share=share,
        gpu_hours=round(hours),
        days=round(hours / gpus / 24, 2),
        accumulate=parts,
        gigabytes=need,
        seconds_a_step=round(hours * 3600 / gpus / steps, 2),
        images_per_second=round(steps * t.batch_size / (hours * 3600 / gpus)),
    )


@call_parse
def cost(
    preset: str = 'nfig_tokenizer_paper',  # whose tokenizer
    batch: int = 2,  # images in the step that is counted
    out: str = 'results',  # folder for cost_<preset>.json
):
    "Count a training step of a tokenizer, and compute what its whole run takes on H100s"
    e = get_preset(preset)
    c = step_cost(e, batch)
    runs = [
        run_cost(e, c, gpus, share=s)
        for s in (0.3, 0.4, 0.5)
        for gpus in (1, 8, 16, 64)
        if e.train_tokenizer.batch_size % gpus == 0
    ]
    record = about('python -m bench.cost_tokenizer')
    path = Path(out) / f'cost_{preset}.json'
    write_result(path, dict(step=c, runs=runs, about=record))
    print(
        f"{c['parameters'] / 1e6:.3g} million weights, {c['with_critic']['gflop']:.3g} GFLOP and "
        f"{c['with_critic']['saved_gib']:.2g} GiB an image; written to {path}"
    )

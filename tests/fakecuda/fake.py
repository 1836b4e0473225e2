"""Run real code on fake CUDA tensors in a PyTorch without CUDA, and note where the host would
wait.

A fake tensor has a shape, a precision and a device, but no numbers: an operation on a CUDA
tensor and one on the processor fails as it would on a GPU. It uses private interfaces of
PyTorch, for the pinned release only; imported in a process of its own."""

import preload  # first: before PyTorch

import collections
import sys
from pathlib import Path

import torch
import torch.cuda.amp.common
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda *args, **kw: True
aten = torch.ops.aten
mode = FakeTensorMode(allow_non_fake_inputs=True)  # inside it, tensors are made without numbers


def on_cuda(module: nn.Module) -> nn.Module:
    "The same module with fake CUDA weights and buffers, in place"

    def like(t):
        with mode:
            return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device='cuda')

    for m in module.modules():
        for name, p in m._parameters.items():
            if p is not None:
                m._parameters[name] = nn.Parameter(like(p), requires_grad=p.requires_grad)
        for name, b in m._buffers.items():
            if b is not None:
                m._buffers[name] = like(b)
    return module


def is_cuda(t) -> bool:
    return isinstance(t, torch.Tensor) and t.device.type == 'cuda'


def is_mask(t) -> bool:
    return isinstance(t, torch.Tensor) and t.dtype == torch.bool


def place() -> str:
    "The function of ours that runs, and which module it is of"
    frame = sys._getframe()
    while frame:
        path = Path(frame.f_code.co_filename)
        if '/nfig/' in str(path) and 'site-packages' not in path.parts:
            return f'{path.stem}.{frame.f_code.co_name}'
        frame = frame.f_back
    return 'elsewhere'


class Waits(TorchDispatchMode):
    "Counts what makes the host wait for the GPU; invents the numbers that it waits for"

    def __init__(self):
        super().__init__()
        self.seen = collections.Counter()

    def note(self, kind: str):
        self.seen[f'{place()} {kind}'] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = kwargs or {}, func.overloadpacket
        if op is aten._local_scalar_dense and isinstance(args[0], FakeTensor):
            if is_cuda(args[0]):
                self.note('item')
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        if op is aten.bincount and is_cuda(args[0]):
            self.note('bincount')
            size = kwargs.get('minlength', args[2] if len(args) > 2 else 1)
            return torch.empty(size, dtype=torch.int64, device='cuda')
        if op is aten.nonzero and isinstance(args[0], FakeTensor):
            if is_cuda(args[0]):
                self.note('nonzero')
            return torch.zeros(3, args[0].ndim, dtype=torch.int64, device=args[0].device)
        if op in (aten.index, aten.index_put, aten.index_put_) and any(is_mask(i) for i in args[1]):
            self.note('boolean index')
            rows = [
                torch.zeros(1, dtype=torch.int64, device='cuda') if is_mask(i) else i
                for i in args[1]
            ]
            if op is not aten.index and args[2].numel() > 1:
                return args[0]
            args = (args[0], rows, *args[2:])
        if op is aten._pin_memory:
            return args[0]  # fake memory cannot be pinned
        if op is aten._to_copy and kwargs.get('device') is not None:
            self.copied(
                args[0].device.type, torch.device(kwargs['device']).type, kwargs.get('non_blocking')
            )
        if op is aten.copy_ and isinstance(args[1], torch.Tensor):
            self.copied(args[1].device.type, args[0].device.type, len(args) > 2 and args[2])
        return func(*args, **kwargs)

    def copied(self, source: str, target: str, non_blocking):
        "A copy to the GPU from pageable memory waits too, unless it was asked not to"
        if (
            (source, target) == ('cuda', 'cpu')
            or (source, target) == ('cpu', 'cuda')
            and not non_blocking
        ):
            self.note(f'copy {source} to {target}')

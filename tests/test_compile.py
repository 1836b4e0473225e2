"""What is compiled can be compiled: whole, a bounded number of times, and to the same numbers. The
compiler is replaced by one that runs the traced operations as they are: what it would make of
them is not the question here."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func, nop
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

from nfig.core.config import TransformerConfig
from nfig.core.presets import get_preset
from nfig.data.sets import ImageData
from nfig.fast.packed import FastTransformer, pieces
from nfig.tokenizer.frvae import build_tokenizer
from nfig.train.tokenizer import TokenizerTask
from nfig.transformer import attention
from nfig.transformer.model import NFIGTransformer, compile_blocks


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    pieces.cache_clear()
    yield
    torch._dynamo.reset()
    pieces.cache_clear()


def walk(fast, batch, stages):
    "The first stages of some sequences, the first half with a class"
    c, cond, cache = fast.config, fast.embed_class(torch.arange(batch) % 3), fast.new_cache(batch)
    return [
        fast.stage(i, cond, torch.randn(batch, s * s, c.latent_dim) if i else None, cache, 1.5)
        for i, s in enumerate(c.scales[:stages])
    ]


def test_generation_compiles_twice_a_width():
    """Five widths, several numbers of tokens, two batch sizes: two graphs of each piece at most.

    Together they are more than the eight after which Dynamo gives up by default
    """
    counter = CompileCounter()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # never given up in silence
        for heads in range(2, 7):
            grids = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
            config = TransformerConfig(grids, 32, 8, depth=2, width=8 * heads, heads=heads)
            fast = FastTransformer(NFIGTransformer(config).eval(), None, counter)
            before = counter.frame_count
            walk(fast, 10, 10 if heads == 2 else 2)
            walk(fast, 14, 2)
            made = counter.frame_count - before
            assert 0 < made <= 4, f'{made} graphs for {heads} heads'


@pytest.mark.parametrize('recompute', [False, True])
def test_training_compiles_blocks_once(recompute):
    "Twelve blocks, each with its drop path: two graphs, and the gradients of the plain model"
    config = TransformerConfig(
        (1, 2, 4), 32, 8, depth=12, width=16, heads=2, drop_path=0.2, label_drop=0.0
    )
    torch.manual_seed(0)
    model, plain = NFIGTransformer(config), NFIGTransformer(config)
    plain.load_state_dict(model.state_dict())
    counter = CompileCounter()
    compile_blocks(model, counter)
    labels, inputs, grads = torch.tensor([0, 1, 2, 3]), torch.randn(4, 20, 8), []
    for m in (model, plain):
        m.recompute = recompute
        torch.manual_seed(1)
        m.train()(labels, inputs).square().mean().backward()
        grads.append([p.grad for p in m.parameters()])
    assert counter.frame_count <= 2
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def counting():
    "A backend that compiles nothing, and a list that grows with every backward pass through it"
    runs = []

    def backward(graph, inputs):
        def run(*args):
            runs.append(1)
            return graph(*args)

        return make_boxed_func(run)

    return aot_autograd(fw_compiler=nop, bw_compiler=backward), runs


@pytest.mark.parametrize('preset', ['tiny', 'garments'])
def test_tokenizer_with_critic(preset, monkeypatch):
    "A step that asks for the last layer's gradient by itself, and the same step without a compiler"
    backend, backwards = counting()
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    e = get_preset(preset)
    side = e.tokenizer.image_size
    torch.manual_seed(0)
    data = ImageData(torch.randint(256, (8, 3, side, side)).byte(), [0] * 8, ['a'], side)
    grads = []
    for on in (True, False):
        cfg = replace(
            e.train_tokenizer,
            gan=0.5,
            gan_start=0.0,
            perceptual=0.0,
            batch_size=4,
            steps=100,
            amp=False,
            compile=on,
        )
        torch.manual_seed(0)
        task = TokenizerTask(build_tokenizer(e.tokenizer), data, cfg, torch.device('cpu'))
        task.model.train()
        torch.manual_seed(1)
        x = task.batch(1)
        task.critic.begin_step()
        (part,) = task.objective.parts(1, x, True)
        numbers = task.backward(part, 1, True)
        assert numbers['gan_weight'] > 0
        grads.append([p.grad for p in task.model.parameters()])
        assert len(backwards) == 2  # encoder and decoder once: not again for the last layer
        assert not [n for n in task.model.state_dict() if '_orig_mod' in n]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


sharded_step = '''
import sys
import torch
from nfig.core.config import TransformerConfig
from nfig.core.distributed import init_distributed, sharded, world
from nfig.transformer.model import NFIGTransformer, compile_blocks
torch.set_num_threads(1)
init_distributed('cpu')
sizes = dict(depth=3, width=32, heads=2, drop_path=0.2, label_drop=0.0)
config = TransformerConfig((1, 2, 4), 32, 8, **sizes)
torch.manual_seed(0)
models = [NFIGTransformer(config) for _ in range(2)]
models[1].load_state_dict(models[0].state_dict())
compile_blocks(models[0], 'eager')
inputs, grads = torch.randn(4, 20, 8), []
for m in models:
    sharded(m, [u for b in m.blocks for u in (b.ada, b)], False)
    torch.manual_seed(1)
    m.train()(torch.tensor([0, 1, 2, 3]), inputs).square().mean().backward()
    grads.append([p.grad.full_tensor() for p in m.parameters()])
for a, b in zip(*grads):
    torch.testing.assert_close(a, b)
# one write: print would make two, into a pipe that both processes share
sys.stdout.write(f'equal on {world()[1]}\\n')
'''


def test_compiled_blocks_work_with_sharded_weights(tmp_path):
    "Two processes with half of the weights each: the gradients of the model that is not compiled"
    script = tmp_path / 'step.py'
    script.write_text(sharded_step)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    p = subprocess.run(
        [*command, '--nproc-per-node', '2', str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    assert p.returncode == 0, p.stderr[-3000:]
    assert p.stdout.count('equal on 2') == 2


@pytest.mark.parametrize('native', [False, True])
def test_attention_is_written_out_where_bfloat16_is_native(monkeypatch, native):
    "The choice of the way follows the processor, and a compiler takes it for a constant"
    taken = []

    def recorded(q, *args):
        taken.append(q.dtype)
        return q

    monkeypatch.setattr(attention, 'cpu_has_bf16', lambda: native)
    monkeypatch.setattr(attention, 'written_out', recorded)
    for dtype in (torch.float32, torch.bfloat16):
        for grad in (False, True):
            q = torch.randn(1, 1, 2, 8, dtype=dtype, requires_grad=grad)
            attention.attend(q, q, q)
    assert taken == [torch.bfloat16] * native  # once: in training, in half precision
    monkeypatch.undo()
    q = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    traced = torch.compile(attention.attend, backend='eager', fullgraph=True)
    assert torch.equal(traced(q, q, q), attention.attend(q, q, q))

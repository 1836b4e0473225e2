"""What is decided for a GPU, asked without one: full precision, waiting, and words where none is
found."""

from types import SimpleNamespace

import pytest
import torch

from nfig.bands.frequency import precise
from nfig.core.presets import get_preset
from nfig.core.tensors import pick_device, searched_kernels, to_device
from nfig.fast.packed import FastTransformer
from nfig.train.loop import check_finite, fit, start_run
from nfig.train.run import Run
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.sampling import filter_logits, sample_tokens

libraries = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.fixture
def tf32():
    "Both libraries allowed to use TF32, as training may have it"
    before = [o.allow_tf32 for o in libraries]
    for o in libraries:
        o.allow_tf32 = True
    yield
    for o, was in zip(libraries, before):
        o.allow_tf32 = was


@pytest.mark.parametrize('fails', [False, True])
def test_full_precision_has_no_tf32(tf32, fails):
    "Codes are found in float32 on a GPU too; afterwards all is as before, also after an error"
    on_gpu = SimpleNamespace(device=torch.device('cuda'))
    try:
        with precise(on_gpu):
            assert [o.allow_tf32 for o in libraries] == [False, False]
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [o.allow_tf32 for o in libraries] == [True, True]


def test_full_precision_on_a_processor_touches_no_gpu_setting(tf32):
    with precise(torch.ones(1)):
        assert [o.allow_tf32 for o in libraries] == [True, True]


def test_training_on_a_gpu_rounds_factors_of_products(tf32, tmp_path):
    "Before, TF32 was never switched on"
    for o in libraries:
        o.allow_tf32 = False
    with Run(tmp_path) as run:
        start_run(SimpleNamespace(device=torch.device('cuda')), run, 4, 1, progress=False)
    assert [o.allow_tf32 for o in libraries] == [True, True]


def test_the_host_does_not_wait_for_a_copy():
    "Copies go through pinned memory: only those can be left to the GPU"

    class OnProcessor:
        device = torch.device('cpu')
        pinned = False

        def pin_memory(self):
            self.pinned = True
            return self

        def to(self, device, non_blocking=False):
            return self.pinned, non_blocking

    assert to_device(OnProcessor(), torch.device('cuda')) == (True, True)


def test_what_chooses_tokens_is_not_searched_for():
    "The fastest way to convolve may be another one at each start: not where codes are found"
    on_gpu = SimpleNamespace(device=torch.device('cuda'))
    with searched_kernels():
        with precise(on_gpu):
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize('search', [True, False])
def test_training_searches_while_it_steps(tmp_path, search):
    "`search` of a training's config: in a step, and nowhere else"
    seen = []

    def step(k):
        seen.append(torch.backends.cudnn.benchmark)
        return dict(loss=1.0)

    task = SimpleNamespace(
        cfg=SimpleNamespace(search=search),
        step=step,
        state=dict,
        preview=lambda folder, k: seen.append(torch.backends.cudnn.benchmark),
        finish=lambda folder: None,
    )
    fit(task, Run(tmp_path), 2, 1, progress=False)
    assert seen == [search, search, False]


@pytest.mark.parametrize('bad', [torch.tensor(float('nan')), float('inf')])
def test_what_is_not_finite_is_named(bad):
    with pytest.raises(FloatingPointError, match='step 3: b not finite'):
        check_finite(dict(a=torch.tensor(1.0), b=bad, c=2.0), 3)
    check_finite(dict(a=torch.tensor(1.0), c=2.0), 3)
    check_finite({})


def test_half_precision_keeps_the_sharpness_of_heads():
    "exp of a log scale that was rounded to bfloat16 errs by up to 1.6 %"
    t = NFIGTransformer(get_preset('tiny').transformer).eval()
    with torch.no_grad():
        for b in t.blocks:
            b.attn.log_scale.uniform_(3.0, 4.6)
    half = FastTransformer(t, torch.bfloat16)
    for plain, fast in zip(t.blocks, half.inner.blocks):
        torch.testing.assert_close(
            fast.scale, plain.attn.log_scale.detach().exp(), rtol=1e-6, atol=0.0
        )


def test_asking_for_a_gpu_that_is_not_there():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='torch sees no GPU'):
            pick_device('cuda:1')


def test_networks_built_without_memory_leave_the_real_ones_alone():
    "Matrices that are kept for later lie on the processor, wherever the first network was built"
    from nfig.bands.resample import Resampler

    with torch.device('meta'):
        shape_only = Resampler(3, 11)
    assert shape_only.U.is_meta
    assert Resampler(3, 11).up(torch.ones(1, 1, 3, 3)).mean() == 1


def test_removed_codes_are_never_sampled_whatever_the_sum_rounds_to(monkeypatch):
    "A GPU adds in parallel: its running sum can step up by a rounding where nothing was added"
    logits = torch.randn(1, 500, 4096, generator=torch.Generator().manual_seed(0))
    kept = filter_logits(logits, top_k=50)
    u = torch.rand(1, 500, generator=torch.Generator().manual_seed(1))
    exact = sample_tokens(kept, u)
    plain = torch.Tensor.cumsum

    def rough(x, dim):
        "The running sum, with roundings as a parallel scan leaves them, made large to be met"
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
        return plain(x, dim) + 1e-3 * (noise - 0.5)

    monkeypatch.setattr(torch.Tensor, 'cumsum', rough)
    tokens = sample_tokens(kept, u)
    assert kept.gather(-1, tokens[..., None]).isfinite().all()
    monkeypatch.undo()
    assert (sample_tokens(kept, u) == exact).all()

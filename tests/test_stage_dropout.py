"Stage dropout: what reaches the encoder, what is drawn, what is resumed."

import pytest
import torch

from nfig.bands.frequency import apply_masks
from nfig.core.config import TokenizerTraining
from nfig.core.io import flatten
from nfig.core.presets import get_preset
from nfig.data.sources import load_data
from nfig.tokenizer.autoencoder import ViTDecoder
from nfig.tokenizer.frvae import build_tokenizer
from nfig.tokenizer.quantizer import build_quantizer
from nfig.train.losses import StageDropout, batch_parts
from nfig.train.run import Run
from nfig.train.tokenizer import TokenizerTask, train_tokenizer

cpu = torch.device("cpu")
quiet = dict(log_every=4, save_every=4, preview_every=100, progress=False)


@pytest.fixture(scope="module")
def data():
    return load_data("fashion-mnist-5k")


def stopped_gradient(target, stop):
    "Gradient at the latent of a weighted sum of what the decoder would get, and the weights"
    torch.manual_seed(0)
    quantizer = build_quantizer(
        get_preset("tiny", tokenizer=dict(target=target, beta=0.0)).tokenizer
    )
    f = torch.randn(len(stop), 8, 8, 8, requires_grad=True)
    weight = torch.randn(len(stop), 8, 8, 8)
    (quantizer(f, stop).f_hat * weight).sum().backward()
    return quantizer, f.grad, weight


def test_an_image_that_stops_early_reaches_the_encoder_through_the_bands_of_its_stage_alone():
    stop = torch.tensor([0, 1, 2, 3])
    quantizer, grad, weight = stopped_gradient("band", stop)
    low = quantizer.target.low
    for b, stage in enumerate(stop):
        expected = apply_masks(weight[b : b + 1], low[stage : stage + 1])[0]
        torch.testing.assert_close(grad[b : b + 1], expected, atol=1e-5, rtol=1e-4)
        outside = apply_masks(grad[b : b + 1], ~low[stage : stage + 1])[0]
        assert outside.abs().max() < 1e-5
    assert (grad[0] - weight[0]).abs().max() > 0.1  # a stage's bands are not everything


def test_with_the_whole_latent_as_target_everything_passes():
    _, grad, weight = stopped_gradient("full", torch.tensor([0, 1, 2, 3]))
    assert torch.equal(grad, weight)


@pytest.mark.parametrize("target", ["band", "full"])
def test_the_last_stage_is_what_no_stage_given_means(target):
    quantizer, grad, weight = stopped_gradient(target, torch.tensor([3, 3]))
    f = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(
        quantizer(f).f_hat, quantizer(f, torch.tensor([3, 3])).f_hat, atol=1e-6, rtol=0
    )


def test_the_draw_is_that_of_the_whole_batch_whatever_the_number_of_processes(monkeypatch):
    drop = StageDropout(TokenizerTraining(batch_size=64, stage_dropout=0.5), 6, 100, cpu)
    whole = drop.draw(3)
    assert set(whole.tolist()) == set(range(6))
    for rank in range(2):
        for module in ("core.distributed", "train.losses"):
            monkeypatch.setattr(f"nfig.{module}.world", lambda rank=rank: (rank, 2))
        assert torch.equal(drop.draw(3), whole)
        parts = batch_parts(torch.zeros(32, 3, 4, 4), 4, whole, 6)
        assert torch.equal(torch.cat([p.stop for p in parts]), whole[rank::2])


def test_xqgans_form_is_a_setting():
    cfg = TokenizerTraining(
        batch_size=6000, stage_dropout=0.1, stage_dropout_from=3, stage_balance=False
    )
    stop = StageDropout(cfg, 6, 100, cpu).draw(0)
    assert stop.min() == 2 and abs((stop < 5).float().mean() - 0.1) < 0.02


def test_the_network_that_compares_and_the_critic_see_finished_pictures_only(data):
    e = get_preset(
        "tiny", train_tokenizer=dict(batch_size=16, gan=0.5, gan_start=0.0, stage_dropout=0.5)
    )
    torch.manual_seed(0)
    task = TokenizerTask(build_tokenizer(e.tokenizer), data, e.train_tokenizer, cpu)
    seen = []
    task.objective.perceptual = lambda x, y: seen.append(len(x)) or (x - y).abs().mean()
    inner = task.critic.model.forward
    task.critic.model.forward = lambda x: seen.append(len(x)) or inner(x)
    whole = int((task.prefixes.draw(0) == 3).sum())
    task.step(0)
    assert 0 < whole < 16 and set(seen) == {whole}


@pytest.mark.parametrize("more", [{}, dict(accumulate=2, gan=0.5, gan_start=0.2)])
def test_resume_is_bit_for_bit(data, tmp_path, more):
    run = dict(steps=12, batch_size=8, stage_dropout=0.6, stage_dropout_end=0.2) | more
    e = get_preset("tiny", tokenizer=dict(stem=2, multipliers=(1, 2)), train_tokenizer=run)
    train_tokenizer(e, data, tmp_path / "whole", **quiet)
    train_tokenizer(e, data, tmp_path / "parts", stop_after=6, **quiet)
    train_tokenizer(e, data, tmp_path / "parts", **quiet)
    (a, plain_a), (b, plain_b) = (
        flatten(Run(tmp_path / o).latest()["task"]) for o in ("whole", "parts")
    )
    assert plain_a == plain_b and "prefix_errors" in a
    assert not [k for k in a if not torch.equal(a[k], b[k])]


def test_a_vit_decoder_takes_prefixes_too():
    cfg = TokenizerTraining(batch_size=4, stage_dropout=0.9)
    tokenizer = build_tokenizer(get_preset("tiny").tokenizer)
    tokenizer.decoder = ViTDecoder(8, 32, patch=4, name="vit_tiny_patch16_224")
    x, _ = tokenizer(torch.randn(4, 3, 32, 32), StageDropout(cfg, 4, 10, cpu).draw(0))
    x.square().mean().backward()
    assert x.shape == (4, 3, 32, 32) and tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0


def test_prefixes_must_leave_a_stage_out():
    with pytest.raises(ValueError, match="1 to 5"):
        StageDropout(TokenizerTraining(stage_dropout=0.5, stage_dropout_from=6), 6, 100, cpu)

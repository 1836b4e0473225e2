"""What training must hold to beside falling losses: a batch is a batch however it is split,
published recipes are published recipes, and statistics belong to the weights that they are used
with."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import nfig.train.tokenizer as trainer
from nfig.core.config import TokenizerTraining
from nfig.core.presets import get_preset
from nfig.data.sets import ImageData
from nfig.tokenizer.autoencoder import DINOv2Encoder, ViTDecoder
from nfig.tokenizer.codebook import Codebook
from nfig.tokenizer.frvae import build_decoder, build_encoder, build_tokenizer
from nfig.train.discriminator import Critic, crop_or_shrink, diff_augment
from nfig.train.loop import EMA, ScaleTooLarge, lr_at
from nfig.train.tokenizer import TokenizerTask, batch_latents, measure_statistics

cpu = torch.device('cpu')
small_vit = dict(image_size=32, patch=8, name='vit_small_patch14_dinov2.lvd142m')


@pytest.fixture(scope='module')
def data():
    "Sixteen pictures of soft noise"
    g = torch.Generator().manual_seed(0)
    x = nn.functional.interpolate(torch.rand(16, 3, 8, 8, generator=g), 32, mode='bicubic')
    return ImageData((x.clamp(0, 1) * 255).byte(), [0] * 16, ['noise'], 32)


def task_of(data, tokenizer=None, **training):
    "A task on the tiny preset, with a critic from the first step"
    given = dict(batch_size=16, amp=False, flip=False, gan=0.5, gan_start=0.0, lecam=0.1, steps=20)
    e = get_preset('tiny', tokenizer=tokenizer or {}, train_tokenizer=given | training)
    torch.manual_seed(0)
    return TokenizerTask(build_tokenizer(e.tokenizer), data, e.train_tokenizer, cpu)


# A batch is a batch


def three_steps(data, accumulate, **training):
    "Numbers of three steps, and all weights after them"
    task = task_of(data, dict(latent_norm=False), accumulate=accumulate, **training)
    log = []
    for k in range(3):
        torch.manual_seed(k)
        log.append(task.step(k))
    weights = [*task.model.parameters(), *task.critic.parameters(), *task.critic.lecam.buffers()]
    return log, torch.cat([w.detach().double().flatten() for w in weights])


@pytest.mark.parametrize('dropout,half', [(0.0, False), (0.5, False), (0.5, True)])
def test_parts_are_the_whole_with_critic_adaptive_weight_and_lecam(
    data, dropout, half, monkeypatch
):
    "Before, the critic took a step a part, and each part had a weight of its own"
    monkeypatch.setattr('nfig.core.tensors.native_bf16', lambda device: True)
    runs = [
        three_steps(data, n, amp=half, stage_dropout=dropout, lr=1e-4, clip=0.0) for n in (1, 4)
    ]
    eps = 2e-2 if half else 1e-3
    for a, b in zip(runs[0][0], runs[1][0]):
        assert set(a) == set(b)
        for name in ('loss', 'pixel', 'gan', 'gan_weight', 'critic', 'logit_fake', 'grad_norm'):
            torch.testing.assert_close(a[name], b[name], rtol=eps, atol=eps, msg=name)
    apart = (runs[0][1] - runs[1][1]).norm() / runs[0][1].norm()
    assert apart < (1e-2 if half else 1e-4), apart


def test_the_critic_takes_one_step_however_many_parts(data):
    task = task_of(data, accumulate=4)
    task.step(0)
    steps = {int(s['step']) for s in task.critic.opt.state.values()}
    assert steps == {1}


def test_noise_is_an_images_own():
    x, noise = torch.randn(6, 3, 16, 16), torch.rand(6, 7)
    whole = diff_augment(x, noise)
    assert torch.equal(whole[2:5], diff_augment(x[2:5], noise[2:5]))


# Published recipes


@pytest.mark.parametrize('pretrained', [False])
def test_a_random_vit_decoder_hears_its_latent(pretrained):
    "With timm's own start (LayerScale 1e-5) another latent moved the picture by 1e-5 of its spread"
    torch.manual_seed(0)
    decoder = ViTDecoder(8, pretrained=pretrained, **small_vit)
    f = torch.randn(2, 8, 4, 4)
    x = decoder(f)
    assert x.shape == (2, 3, 32, 32)
    assert (x - decoder(torch.randn_like(f))).abs().mean() > 0.05 * x.std()


def test_a_decoder_takes_the_blocks_positions_and_class_token_of_its_file(tmp_path):
    encoder = DINOv2Encoder(8, **small_vit)
    torch.save(encoder.vit.state_dict(), tmp_path / 'dinov2.pth')
    decoder = ViTDecoder(8, pretrained=str(tmp_path / 'dinov2.pth'), **small_vit)
    theirs = encoder.vit
    for ours, mine in ((theirs.pos_embed, decoder.pos), (theirs.cls_token, decoder.cls)):
        assert torch.equal(ours, mine)
    assert torch.equal(theirs.blocks[3].mlp.fc1.weight, decoder.blocks[3].mlp.fc1.weight)


def test_latent_tokens_are_handed_on_and_learn():
    torch.manual_seed(0)
    encoder = DINOv2Encoder(8, latent_tokens=True, **small_vit)
    x = torch.randn(2, 3, 32, 32)
    encoder(x).square().mean().backward()
    assert encoder(x).shape == (2, 8, 4, 4) and encoder.latent.grad.abs().sum() > 0
    assert (encoder(x)[0] - encoder(x)[1]).abs().max() > 1e-3


def test_drop_path_reaches_both_ends():
    cfg = replace(get_preset('xqgan_d16').tokenizer, image_size=256)
    with torch.device('meta'):
        blocks = build_encoder(cfg).vit.blocks[-1], build_decoder(cfg).blocks[-1]
    drops = [b.drop_path1.drop_prob for b in blocks]
    assert drops == pytest.approx([0.1, 0.1])


def test_codes_compared_by_angle_are_handed_on_raw():
    "Before, what was emitted had length one"
    codebook = Codebook(16, 4, metric='cosine')
    nn.init.normal_(codebook.weight, std=3.0)
    z = torch.randn(50, 4)
    found = codebook(codebook.nearest(z))
    assert torch.equal(found, codebook.weight[codebook.nearest(z)])
    angles = nn.functional.cosine_similarity(z[:, None], codebook.weight[None], dim=2)
    assert torch.equal(angles.argmax(1), codebook.nearest(z)) and found.norm(dim=1).std() > 0.1


def test_the_critic_has_a_schedule_of_its_own():
    "Before, it began at 6.9e-4, where the tokenizer's cosine stood"
    cfg = get_preset('nfig_tokenizer_paper').train_tokenizer
    cfg = replace(cfg, discriminator='patchgan', gan_start=0.5, steps=100, critic_warmup=0.1)
    critic = Critic(cfg, 100, 256, cpu)
    rates = [lr_at(k, critic.total, critic.cfg) for k in range(critic.total + 1)]
    assert critic.start == 50 and rates[0] == pytest.approx(8e-4 / 5)
    assert max(rates) == pytest.approx(8e-4) and rates[-1] == pytest.approx(5e-5)


def test_the_dino_critic_sees_half_of_the_pictures_at_their_own_size():
    x = torch.rand(400, 1, 10, 10)
    noise = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    out, whole = crop_or_shrink(x, 8, noise), crop_or_shrink(x, 8)
    pieces = (out - whole).abs().amax((1, 2, 3)) > 1e-6
    assert torch.equal(pieces, noise[:, 0] < 0.5)
    rows = [
        (x[i, 0].unfold(0, 8, 1).unfold(1, 8, 1) - out[i, 0]).abs().amax((2, 3)).min()
        for i in range(9)
    ]
    assert all(r == 0 for r, p in zip(rows, pieces[:9]) if p)


def test_xqgans_recipe_is_published(data):
    e = get_preset('xqgan_d16')
    t = e.train_tokenizer
    assert (t.clip, t.weight_decay, t.semantic) == (0.0, 0.0, 0.1)
    assert (t.stage_dropout, t.stage_dropout_from, t.stage_balance) == (0.1, 3, False)
    assert (e.tokenizer.metric, e.tokenizer.latent_tokens) == ('cosine', True)
    assert get_preset('nfig_tokenizer_paper').train_tokenizer.semantic == 0.0


def test_vars_schedule():
    "Warm-up from 0.5 %, 5 % at the peak, a line to the end; no average; the decay grows for d30"
    cfg = get_preset('var_d30').train
    rates = [lr_at(k, 10_000, cfg) / cfg.lr for k in (0, 199, 600, 9_999)]
    assert rates == pytest.approx([0.005 + 0.995 / 200, 1.0, 1.0, 0.01], abs=1e-3)
    assert lr_at(700, 10_000, cfg) < cfg.lr and cfg.ema == 0.0
    assert (cfg.weight_decay, cfg.final_decay) == (0.05, 0.08)
    d36 = get_preset('var_d36_512')
    assert d36.transformer.shared_ada and d36.tokenizer.scales[-1] == 32


class Colours(nn.Module):
    "Stands for DINOv2: a mean colour is all it sees"

    num_features = 3

    def forward(self, x):
        return x.mean((2, 3))


def test_the_semantic_loss_trains_encoder_and_projection(data, monkeypatch):
    monkeypatch.setattr(trainer, 'frozen_vit', lambda *a, **k: Colours())
    task = task_of(data, gan=0.0, semantic=10.0, accumulate=2)
    before = task.objective.semantic.project.weight.clone()
    values = [task.step(k)['semantic'] for k in range(6)]
    assert not torch.equal(before, task.objective.semantic.project.weight)
    assert values[-1] < values[0] and 'semantic' in task.state()


# Statistics


def test_looking_for_dead_codes_changes_no_statistics(data):
    "Before, the running mean of the latent moved a second time"
    task = task_of(data, gan=0.0)
    task.model.train()
    before = {n: b.clone() for n, b in task.model.norm.named_buffers()}
    task.refresh(task.batch(0))
    assert all(torch.equal(b, before[n]) for n, b in task.model.norm.named_buffers())


def test_latents_for_the_codes_are_made_in_parts(data, monkeypatch):
    "Before, all images of a process went through the encoder at once, in float32"
    seen = []
    task = task_of(data, accumulate=4)
    inner = task.model.encoder.forward
    half = torch.is_autocast_enabled
    monkeypatch.setattr('nfig.core.tensors.native_bf16', lambda device: True)
    task.model.encoder.forward = lambda x: seen.append((len(x), half('cpu'))) or inner(x)
    f = batch_latents(task.model, task.batch(0), 4, amp=True)
    assert f.shape[0] == 16 and f.dtype is torch.float32 and seen == [(4, True)] * 4


def test_the_average_has_statistics_of_its_own(data):
    "Another mean and spread than the live model's, since its weights lag behind"
    task = task_of(data, gan=0.0, ema=0.99)
    for k in range(12):
        task.step(k)
    average = task.ema.model
    copied = average.norm.running_mean.clone()
    measure_statistics(average, data)
    x = data.images.float() / 127.5 - 1
    own = average.quant_conv(average.encoder(x)).mean((0, 2, 3))
    torch.testing.assert_close(average.norm.running_mean, own, atol=1e-4, rtol=1e-3)
    assert (copied - own).abs().max() > 1e-3


def test_gains_are_averaged_with_the_codes():
    model = build_tokenizer(get_preset('small').tokenizer)
    ema = EMA(model, 0.9)
    model.quantizer.gain.fill_(3.0)
    ema.update(model, 10_000)
    assert ema.model.quantizer.gain[0].item() == pytest.approx(1.2)


# Half precision without bfloat16


def test_float16_leaves_a_step_out_and_halves_its_factor(data, monkeypatch):
    monkeypatch.setattr('nfig.core.tensors.half_type', lambda device: torch.float16)
    monkeypatch.setattr(trainer, 'half_type', lambda device: torch.float16)
    task = task_of(data, gan=0.0, amp=True)
    assert task.scaler.value == 2.0**16
    task.scaler.value = 2.0**40
    before = [p.clone() for p in task.model.parameters()]
    task.model.quantizer.codebook.started.fill_(True)
    with pytest.raises(ScaleTooLarge):
        for k in range(1, 9):
            task.step(k)
    assert task.scaler.value == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters()))


def test_float16_trains_as_float32_does(data, monkeypatch):
    losses = []
    for kind in (None, torch.float16):
        for where in ('nfig.core.tensors', 'nfig.train.tokenizer'):
            monkeypatch.setattr(f'{where}.half_type', lambda device, kind=kind: kind)
        task = task_of(data, amp=True, gan=0.0)
        losses.append([task.step(k)['pixel'].item() for k in range(6)])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and math.isfinite(losses[1][-1])


def test_training_has_configs_of_its_own():
    with pytest.raises((TypeError, ValueError), match='recompute'):
        TokenizerTraining(recompute=True)

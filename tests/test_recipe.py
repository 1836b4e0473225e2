"""What training must hold to beside falling losses: a batch is a batch however it is split,
published recipes are published recipes, and statistics belong to the weights that they are used
with."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import nfig.tokenizer.frvae as frvae
import nfig.train.tokenizer as trainer
from nfig.core.config import TokenizerTraining
from nfig.core.presets import get_preset
from nfig.data.sets import ImageData
from nfig.tokenizer.autoencoder import DINOv2Encoder, ViTDecoder
from nfig.tokenizer.codebook import Codebook
from nfig.tokenizer.frvae import build_decoder, build_encoder, build_tokenizer
from nfig.train.discriminator import Critic, DINODiscriminator, VirtualBatchNorm, aug_cutout
from nfig.train.discriminator import augment_draws, crop_or_shrink, diff_augment
from nfig.train.loop import EMA, ScaleTooLarge, adamw, lr_at, set_rates
from nfig.train.tokenizer import TokenizerTask, batch_latents

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
    "Numbers of three steps, all weights after them, and LeCam's averages"
    task = task_of(data, dict(latent_norm=False), accumulate=accumulate, **training)
    log = []
    for k in range(3):
        torch.manual_seed(k)
        log.append(task.step(k))
    weights = [*task.model.parameters(), *task.critic.parameters()]
    averages = torch.stack([*task.critic.lecam.buffers()])
    return log, torch.cat([w.detach().double().flatten() for w in weights]), averages


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
    # three steps move them by 0.3 % of the logits, whose tolerance is eps
    torch.testing.assert_close(runs[0][2], runs[1][2], rtol=eps, atol=3e-3 * eps)


def test_the_critic_takes_one_step_however_many_parts(data):
    task = task_of(data, accumulate=4)
    task.step(0)
    steps = {int(s['step']) for s in task.critic.opt.state.values()}
    assert steps == {1}


def test_noise_is_an_images_own():
    x, noise = torch.randn(6, 3, 16, 16), torch.rand(6, 7)
    whole = diff_augment(x, noise)
    assert torch.equal(whole[2:5], diff_augment(x[2:5], noise[2:5]))


def test_colours_change_after_the_shift():
    "So what comes in at the edge has the picture's new brightness; before, it was black"
    noise = torch.zeros(1, augment_draws)
    noise[:, 5:] = 0.99  # the cut-out square lies in the last corner
    shifted = diff_augment(torch.full((1, 3, 32, 32), 0.5), noise)
    assert (shifted[0, :, :4] != 0).all()


def test_the_cut_out_square_is_a_fifth_wide_and_may_hang_over():
    noise = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    gone = (aug_cutout(torch.ones(500, 1, 50, 50), noise) == 0).float().mean((1, 2, 3))
    assert gone.max().item() == pytest.approx(0.2**2) and gone.min() < 0.02


def test_virtual_batches_are_normalised_down_to_a_spread_of_a_thousandth():
    x = 1e-3 * torch.randn(8, 2, 200, generator=torch.Generator().manual_seed(0))
    spread = VirtualBatchNorm(2)(x).var().item()
    assert spread == pytest.approx(0.5, abs=0.05)  # v / (v + eps): with an eps of 1e-5 it is 0.1


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


class Reached(Exception):
    "Raised where a test has seen enough"


def test_the_file_that_a_run_names_reaches_both_ends(data, tmp_path, monkeypatch):
    given = []

    def enough(*args):
        raise Reached

    for end in ('DINOv2Encoder', 'ViTDecoder'):
        monkeypatch.setattr(frvae, end, lambda *a, pretrained, **k: given.append(pretrained))
    monkeypatch.setattr(trainer, 'TokenizerTask', enough)
    e = get_preset('nfig_tokenizer_paper', train_tokenizer=dict(init_weights='dinov2.pth'))
    with pytest.raises(Reached):
        trainer.train_tokenizer(e, data, tmp_path, device='cpu')
    assert given == ['dinov2.pth'] * 2


def test_latent_tokens_are_handed_on_and_learn():
    torch.manual_seed(0)
    encoder = DINOv2Encoder(8, latent_tokens=True, **small_vit)
    x = torch.randn(2, 3, 32, 32)
    encoder(x).square().mean().backward()
    assert encoder(x).shape == (2, 8, 4, 4) and encoder.latent.grad.abs().sum() > 0
    assert (encoder(x)[0] - encoder(x)[1]).abs().max() > 1e-3
    encoder.vit.blocks = nn.Identity()  # now the tokens cannot read the patches
    assert torch.equal(encoder(x)[0], encoder(x)[1])


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
    logits = dict(logit_real=torch.zeros(()), logit_fake=torch.zeros(()))
    taken = []
    for k in (50, 54, 99):
        critic.finish_step(k, logits)
        taken.append([critic.opt.param_groups[0][n] for n in ('lr', 'weight_decay')])
    assert taken == [pytest.approx([rates[k], 5e-4]) for k in (0, 4, 49)]


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


def test_those_pieces_reach_the_heads_of_the_dino_critic():
    torch.manual_seed(0)
    cfg = TokenizerTraining(gan=0.5, batch_size=2, amp=False)
    critic = Critic(cfg, 10, 48, cpu)
    critic.model = DINODiscriminator(False, side=32).eval()
    x, noise = torch.rand(2, 3, 48, 48), critic.draw(0)['judged']
    noise[:, augment_draws] = torch.tensor([0.1, 0.9])  # a piece, and a whole picture
    changed = diff_augment(x, noise[:, :augment_draws])
    with torch.no_grad():
        seen, whole = critic.logits(x, noise), critic.model(changed)
        pieces = critic.model(crop_or_shrink(changed, 32, noise[:, augment_draws:]))
    torch.testing.assert_close(seen, pieces, atol=1e-4, rtol=1e-4)
    assert (seen[0] - whole[0]).abs().max() > 1e-2


def test_xqgans_recipe_is_published(data):
    e = get_preset('xqgan_d16')
    t = e.train_tokenizer
    assert (t.clip, t.weight_decay, t.semantic) == (0.0, 0.0, 0.1)
    assert (t.stage_dropout, t.stage_dropout_from, t.stage_balance) == (0.1, 3, False)
    assert (e.tokenizer.metric, e.tokenizer.latent_tokens) == ('cosine', True)
    assert get_preset('nfig_tokenizer_paper').train_tokenizer.semantic == 0.0
    for name in ('nfig_tokenizer_paper', 'xqgan_d16'):
        t = get_preset(name).train_tokenizer
        assert t.gan_start * t.epochs == pytest.approx(56) and t.clip == 0.0


def test_vars_schedule():
    "Warm-up from 0.5 %, 5 % at the peak, a line to the end; no average; the decay grows for d30"
    cfg = get_preset('var_d30').train
    rates = [lr_at(k, 10_000, cfg) / cfg.lr for k in (0, 199, 600, 9_999)]
    assert rates == pytest.approx([0.005 + 0.995 / 200, 1.0, 1.0, 0.01], abs=1e-3)
    assert lr_at(700, 10_000, cfg) < cfg.lr and cfg.ema == 0.0
    opt = adamw(nn.Linear(2, 2), cfg)
    decays = []
    for k in (0, 9_999):
        set_rates(opt, k, 10_000, cfg)
        decays.append([g['weight_decay'] for g in opt.param_groups])
    assert decays == [pytest.approx([0.05, 0.0]), pytest.approx([0.08, 0.0])]
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
    task.cfg = replace(task.cfg, amp=True)
    task.refresh(task.batch(1))
    assert seen[4:] == [(4, True)] * 4


def test_the_perceptual_loss_is_computed_in_half_precision(data, monkeypatch):
    "Before, it ran outside of autocast; the pixel error stays in float32"
    monkeypatch.setattr('nfig.core.tensors.native_bf16', lambda device: True)
    task = task_of(data, gan=0.0, amp=True)
    judge, seen = task.objective, []
    judge.cfg = replace(judge.cfg, perceptual=1.0)

    def far(x, y):
        seen.append(torch.is_autocast_enabled('cpu'))
        return (x - y).square().mean()

    judge.perceptual = far
    (part,) = judge.parts(0, task.batch(0), False)
    terms, _, _ = judge.at_picture(part, 0.5 * part.x)
    assert seen == [True] and terms['pixel'].dtype is torch.float32


def test_the_average_has_statistics_of_its_own(data, tmp_path):
    "Another mean and spread than the live model's, since its weights lag behind"
    task = task_of(data, gan=0.0, ema=0.99)
    for k in range(12):
        task.step(k)
    average = task.ema.model
    copied = average.norm.running_mean.clone()
    x = data.images.float() / 127.5 - 1
    own = average.quant_conv(average.encoder(x)).mean((0, 2, 3))
    assert (copied - own).abs().max() > 1e-3
    for when in (lambda: task.preview(tmp_path, 12), lambda: task.finish(tmp_path)):
        average.norm.running_mean.copy_(copied)
        when()
        torch.testing.assert_close(average.norm.running_mean, own, atol=1e-4, rtol=1e-3)


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

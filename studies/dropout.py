"""Does the order hold, what does it cost, and do the bands pay once it does?

Every case trains a preset on Fashion-MNIST (a tokenizer, then a transformer on its tokens) and
measures both. A case is TARGET-DROP, a row of `targets` and one of `drops`: nothing else differs.
TARGET-DROP-LOOK, with a row of `looks`, is another transformer on the tokens of TARGET-DROP.
What is done already is not done again; an interrupted run goes on.

    python -m studies.dropout --cases area-0,area-50 --seeds 0,1,2
    python -m studies.dropout --steps tokenizer          # only the tokenizers, for a first look
    python -m studies.dropout --preset patches --out results/control \\
        --cases raster-0,VAR-0,area-0,paper-0

The last one is the control: encoder and decoder are a fixed orthonormal basis, so that the order
of the tokens is all that differs.

Does a transformer need to look at all coarser grids, or is the one before enough, or its own?

    python -m studies.dropout --cases area-50,area-50-sees1,area-50-sees0 --seeds 0,1,2
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from nfig.core.config import did_you_mean
from nfig.core.presets import get_preset
from nfig.core.record import about, write_result
from nfig.data.sources import load_data
from nfig.evaluate.metrics import image_batches, power_profile, precision_recall
from nfig.evaluate.tokenizer import evaluate_tokenizer
from nfig.tokenizer.features import EffNetFeatures, Moments, frechet_distance
from nfig.tokenizer.frvae import FRVAE
from nfig.train.tokenizer import train_tokenizer
from nfig.train.transformer import held_out_tokens, train_nfig
from nfig.transformer.pipeline import training_inputs

# What a case is: the division or target, and how stages are dropped
targets = {
    "area": dict(target="band", division="area"),
    "paper": dict(target="band", division="paper"),
    "VAR": dict(target="full"),
    "raster": dict(target="full", scales=(8,), phi=0),
}
drops = {
    "0": dict(stage_dropout=0.0),
    "10": dict(stage_dropout=0.1),
    "25": dict(stage_dropout=0.25),
    "50": dict(stage_dropout=0.5),
    "50raw": dict(stage_dropout=0.5, stage_balance=False),
    "50to0": dict(stage_dropout=0.5, stage_dropout_end=0.0),
    "50to10": dict(stage_dropout=0.5, stage_dropout_end=0.1),
    "25from3": dict(stage_dropout=0.25, stage_dropout_from=3),
    "xqgan": dict(stage_dropout=0.1, stage_dropout_from=4, stage_balance=False),
}
# How many grids before its own the transformer looks at; all if a case does not say
looks = {"": None, "sees1": 1, "sees0": 0}
guidances = (0.0, 1.5)


def parts_of(name):
    "Target, way of dropping stages, and look of a case; ValueError names what exists"
    target, drop, look, *_ = [*name.split("-", 2), "", ""]
    for part, table, kind in (
        (target, targets, "target"),
        (drop, drops, "way of dropping stages"),
        (look, looks, "look"),
    ):
        if part not in table:
            raise ValueError(did_you_mean(part, table, kind))
    return target, drop, look


def case(name, seed, steps, preset="narrow"):
    "The experiment called TARGET-DROP or TARGET-DROP-LOOK; ValueError names what exists"
    target, drop, look = parts_of(name)
    run = dict(steps=steps, seed=seed)
    order = dict(
        order="raster" if target == "raster" else "stages",
        scales=targets[target].get("scales"),
        sees=looks[look],
    )
    return get_preset(
        preset,
        tokenizer=targets[target],
        train_tokenizer=run | drops[drop],
        train=run,
        transformer={k: v for k, v in order.items() if v is not None},
    )


def thirds(power):
    "Power in the low, middle and high third of the frequencies, without the mean"
    ring = torch.arange(1, len(power))
    third = ((ring - 1) * 3 / (len(power) - 1)).long().clamp(max=2)
    return torch.stack([power[1:][third == k].sum() for k in range(3)])


@torch.no_grad()
def after_each_stage(tokenizer, images, n):
    "PSNR in dB (mean over images) and share of the originals' power by third, after every stage"
    error = []
    power = []
    original = 0.0
    for x in image_batches(images, 100, n):
        parts = torch.stack(tokenizer.partial_decodes(tokenizer.encode(x)))  # (n,B,3,H,W)
        error.append((parts - x).square().mean((2, 3, 4)))
        power.append(torch.stack([power_profile(p).sum(0) for p in parts]))
        original = original + power_profile(x).sum(0)
    psnr = 10 * torch.log10(4 / torch.cat(error, 1).clamp(min=1e-12)).mean(1)
    share = torch.stack([thirds(p) for p in sum(power)]) / thirds(original)
    return dict(psnr=psnr.tolist(), share=share.tolist())


@torch.no_grad()
def features_of(network, batches):
    "(N,D) features of all images"
    return torch.cat([network.pooled(x) for x in batches])


def moments(features):
    return Moments(features.shape[1]).add(features)


def measure_tokenizer(tokenizer, test, n, network, real):
    stages = after_each_stage(tokenizer, test, n)
    reference = moments(real)
    whole = evaluate_tokenizer(tokenizer, test, n, features=network, reference=reference)
    first = features_of(
        network,
        (tokenizer.partial_decodes(tokenizer.encode(x))[0] for x in image_batches(test, 100, n)),
    )
    return dict(stages=stages, first_stage_fd=frechet_distance(reference, moments(first)), **whole)


@torch.no_grad()
def measure_generator(pipe, n, network, real):
    "Distances and precision/recall of n balanced samples, for each guidance"
    out = []
    classes = len(pipe.classes)
    labels = [i % classes for i in range(n)]
    for scale in guidances:
        drawn = [
            pipe(labels[i : i + 100], seed=i, batch_size=100, cfg_scale=scale)
            for i in range(0, n, 100)
        ]
        found = features_of(network, drawn)
        precision, recall = precision_recall(real, found)
        fd = frechet_distance(moments(real), moments(found))
        out.append(
            {"cfg_scale": scale, "FD-EffNetLite0": fd, "precision": precision, "recall": recall}
        )
    return out


def last_stage_losses(folder, lines=10):
    "Cross entropy of each stage, mean over the last lines of a transformer's log"
    log = [json.loads(o) for o in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [o for o in log if "stage_loss" in o][-lines:]
    return torch.tensor([o["stage_loss"] for o in rows]).mean(0).tolist()


@torch.no_grad()
def held_out_losses(pipe, test, n):
    "Cross entropy of each stage, mean over test images and their tokens"
    tokens, labels = held_out_tokens(pipe.tokenizer, test, n, progress=False)
    quantizer = pipe.tokenizer.quantizer
    split = [s * s for s in quantizer.scales]
    total = torch.zeros(len(split))
    for t, y in zip(tokens[0].long().split(100), labels.split(100)):
        inputs = training_inputs(quantizer, list(t.split(split, 1)), pipe.transformer.config.order)
        logits = pipe.transformer(y, inputs).transpose(1, 2)  # (B,K,L)
        entropy = F.cross_entropy(logits, t, reduction="none")  # (B,L)
        total += torch.stack([o.mean(1).sum() for o in entropy.split(split, 1)])
    return (total / len(labels)).tolist()


def run(name, seed, args, train, test, network, real):
    "Train and measure what is missing of one case"
    out = Path(args.out) / f"{name}-{seed}.json"
    folder = Path(args.runs) / f"{name}-{seed}"
    same_tokens = Path(args.runs) / f"{'-'.join(parts_of(name)[:2])}-{seed}"
    e = case(name, seed, args.length, args.preset)
    settings = dict(preset=args.preset, data=args.data, length=args.length, n=args.n)
    result = (
        json.loads(out.read_text())
        if out.exists()
        else dict(case=name, seed=seed, settings=settings)
    )
    if result["settings"] != settings:
        raise ValueError(
            f"{out} was made with {result['settings']}, not {settings}: give another --out"
        )
    quiet = dict(progress=False, preview_every=args.length, save_every=250)
    wanted = [s for s in args.steps.split(",") if s not in result]
    if not wanted:
        return
    made = dict(about=about("python -m studies.dropout"))
    if (same_tokens / "tokenizer" / "tokenizer").is_dir():
        tokenizer = FRVAE.from_pretrained(same_tokens / "tokenizer" / "tokenizer")
    else:
        into = same_tokens / "tokenizer"
        tokenizer = train_tokenizer(e, train, into, data_name=args.data, **quiet)
    if "tokenizer" in wanted:
        result["tokenizer"] = measure_tokenizer(tokenizer, test, args.n, network, real)
        write_result(out, result | made)
    if "transformer" in wanted:
        pipe = train_nfig(e, tokenizer, train, folder / "transformer", data_name=args.data, **quiet)
        result["transformer"] = dict(
            stage_loss=last_stage_losses(folder / "transformer"),
            held_out_loss=held_out_losses(pipe, test, args.n),
            samples=measure_generator(pipe, args.n, network, real),
        )
        write_result(out, result | made)
    psnr = [round(v, 1) for v in result["tokenizer"]["stages"]["psnr"]]
    print(name, seed, psnr, f"rFD {result['tokenizer']['FD-EffNetLite0']:.0f}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--cases", default="area-0,area-50,VAR-0,VAR-50,area-25,VAR-25,area-10,VAR-10,paper-50"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--steps", default="tokenizer,transformer", help="what is trained and measured"
    )
    parser.add_argument("--preset", default="narrow", help="narrow, or patches for the control")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument(
        "--length", type=int, default=1500, help="optimiser steps of each, of 64 images"
    )
    parser.add_argument("--n", type=int, default=2000, help="test images, and samples")
    parser.add_argument("--runs", default="runs/dropout")
    parser.add_argument("--out", default="results/dropout")
    args = parser.parse_args()
    cells = [(c, int(s)) for s in args.seeds.split(",") for c in args.cases.split(",")]
    size = [case(c, s, args.length, args.preset) for c, s in cells][
        0
    ].tokenizer.image_size  # all names are right
    train = load_data(args.data, size, "train")
    test = load_data(args.data, size, "test")
    network = EffNetFeatures()
    real = features_of(network, image_batches(test, 100, args.n))
    for name, seed in cells:
        run(name, seed, args, train, test, network, real)


if __name__ == "__main__":
    main()

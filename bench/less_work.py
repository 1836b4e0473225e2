"""What is left of the quality when less is computed: guidance that ends early, stages that are left
out, guidance before the head. Operations of an image beside Fréchet distance and class agreement,
for several sampling seeds, written after every option."""

from pathlib import Path

import torch
from fastcore.script import call_parse

from bench.generate import count_flops
from nfig.core.tensors import to_float
from nfig.core.record import about, write_result
from nfig.data.sources import load_data
from nfig.evaluate.metrics import extract
from nfig.fast.faster import faster
from nfig.tokenizer.features import build_extractor, frechet_distance
from nfig.transformer.pipeline import NFIGPipeline


def options(
    stages: int,  # of the model
) -> dict:  # name -> settings; the first is what the others are compared with
    "Ways to compute less"
    half, most = stages // 2, stages - 1
    return {
        'all': {},
        'guided logits': dict(guide_hidden=False),
        'last stage unguided': dict(unguided_last=1),
        'last two unguided': dict(unguided_last=2),
        'second half unguided': dict(unguided_last=half),
        'no guidance': dict(cfg_scale=0.0),
        f'{most} of {stages} stages': dict(stages=most),
        f'{half} of {stages} stages': dict(stages=half),
    }


def agreement(
    x: torch.Tensor,  # (N,3,H,W) images
    labels: torch.Tensor,  # (N,) what they should show
    pixels: torch.Tensor,  # (M,D) real images
    known: torch.Tensor,  # (M,) what those show
) -> float:
    "Share of the images whose five nearest real ones mostly are of their class"
    near = torch.cdist(x.flatten(1), pixels).topk(5, largest=False).indices
    return (known[near].mode(1).values == labels).float().mean().item()


def price(
    pipe: NFIGPipeline,  # plain
    setting: dict,  # of the sampling
    real,  # moments of real features
    known: tuple,  # (pixels, labels) of real images
    extractor,  # images -> (features, probabilities)
    n: int,  # images of each class
    seeds: list,  # a set of images for each
) -> dict:  # gflop, and fd and agreement for each seed
    "One option"
    quick, classes = faster(pipe), list(range(len(pipe.classes)))
    labels = torch.arange(len(classes)).repeat_interleave(n)
    rows = dict(gflop=count_flops(lambda: pipe([0], **setting)) / 1e9, fd=[], agreement=[])
    for seed in seeds:
        x = quick(classes, n=n, seed=seed * len(labels), **setting).cpu()
        rows['fd'].append(frechet_distance(extract(lambda o: extractor(o)[0], x), real))
        rows['agreement'].append(agreement(x, labels, *known))
    return rows


@call_parse
def less_work(
    model: str = 'fashion-mnist',  # a bundled pipeline, a folder, or owner/name on the hub
    data: str = 'fashion-mnist-5k',  # real images of the same classes
    n: int = 100,  # images of each class in a set
    seeds: str = '0,1,2',  # a set for each
    device: str = 'cpu',  # cpu or cuda
    out: str = 'results',  # folder for less_work_<model>.json
):
    "Quality against work, an option at a time"
    pipe = NFIGPipeline.from_pretrained(model).to(device)
    images = load_data(data)
    pixels = to_float(images.__getitems__(list(range(len(images))))[0])
    extractor = build_extractor().to(device)
    real = extract(lambda o: extractor(o)[0], pixels, device=device)
    record = about('python -m bench.less_work')
    path = Path(out) / f'less_work_{Path(model).name}.json'
    known, found = (pixels.flatten(1), images.labels), {}
    for name, setting in options(len(pipe.tokenizer.config.scales)).items():
        found[name] = price(
            pipe, setting, real, known, extractor, n, list(map(int, seeds.split(',')))
        )
        r = found[name]
        fd, agree = (' '.join(f'{v:.4g}' for v in r[k]) for k in ('fd', 'agreement'))
        print(f'{name:22}{r["gflop"]:9.2f} GFLOP   FD {fd}   agreement {agree}', flush=True)
        write_result(path, dict(**record, model=model, n=n, options=found))

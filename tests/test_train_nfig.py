"The transformer's trainer: parts, processes, and the order of a raster model. What teaches is in the notebook."
import json,os,subprocess,sys
from dataclasses import replace

import pytest
import torch

from nfig.config import get_preset
from nfig.data import load_data
from nfig.generate import NFIGPipeline
from nfig.tokenizer import FRVAE,build_tokenizer
from nfig.train_nfig import train_nfig
from nfig.train_tokenizer import train_tokenizer

program = '''
import sys,json
from nfig.config import get_preset
from nfig.data import load_data
from nfig.distributed import leave
from nfig.tokenizer import FRVAE
from nfig.train_nfig import train_nfig
out,changes = sys.argv[1],json.loads(sys.argv[2])
e = get_preset('tiny', train=dict(steps=6,batch_size=16,warmup=.5,amp=False)|changes, transformer=dict(drop_path=0.,label_drop=0.))
data = load_data('fashion-mnist-5k').subset(list(range(0,5000,50)))
train_nfig(e, FRVAE.from_pretrained('tokenizer'), data, out, device='cpu', log_every=1, save_every=6, preview_every=6, progress=False)
leave()
'''

def train(folder, n, name, **changes):
    "A short run by n processes; its log, or what it said when it failed"
    (folder/'program.py').write_text(program)
    p = subprocess.run([sys.executable,'-m','torch.distributed.run','--standalone','--nproc-per-node',str(n),'program.py',name,json.dumps(changes)], cwd=folder,
                       capture_output=True, text=True, timeout=300, env=dict(os.environ,OMP_NUM_THREADS='1'))
    return p.stderr if p.returncode else [json.loads(l) for l in (folder/name/'metrics.jsonl').read_text().splitlines()]

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder with an untrained tokenizer"
    d = tmp_path_factory.mktemp('runs'); torch.manual_seed(0); build_tokenizer(get_preset('tiny').tokenizer).save_pretrained(d/'tokenizer')
    return d

def test_parts_and_processes(folder):
    "The log of two processes with two parts each is that of one process and one part, number by number"
    one,two = train(folder, 1, 'one'), train(folder, 2, 'two', accumulate=2)
    assert isinstance(two,list), two[-2000:]
    for a,b in zip(one,two, strict=True):
        for k in ('loss','stage_loss','grad_norm','lr'): assert torch.allclose(torch.tensor(a[k]), torch.tensor(b[k]), rtol=1e-4, atol=1e-5), (a['step'],k,a[k],b[k])

def test_batch_that_cannot_be_shared(folder):
    assert 'cannot be split into 6 equal parts (2 processes, accumulate 3)' in train(folder, 2, 'three', accumulate=3)

def test_raster_through_both_trainers(tmp_path):
    "Tokenizer and transformer of the raster baseline, trained, saved, loaded, sampled by the code that serves the bands"
    e = get_preset('raster_tiny', train_tokenizer=dict(steps=4), train=dict(steps=6)); quiet = dict(progress=False, device='cpu', preview_every=100)
    data = load_data('fashion-mnist-5k').subset(list(range(0,5000,100)))
    train_tokenizer(e, data, tmp_path/'tok', **quiet); train_nfig(e, FRVAE.from_pretrained(tmp_path/'tok'/'tokenizer'), data, tmp_path/'run', log_every=1, **quiet)
    log = [json.loads(l) for l in (tmp_path/'run'/'metrics.jsonl').read_text().splitlines()]; losses = [m['loss'] for m in log if 'loss' in m]
    assert losses[-1]<losses[0] and len(log[0]['stage_loss'])==1
    pipe = NFIGPipeline.from_pretrained(tmp_path/'run'/'pipeline'); assert pipe.transformer.config.order=='raster'
    assert pipe([0,1],seed=3).shape==(2,3,32,32) and 'raster order, 64 steps' in pipe.card()

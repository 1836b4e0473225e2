"One process and two: the same command, the same run. Processors connected by Gloo; GPUs take the same path through NCCL."
import json,os,subprocess,sys

import pytest
import torch

from nfig.tokenizer import FRVAE

program = '''
import sys,json
from dataclasses import replace
from nfig.config import get_preset
from nfig.data import load_data
from nfig.distributed import leave
from nfig.train_tokenizer import train_tokenizer
out,changes,tok,stop = sys.argv[1],json.loads(sys.argv[2]),json.loads(sys.argv[3]),int(sys.argv[4])
e = get_preset('tiny', tokenizer=tok, train_tokenizer=dict(steps=12,batch_size=16,warmup=.5)|changes)
train_tokenizer(e, load_data('fashion-mnist-5k'), out, device='cpu', log_every=1, save_every=6, preview_every=6, progress=False, stop_after=stop or None)
leave()
'''

def train(folder, n, name, train={}, tok={}, stop=0, fails=False):
    "A short run by n processes; its log"
    (folder/'program.py').write_text(program)
    p = subprocess.run([sys.executable,'-m','torch.distributed.run','--standalone','--nproc-per-node',str(n),'program.py',name,json.dumps(train),json.dumps(tok),str(stop)], cwd=folder,
                       capture_output=True, text=True, timeout=300, env=dict(os.environ,OMP_NUM_THREADS='1'))
    if fails: assert p.returncode; return p.stderr
    assert p.returncode==0, p.stderr[-3000:]
    return [json.loads(l) for l in (folder/name/'metrics.jsonl').read_text().splitlines()]

def same(a, b, eps):
    assert len(a)==len(b)
    for m,n in zip(a,b):
        assert set(m)==set(n)
        for k in set(m)-{'images_per_second','seconds','psnr'}: assert torch.allclose(torch.tensor(m[k],dtype=torch.float64), torch.tensor(n[k],dtype=torch.float64), rtol=eps, atol=eps), (m['step'],k,m[k],n[k])

def test_two_are_as_good_as_one(tmp_path):
    "Flips, crops, parts, gains and fitted bands: the log of two processes is that of one, number by number"
    settings = dict(accumulate=2, crop=.8, lr=1e-3, amp=False), dict(gains=True, division='energy')
    one,two = (train(tmp_path, n, f'by{n}', *settings) for n in (1,2))
    same(one, two, 1e-5)
    a,b = (FRVAE.from_pretrained(tmp_path/f'by{n}'/'tokenizer') for n in (1,2))
    assert a.config.edges==pytest.approx(b.config.edges)
    pairs = list(zip(a.parameters(),b.parameters()))                     # where a gradient is next to nothing, AdamW follows its rounding
    assert sum((v-w).square().sum() for v,w in pairs)/sum(v.square().sum() for v,_ in pairs)<1e-5
    starts = [json.loads((tmp_path/f'by{n}'/'starts.jsonl').read_text())['processes'] for n in (1,2)]
    assert starts==[1,2] and len(list((tmp_path/'by2'/'samples').iterdir()))==2

def test_stopped_and_continued_by_two(tmp_path):
    "With a critic: both processes resume from one checkpoint, and one process can go on where two stopped"
    settings = dict(gan=.5, gan_start=.2, lecam=.01)
    whole = train(tmp_path, 2, 'whole', settings); train(tmp_path, 2, 'parts', settings, stop=6)
    (other := tmp_path/'other').mkdir(); subprocess.run(['cp','-r',tmp_path/'parts',other/'parts'], check=True)
    same(whole, train(tmp_path, 2, 'parts', settings), 1e-5)
    assert len(train(other, 1, 'parts', settings))==12

def test_batch_that_cannot_be_shared(tmp_path):
    assert 'cannot be split into 6 equal parts (2 processes, accumulate 3)' in train(tmp_path, 2, 'run', dict(accumulate=3,batch_size=15), fails=True)

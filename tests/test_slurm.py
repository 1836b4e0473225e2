"""The templates in slurm/, read by shellcheck and run by a real SLURM: controller, node and munge
are started for this test, with ports and folders of its own, and stopped after it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from nfig.use.train import train_nfig
from nfig.core.presets import get_preset
from nfig.transformer.pipeline import NFIGPipeline
from nfig.tokenizer.frvae import build_tokenizer
from nfig.train.run import Run

root = Path(__file__).resolve().parent.parent
scripts = sorted((root / 'slurm').glob('*.sh'))


@pytest.mark.needs('shellcheck')
def test_shellcheck():
    res = subprocess.run(
        [
            'shellcheck',
            '-x',
            '-P',
            str(root / 'slurm'),
            *map(str, scripts),
            str(root / '.ci' / 'run'),
        ],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert res.returncode == 0, res.stdout


@pytest.mark.parametrize('path', [p for p in scripts if p.name != 'start.sh'], ids=lambda p: p.name)
def test_what_differs_between_clusters_is_a_variable_with_a_default(path):
    text = path.read_text()
    lines = [line for line in text.splitlines() if '=${' in line and not line.startswith('#')]
    own = dict(line.split('=', 1) for line in lines)
    assert {'REPO', 'VENV', 'MODULES'} <= set(own)
    assert all(value.startswith('${' + name + ':-') for name, value in own.items())
    assert '/home' not in text and '--account' not in text and '#SBATCH --requeue' in text


conf = '''ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={d}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.log
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
KillWait=5
ReturnToService=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=65536 Gres=gpu:1
PartitionName=main Nodes=ALL Default=YES State=UP
'''


def free_ports(n):
    socks = [socket.socket() for _ in range(n)]
    for s in socks:
        s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in socks]
    for s in socks:
        s.close()
    return ports


def wait_for(what, seconds=240, every=0.3):
    "What the function returns, as soon as it is true"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(every)
    raise TimeoutError(f'{what.__name__} did not happen in {seconds} s')


@pytest.fixture
def slurm(tmp_path):
    "Run a command of SLURM in a cluster of one node, with a GPU that is none"
    d, host = tmp_path / 'slurm', socket.gethostname()
    for o in ('munge', 'state', 'spool'):
        (d / o).mkdir(parents=True, mode=0o755)
    (d / 'slurm.conf').write_text(conf.format(d=d, host=host, ports=free_ports(2)))
    (d / 'gres.conf').write_text(f'NodeName={host} Name=gpu File=/dev/null\n')
    (d / 'munge' / 'key').write_bytes(os.urandom(1024))
    (d / 'munge' / 'key').chmod(0o400)
    env = dict(
        os.environ, SLURM_CONF=str(d / 'slurm.conf'), PATH=os.environ['PATH'] + ':/usr/sbin:/sbin'
    )

    def call(*args, **more):
        return subprocess.run(
            [str(a) for a in args],
            env=env | more,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()

    m = d / 'munge'
    try:
        call(
            'munged',
            '--force',
            f'--key-file={m}/key',
            f'--socket={m}/socket',
            f'--pid-file={m}/pid',
            f'--log-file={m}/log',
            f'--seed-file={m}/seed',
        )
        call('slurmctld')
        call('slurmd')

        def idle():
            return (
                'idle'
                in subprocess.run(
                    ['sinfo', '-h', '-o', '%T'], env=env, capture_output=True, text=True
                ).stdout
            )

        wait_for(idle, 60)
        yield call
    finally:
        for pid in (d / 'slurmd.pid', d / 'slurmctld.pid', m / 'pid'):
            if pid.exists():
                os.kill(int(pid.read_text()), signal.SIGTERM)


@pytest.mark.needs('slurm')
def test_requeued_by_the_signal_and_finished(slurm, tmp_path):
    """sbatch slurm/train_nfig.sh.

    Warned in the middle it saves and goes back into the queue; the second start ends with the
    weights of a run without a break
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    build_tokenizer(get_preset('tiny').tokenizer).save_pretrained(tmp_path / 'tok')
    for i in range(24):
        (folder := tmp_path / 'data' / 'abc'[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()).save(
            folder / f'{i}.png'
        )
    args = dict(
        preset='tiny',
        tokenizer=str(tmp_path / 'tok'),
        data=str(tmp_path / 'data'),
        steps=150,
        batch_size=8,
        device='cpu',
    )
    run = tmp_path / 'run'

    def starts():
        path = run / 'starts.jsonl'
        return [json.loads(s) for s in path.read_text().splitlines()] if path.exists() else []

    job = slurm(
        'sbatch',
        '--parsable',
        f'--chdir={tmp_path}',
        root / 'slurm' / 'train_nfig.sh',
        *[o for k, v in args.items() for o in (f'--{k}', v)],
        REPO=str(root),
        VENV=sys.prefix,
        RUN=str(run),
        OMP_NUM_THREADS='1',
    )

    def said():
        return ''.join(path.read_text() for path in tmp_path.glob('nfig-train-*.out'))

    def state():
        return slurm('scontrol', 'show', 'job', job)

    def logged():
        assert 'JobState=FAILED' not in state(), said()
        return Run(run).metrics()

    wait_for(logged)
    slurm('scancel', '--batch', '--signal=USR1', job)

    def queued():
        return re.search('JobState=PENDING Reason=BeginTime', state())

    wait_for(queued)
    time.sleep(
        3
        # a start within the second of the requeue is refused: the node has just revoked the job's
        # credential
    )

    def over():
        if queued():
            slurm(
                'scontrol', 'update', f'JobId={job}', 'StartTime=now'
            )  # by itself it would wait for two minutes; once more if it was asked too early
        return re.search('JobState=(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)', state())

    wait_for(over)
    assert 'JobState=COMPLETED' in state() and 'Restarts=1' in state(), said()
    assert (
        'the time is nearly up: asking the trainers to save' in said()
        and 'SIGUSR1 asked to stop: saved after step' in said()
    )
    first, second = starts()
    assert first['step'] == 0 and 0 < second['step'] < 150, (
        said()
    )  # save_every is 500: only the signal has made it save
    train_nfig(**args, out=str(tmp_path / 'whole'))
    a, b = (
        NFIGPipeline.from_pretrained(o / 'pipeline').transformer.state_dict()
        for o in (run, tmp_path / 'whole')
    )
    assert all(torch.equal(a[k], b[k]) for k in a)

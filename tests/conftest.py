"""What some tests need beside Python. `@pytest.mark.needs('slurm')` skips a test, with the reason,
where the component is missing; where `NFIG_REQUIRE` names it (`NFIG_REQUIRE=slurm,chromium
pytest`), the test fails instead. `.ci/run` installs all of them and requires them."""

import importlib.util
import os
import shutil

import pytest


def command(*names):
    "Where one of these programs is; Debian keeps daemons in sbin, maybe not on a user's path"
    path = os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin', '/sbin'])
    return next(filter(None, (shutil.which(n, path=path) for n in names)), None)


def lacks(*names):
    "Those of the programs that are not installed"
    return [n for n in names if not command(n)]


def slurm():
    if missing := lacks('slurmctld', 'slurmd', 'munged', 'sbatch', 'scontrol'):
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    if os.getuid():
        return "a SLURM of the test's own is started as root"


def chromium():
    if not command('chromium', 'chromium-browser', 'google-chrome'):
        return 'no Chromium installed: apt-get install chromium'
    if not importlib.util.find_spec('playwright'):
        return 'the package playwright is not installed: pip install playwright'


def shellcheck():
    if lacks('shellcheck'):
        return 'shellcheck not installed: apt-get install shellcheck'


# each says what is missing, or nothing
components = dict(slurm=slurm, chromium=chromium, shellcheck=shellcheck)


def check(name, required):
    "Skip the running test if a component is missing, or fail it if the component is required"
    if missing := components[name]():
        (pytest.fail if name in required else pytest.skip)(f'needs {name}: {missing}')


def required():
    return [n for n in os.environ.get('NFIG_REQUIRE', '').split(',') if n]


def pytest_configure(config):
    config.addinivalue_line(
        'markers',
        'needs(*components): skip where slurm, chromium or shellcheck is missing; '
        'fail where NFIG_REQUIRE names it',
    )


def pytest_runtest_setup(item):
    for mark in item.iter_markers('needs'):
        for name in mark.args:
            check(name, required())


# what takes longest starts first, so that no worker is left alone with it
slow_first = ('slurm', 'distributed', 'kills', 'docs', 'widgets', 'faults', 'demo')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With pytest-xdist: a file's tests share a worker, and so their fixtures.

    Notebooks and what is tested of the package go wherever there is room
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        "Tests by file, but for two files"

        def _split_scope(self, nodeid):
            file = nodeid.split('::')[0]
            return nodeid if file.endswith(('test_notebooks.py', 'test_package.py')) else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    "What takes longest starts first"

    def of(item):
        return item.path.stem.removeprefix('test_')

    items.sort(
        key=lambda item: slow_first.index(of(item)) if of(item) in slow_first else len(slow_first)
    )

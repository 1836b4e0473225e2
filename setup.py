"Everything that a package index wants to know, read from settings.ini"

import configparser
import sys
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).resolve().parent
parser = configparser.ConfigParser(delimiters=['='])
parser.read(root / 'settings.ini', encoding='utf-8')
cfg, readme = parser['DEFAULT'], root / 'README.md'


class Build(build_py):
    "Adds stubs for type checkers to a wheel; `.ci/stubs.py` says why they are needed"

    def run(self):
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(root / '.ci'))
        from stubs import write_stubs

        write_stubs(root / cfg['lib_name'], Path(self.build_lib) / cfg['lib_name'])


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg['lib_name'] + '*']),
    package_data={
        cfg['lib_name']: ['assets/**/*', 'use/static/*.js']
    },  # images, checkpoints, their licences and the instruments' JavaScript travel in the wheel
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
    ],
    cmdclass={'build_py': Build},
    zip_safe=False,
)

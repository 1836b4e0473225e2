"""A pipeline on the hub and back.

The two functions at the boundary, creating a repository and uploading, are replaced by a folder.
"""

from pathlib import Path
from unittest import mock

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from nfig.transformer import names as hub
from nfig.transformer.pipeline import NFIGPipeline


class Api:
    "What `huggingface_hub.HfApi` does, in a folder"

    root = None

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, **kw):
        (self.root / repo_id).parent.mkdir(parents=True, exist_ok=True)
        return mock.Mock(repo_id=repo_id)

    def upload_folder(self, repo_id, folder_path, **kw):
        Path(folder_path).rename(self.root / repo_id)
        return repo_id


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder that stands for the hub"
    monkeypatch.setattr(Api, 'root', tmp_path)
    monkeypatch.setattr('huggingface_hub.hub_mixin.HfApi', Api)
    monkeypatch.setattr(hub, 'snapshot_download', lambda name, **kw: str(tmp_path / name))
    return tmp_path


def test_push_and_pull(folder):
    pipe = NFIGPipeline.from_pretrained('fashion-mnist')
    pipe.about = dict(license='mit', data='Fashion-MNIST')
    pipe.push_to_hub('me/clothes', dtype=torch.float16)
    assert {p.name for p in (folder / 'me/clothes').iterdir()} == {
        'README.md',
        'config.json',
        'tokenizer',
        'transformer',
    }
    card = (folder / 'me/clothes/README.md').read_text()
    for word in (
        'license: mit',
        'library_name: nfig',
        '1, 2, 3, 4, 6, 8',
        'Sneaker',
        'data | Fashion-MNIST',
    ):
        assert word in card, word
    same = NFIGPipeline.from_pretrained('me/clothes')
    assert (
        torch.equal(same('Bag', seed=1), pipe('Bag', seed=1)) and same.about == pipe.about
    )  # bundled in 16 bits: nothing is lost


def test_not_there(monkeypatch):
    def offline(*args, **kw):
        raise LocalEntryNotFoundError('no connection')

    monkeypatch.setattr(hub, 'snapshot_download', offline)
    with pytest.raises(FileNotFoundError, match='me/clothes is no folder here.*no connection'):
        NFIGPipeline.from_pretrained('me/clothes')
    with pytest.raises(FileNotFoundError, match="Did you mean 'fashion-mnist'"):
        NFIGPipeline.from_pretrained('fashion-mnis')  # no name of the hub: nothing is asked

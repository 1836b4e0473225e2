"""A test that needs what is not installed is skipped with the reason, or fails where the component
is required"""

import conftest
import pytest


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setitem(conftest.components, 'rocket', lambda: 'no rocket installed: build one')


def test_missing_component_skips(missing):
    with pytest.raises(pytest.skip.Exception, match='needs rocket: no rocket installed: build one'):
        conftest.check('rocket', [])


def test_missing_component_fails_where_required(missing, monkeypatch):
    monkeypatch.setenv('NFIG_REQUIRE', 'slurm,rocket')
    with pytest.raises(pytest.fail.Exception, match='needs rocket: no rocket'):
        conftest.check('rocket', conftest.required())


def test_required_names_are_known():
    assert set(conftest.required()) <= set(conftest.components)

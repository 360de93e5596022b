"""The contract, held by RADOS, on three real OSDs."""

import uuid

import pytest

from core.store.factory import open_store
from core.store.testing import StoreContract

pytestmark = pytest.mark.system


class TestRadosStore(StoreContract):
    @pytest.fixture
    def stores(self, ceph):
        url = ceph.rados_url(uuid.uuid4().hex)
        return lambda: open_store(url, environment={})

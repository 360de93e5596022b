"""The contract, held by S3 as Ceph's RGW speaks it."""

import uuid

import pytest

from core.store.factory import open_store
from core.store.testing import StoreContract

pytestmark = pytest.mark.system


class TestS3Store(StoreContract):
    @pytest.fixture
    def stores(self, ceph):
        url = ceph.s3_url(uuid.uuid4().hex)
        return lambda: open_store(url, environment=ceph.s3_environment)

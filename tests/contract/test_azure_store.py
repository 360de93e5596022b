"""The contract, held by Azure Blob Storage as Azurite emulates it."""

import uuid

import pytest

from core.store.factory import open_store
from core.store.testing import StoreContract

pytestmark = pytest.mark.system


class TestAzureStore(StoreContract):
    @pytest.fixture
    def stores(self, azurite):
        url = azurite.url(uuid.uuid4().hex)
        return lambda: open_store(url, environment=azurite.environment)

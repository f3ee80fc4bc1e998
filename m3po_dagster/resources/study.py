"""The study a deployment works on, and the store it keeps results in."""

import dagster as dg
from pydantic import Field

from m3po_dagster.home import DEFAULT_STORE
from m3po_dagster.identity import Identities
from m3po_dagster.storage.file_facts import FileFacts
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import Study, load_study


class StudyResource(dg.ConfigurableResource):
    """A study file. It is read anew for every step, so that an edited alpha counts without a restart."""

    path: str = Field(description="the study file")

    def load(self) -> Study:
        """The study as it stands in the file now. Raises StudyError."""
        return load_study(self.path)


class StoreResource(dg.ConfigurableResource):
    """The content-addressed store."""

    root: str = Field(DEFAULT_STORE, description="folder or URL of the store")

    def open(self) -> ArtifactStore:
        """The store. It is made when something is first written to it."""
        return ArtifactStore(self.root)

    def identities(self) -> Identities:
        """Identities whose file hashes are cached beside the store."""
        return Identities(FileFacts.kept_in(self.open().cache_folder).sha256)

"""The fixtures of a store in a bucket; a module that has a `store` of its own uses that one."""

from tests.s3_store import server as server
from tests.s3_store import store as store
from tests.s3_store import url as url

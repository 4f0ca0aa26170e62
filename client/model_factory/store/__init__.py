"""A folder of blobs and records: the server's store, and the trainer node's cache.

Blobs are content, named by their digest. Records are small documents under a key: which blobs a build resulted in, say.
Both are written beside their place, flushed to disk and renamed into it, so a reader sees a whole one or none, and
several processes and containers may use one folder at a time. What is damaged is removed when it is come upon, so it is
fetched or built again.

::

    blobs/ab/abcd...     content; its last access is the time of its last use, its modification time a mark (see below)
    records/ab/abcd...   canonical JSON
    staging/             being written; a file nobody holds a lock on is left over from a process that died
    scratch/             what a running server keeps to itself, swept in the same way; the lock is a file in the folder
    locks/               one file per thing being made, with who makes it; removed by its holder

Three uses of file locks, which the kernel takes back from a process that dies: exclusively on a file being staged, and
on a lock; shared on a blob for as long as somebody has it open or mapped, so that it is not evicted. ``locking`` finds
the kind of lock that works in the folder. Without such a lock the store works, and evicts nothing.
"""

from model_factory.digest import Blob
from model_factory.store.contents import Entry
from model_factory.store.locks import Holder
from model_factory.store.store import Store

__all__ = ["Blob", "Entry", "Holder", "Store"]

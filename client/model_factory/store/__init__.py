"""A folder of blobs and records: the server's store, and the node cache of a trainer.

A blob is content, named by its digest. A record is a small document under a key, for example the digests of a build's
blobs. Each file is written in ``staging``, flushed to disk and renamed into place, so readers see a whole file or no
file, and several processes and containers can use one folder at a time. A damaged file is removed when a reader finds
the damage; the content is then fetched or built again.

::

    blobs/ab/abcd...     content; access time: last use; modification time: a mark, see ``contents.py``
    records/ab/abcd...   canonical JSON
    staging/             files being written; a file without a lock is left over from a process that died
    scratch/             folders private to a running server, removed like staged files; each has a lock file
    locks/               one file per key being worked on, with the holder's name; removed by the holder

In a folder of several users, ``ownership.py`` has the rule for the files of other users. A file is named
``abcd...-UID`` where another user has taken the first name. No name below the folder of the store may be a link.

File locks have three uses. The kernel releases the locks of a process that dies. An exclusive lock is held on a file
being staged, and on a file in ``locks``. A shared lock is held on a blob while a process has the blob open or mapped,
so that the blob is not evicted. ``file_locks`` finds the kind of lock that works in the folder. Where no lock works,
the store works without eviction.
"""

from model_factory.digest import Blob
from model_factory.store.contents import Entry
from model_factory.store.named_locks import Holder
from model_factory.store.store import Store

__all__ = ["Blob", "Entry", "Holder", "Store"]

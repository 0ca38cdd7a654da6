"""What operating systems, file managers and sync tools leave in every folder, a store's too; it harms nothing."""

from __future__ import annotations

import re
from fnmatch import translate

_NAMES = """
._* .DS_Store .AppleDouble .LSOverride .localized .fseventsd .Spotlight-V100 .TemporaryItems .Trashes __MACOSX Icon\r
Thumbs.db Thumbs.db:encryptable ehthumbs.db ehthumbs_vista.db desktop.ini ~$* $RECYCLE.BIN
.nfs* .fuse_hidden* .smbdelete* .cifs* .directory .Trash-* lost+found .snapshot .goutputstream-*
*.swp *.swo *.swx *~ .#* #*#
@eaDir #recycle .@__thumb @Recently-Snapshot SynoResource *@SynoEAStream *@SynoResource
.dropbox .dropbox.attr .dropbox.cache *conflicted?copy* .stfolder .stignore .stversions .syncthing.* ~syncthing~*
*.sync-conflict-* ._sync_*.db* .sync_*.db* .owncloudsync.log* .nextcloudsync.log* *.icloud .rsync-partial .~tmp~
.ipynb_checkpoints
"""
_IS_LITTER = re.compile(
    "|".join(translate(name) for name in _NAMES.strip("\n").replace("\n", " ").split(" ") if name)
)


def is_litter(name: str) -> bool:
    """Whether a name in a folder is that of litter; no file of a store has one.

    >>> [is_litter(name) for name in ("._zarr.json", ".DS_Store", ".nfs0001", "zarr.json", ".3.tmp")]
    [True, True, True, False, False]
    """
    return _IS_LITTER.match(name) is not None

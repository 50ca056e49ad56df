"""Which of a VM's disks a VM group wants, as BackupVm is told."""

from __future__ import annotations

from pydantic import Field

from safehaul.messages.base import Message


class DiskCriteria(Message):
    """What a disk must be like; every criterion that is given must fit."""

    label: str = ""
    """Glob over the disk's label, such as `Hard disk 2`."""
    controller_key: int | None = None
    """Device key of its controller: 1000 is the first SCSI controller."""
    unit_number: int | None = None
    datastore: str = ""
    """Glob over the name of the datastore that holds its base."""
    file: str = ""
    """Glob over the path of its base descriptor in that datastore: `web-1/web-1_2.vmdk`; `*` takes slashes too."""
    min_size_bytes: int | None = None
    max_size_bytes: int | None = None
    """Both bounds belong to the range; the size is the capacity."""
    ignore_case: bool = False


class DiskSelection(Message):
    """A disk is selected when any of `include` fits, or none is given, and none of `exclude` fits."""

    include: list[DiskCriteria] = Field(default_factory=list)
    exclude: list[DiskCriteria] = Field(default_factory=list)

    @property
    def everything(self) -> bool:
        """True when nothing is filtered."""
        return not (self.include or self.exclude)

"""The one error tree of safehaul.

    SafehaulError
    ├── TransientError          worth another try: the same call may succeed later
    │   ├── ConnectionLostError     a peer (vCenter, filer, store) did not answer or hung up
    │   ├── SessionLostError        vCenter no longer knows the session (NotAuthenticated)
    │   ├── UnreadableError         the disk below a store cannot read an object, now or for good
    │   ├── BusyError               a peer asks us to come later, or holds a lock
    │   ├── VmMovedError            the VM's files changed place or identity during the backup
    │   └── DatastoreFullError      a datastore has no space for the operation now
    ├── PermanentError          another try of the same call cannot succeed
    │   ├── ConfigError             the configuration is wrong or lacks something
    │   ├── InvalidInputError       what a person or a caller gave is wrong
    │   ├── LoginRefusedError       vCenter refused the user name or password
    │   ├── PermissionRefusedError  a privilege, an export or a file's mode forbids it
    │   ├── NotFoundError           the named object does not exist
    │   ├── AlreadyExistsError      refused to overwrite what exists
    │   ├── UnsupportedError        a disk, format or feature that this transport cannot do
    │   │   └── QuiesceRefusedError     the guest could not be quiesced; the VM group decides what then
    │   ├── PolicyError             a limit or rule of the configuration forbids it
    │   ├── RepositoryFullError     the repository has no space; a person must make some
    │   ├── SnapshotLostError       the snapshot no longer holds what step 8 found; a new one may
    │   └── StaleLeaseError         another process has taken over; this one must stop
    └── IntegrityError          stored or read bytes are not what they must be: never retried, always loud

Every message says what failed, on which object, and what the person can do next. Messages never hold secrets.
`activities.errors` translates the tree to Temporal's `ApplicationError`; nothing else does.
"""

from __future__ import annotations


class SafehaulError(Exception):
    """Base of every error that safehaul raises on purpose."""


class TransientError(SafehaulError):
    """Worth another try: the same call may succeed later."""


class ConnectionLostError(TransientError):
    """A peer (vCenter, filer, object store) did not answer or hung up."""


class SessionLostError(TransientError):
    """VCenter no longer knows the session; the next call logs in again."""


class UnreadableError(TransientError):
    """The disk below a store cannot read an object. Another try may; a verification takes it for damage."""


class BusyError(TransientError):
    """A peer asks us to come later, or another process holds what we need."""


class VmMovedError(TransientError):
    """The VM's files changed place or identity while we worked (Storage vMotion, ESTALE): rediscover it."""


class DatastoreFullError(TransientError):
    """A datastore has no space for the operation; it may have some later."""


class PermanentError(SafehaulError):
    """Another try of the same call cannot succeed."""


class ConfigError(PermanentError):
    """The configuration is wrong or lacks something; the message names file, key and reason."""


class InvalidInputError(PermanentError):
    """What a person or a caller gave is wrong; the message names the field and the reason."""


class LoginRefusedError(PermanentError):
    """VCenter refused the user name or password. Never tried again, lest the account is locked."""


class PermissionRefusedError(PermanentError):
    """A privilege, an export's rule or a file's mode forbids the operation; the message names which."""


class NotFoundError(PermanentError):
    """The named object does not exist."""


class AlreadyExistsError(PermanentError):
    """Refused to overwrite what exists."""


class UnsupportedError(PermanentError):
    """A disk, format or feature that this transport cannot handle."""


class QuiesceRefusedError(UnsupportedError):
    """The guest could not be quiesced; the VM group decides whether a crash-consistent snapshot will do."""


class PolicyError(PermanentError):
    """A limit or rule of the configuration forbids it."""


class RepositoryFullError(PermanentError):
    """The repository has no space left.

    Permanent, although somebody may make room: until then a VM's snapshot would be held and grow, for as long as
    the step's tries go on (a day at the MediaAgent).
    """


class SnapshotLostError(PermanentError):
    """The VM's snapshot is gone, or its disks are elsewhere: nothing more can be read from it.

    The same call can never succeed; the VM may be backed up from a new snapshot in the same job.
    """


class StaleLeaseError(PermanentError):
    """Another process has taken over the job or session; this one must stop."""


class IntegrityError(SafehaulError):
    """Stored or read bytes are not what they must be. Never retried, always loud."""

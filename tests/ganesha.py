"""What a test needs that runs nfs-ganesha: skipped by name where something is missing, a failure in CI."""

from __future__ import annotations

import pytest

GANESHA = (
    pytest.mark.requires_root,
    pytest.mark.requires_debian("ganesha.nfsd", package="nfs-ganesha"),
    pytest.mark.requires_debian("/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so", package="nfs-ganesha-vfs"),
    pytest.mark.requires_debian("rpcbind", package="rpcbind"),
)


def needs_ganesha(*values: object, slow: bool = False) -> object:
    """A parameter set that runs only where ganesha can; its first value is its id."""
    marks = (*GANESHA, pytest.mark.slow) if slow else GANESHA
    return pytest.param(*values, marks=marks, id=str(values[0]))

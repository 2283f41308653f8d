"""A small iSCSI target whose faults a test chooses: for those that real servers cannot show."""

from __future__ import annotations

from tests.support.faulty_target.target import IQN, FaultyTarget, sense, unit_attention, wait_for

__all__ = ["IQN", "FaultyTarget", "sense", "unit_attention", "wait_for"]

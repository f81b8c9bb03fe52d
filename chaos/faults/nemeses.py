"""All nemeses by name."""

from chaos.faults.clock import ClockJump, ClockRate, ClockStrobe
from chaos.faults.disk import BitFlip, DiskFull, LostDisk, PowerCut, Truncated
from chaos.faults.disturbing import Flapping, MidMessageCut, Reset, Slicer, SlowWan
from chaos.faults.dying import KillInside, OutOfMemory
from chaos.faults.gateways import CacheCut, ClientCut, FeedFrozen, GatewayCut, SiteCut
from chaos.faults.membership import Replaced
from chaos.faults.nemesis import Nemesis
from chaos.faults.network import (
    DatacenterCut,
    HoldOld,
    Isolate,
    MajoritiesRing,
    OneWay,
    Refused,
    StallAndRelease,
)
from chaos.faults.process import CacheKill, GatewayKill, Kill, Pause, RestartStorm, RollingRestart
from chaos.faults.tampering import LyingDisk, SlowSync, SyncError

NEMESES: dict[str, type[Nemesis]] = {
    nemesis.name: nemesis
    for nemesis in (
        DatacenterCut,
        Isolate,
        MajoritiesRing,
        OneWay,
        StallAndRelease,
        HoldOld,
        Refused,
        Reset,
        SlowWan,
        Slicer,
        MidMessageCut,
        Flapping,
        SiteCut,
        GatewayCut,
        FeedFrozen,
        CacheCut,
        ClientCut,
        Kill,
        KillInside,
        Pause,
        RollingRestart,
        RestartStorm,
        OutOfMemory,
        GatewayKill,
        CacheKill,
        ClockJump,
        ClockRate,
        ClockStrobe,
        PowerCut,
        DiskFull,
        SlowSync,
        SyncError,
        LyingDisk,
        BitFlip,
        Truncated,
        LostDisk,
        Replaced,
    )
}
"""Make a new one for each strike: NEMESES[name]()."""

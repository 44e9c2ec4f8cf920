"""A process's memory, read from what Linux says about its mappings."""

from __future__ import annotations

from sixfold.bench import memory

SMAPS = """\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 12 /usr/bin/python3.11
Size:                  4 kB
Rss:                   4 kB
Pss:                   2 kB
Shared_Clean:          4 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
VmFlags: rd mr mw me sd
7f0000000000-7f0010000000 r--s 00000000 fe:00 13 /home/a b/plans/x.plan
Size:             262144 kB
Rss:                 100 kB
Pss:                  50 kB
Shared_Clean:         80 kB
Private_Clean:        20 kB
Private_Dirty:         0 kB
VmFlags: rd mr mw me ms sd
7f0020000000-7f0060000000 rw-p 00000000 00:00 0
Size:            1048576 kB
Rss:                2048 kB
Pss:                2048 kB
Shared_Clean:          0 kB
Private_Clean:         0 kB
Private_Dirty:      2048 kB
VmFlags: rd wr mr mw me ac sd hg
7f0070000000-7f0070400000 rw-p 00000000 00:00 0
Size:               4096 kB
Rss:                 512 kB
Pss:                 512 kB
Shared_Clean:          0 kB
Private_Clean:         0 kB
Private_Dirty:       512 kB
VmFlags: rd wr mr mw me ac sd hg
"""


def test_the_plan_the_kv_memory_and_the_rest() -> None:
    found = memory.split(SMAPS)
    assert found["rss"] == (4 + 100 + 2048 + 512) << 10
    assert (found["plan"]["rss"], found["plan"]["pss"], found["plan"]["shared_clean"]) == (
        100 << 10,
        50 << 10,
        80 << 10,
    )
    assert found["kv"]["private_dirty"] == 2048 << 10, "the largest of no file that asked for large pages"
    assert found["rest"]["rss"] == 516 << 10
    assert memory.together([found, memory.split("")])["plan_shared_share"] == 0
    assert memory.together([found])["plan_shared_share"] == 0.8

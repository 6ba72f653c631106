import json
import subprocess
import sys

import pytest
import torch

from custom.utils.device import keep_freed_memory, release_freed_memory

#: Page faults of taking and returning 64 MiB five times, by default and with blocks kept, which find their places after
#: some times.
COUNT = """
import json, resource, torch
from custom.utils.device import keep_freed_memory

def faults():
    for _ in range(20):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([faults(), keep_freed_memory(), faults()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told to keep memory")
def test_kept_memory_is_not_cleared_by_the_system_again():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    default, kept, after = json.loads(done.stdout)
    if not kept:
        pytest.skip("this C library is not glibc")
    if default < 5000:  # of 5 * 16384 pages of 4 KiB
        pytest.skip("this system joins pages to huge ones, which are cleared much faster")
    assert after < default / 100


#: Bytes of 256 MiB that stay with the process when they are freed, and when they are released.
HELD = """
import json, pathlib, torch
from custom.utils.device import keep_freed_memory, release_freed_memory

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

kept = keep_freed_memory()
block, behind = torch.ones(2**26), torch.ones(2**20)
before = resident()
del block
freed = resident()
release_freed_memory()
print(json.dumps([kept, before - freed, before - resident()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told to keep memory")
def test_released_memory_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    kept, freed, released = json.loads(done.stdout)
    if not kept:
        pytest.skip("this C library is not glibc")
    assert freed < 2**24
    assert released > 2**27


def test_gpus_and_other_systems_are_left_as_they_are(monkeypatch):
    assert not keep_freed_memory("cuda")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory("cpu")
    release_freed_memory()
    assert torch.ones(2).sum() == 2

"""What a lost process is to the others: one line, and nothing else is mistaken for it."""

import os
import subprocess
import sys

import pytest
import torch.distributed as dist

from elocute.errors import RunError
from elocute.training.pulse import reporting_loss


def test_a_store_whose_process_is_gone_is_one_line():
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, wait_for_workers=False)
    del server
    with pytest.raises(RunError, match="^another process of the run has ended") as caught, reporting_loss():
        client.get("nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("Broken pipe"), dist.DistError("wrong shape"), OSError("Broken pipe")])
def test_what_is_no_lost_process_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught, reporting_loss():
        raise error
    assert caught.value is error


def test_a_process_ends_also_where_nobody_reads_its_line():
    """Its thread says so, while the main thread waits for who is lost."""
    lines = "import threading, time; from elocute.training import pulse; "
    lines += "threading.Thread(target=pulse._end, args=['lost'], daemon=True).start(); time.sleep(60)"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", lines], stderr=write, timeout=1800)
    os.close(write)
    assert done.returncode == 1

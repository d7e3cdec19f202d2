"""What a lost process is to the others: one line, and nothing else is mistaken for it."""

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

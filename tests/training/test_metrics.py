"""What all processes' parts give is what one process with all answers would say."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from elocute.training.metrics import alike

LABELS = st.sampled_from(["Happy", "Sad", "Angry"])


def test_a_process_that_hears_one_label_or_asks_for_one_is_no_judge_that_does_not_listen():
    happy, sad = Counter({("Happy", "Happy"): 4}), Counter({("Sad", "Sad"): 4})
    assert alike([happy]) is None and alike([happy, Counter()]) is None and alike([Counter()]) is None
    assert alike([happy, sad]) == 0.5
    assert alike([Counter({("Happy", "Sad"): 4}), sad]) == 1


@given(st.lists(st.tuples(LABELS, LABELS, st.integers(0, 3)), max_size=30))
def test_labels_are_heard_alike_however_answers_are_shared_among_processes(answers):
    parts = [Counter((asked, heard) for asked, heard, rank in answers if rank == mine) for mine in range(4)]
    heard = [heard for _, heard, _ in answers]
    several = len({asked for asked, _, _ in answers}) > 1
    assert alike(parts) == (max(map(heard.count, heard)) / len(heard) if several else None)

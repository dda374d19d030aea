"""How many threads write characters."""

from lstmlm.kernels.pace import TRIAL, Pace


def test_a_team_that_has_to_wait_is_given_up_and_tried_again() -> None:
    """Both numbers of threads are tried, the quicker one is taken, and the other one gets a chance every half second."""
    pace = Pace(4)
    slow = {4: 0.01, 1: 0.002}

    def taken(seconds: int) -> list[int]:
        counts = []
        for hundredth in range(100 * seconds):
            count, most = pace.plan(clock + hundredth / 100)
            assert most == TRIAL or count == min(slow, key=slow.__getitem__)
            pace.note(count, slow[count])
            counts.append(count)
        return counts

    clock = 100.0
    assert taken(5).count(1) > 480
    clock, slow = 200.0, {4: 0.001, 1: 0.002}
    assert taken(5).count(4) > 300
    assert Pace(1).plan(0.0)[0] == 1

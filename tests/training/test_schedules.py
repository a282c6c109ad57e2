import pytest

from gebm.training.schedules import energy_steps, remaining


@pytest.mark.parametrize("step", [0, 500, 1000, 149_500])
def test_many_energy_steps_at_the_start_and_at_every_500th_base_step(step):
    assert energy_steps(step, 5, 100) == 100


@pytest.mark.parametrize("step", [1, 2, 24, 25, 100, 499, 501, 999, 1001])
def test_few_energy_steps_otherwise(step):
    assert energy_steps(step, 5, 100) == 5


def test_the_factor_falls_linearly_and_never_reaches_zero_in_a_step():
    factors = [remaining(step, 4) for step in range(4)]
    assert factors == [1.0, 0.75, 0.5, 0.25]

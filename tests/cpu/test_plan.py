"""Plans on the CPU."""

from plan_contract import PlanContract


class TestPlan(PlanContract):
    pass

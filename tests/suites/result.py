"""What a suite said, and what is different between two runs of it."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Result:
    """Tests that passed, by name, and what else was said of tests."""

    passed: Counter
    failed: list = field(default_factory=list)

    def lacks(self, other):
        """What `other` passed and this did not."""
        return sorted((other.passed - self.passed).elements())

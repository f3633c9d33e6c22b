"""What a suite said, and what is different between two runs of it."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Result:
    """Tests that passed, by name, and names of those that failed."""

    passed: Counter = field(default_factory=Counter)
    failed: list = field(default_factory=list)
    panics: list = field(default_factory=list)

    @property
    def count(self):
        return self.passed.total()

    def lacks(self, other):
        """What `other` passed and this did not."""
        return sorted((other.passed - self.passed).elements())

    def again(self, second):
        """Counts what passed at the second try."""
        self.passed |= second.passed
        self.panics += second.panics

    @staticmethod
    def sum(results):
        total = Result()
        for result in results:
            total.passed += result.passed
        return total

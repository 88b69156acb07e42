"""Is it true? Evaluation (the only reader of the test split), measures, controls, verdicts, the page."""

from synthnet.audit.evaluation import split_data, summary

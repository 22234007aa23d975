"""Other ways to make a list, given the same data, the same evaluator and the same number of evaluator calls."""

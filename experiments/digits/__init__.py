"""Two-stage attribution judged by thousands of retrainings of a small network on scikit-learn's digits."""

"""ACM (sHype): Simple Type Enforcement and Chinese Wall."""

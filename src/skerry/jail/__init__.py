"""How a helper process is confined. Standard library only; stands alone."""

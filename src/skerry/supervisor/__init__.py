"""The parent of every jail and of the node. Standard library only; stands alone."""

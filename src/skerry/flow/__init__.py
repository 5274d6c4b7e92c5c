"""Information flow: what can reach what over the flows a policy allows."""

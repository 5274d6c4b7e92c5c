"""From policy files to frozen models, and the policy manager that decides with them."""

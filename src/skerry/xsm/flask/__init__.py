"""Flask: type enforcement, roles and MLS constraints, as SELinux and Xen decide them."""

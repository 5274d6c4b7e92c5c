"""The reference monitor: domains, bind, cut, generations. Imports only xsm, label and errors."""

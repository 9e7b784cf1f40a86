"""Devices of a machine whose CPU does not run, programmed by hand over qtest."""

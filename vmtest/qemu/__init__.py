"""One QEMU process: its command line, its life, its QMP monitor, its console and the channels for commands."""

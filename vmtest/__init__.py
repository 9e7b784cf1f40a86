"""Boot real guests under QEMU or KVM, drive them, and compare what they do.

    >>> import vmtest
    >>> with vmtest.boot("linux-x86_64") as guest:
    ...     guest.run("uname -s").stdout
    'Linux\\n'
"""

"""The fixture ``qtest`` in a project's tests."""

from __future__ import annotations

import pytest


def test_a_device_by_hand(pytester: pytest.Pytester) -> None:
    """A test programs a device of the default machine, and one of the board that its marker names; both end with it."""
    pytester.makepyfile(
        """
        import psutil
        import pytest

        def test_bar0_reset_value(qtest):
            nic = qtest.pci("e1000e")
            nic.enable()
            assert nic.bar(0).readl(0x0008) & 0x80000000 == 0

        @pytest.mark.qtest("-device", "edu", binary="qemu-system-aarch64", machine="virt", memory=128)
        def test_on_arm(qtest):
            edu = qtest.pci("edu")
            edu.enable()
            assert edu.bar(0).readl(0) == 0x010000ED

        def test_nothing_is_started_for_nothing(qtest):
            assert not qtest.is_running

        def test_nothing_is_left():
            assert [one.name() for one in psutil.Process().children(recursive=True)] == []
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--strict-markers")
    result.assert_outcomes(passed=4)


def test_what_goes_wrong(pytester: pytest.Pytester) -> None:
    """A device that ends QEMU fails the test with its words; a marker or a device of nonsense is the user's error."""
    pytester.makepyfile(
        """
        import pytest
        from vmtest.deadline import Deadline

        def test_crash(qtest):
            edu = qtest.pci("edu")
            edu.enable()
            bar = edu.bar(0)
            bar.writel(0x88, 0xFFFF0000)
            bar.writel(0x90, 4)
            bar.writel(0x98, 1)
            while True:
                bar.readl(0)

        def test_last(qtest):
            edu = qtest.pci("edu")
            edu.enable()
            for offset, value in ((0x88, 0xFFFF0000), (0x90, 4), (0x98, 1)):
                edu.bar(0).writel(offset, value)
            qtest.session.process.wait(Deadline(30))

        @pytest.mark.qtest(memory="64M")
        def test_memory(qtest):
            qtest.readl(0)

        @pytest.mark.qtest(speed=3)
        def test_marker(qtest):
            pass

        def test_device(qtest):
            qtest.pci("e1000x")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2, errors=3)
    result.stdout.fnmatch_lines_random(
        [
            "*QemuDied: readl 0xe* was not answered: QEMU has ended: error: EDU: DMA range*",
            "*QemuDied: behind the last operation: QEMU has ended: error: EDU: DMA range*",
            "*qemu: hardware error: EDU: DMA range*",
            "*UsageError: @pytest.mark.qtest: memory='64M'*",
            "*UsageError: @pytest.mark.qtest: speed=3*",
            "*UsageError: qemu-system-x86_64 has no device 'e1000x'*",
            "*hint: such as *e1000e*",
        ]
    )

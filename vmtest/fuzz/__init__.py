"""Cases by the thousand: where they come from, which of their differences are one, and the smallest case of each."""

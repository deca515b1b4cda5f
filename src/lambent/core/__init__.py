"""The scheduler: pure decisions, told the time, fed with facts, answering with commands. No I/O at all."""

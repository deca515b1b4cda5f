"""How long an environment may rest before it is frozen."""

from __future__ import annotations

import asyncio

from lambent.worker.freezer import FREEZE_AFTER_NS, PATIENCE_MAX_S, SOON_S, Freezer


def test_patience_doubles_for_those_wanted_soon_and_is_short_again_for_others() -> None:
    loop = asyncio.new_event_loop()
    try:
        freezer = Freezer(loop, True)
        patience_ns = FREEZE_AFTER_NS
        seen = []
        for _ in range(8):
            patience_ns = freezer.patience_ns(patience_ns, int(SOON_S * 1e9) - 1)
            seen.append(patience_ns)
        assert seen[0] == 2 * FREEZE_AFTER_NS
        assert seen == sorted(seen)
        assert seen[-1] == int(PATIENCE_MAX_S * 1e9)
        assert freezer.patience_ns(patience_ns, int(SOON_S * 1e9)) == FREEZE_AFTER_NS
    finally:
        loop.close()

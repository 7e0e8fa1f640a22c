"""Progress on standard error, by tqdm where it is installed."""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional, Union

#: Called with a stage, how many samples or parts are done, and how many there are; with a note, 0 and 0.
Callback = Callable[[str, int, int], object]
Progress = Union[bool, Callback, None]


class _Bars:
    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._stage: Optional[str] = None
        self._bar: Any = None

    def __call__(self, stage: str, done: int, of: int) -> None:
        if of == 0:
            self._tqdm.write(f"note: {stage}", file=sys.stderr)
            return
        if stage != self._stage:
            self.close()
            self._stage, self._bar = stage, self._tqdm(total=of, desc=stage, leave=False, file=sys.stderr)
        self._bar.update(done - self._bar.n)
        if done >= of:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None


def _lines(stage: str, done: int, of: int) -> None:
    """Without tqdm: a line when a stage begins."""
    if of == 0:
        print(f"note: {stage}", file=sys.stderr)
    elif done == 0:
        print(f"{stage}: {of}", file=sys.stderr)


class Shown:
    """The callback for a value of ``progress``, closed when the work ends."""

    def __init__(self, progress: Progress) -> None:
        self._bars: Optional[_Bars] = None
        self.callback: Optional[Callback] = None
        if callable(progress):
            self.callback = progress
        elif progress or (progress is None and sys.stderr is not None and sys.stderr.isatty()):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                self.callback = _lines
            else:
                self.callback = self._bars = _Bars(tqdm)

    def __enter__(self) -> Optional[Callback]:
        return self.callback

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.close()

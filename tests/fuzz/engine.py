"""``python -m fuzz.engine TARGET SECONDS FOLDER``: fuzz one target in this process.

The last line of the output is the number of inputs.
"""

from __future__ import annotations

import logging
import random
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

LONGEST = 8192
#: Bytes that random changes insert.
PIECES = [b"\0", b"\xff", b"\xed\xa0\x80", b"{", b"[", b'"', b"\n", b"9" * 400, b"-"]


def main(name: str, seconds: float, folder: Path) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        atheris: Any = import_module("atheris")
    except ImportError:
        print(f"Done {_change_at_random(*_prepare(name), seconds)} inputs at random")
        return
    with atheris.instrument_imports(include=["flask_procore_webhooks"]):
        function, seeds = _prepare(name)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    options = [f"-max_total_time={seconds:.0f}", f"-max_len={LONGEST}"]
    options += [f"-artifact_prefix={folder}/", "-print_final_stats=1", "-timeout=20"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], function)
    atheris.Fuzz()


def _prepare(name: str) -> tuple[Callable[[bytes], None], list[bytes]]:
    targets: Any = import_module("fuzz.targets")
    return targets.TARGETS[name].make(), targets.seeds(name)


def _change_at_random(
    function: Callable[[bytes], None], seeds: list[bytes], seconds: float
) -> int:
    rng = random.Random(0)
    end, done = time.monotonic() + seconds, 0
    while done < len(seeds) or time.monotonic() < end:
        data = seeds[done] if done < len(seeds) else _changed(rng, seeds)
        try:
            function(data)
        except BaseException:
            print(f"input: {data!r}", file=sys.stderr)
            raise
        done += 1
    return done


def _changed(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        length = rng.choice([0, 0, 1, 1, 2, 8, 64])
        other = rng.choice(seeds)
        start = rng.randint(0, len(other))
        piece = rng.choice([b"", rng.randbytes(1), rng.choice(PIECES)])
        data[at : at + length] = rng.choice([piece, other[start : start + length]])
    return bytes(data[:LONGEST])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
